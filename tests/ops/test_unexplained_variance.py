"""The reconstruction loss against float64, its gradient, and equal bits for any thread count."""

import pytest
import torch

from saekern import _C, ops, reference

SHAPES = [(1, 1), (2, 7), (127, 33), (129, 64), (1000, 13)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_and_gradients(shape):
    """Sums are in float64, so only the roundings of the result remain.

    Planted: rows after the first chunk left out of the mean; the last column left out of the error; both caught."""
    target, estimate = (torch.randn(shape) + 3).requires_grad_(), torch.randn(shape, requires_grad=True)
    fraction = ops.unexplained_variance(target, estimate)
    (2.5 * fraction).backward()
    want, variance = reference.unexplained_variance(target.detach().double(), estimate.detach().double())
    gradient = 5 * (estimate.detach().double() - target.detach().double()) / variance
    assert abs(fraction.item() - want.item()) <= 2.0**-23 * want.item()
    assert bool(((estimate.grad.double() - gradient).abs() <= 2.0**-23 * gradient.abs()).all())
    assert torch.equal(target.grad, -estimate.grad)


def test_an_offset_costs_no_precision():
    """A mean of 1000 times the spread: squares minus the square of the mean would lose six digits."""
    target = torch.randn(500, 20) + 1000
    estimate = target + 0.1 * torch.randn(500, 20)
    want, _ = reference.unexplained_variance(target.double(), estimate.double())
    assert abs(ops.unexplained_variance(target, estimate).item() - want.item()) <= 2.0**-23 * want.item()


@pytest.mark.parametrize("rows", [0, 1, 300])
def test_without_variance_the_denominator_is_one(rows):
    target, estimate = torch.full((rows, 3), 0.1), torch.full((rows, 3), 0.6)
    assert ops.unexplained_variance(target, estimate).item() == pytest.approx(0.25 * 3 * rows, rel=1e-6)


def test_same_bits_for_any_thread_count():
    target, estimate = torch.randn(1001, 37).numpy(), torch.randn(1001, 37).numpy()
    want = _C.unexplained_variance(target, estimate, 1)
    assert all(_C.unexplained_variance(target, estimate, threads) == want for threads in (2, 3))


def test_nan_reaches_the_loss():
    target = torch.randn(5, 4)
    estimate = target.clone()
    estimate[2, 1] = torch.nan
    assert ops.unexplained_variance(target, estimate).isnan()


def test_dtypes():
    target = torch.randn(30, 8)
    assert ops.unexplained_variance(target.bfloat16(), target).dtype == torch.float32
    assert ops.unexplained_variance(target.double(), target.double()).dtype == torch.float64
    estimate = torch.randn(30, 8).bfloat16().requires_grad_()
    ops.unexplained_variance(target, estimate).backward()
    assert estimate.grad.dtype == torch.bfloat16


def test_opcheck():
    target, estimate = torch.randn(9, 4), torch.randn(9, 4, requires_grad=True)
    torch.library.opcheck(torch.ops.saekern.unexplained_variance, (target, estimate))


def test_compiles_whole():
    target, estimate = torch.randn(9, 4), torch.randn(9, 4)
    compiled = torch.compile(ops.unexplained_variance, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(target, estimate), ops.unexplained_variance(target, estimate))


def test_errors():
    with pytest.raises(ValueError, match=r"target: expected shape \[B, D\], got \[3\]"):
        ops.unexplained_variance(torch.zeros(3), torch.zeros(3))
    with pytest.raises(ValueError, match=r"estimate: expected shape \[3, 2\], got \[2, 3\]"):
        ops.unexplained_variance(torch.zeros(3, 2), torch.zeros(2, 3))
