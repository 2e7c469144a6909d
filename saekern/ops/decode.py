"""The decoder: a gather-sum over the active latents, and its sparse, deterministic gradients."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from saekern import _C, reference
from saekern.ops import checks, library
from saekern.ops.topk_encode import LatentOrder


class RowGradients(NamedTuple):
    """The weight gradient as its non-empty rows."""

    latents: Tensor  # [M] int64, ascending
    rows: Tensor  # [M, D], in weight's dtype
    values: Tensor  # gradient to the code values, their shape


def decode(
    values: Tensor,
    indices: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    offsets: Tensor | None = None,
    *,
    order: LatentOrder | None = None,
) -> Tensor:
    """x̂_b = Σ_k values[b,k] · weight[indices[b,k]] + bias.

    Equivalent to: `torch.einsum("bk,bkd->bd", values, weight[indices]) + bias`, without the [B, K, D] tensor.

    Args:
        values, indices: codes [B, K], indices int64 in [0, F); or ragged (CSR): both [nnz], with `offsets`.
        weight: decoder [F, D], one latent a row.
        bias: [D] or None.
        offsets: [B+1] int64, ascending from 0 to nnz; row b owns the codes offsets[b]:offsets[b+1].
        order: the codes sorted by latent, if the encoder made it (saves the backward pass a sort).

    Returns:
        [B, D] in weight's dtype; float32 accumulation, one rounding.

    Gradients flow to values, weight and bias; sums run in a fixed order, so the same input gives the same bits for any
    thread count.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or on CPU an index outside [0, F).
    """
    entries, segments = check_codes(values, indices, weight, offsets, order)
    if torch.is_autocast_enabled(weight.device.type):
        dtype = torch.get_autocast_dtype(weight.device.type)
        weight, values = weight.to(dtype), values.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    if bias is not None:
        checks.shape("bias", bias, (weight.shape[1],))
        checks.floating("bias", bias, weight, "weight")
    checks.floating("values", values, weight, "weight")
    return torch.ops.saekern.decode(values, indices, weight, bias, offsets, entries, segments)


def decode_row_gradients(
    grad: Tensor,
    values: Tensor,
    indices: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    *,
    order: LatentOrder | None = None,
) -> RowGradients:
    """The gradients of `decode` for an upstream `grad` [B, D], the weight's as indices and rows.

    Equivalent to: `latents = indices.unique()`, `rows = weight.grad[latents]`, without the dense [F, D] gradient.
    """
    entries, segments = check_codes(values, indices, weight, offsets, order)
    checks.floating("values", values, weight, "weight")
    checks.floating("grad", grad, weight, "weight")
    checks.shape("grad", grad, (values.shape[0] if offsets is None else offsets.numel() - 1, weight.shape[1]))
    return RowGradients(
        *torch.ops.saekern.decode_row_gradients(grad, values, indices, weight, offsets, entries, segments)
    )


def check_codes(
    values: Tensor, indices: Tensor, weight: Tensor, offsets: Tensor | None, order: LatentOrder | None
) -> tuple[Tensor | None, Tensor | None]:
    """What every op over sparse codes asks of them; the order's two tensors."""
    checks.shape("weight", weight, ("F", "D"))
    checks.floating("weight", weight)
    checks.shape("values", values, ("B", "K") if offsets is None else ("nnz",))
    checks.shape("indices", indices, tuple(values.shape))
    checks.integer("indices", indices)
    checks.same_device("values", values, weight, "weight")
    checks.same_device("indices", indices, weight, "weight")
    if offsets is not None:
        checks.shape("offsets", offsets, ("B+1",))
        checks.integer("offsets", offsets)
        if offsets.numel() == 0:
            raise ValueError("offsets: expected shape [B+1] with at least one entry, got [0]")
    if order is None:
        return None, None
    for name, tensor, size in zip(order._fields, order, (values.numel(), weight.shape[0] + 1), strict=True):
        checks.shape(f"order.{name}", tensor, (size,))
        checks.integer(f"order.{name}", tensor, torch.int32)
    return order.entries, order.segments


def _reference(values, indices, weight, bias, offsets, entries, segments):
    return reference.decode(values, indices, weight, bias, offsets)


def _cpu(values, indices, weight, bias, offsets, entries, segments):
    if weight.dtype == torch.float64:
        return _reference(values, indices, weight, bias, offsets, entries, segments)
    out = library.output((values.shape[0] if offsets is None else offsets.numel() - 1, weight.shape[1]))
    arrays = map(library.array, (values, indices, weight, bias, offsets))
    _C.decode(*arrays, library.threads(), out.numpy())
    return out.to(weight.dtype)


def _cuda(values, indices, weight, bias, offsets, entries, segments):
    if weight.dtype == torch.float64:
        return _reference(values, indices, weight, bias, offsets, entries, segments)
    return library.kernels("decode").decode(values, indices, weight, bias, offsets)


def _fake(values, indices, weight, bias, offsets, entries, segments):
    return weight.new_empty(values.shape[0] if offsets is None else offsets.numel() - 1, weight.shape[1])


