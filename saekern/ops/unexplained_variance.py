"""The reconstruction loss and its gradient, one pass over the rows each."""

import torch
from torch import Tensor

from saekern import _C, reference
from saekern.ops import checks, library


def unexplained_variance(target: Tensor, estimate: Tensor) -> Tensor:
    """FVU = Σ‖t_b − e_b‖² / Σ‖t_b − t̄‖² over the rows of target and estimate [B, D], a scalar.

    Equivalent to: `(target - estimate).square().sum() / (target - target.mean(0)).square().sum()`. The denominator is a
    constant for the gradient, and 1 where it is 0 (one row, or all equal).

    Sums run in float64 in a fixed order: the same bits for any thread count. The result is float32 (float64 for float64
    target). Gradients flow to estimate and target.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit.
    """
    return unexplained_variance_and_spread(target, estimate)[0]


def unexplained_variance_and_spread(target: Tensor, estimate: Tensor) -> tuple[Tensor, Tensor]:
    """`unexplained_variance`, and σ = √(Σ‖t_b − t̄‖² / B) from the same pass: a constant for the gradient, in its dtype.
    Where the rows are all equal the sum counts as 1 in both."""
    checks.shape("target", target, ("B", "D"))
    checks.floating("target", target)
    checks.shape("estimate", estimate, tuple(target.shape))
    checks.floating("estimate", estimate)
    checks.same_device("estimate", estimate, target, "target")
    fvu, variance = torch.ops.saekern.unexplained_variance(target, estimate)
    return fvu, (variance.detach() / max(1, target.shape[0])).sqrt().to(fvu.dtype)


def _double(target: Tensor, estimate: Tensor) -> bool:
    return torch.float64 in (target.dtype, estimate.dtype)


def _cpu(target, estimate):
    if _double(target, estimate):
        return reference.unexplained_variance(target, estimate)
    error, variance = _C.unexplained_variance(library.array(target), library.array(estimate), library.threads())
    return torch.tensor(error / variance, dtype=torch.float32), torch.tensor(variance, dtype=torch.float64)


def _cuda(target, estimate):
    if _double(target, estimate):
        return reference.unexplained_variance(target, estimate)
    return library.kernels("unexplained_variance").unexplained_variance(target, estimate)


def _fake(target, estimate):
    wide = torch.promote_types(target.dtype, torch.float32)
    return target.new_empty((), dtype=wide), target.new_empty((), dtype=torch.float64)


library.define(
    "unexplained_variance(Tensor target, Tensor estimate) -> (Tensor, Tensor)",
    cpu=_cpu,
    cuda=_cuda,
    reference=reference.unexplained_variance,
    fake=_fake,
)


def _backward_cpu(grad, target, estimate, variance):
    if _double(target, estimate):
        return reference.unexplained_variance_backward(grad, target, estimate, variance)
    out = library.output(estimate.shape)
    scale = 2 * grad.item() / variance.item()
    _C.scaled_difference(library.array(estimate), library.array(target), scale, library.threads(), library.array(out))
    return out.to(estimate.dtype)


def _backward_cuda(grad, target, estimate, variance):
    if _double(target, estimate):
        return reference.unexplained_variance_backward(grad, target, estimate, variance)
    kernel = library.kernels("unexplained_variance").unexplained_variance_backward
    return kernel(grad, target, estimate, variance)


def _backward_fake(grad, target, estimate, variance):
    return torch.empty_like(estimate, memory_format=torch.contiguous_format)


library.define(
    "unexplained_variance_backward(Tensor grad, Tensor target, Tensor estimate, Tensor variance) -> Tensor",
    cpu=_backward_cpu,
    cuda=_backward_cuda,
    reference=reference.unexplained_variance_backward,
    fake=_backward_fake,
)


def _setup_context(ctx, inputs, output):
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs, output[1])


def _backward(ctx, grad, _):
    target, estimate, variance = ctx.saved_tensors
    gradient = torch.ops.saekern.unexplained_variance_backward(grad, target, estimate, variance)
    return (-gradient).to(target.dtype) if ctx.needs_input_grad[0] else None, gradient


library.autograd("unexplained_variance", _backward, _setup_context)
