"""The encoder with a threshold: all scores above it in one pass, without the [B, F] matrix."""

import torch
from torch import Tensor

from saekern import _C, reference
from saekern.ops import checks, library
from saekern.ops.ragged_encode import RaggedCodes, autograd, order_of, reference_order
from saekern.ops.topk_encode import LatentOrder

CHUNK = 1 << 26  # dense scores at a time on CUDA: 256 MiB of float32


def threshold_encode(
    x: Tensor, weight: Tensor, bias: Tensor | None, threshold: Tensor | float, *, pre_bias: Tensor | None = None
) -> RaggedCodes:
    """All of (x − pre_bias) Wᵀ + bias that exceed the threshold.

    Equivalent to: `score = (x - pre_bias) @ weight.T + bias`, `rows, indices = (score > threshold).nonzero().T` and
    `values = score[rows, indices]`.

    Args:
        x: rows [B, D].
        weight: encoder [F, D], one latent a row (`sae.W_enc.T`).
        bias: [F] or None.
        threshold: a number, or a tensor of one element or [F]. It gets no gradient.
        pre_bias: [D], subtracted from every row, or None.

    Returns:
        The codes in CSR, ascending by latent within a row: values [nnz] in x's dtype, indices, offsets [B+1]. A score
        that is NaN is among them; one equal to its threshold is not. Exact: float32 scores computed in one fixed order
        of summation (float64 scores for float64 input) are compared with the threshold in float32, so the result is
        the same for any thread count.

    nnz depends on the data: on a GPU the call waits for the device, once for each 2^26 scores, and takes torch's own
    products of dense blocks of that size. There is no kernel of ours in it yet.

    Gradients flow to x, weight, bias and pre_bias.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit.
    """
    x, weight, bias, pre_bias = checks.encoder(x, weight, bias, pre_bias)
    latents = weight.shape[0]
    exact = torch.float64 if x.dtype == torch.float64 else torch.float32
    if not isinstance(threshold, Tensor):
        threshold = torch.full((latents,), threshold, dtype=exact, device=x.device)
    checks.floating("threshold", threshold)
    checks.same_device("threshold", threshold, x, "x")
    if threshold.numel() == 1:
        threshold = threshold.reshape(1).expand(latents)
    checks.shape("threshold", threshold, (latents,))
    wanted = library.differentiable(x, weight, bias, pre_bias)
    values, indices, offsets, entries, segments = torch.ops.saekern.threshold_encode(
        x, weight, bias, threshold.detach().to(exact), pre_bias, wanted
    )
    return RaggedCodes(values, indices, offsets, LatentOrder(entries, segments) if wanted else None)


def _reference(x, weight, bias, threshold, pre_bias, order):
    values, indices, offsets = reference.threshold_encode(x, weight, bias, threshold, pre_bias=pre_bias)
    return values, indices, offsets, *reference_order(indices, weight.shape[0], order)


def _cpu(x, weight, bias, threshold, pre_bias, order):
    if x.dtype == torch.float64:
        return _reference(x, weight, bias, threshold, pre_bias, order)
    offsets = torch.empty(x.shape[0] + 1, dtype=torch.int64)
    arrays = map(library.array, (x, weight, bias, pre_bias, threshold))
    made = _C.threshold_encode(*arrays, offsets.numpy(), library.threads(), library.isa())
    values, indices = map(torch.from_numpy, made)
    return values.to(x.dtype), indices, offsets, *order_of(indices, weight.shape[0], order)


def _cuda(x, weight, bias, threshold, pre_bias, order):
    rows = max(1, CHUNK // max(1, weight.shape[0]))
    with library.without_tf32():
        parts = [
            reference.threshold_encode(part, weight, bias, threshold, pre_bias=pre_bias) for part in x.split(rows)
        ]  # an empty batch splits into one empty part
    values, indices = (torch.cat([part[i] for part in parts]) for i in (0, 1))
    counts = torch.cat([offsets.diff() for _, _, offsets in parts])
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return values, indices, offsets, *reference_order(indices, weight.shape[0], order)


def _fake(x, weight, bias, threshold, pre_bias, order):
    count = torch.library.get_ctx().new_dynamic_size()
    index = x.new_empty(count, dtype=torch.int64)
    offsets = x.new_empty(x.shape[0] + 1, dtype=torch.int64)
    entries = x.new_empty(count if order else 0, dtype=torch.int32)
    segments = x.new_empty(weight.shape[0] + 1 if order else 0, dtype=torch.int32)
    return x.new_empty(count), index, offsets, entries, segments


library.define(
    "threshold_encode(Tensor x, Tensor weight, Tensor? bias, Tensor threshold, Tensor? pre_bias, bool order)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    cpu=_cpu,
    cuda=_cuda,
    reference=_reference,
    fake=_fake,
    on_cuda="torch, by blocks of rows",
)
autograd("threshold_encode", relu=False)