library.define(
    "decode(Tensor values, Tensor indices, Tensor weight, Tensor? bias, Tensor? offsets, Tensor? entries,"
    " Tensor? segments) -> Tensor",
    cpu=_cpu,
    cuda=_cuda,
    reference=_reference,
    fake=_fake,
)


def _backward_reference(grad, values, indices, weight, offsets, entries, segments, need):
    grads = reference.decode_backward(grad, values, indices, weight, offsets)
    dtypes = (values.dtype, weight.dtype, weight.dtype)
    return tuple(
        g.to(dtype) if wanted else weight.new_empty(0) for g, dtype, wanted in zip(grads, dtypes, need, strict=True)
    )


def _backward_cpu(grad, values, indices, weight, offsets, entries, segments, need):
    if weight.dtype == torch.float64:
        return _backward_reference(grad, values, indices, weight, offsets, entries, segments, need)
    shapes = (values.shape, weight.shape, weight.shape[1:])
    outs = [library.output(shape, wanted) for shape, wanted in zip(shapes, need, strict=True)]
    arrays = map(library.array, (grad, values, indices, weight, offsets, entries, segments))
    _C.decode_backward(*arrays, None, library.threads(), *map(library.array, outs))
    return tuple(library.rounded(out, weight.dtype) for out in outs)


def _backward_cuda(grad, values, indices, weight, offsets, entries, segments, need):
    if weight.dtype == torch.float64:
        return _backward_reference(grad, values, indices, weight, offsets, entries, segments, need)
    kernel = library.kernels("decode_backward").decode_backward
    return kernel(grad, values, indices, weight, offsets, entries, segments, need)


def _backward_fake(grad, values, indices, weight, offsets, entries, segments, need):
    shapes = (values.shape, weight.shape, weight.shape[1:])
    return tuple(weight.new_empty(s if wanted else (0,)) for s, wanted in zip(shapes, need, strict=True))


library.define(
    "decode_backward(Tensor grad, Tensor values, Tensor indices, Tensor weight, Tensor? offsets, Tensor? entries,"
    " Tensor? segments, bool[3] need) -> (Tensor, Tensor, Tensor)",
    cpu=_backward_cpu,
    cuda=_backward_cuda,
    reference=_backward_reference,
    fake=_backward_fake,
)


def _row_gradients_reference(grad, values, indices, weight, offsets, entries, segments):
    return reference.decode_row_gradients(grad, values, indices, weight, offsets)


def _row_gradients_cpu(grad, values, indices, weight, offsets, entries, segments):
    if weight.dtype == torch.float64:
        return _row_gradients_reference(grad, values, indices, weight, offsets, entries, segments)
    threads = library.threads()
    if entries is None:
        entries = torch.empty(indices.numel(), dtype=torch.int32)
        segments = torch.empty(weight.shape[0] + 1, dtype=torch.int32)
        _C.latent_order(library.array(indices), weight.shape[0], threads, entries.numpy(), segments.numpy())
    latents = torch.from_numpy(np.flatnonzero(np.diff(segments.numpy())))
    grad_values, rows = library.output(values.shape), library.output((latents.numel(), weight.shape[1]))
    arrays = map(library.array, (grad, values, indices, weight, offsets, entries, segments, latents))
    _C.decode_backward(*arrays, threads, grad_values.numpy(), rows.numpy(), None)
    return latents, rows.to(weight.dtype), grad_values.to(values.dtype)


def _row_gradients_cuda(grad, values, indices, weight, offsets, entries, segments):
    if weight.dtype == torch.float64:
        return _row_gradients_reference(grad, values, indices, weight, offsets, entries, segments)
    kernel = library.kernels("decode_backward").decode_row_gradients
    return kernel(grad, values, indices, weight, offsets, entries, segments)


def _row_gradients_fake(grad, values, indices, weight, offsets, entries, segments):
    count = torch.library.get_ctx().new_dynamic_size()
    return (
        values.new_empty(count, dtype=torch.int64),
        weight.new_empty(count, weight.shape[1]),
        values.new_empty(values.shape),
    )


library.define(
    "decode_row_gradients(Tensor grad, Tensor values, Tensor indices, Tensor weight, Tensor? offsets, Tensor? entries,"
    " Tensor? segments) -> (Tensor, Tensor, Tensor)",
    cpu=_row_gradients_cpu,
    cuda=_row_gradients_cuda,
    reference=_row_gradients_reference,
    fake=_row_gradients_fake,
)


def _setup_context(ctx, inputs, output):
    values, indices, weight, _, offsets, entries, segments = inputs
    ctx.save_for_backward(values, indices, weight, offsets, entries, segments)


def _backward(ctx, grad):
    values, indices, weight, offsets, entries, segments = ctx.saved_tensors
    needs = ctx.needs_input_grad  # values, indices, weight, bias, …
    need = [needs[0], needs[2], needs[3]]
    grads = torch.ops.saekern.decode_backward(
        grad.contiguous(), values, indices, weight, offsets, entries, segments, need
    )
    gv, gw, gb = (g if wanted else None for g, wanted in zip(grads, need, strict=True))
    return gv, None, gw, gb, None, None, None


library.autograd("decode", _backward, _setup_context)
