"""x̂_b = Σ_k values[b,k] · weight[indices[b,k]] + bias, from `[B, K]` codes or ragged (CSR) ones."""

import torch
from torch import Tensor

from saekern.reference.precision import accumulation


def rows_of(values: Tensor, offsets: Tensor | None) -> Tensor:
    """The row b of each code, in storage order, [nnz]."""
    if offsets is None:
        return torch.arange(values.shape[0], device=values.device).repeat_interleave(values.shape[1])
    return torch.arange(offsets.numel() - 1, device=values.device).repeat_interleave(offsets.diff())


def decode(
    values: Tensor, indices: Tensor, weight: Tensor, bias: Tensor | None = None, offsets: Tensor | None = None
) -> Tensor:
    wide = accumulation(weight)
    batch = values.shape[0] if offsets is None else offsets.numel() - 1
    out = torch.zeros(batch, weight.shape[1], dtype=wide, device=weight.device)
    if bias is not None:
        out += bias.to(wide)
    terms = values.reshape(-1, 1).to(wide) * weight[indices.reshape(-1)].to(wide)  # [nnz, D]
    return out.index_add_(0, rows_of(values, offsets), terms).to(weight.dtype)


def latent_order(indices: Tensor, num_latents: int) -> tuple[Tensor, Tensor]:
    """The codes sorted by latent (CSC): entries [nnz] int32, positions in storage order, stable; segments [F+1] int32.

    entries[segments[f] : segments[f+1]] are the codes of latent f, in row order."""
    flat = indices.reshape(-1)
    entries = flat.argsort(stable=True).to(torch.int32)
    counts = torch.bincount(flat, minlength=num_latents)
    segments = torch.zeros(num_latents + 1, dtype=torch.int32, device=indices.device)
    segments[1:] = counts.cumsum(0)
    return entries, segments


def decode_backward(
    grad: Tensor, values: Tensor, indices: Tensor, weight: Tensor, offsets: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to values, weight [F, D] and bias [D]."""
    wide = accumulation(weight)
    rows = rows_of(values, offsets)
    flat = indices.reshape(-1)
    grad_rows = grad.to(wide)[rows]  # [nnz, D]
    grad_values = (grad_rows * weight[flat].to(wide)).sum(1).reshape(values.shape)
    grad_weight = torch.zeros(weight.shape, dtype=wide, device=weight.device)
    grad_weight.index_add_(0, flat, values.reshape(-1, 1).to(wide) * grad_rows)
    return grad_values.to(values.dtype), grad_weight.to(weight.dtype), grad.to(wide).sum(0)


def decode_row_gradients(
    grad: Tensor, values: Tensor, indices: Tensor, weight: Tensor, offsets: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """As `decode_backward`, the weight's gradient as its non-empty rows: latents [M] ascending, rows [M, D], and the
    gradient to values."""
    grad_values, grad_weight, _ = decode_backward(grad, values, indices, weight, offsets)
    latents = indices.reshape(-1).unique()
    return latents, grad_weight[latents], grad_values
