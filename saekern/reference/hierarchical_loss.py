"""L = 1/B Σ_b Σ_j w_j ‖bias + Σ_{i < cuts[b,j]} values[b,i] · weight[indices[b,i]] − target_b‖², code by code."""

import torch
from torch import Tensor

from saekern.reference.decode import rows_of
from saekern.reference.precision import accumulation


def padded(values: Tensor, indices: Tensor, offsets: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [B, K] of rows that may be shorter, and which of them exist; ragged ones are spread out first."""
    if offsets is None:
        return values, indices, torch.ones_like(indices, dtype=torch.bool)
    lengths, rows = offsets.diff(), rows_of(values, offsets)
    slots = torch.arange(values.numel(), device=values.device) - offsets[rows]
    shape = (lengths.numel(), int(lengths.max()) if lengths.numel() else 0)
    spread = [t.new_zeros(shape).index_put((rows, slots), t) for t in (values, indices)]
    return spread[0], spread[1], torch.arange(shape[1], device=values.device) < lengths[:, None]


def prefix_weights(exists: Tensor, cuts: Tensor, weights: Tensor) -> Tensor:
    """[B, K+1]: what a row's prefix of p codes counts. Cuts beyond the end of a row stand for the whole of it."""
    cuts = cuts.expand(exists.shape[0], -1).clamp(max=exists.sum(1, keepdim=True))
    out = weights.new_zeros(exists.shape[0], exists.shape[1] + 1)
    return out.scatter_add_(1, cuts, weights.expand(cuts.shape))


def prefixes(values, indices, weight, bias, target, cuts, weights, offsets):
    """For p = 0 … K: code p − 1 of each row (value, latent, exists; None at p = 0), the prefix's weight [B, 1], the
    prefix [B, D]."""
    wide = accumulation(weight)
    values, indices, exists = padded(values, indices, offsets)
    counts = prefix_weights(exists, cuts, weights.to(wide))
    x = torch.zeros(target.shape, dtype=wide, device=target.device)
    if bias is not None:
        x = x + bias.to(wide)
    yield None, counts[:, :1], x
    for p in range(values.shape[1]):
        value, latent, real = values[:, p, None].to(wide), indices[:, p], exists[:, p, None]
        x = torch.where(real, x + value * weight[latent].to(wide), x)
        yield (value, latent, real), counts[:, p + 1, None], x


def hierarchical_loss(
    values: Tensor,
    indices: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    cuts: Tensor,
    weights: Tensor,
    offsets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The loss and x̂ [B, D], every code of a row; cuts [J] or [B, J]."""
    wide = accumulation(weight)
    loss = torch.zeros((), dtype=torch.float64 if target.device.type != "mps" else wide, device=target.device)
    x = torch.zeros_like(target, dtype=wide)
    for _, count, x in prefixes(values, indices, weight, bias, target, cuts, weights, offsets):
        error = count * (x - target.to(wide)).square()
        loss = loss + torch.where(count > 0, error, 0).sum(dtype=loss.dtype)
    return (loss / max(target.shape[0], 1)).to(wide), x.to(weight.dtype)


def hierarchical_loss_backward(
    grad: Tensor,
    values: Tensor,
    indices: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    cuts: Tensor,
    weights: Tensor,
    offsets: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients to values, weight [F, D], bias [D] and target [B, D].

    S_i, the sum over the prefixes that hold code i of weight · residual, goes to the code and to its latent."""
    wide = accumulation(weight)
    scale = 2 * grad.to(wide) / max(target.shape[0], 1)
    steps = list(prefixes(values, indices, weight, bias, target, cuts, weights, offsets))
    suffix = torch.zeros_like(target, dtype=wide)
    grad_values = torch.zeros(target.shape[0], len(steps) - 1, dtype=wide, device=target.device)
    grad_weight = torch.zeros_like(weight, dtype=wide)
    for p, (code, count, x) in reversed(list(enumerate(steps))):
        suffix = suffix + torch.where(count > 0, scale * count * (x - target.to(wide)), 0)
        if code is not None:
            value, latent, real = code
            suffix_here = torch.where(real, suffix, 0)
            grad_values[:, p - 1] = (suffix_here * weight[latent].to(wide)).sum(1)
            grad_weight.index_add_(0, latent, torch.where(real, value * suffix, 0))
    if offsets is not None:
        grad_values = grad_values[padded(values, indices, offsets)[2]]
    return grad_values.to(values.dtype), grad_weight.to(weight.dtype), suffix.sum(0), -suffix
