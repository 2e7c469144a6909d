"""Large outputs take over the memory of earlier ones: whatever lay there must not show, and it must not pile up."""

import sys
from pathlib import Path

import pytest
import torch
from bounds import assert_within_bound

from saekern import _C, ops, reference
from saekern.ops import library

LATENTS = 8192


def used_before(shape) -> int:
    """Leaves a freed block full of NaN behind; its address."""
    block = library.output(shape).fill_(float("nan"))
    return block.data_ptr()


@pytest.mark.parametrize("width", [512, 513, 516])
def test_gradients_in_memory_used_before(width):
    """Rows of 0, 1, 2 and more codes, aligned and not. Planted: rows without codes left as they were; the last store of
    a row kept out of the streaming path; both caught."""
    weight = torch.randn(LATENTS, width)
    indices = torch.randint(LATENTS // 2, (96, 40))
    indices[:, 0] = 7
    values, grad = torch.randn(96, 40), torch.randn(96, width)
    used_before(weight.shape)
    weight.requires_grad_()
    ops.decode(values, indices, weight).backward(grad)
    exact = reference.decode_backward(grad.double(), values.double(), indices, weight.double())[1]
    size = reference.decode_backward(grad.double().abs(), values.double().abs(), indices, weight.double().abs())[1]
    assert_within_bound("gradient to weight", weight.grad, exact, size, int(indices.flatten().bincount().max()))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        first, weight.grad = weight.grad, None
        ops.decode(values, indices, weight).backward(grad)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(weight.grad, first)


def test_rows_of_the_encoder_gradient_too():
    x, weight = torch.randn(64, 512), torch.randn(LATENTS, 512)
    pre_bias = torch.randn(512)
    grads = []
    for _ in range(2):
        used_before(weight.shape)
        weight = weight.detach().requires_grad_()
        values, _ = ops.topk_encode(x, weight, None, 5, pre_bias=pre_bias)
        values.sum().backward()
        grads.append(weight.grad)
    assert torch.equal(*grads)
    assert torch.isfinite(grads[0]).all()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux blocks are kept")
def test_memory_is_taken_over_and_given_back():
    """Planted: freed blocks never unmapped; caught."""

    def mapped() -> int:
        return int(Path("/proc/self/statm").read_text().split()[0]) * 4096

    _C.release_memory()
    start, size = mapped(), _C.LARGE_OUTPUT
    address = used_before((size // 4 + 100,))
    assert used_before((size // 4,)) == address  # nearly as large
    two = [library.output((size // 4,)) for _ in range(2)]
    assert mapped() - start < 2.4 * size
    del two
    one = library.output((size // 2 - 4096,))  # neither fits, and all three would be more than there ever was
    assert mapped() - start < 2.4 * size
    del one
    _C.release_memory()
    assert mapped() - start < 0.2 * size


def test_a_tensor_outlives_the_release():
    kept = library.output((_C.LARGE_OUTPUT // 4,)).fill_(3.0)
    _C.release_memory()
    assert bool((kept == 3).all())
