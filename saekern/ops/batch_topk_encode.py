"""The encoder of BatchTopK: the largest scores of a whole batch in one pass, without the [B, F] matrix."""

import torch
from torch import Tensor

from saekern import _C, reference
from saekern.ops import checks, library
from saekern.ops.ragged_encode import RaggedCodes, autograd, order_of, reference_order
from saekern.ops.topk_encode import LatentOrder
from saekern.reference.topk_encode import scores

CHUNK = 1 << 24  # dense scores at a time on CUDA: 64 MiB of float32, and eight times that to choose from them


def batch_topk_encode(
    x: Tensor, weight: Tensor, bias: Tensor | None, total: int, *, pre_bias: Tensor | None = None
) -> RaggedCodes:
    """The `total` largest of ReLU((x − pre_bias) Wᵀ + bias) over all rows and latents.

    Equivalent to: `score = ((x - pre_bias) @ weight.T + bias).relu().flatten()`, the first `total` places of
    `score.sort(descending=True, stable=True)`, as the codes of each row.

    Args:
        x: rows [B, D].
        weight: encoder [F, D], one latent a row (`sae.W_enc.T`).
        bias: [F] or None.
        total: 0 ≤ total ≤ B·F; k·B for k codes a row on average.
        pre_bias: [D], subtracted from every row, or None.

    Returns:
        The codes in CSR, ascending by latent within a row: values [total] in x's dtype, indices, offsets [B+1]. Always
        `total` of them, so no size depends on data: if fewer scores are positive, the rest are codes of value 0 at the
        first rows' first latents that are 0 after ReLU; they carry no gradient. Ties go to the smaller row, then
        latent; NaN counts as largest. Exact: the order is that of float32 scores computed in one fixed order of
        summation (float64 scores for float64 input), the same for any thread count.

    On a GPU it is torch's product and top-k, a block of rows at a time, which waits for nothing: there is no kernel of
    ours in it yet.

    Gradients flow to x, weight, bias and pre_bias.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or total out of range.
    """
    x, weight, bias, pre_bias = checks.encoder(x, weight, bias, pre_bias)
    checks.between("total", total, 0, x.shape[0] * weight.shape[0], "B·F")
    wanted = library.differentiable(x, weight, bias, pre_bias)
    values, indices, offsets, entries, segments = torch.ops.saekern.batch_topk_encode(
        x, weight, bias, total, pre_bias, wanted
    )
    return RaggedCodes(values, indices, offsets, LatentOrder(entries, segments) if wanted else None)


def _reference(x, weight, bias, total, pre_bias, order):
    values, indices, offsets = reference.batch_topk_encode(x, weight, bias, total, pre_bias=pre_bias)
    return values, indices, offsets, *reference_order(indices, weight.shape[0], order)


def _cpu(x, weight, bias, total, pre_bias, order):
    if x.dtype == torch.float64:
        return _reference(x, weight, bias, total, pre_bias, order)
    values, indices = torch.empty(total), torch.empty(total, dtype=torch.int64)
    offsets = torch.empty(x.shape[0] + 1, dtype=torch.int64)
    arrays = map(library.array, (x, weight, bias, pre_bias, values, indices, offsets))
    _C.batch_topk_encode(*arrays, library.threads(), library.isa())
    return values.to(x.dtype), indices, offsets, *order_of(indices, weight.shape[0], order)


def _cuda(x, weight, bias, total, pre_bias, order):
    """Of all rows so far the `total` largest stay, in the order of their places, so that equals go to the first."""
    if x.dtype == torch.float64:
        return _reference(x, weight, bias, total, pre_bias, order)
    latents = weight.shape[0]
    rows = max(1, CHUNK // max(1, latents))
    values, places = x.new_empty(0, dtype=torch.float32), x.new_empty(0, dtype=torch.int64)
    with library.without_tf32():
        for first in range(0, x.shape[0] if total else 0, rows):
            score = scores(x[first : first + rows], weight, bias, pre_bias).relu().reshape(-1)
            found = largest(score, min(total, score.numel()))
            values, places = torch.cat([values, score[found]]), torch.cat([places, found + first * latents])
            kept = largest(values, min(total, values.numel()))
            values, places = values[kept], places[kept]
    firsts = torch.arange(x.shape[0] + 1, device=x.device) * latents
    indices, offsets = places % max(1, latents), torch.searchsorted(places, firsts)
    return values.to(x.dtype), indices, offsets, *reference_order(indices, latents, order)


def largest(values: Tensor, count: int) -> Tensor:
    """Where the `count` ≥ 1 largest of values [n] stand, ascending; the first of equals, NaN largest. As the first of a
    stable descending sort, without one, and without waiting for the device."""
    everywhere = torch.arange(values.numel(), device=values.device)
    if count == values.numel():
        return everywhere
    least = values.topk(count).values[-1]
    nan = values.isnan()
    above = (values > least) | (nan & ~least.isnan())
    level = (values == least) | (nan & least.isnan())
    chosen = above | (level & (level.cumsum(0) <= count - above.sum()))
    slot = torch.where(chosen, chosen.cumsum(0) - 1, count)  # the last slot takes what was not chosen
    return everywhere.new_empty(count + 1).scatter_(0, slot, everywhere)[:count]


def _fake(x, weight, bias, total, pre_bias, order):
    index = x.new_empty(total, dtype=torch.int64)
    offsets = x.new_empty(x.shape[0] + 1, dtype=torch.int64)
    entries = x.new_empty(total if order else 0, dtype=torch.int32)
    segments = x.new_empty(weight.shape[0] + 1 if order else 0, dtype=torch.int32)
    return x.new_empty(total), index, offsets, entries, segments


library.define(
    "batch_topk_encode(Tensor x, Tensor weight, Tensor? bias, int total, Tensor? pre_bias, bool order)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    cpu=_cpu,
    cuda=_cuda,
    reference=_reference,
    fake=_fake,
    on_cuda="torch, by blocks of rows",
)
autograd("batch_topk_encode", relu=True)
