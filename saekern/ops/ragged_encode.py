"""What encoders with any number of codes a row share: their result, and its gradients."""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from saekern import _C, reference
from saekern.ops import checks, library
from saekern.ops.topk_encode import LatentOrder


class RaggedCodes(NamedTuple):
    """Codes in CSR: row b owns offsets[b]:offsets[b+1], ascending by latent."""

    values: Tensor  # [nnz]
    indices: Tensor  # [nnz] int64
    offsets: Tensor  # [B+1] int64
    order: LatentOrder | None = None  # the codes sorted by latent, for `decode`; None where no gradient is required


def latent_gather(vector: Tensor, codes: RaggedCodes) -> Tensor:
    """vector[indices]: what belongs to each code's latent.

    Equivalent to: `vector[codes.indices]`, but the gradient, a sum over each latent's codes, is taken in their order:
    the same bits for any thread count and on any device.

    Args:
        vector: [F].
        codes: of F latents.

    Returns:
        [nnz] in vector's dtype. Gradients flow to vector.
    """
    checks.shape("vector", vector, ("F",))
    checks.floating("vector", vector)
    checks.same_device("vector", vector, codes.indices, "codes")
    entries, segments = (None, None) if codes.order is None else codes.order
    return torch.ops.saekern.latent_gather(vector, codes.indices, codes.offsets, entries, segments)


def _gather(vector, indices, offsets, entries, segments):
    return vector[indices]


def _gather_fake(vector, indices, offsets, entries, segments):
    return vector.new_empty(indices.shape)


library.define(
    "latent_gather(Tensor vector, Tensor indices, Tensor offsets, Tensor? entries, Tensor? segments) -> Tensor",
    cpu=_gather,
    cuda=_gather,
    reference=_gather,
    fake=_gather_fake,
)


def _gather_context(ctx, inputs, output):
    vector, indices, offsets, entries, segments = inputs
    ctx.save_for_backward(vector, indices, offsets, entries, segments)


def _gather_backward(ctx, grad):
    vector, indices, offsets, entries, segments = ctx.saved_tensors
    # The decoder's weight gradient Σ value · row over each latent's codes, with rows of one 1.
    ones = grad.new_ones(offsets.numel() - 1, 1)
    _, sums, _ = torch.ops.saekern.decode_backward(
        ones, grad.contiguous(), indices, vector[:, None], offsets, entries, segments, [False, True, False]
    )
    return sums[:, 0], None, None, None, None


library.autograd("latent_gather", _gather_backward, _gather_context)


def order_of(indices: Tensor, num_latents: int, wanted: bool) -> tuple[Tensor, Tensor]:
    """entries and segments of `LatentOrder` on CPU, empty where not wanted."""
    entries = torch.empty(indices.numel() if wanted else 0, dtype=torch.int32)
    segments = torch.empty(num_latents + 1 if wanted else 0, dtype=torch.int32)
    if wanted:
        _C.latent_order(indices.numpy(), num_latents, library.threads(), entries.numpy(), segments.numpy())
    return entries, segments


def reference_order(indices: Tensor, num_latents: int, wanted: bool) -> tuple[Tensor, Tensor]:
    """The same on other devices."""
    if wanted:
        return reference.latent_order(indices, num_latents)
    empty = indices.new_empty(0, dtype=torch.int32)
    return empty, empty.clone()


def _backward_reference(grad, values, indices, offsets, x, weight, pre_bias, entries, segments, relu, need):
    grads = reference.ragged_encode_backward(grad, values, indices, offsets, x, weight, pre_bias, relu)
    return tuple(g.to(x.dtype) if wanted else x.new_empty(0) for g, wanted in zip(grads, need, strict=True))


