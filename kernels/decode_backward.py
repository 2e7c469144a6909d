"""The gradients of `decode`: to code values and dictionary in one sweep over the upstream rows, and to the bias."""

import torch
from torch import Tensor

from saekern.kernels.latent_order import latent_order
from saekern.kernels.segment_gradients import segment_gradients


def decode_backward(
    grad: Tensor,
    values: Tensor,
    indices: Tensor,
    weight: Tensor,
    offsets: Tensor | None,
    entries: Tensor | None,
    segments: Tensor | None,
    need: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to values, weight [F, D] and bias [D]; empty where `need` says no."""
    need_values, need_weight, need_bias = need
    grad, values, weight = grad.contiguous(), values.contiguous(), weight.contiguous()
    grad_values, grad_weight = values.new_empty(0), weight.new_empty(0)
    if need_weight:
        grad_weight = torch.empty_like(weight)
    if need_values or need_weight:
        if entries is None or segments is None:
            entries, segments = latent_order(indices, weight.shape[0])
        dots = segment_gradients(
            entries,
            segments,
            indices,
            grad,
            codes_per_row=values.shape[-1],
            offsets=offsets,
            coefficients=values,
            weight=weight if need_values else None,
            row_sums=grad_weight if need_weight else None,
        )
        if dots is not None:
            grad_values = dots.reshape(values.shape)
    grad_bias = grad.sum(0, dtype=torch.float32).to(weight.dtype) if need_bias else weight.new_empty(0)
    return grad_values, grad_weight, grad_bias


def decode_row_gradients(
    grad: Tensor,
    values: Tensor,
    indices: Tensor,
    weight: Tensor,
    offsets: Tensor | None,
    entries: Tensor | None,
    segments: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """latents [M] int64 ascending, rows [M, D], and the gradient to values. M is read from the device: the one
    synchronisation in these kernels, which a result of unknown size cannot do without."""
    grad, values, weight = grad.contiguous(), values.contiguous(), weight.contiguous()
    if entries is None or segments is None:
        entries, segments = latent_order(indices, weight.shape[0])
    present = segments.diff() > 0
    latents = present.nonzero().squeeze(1)
    rows = weight.new_empty(latents.numel(), weight.shape[1])
    dots = segment_gradients(
        entries,
        segments,
        indices,
        grad,
        codes_per_row=values.shape[-1],
        offsets=offsets,
        coefficients=values,
        weight=weight,
        row_sums=rows,
        positions=present.cumsum(0, dtype=torch.int32) - 1,
    )
    assert dots is not None  # asked for by `weight`
    return latents, rows, dots.reshape(values.shape)
