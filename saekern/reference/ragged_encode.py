"""Encoders whose rows have any number of codes: those above a threshold, or the largest of a whole batch; as CSR."""

import torch
from torch import Tensor

from saekern.reference.decode import rows_of
from saekern.reference.precision import accumulation
from saekern.reference.topk_encode import scores


def threshold_encode(
    x: Tensor, weight: Tensor, bias: Tensor | None, threshold: Tensor, *, pre_bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    score = scores(x, weight, bias, pre_bias)
    chosen = (score > threshold) | score.isnan()
    offsets = torch.zeros(x.shape[0] + 1, dtype=torch.int64, device=x.device)
    offsets[1:] = chosen.sum(1).cumsum(0)
    rows, indices = chosen.nonzero(as_tuple=True)
    return score[rows, indices].to(x.dtype), indices, offsets


def batch_topk_encode(
    x: Tensor, weight: Tensor, bias: Tensor | None, total: int, *, pre_bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    score = scores(x, weight, bias, pre_bias).relu().reshape(-1)
    places = score.sort(descending=True, stable=True).indices[:total].sort().values  # row-major, ascending
    firsts = torch.arange(x.shape[0] + 1, device=x.device) * weight.shape[0]
    return score[places].to(x.dtype), places % weight.shape[0], torch.searchsorted(places, firsts)


def ragged_encode_backward(
    grad: Tensor,
    values: Tensor,
    indices: Tensor,
    offsets: Tensor,
    x: Tensor,
    weight: Tensor,
    pre_bias: Tensor | None,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients to x, weight, bias and pre_bias; with `relu` none through values ≤ 0."""
    wide = accumulation(x)
    grad = grad.to(wide)
    if relu:
        grad = torch.where(values <= 0, 0, grad)  # NaN passes, as in torch.relu
    centred = x.to(wide) if pre_bias is None else x.to(wide) - pre_bias.to(wide)
    grad_scores = torch.zeros(x.shape[0], weight.shape[0], dtype=wide, device=x.device)
    grad_scores[rows_of(values, offsets), indices] = grad
    grad_x = grad_scores @ weight.to(wide)
    return grad_x, grad_scores.T @ centred, grad_scores.sum(0), -grad_x.sum(0)