def _backward_cpu(grad, values, indices, offsets, x, weight, pre_bias, entries, segments, relu, need):
    if x.dtype == torch.float64:
        return _backward_reference(grad, values, indices, offsets, x, weight, pre_bias, entries, segments, relu, need)
    shapes = (x.shape, weight.shape, weight.shape[:1], x.shape[1:])
    outs = [library.output(shape, wanted) for shape, wanted in zip(shapes, need, strict=True)]
    arrays = map(library.array, (grad, values, indices, x, weight, pre_bias, offsets, entries, segments))
    _C.topk_encode_backward(*arrays, relu, library.threads(), *map(library.array, outs))
    return tuple(library.rounded(out, x.dtype) for out in outs)


def _backward_cuda(grad, values, indices, offsets, x, weight, pre_bias, entries, segments, relu, need):
    """The decoder's kernels serve: dx gathers rows of weight, dweight and dbias sum rows of x and of 1 by latent."""
    if x.dtype == torch.float64:
        return _backward_reference(grad, values, indices, offsets, x, weight, pre_bias, entries, segments, relu, need)
    wide = weight.to(torch.float32)
    grad = grad.to(torch.float32)
    if relu:
        grad = torch.where(values <= 0, 0, grad)
    outs = [x.new_empty(0) for _ in need]
    if need[0]:
        gather = library.kernels("decode").decode
        outs[0] = gather(grad, indices, wide, None, offsets).to(x.dtype)

    def sums(rows: Tensor, shape_of: Tensor) -> Tensor:
        backward = library.kernels("decode_backward").decode_backward
        return backward(rows, grad, indices, shape_of, offsets, entries, segments, [False, True, False])[1]

    if need[1]:
        centred = x.to(torch.float32) if pre_bias is None else x.to(torch.float32) - pre_bias.to(torch.float32)
        outs[1] = sums(centred, wide).to(x.dtype)
    if need[2] or need[3]:
        grad_bias = sums(wide.new_ones(x.shape[0], 1), wide[:, :1].contiguous())
        outs[2] = grad_bias[:, 0].to(x.dtype) if need[2] else outs[2]
        if need[3]:
            weighted = library.kernels("topk_encode_backward").weighted_row_sum
            outs[3] = -weighted(grad_bias[:, 0].contiguous(), wide).to(x.dtype)
    return tuple(outs)


def _backward_fake(grad, values, indices, offsets, x, weight, pre_bias, entries, segments, relu, need):
    shapes = (x.shape, weight.shape, weight.shape[:1], x.shape[1:])
    return tuple(x.new_empty(s if wanted else (0,)) for s, wanted in zip(shapes, need, strict=True))


library.define(
    "ragged_encode_backward(Tensor grad, Tensor values, Tensor indices, Tensor offsets, Tensor x, Tensor weight,"
    " Tensor? pre_bias, Tensor entries, Tensor segments, bool relu, bool[4] need) -> (Tensor, Tensor, Tensor, Tensor)",
    cpu=_backward_cpu,
    cuda=_backward_cuda,
    reference=_backward_reference,
    fake=_backward_fake,
)


def _setup_context(ctx, inputs, output):
    x, weight, _, _, pre_bias, _ = inputs
    values, indices, offsets, entries, segments = output
    ctx.mark_non_differentiable(indices, offsets, entries, segments)
    ctx.save_for_backward(x, weight, pre_bias, values, indices, offsets, entries, segments)


def _backward(ctx, grad, _indices, _offsets, _entries, _segments, *, relu):
    x, weight, pre_bias, values, indices, offsets, entries, segments = ctx.saved_tensors
    needs = ctx.needs_input_grad  # x, weight, bias, threshold or total, pre_bias, order
    need = [needs[0], needs[1], needs[2], needs[4]]
    grads = torch.ops.saekern.ragged_encode_backward(
        grad.contiguous(), values, indices, offsets, x, weight, pre_bias, entries, segments, relu, need
    )
    gx, gw, gb, gp = (g if wanted else None for g, wanted in zip(grads, need, strict=True))
    return gx, gw, gb, None, gp, None


def autograd(name: str, relu: bool) -> None:
    """For an op (x, weight, bias, …, pre_bias, order) -> (values, indices, offsets, entries, segments)."""
    library.autograd(name, partial(_backward, relu=relu), _setup_context)
