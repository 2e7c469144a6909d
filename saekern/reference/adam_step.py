"""One Adam step on a matrix of rows, with the two row operations of unit-norm decoders around it."""

import torch
from torch import Tensor


def adam_step(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: int,
    *,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    project: bool = False,
    normalize: bool = False,
    latents: Tensor | None = None,
    rounded: Tensor | None = None,
) -> None:
    """g ← g − ⟨g, w⟩ w/‖w‖² per row (project);  m ← β₁m + (1−β₁)g;  v ← β₂v + (1−β₂)g²;
    w ← w − lr/(1−β₁ᵗ) · m / (√(v/(1−β₂ᵗ)) + eps);  w ← w/‖w‖ per row (normalize, zero rows kept).

    In place; t = step ≥ 1; the order of operations is that of `torch.optim.Adam`. With `latents` [M], grad [M, C] holds
    their rows and the others have gradient zero. `rounded` gets the new param in its own dtype.
    """
    grad = grad.to(param.dtype)
    if latents is not None:
        grad = torch.zeros_like(param).index_copy_(0, latents, grad)
    if project:
        square = (param * param).sum(-1, keepdim=True)
        along = (grad * param).sum(-1, keepdim=True)
        grad = grad - torch.where(square > 0, along / square, 0) * param
    exp_avg.lerp_(grad, 1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    denominator = (exp_avg_sq.sqrt() / (1 - beta2**step) ** 0.5).add_(eps)
    param.addcdiv_(exp_avg, denominator, value=-lr / (1 - beta1**step))
    if normalize:
        norm = torch.linalg.vector_norm(param, dim=-1, keepdim=True)
        param.copy_(torch.where(norm > 0, param / norm, param))
    if rounded is not None:
        rounded.copy_(param)
