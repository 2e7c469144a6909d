"""The Triton encoder's gradients against float64, at awkward shapes, in every storage type."""

import pytest
import torch
from bounds import assert_within_bound
from sparse_codes import SHAPES, indices_with_hot_latent

from saekern import reference
from saekern.kernels.segment_gradients import CHUNK
from saekern.kernels.topk_encode_backward import ROWS, topk_encode_backward, weighted_row_sum

NAMES = ("x", "weight", "bias", "pre_bias")
ALL = [True, True, True, True]


def problem(device, batch, k, width, latents, dtype=torch.float32):
    """grad, values, indices, x, weight, pre_bias; a third of the values are 0, as after ReLU, and one is NaN."""
    indices = indices_with_hot_latent(batch, k, latents)
    values = torch.randn(batch, k).abs()
    values[torch.rand(batch, k) < 0.3] = 0
    tensors = torch.randn(batch, k), values, torch.randn(batch, width), torch.randn(latents, width), torch.randn(width)
    grad, values, x, weight, pre_bias = (t.to(device, dtype) for t in tensors)
    return grad, values, indices.to(device), x, weight, pre_bias


def check(got, grad, values, indices, x, weight, pre_bias, relu):
    want = reference.topk_encode_backward(grad.double(), values, indices, x.double(), weight.double(), pre_bias, relu)
    bigger = None if pre_bias is None else -pre_bias.double().abs()
    size = reference.topk_encode_backward(
        grad.double().abs(), values, indices, x.double().abs(), weight.double().abs(), bigger, relu
    )
    batch, k = indices.shape
    most = int(torch.bincount(indices.flatten(), minlength=1).max()) if indices.numel() else 0
    terms = (k, most + 1, most, batch * k + weight.shape[0])
    for name, g, w, s, count in zip(NAMES, got, want, size, terms, strict=True):
        assert g.dtype == x.dtype
        assert_within_bound(name, g, w, s.abs(), count)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[1]])
def test_gradients(device, shape, dtype, relu):
    """Planted: the pre-bias not subtracted; the ReLU mask `< 0`; both caught."""
    grad, values, indices, x, weight, pre_bias = problem(device, *shape, dtype=dtype)
    for shift in (None, pre_bias):
        got = topk_encode_backward(grad, values, indices, x, weight, shift, None, None, relu, ALL)
        check(got, grad, values, indices, x, weight, shift, relu)


def test_a_latent_in_every_row(device):
    problem_ = problem(device, 2 * CHUNK + 5, 3, 37, 600)
    got = topk_encode_backward(*problem_, None, None, True, ALL)
    check(got, *problem_, True)


def test_nan_passes_the_relu_mask(device):
    grad, values, indices, x, weight, pre_bias = problem(device, 4, 2, 5, 9)
    values[1, 1] = float("nan")
    got = topk_encode_backward(grad, values, indices, x, weight, pre_bias, None, None, True, ALL)
    check(got, grad, values, indices, x, weight, pre_bias, True)


@pytest.mark.parametrize("wanted", range(16))
def test_only_the_wanted_gradients(device, wanted):
    inputs = problem(device, 7, 3, 11, 13)
    need = [bool(wanted >> i & 1) for i in range(4)]
    full = topk_encode_backward(*inputs, None, None, True, ALL)
    some = topk_encode_backward(*inputs, None, None, True, need)
    for a, b, flag in zip(full, some, need, strict=True):
        assert torch.equal(a, b) if flag else b.numel() == 0


@pytest.mark.parametrize("count", [0, 1, ROWS, 2 * ROWS + 3])
def test_weighted_row_sum_skips_rows_without_weight(device, count):
    """Planted: rows with weight 0 read too; caught by their NaN."""
    coefficients, rows = torch.randn(count), torch.randn(count, 29)
    coefficients[::3] = 0
    rows[::3] = float("nan")
    got = weighted_row_sum(coefficients.to(device), rows.to(device))
    used = coefficients != 0
    want = coefficients[used].double() @ rows[used].double()
    size = coefficients[used].double().abs() @ rows[used].double().abs()
    assert_within_bound("sum", got.cpu(), want, size, count)
