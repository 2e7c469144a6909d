"""The Triton loss and its gradient against float64."""

import pytest
import torch
from bounds import assert_within_bound

from saekern import reference
from saekern.kernels.unexplained_variance import ROWS, unexplained_variance, unexplained_variance_backward

SHAPES = [(1, 1), (2, 3), (ROWS - 1, 17), (ROWS, 64), (2 * ROWS + 1, 515), (0, 4), (5, 0)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_value_and_gradient(device, shape, dtype):
    """The mean is a hundred times the spread: it must not cost digits.

    Planted: sums not taken from the first row on; caught."""
    target = (100 + torch.randn(shape)).to(device, dtype)
    estimate = (100 + torch.randn(shape)).to(device, dtype)
    value, variance = unexplained_variance(target, estimate)
    want, want_variance = reference.unexplained_variance(target.double(), estimate.double())
    torch.testing.assert_close(variance, want_variance.double(), rtol=1e-12, atol=0)
    assert_within_bound("fvu", value, want, want.abs(), 1)
    grad = torch.tensor(0.7, device=device)
    got = unexplained_variance_backward(grad, target, estimate, variance)
    exact = reference.unexplained_variance_backward(grad.double(), target.double(), estimate.double(), want_variance)
    assert got.dtype == dtype
    assert_within_bound("gradient", got, exact, exact.abs(), 3)


def test_equal_rows_have_variance_one(device):
    target = torch.full((7, 33), 0.1, device=device)
    value, variance = unexplained_variance(target, target + 1)
    assert variance == 1
    assert value > 0


def test_strides_change_nothing(device):
    target, estimate = torch.randn(2, 40, 9).to(device).unbind()
    plain = unexplained_variance(target, estimate)
    odd = unexplained_variance(target.t().contiguous().t(), estimate)
    assert all(torch.equal(a, b) for a, b in zip(plain, odd, strict=True))
