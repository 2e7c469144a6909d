"""The Triton optimiser step against float64, with the bounds of the CPU's test."""

import pytest
import torch
from adam_bounds import SETTINGS, assert_step_within_bound, state

from saekern.kernels import adam_step as kernel

SHAPES = [(1, 1), (1, 17), (7, 1), (5, 31), (64, 64), (33, 257), (3, 1100), (0, 4), (4, 0)]


def step_in_place(tensors, step, project=False, normalize=False, rounded=None):
    kernel.adam_step(*tensors, step, **SETTINGS, project=project, normalize=normalize, rounded=rounded)


@pytest.mark.parametrize(("project", "normalize"), [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_step_is_within_its_bound(device, shape, dtype, project, normalize):
    """Three steps, each from the state the last one left; zero rows and rows without gradient among them. Planted: the
    projection left out; bias correction without its root; moments of the old step stored. All caught."""
    tensors = [t.to(device) for t in state(shape, dtype)]
    for step in range(1, 4):
        before = [t.clone() for t in tensors]
        step_in_place(tensors, step, project, normalize)
        assert torch.equal(tensors[1], before[1])
        assert_step_within_bound(before, tensors, step, project, normalize, **SETTINGS)


@pytest.mark.parametrize("count", [0, 1, 13, 2 * kernel.BLOCK + 1])
def test_vectors(device, count):
    tensors = [t.to(device) for t in state((count,))]
    before = [t.clone() for t in tensors]
    step_in_place(tensors, 3)
    assert_step_within_bound(before, tensors, 3, False, False, **SETTINGS)


@pytest.mark.parametrize("project", [False, True])
def test_strided_tensors_are_changed_in_place(device, project):
    plain = [t.to(device) for t in state((12, 7))]
    odd = [t.t().contiguous().t() for t in plain]
    step_in_place(plain, 2, project)
    step_in_place(odd, 2, project)
    assert all(torch.equal(a, b) for a, b in zip(plain, odd, strict=True))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("row_operations", [False, True])
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_gradients_and_a_half_copy(device, half, row_operations, transposed):
    """The bits of a step whose gradient was widened before, and the copy those of a cast after it. Planted: the copy
    left from before the normalisation; caught."""
    wide = [t.to(device) for t in state((33, 257))]
    wide[1] = wide[1].to(half).float()
    tensors = [t.clone() for t in wide]
    tensors[1] = tensors[1].to(half)
    rounded = torch.full_like(tensors[1], torch.nan)
    if transposed:
        *tensors, rounded = (t.t().contiguous().t() for t in (*tensors, rounded))
    for step in (1, 2):
        step_in_place(wide, step, row_operations, row_operations)
        step_in_place(tensors, step, row_operations, row_operations, rounded)
    assert all(torch.equal(a, b.to(a.dtype)) for a, b in zip(wide, tensors, strict=True))
    param = tensors[0]
    if half == torch.bfloat16 and device == "cpu":
        param = (param.contiguous().view(torch.int32) & -65536).view(torch.float32)  # the interpreter cuts bits off
    assert torch.equal(rounded, param.to(half))


@pytest.mark.parametrize("row_operations", [False, True])
@pytest.mark.parametrize("latents", [[], [0], [2, 3, 11], list(range(12))], ids=len)
def test_listed_rows_are_the_dense_gradient(device, latents, row_operations):
    """Planted: the mask of rows without gradient left out; it crashed. Another row read; caught."""
    tensors = [t.to(device) for t in state((12, 37))]
    before = [t.clone() for t in tensors]
    latents = torch.tensor(latents, dtype=torch.int64, device=device)
    tensors[1] = torch.randn(len(latents), 37).to(device)
    before[1] = torch.zeros_like(before[0]).index_copy_(0, latents, tensors[1])
    kernel.adam_step(*tensors, 2, **SETTINGS, project=row_operations, normalize=row_operations, latents=latents)
    assert_step_within_bound(before, tensors, 2, row_operations, row_operations, **SETTINGS)


def test_a_row_too_wide_to_hold(device):
    tensors = [t.to(device) for t in state((1, kernel.WIDEST + 1))]
    with pytest.raises(
        ValueError, match="param: expected at most 8192 columns with project, normalize or latents, got 8193"
    ):
        step_in_place(tensors, 1, normalize=True)
    step_in_place(tensors, 1)
