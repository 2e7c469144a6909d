"""FVU = Σ‖t_b − e_b‖² / Σ‖t_b − t̄‖² over rows; the denominator is a constant for the gradient, and 1 where it is 0."""

import torch
from torch import Tensor


def unexplained_variance(target: Tensor, estimate: Tensor) -> tuple[Tensor, Tensor]:
    """The fraction, in the wider of float32 and the inputs' type, and the denominator in float64."""
    target64, estimate64 = target.to(torch.float64), estimate.to(torch.float64)
    mean = target64.sum(0) / max(target.shape[0], 1)
    variance = (target64 - mean).square().sum()
    variance = torch.where(variance == 0, 1, variance)
    fraction = (target64 - estimate64).square().sum() / variance
    return fraction.to(torch.promote_types(target.dtype, torch.float32)), variance


def unexplained_variance_backward(grad: Tensor, target: Tensor, estimate: Tensor, variance: Tensor) -> Tensor:
    """The gradient to the estimate; that to the target is its negative."""
    scale = 2 * grad.to(torch.float64) / variance
    return (scale * (estimate.to(torch.float64) - target.to(torch.float64))).to(estimate.dtype)
