"""The encoder: scores and the top k of each row in one pass, without the [B, F] matrix."""

from typing import NamedTuple

import torch
from torch import Tensor

from saekern import _C, reference
from saekern.ops import checks, library


class LatentOrder(NamedTuple):
    """Codes sorted by latent (CSC). Both sparse gradients of a step walk it, so it is made once and handed on."""

    entries: Tensor  # [nnz] int32, positions of the codes in storage order, stable
    segments: Tensor  # [F+1] int32; entries[segments[f]:segments[f+1]] belong to latent f


def topk_encode(
    x: Tensor, weight: Tensor, bias: Tensor | None, k: int, *, pre_bias: Tensor | None = None, relu: bool = True
) -> tuple[Tensor, Tensor]:
    """The k largest of (x − pre_bias) Wᵀ + bias in each row, then ReLU.

    Equivalent to: `values, indices = ((x - pre_bias) @ weight.T + bias).sort(1, descending=True, stable=True)`,
    cut to k columns, `values.relu()`.

    Args:
        x: rows [B, D].
        weight: encoder [F, D], one latent a row (`sae.W_enc.T`).
        bias: [F] or None.
        k: 1 ≤ k ≤ F.
        pre_bias: [D], subtracted from every row, or None.
        relu: clamp the chosen values at 0. Selection is on the scores before it.

    Returns:
        values [B, k] descending, in x's dtype; indices [B, k] int64. Ties go to the smaller index; NaN counts as
        largest. Exact: the order is that of float32 scores computed in one fixed order of summation (float64 scores
        for float64 input), the same for any thread count.

    Gradients flow to x, weight, bias and pre_bias.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or k out of range.
    """
    values, indices, *_ = encode(x, weight, bias, k, pre_bias=pre_bias, relu=relu)
    return values, indices


def topk_encode_aux(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    k: int,
    dead: Tensor,
    k_aux: int,
    *,
    pre_bias: Tensor | None = None,
    relu: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`topk_encode`, and in the same pass the top k_aux among the latents where `dead` [F] (bool) is true.

    Returns:
        values, indices [B, k]; aux_values, aux_indices [B, k_aux]. With fewer than k_aux dead latents the remaining
        slots hold value 0 at live indices and carry no gradient.

    Source: the auxiliary loss of Gao et al. 2024 (arXiv 2406.04093), section A.2.
    """
    checks.shape("dead", dead, (weight.shape[0],))
    if dead.dtype != torch.bool:
        raise ValueError(f"dead: expected bool, got {dead.dtype}")
    checks.between("k_aux", k_aux, 0, weight.shape[0], "F")
    values, indices, aux_values, aux_indices, _ = encode(
        x, weight, bias, k, pre_bias=pre_bias, relu=relu, dead=dead, k_aux=k_aux
    )
    return values, indices, aux_values, aux_indices


def encode(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    k: int,
    *,
    pre_bias: Tensor | None = None,
    relu: bool = True,
    dead: Tensor | None = None,
    k_aux: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, LatentOrder | None]:
    """What the SAE layers call: both top-k sets, and the order of `indices` by latent for `decode`.

    The order is None when nothing requires a gradient."""
    x, weight, bias, pre_bias = checks.encoder(x, weight, bias, pre_bias)
    checks.between("k", k, 1, weight.shape[0], "F")
    differentiable = library.differentiable(x, weight, bias, pre_bias)
    values, indices, aux_values, aux_indices, entries, segments = torch.ops.saekern.topk_encode(
        x, weight, bias, k, pre_bias, relu, dead, k_aux, differentiable
    )
    order = LatentOrder(entries, segments) if differentiable else None
    return values, indices, aux_values, aux_indices, order


def _reference(x, weight, bias, k, pre_bias, relu, dead, k_aux, order):
    if dead is None:
        values, indices = reference.topk_encode(x, weight, bias, k, pre_bias=pre_bias, relu=relu)
        aux_values, aux_indices = values.new_empty(x.shape[0], 0), indices.new_empty(x.shape[0], 0)
    else:
        values, indices, aux_values, aux_indices = reference.topk_encode_aux(
            x, weight, bias, k, dead, k_aux, pre_bias=pre_bias, relu=relu
        )
    empty = indices.new_empty(0, dtype=torch.int32)
    entries, segments = reference.latent_order(indices, weight.shape[0]) if order else (empty, empty.clone())
    return values, indices, aux_values, aux_indices, entries, segments


def _cpu(x, weight, bias, k, pre_bias, relu, dead, k_aux, order):
    if x.dtype == torch.float64:
        return _reference(x, weight, bias, k, pre_bias, relu, dead, k_aux, order)
    values, indices = torch.empty(x.shape[0], k), torch.empty(x.shape[0], k, dtype=torch.int64)
    aux_values, aux_indices = torch.empty(x.shape[0], k_aux), torch.empty(x.shape[0], k_aux, dtype=torch.int64)
    _C.topk_encode(
        library.array(x),
        library.array(weight),
        library.array(bias),
        library.array(pre_bias),
        None,
        None,
        values.numpy(),
        indices.numpy(),
        library.array(dead),
        aux_values.numpy(),
        aux_indices.numpy(),
        relu,
        library.threads(),
        library.isa(),
    )
    entries = torch.empty(indices.numel() if order else 0, dtype=torch.int32)
    segments = torch.empty(weight.shape[0] + 1 if order else 0, dtype=torch.int32)
    if order:
        _C.latent_order(indices.numpy(), weight.shape[0], library.threads(), entries.numpy(), segments.numpy())
    return values.to(x.dtype), indices, aux_values.to(x.dtype), aux_indices, entries, segments


def _cuda(x, weight, bias, k, pre_bias, relu, dead, k_aux, order):
    if x.dtype == torch.float64:
        return _reference(x, weight, bias, k, pre_bias, relu, dead, k_aux, order)
    kernel = library.kernels("topk_encode").topk_encode
    return kernel(x, weight, bias, k, pre_bias, relu, dead, k_aux, order)


def _fake(x, weight, bias, k, pre_bias, relu, dead, k_aux, order):
    batch = x.shape[0]
    index = x.new_empty(batch, k, dtype=torch.int64)
    entries = x.new_empty(batch * k if order else 0, dtype=torch.int32)
    segments = x.new_empty(weight.shape[0] + 1 if order else 0, dtype=torch.int32)
    aux = x.new_empty(batch, k_aux)
    return x.new_empty(batch, k), index, aux, aux.new_empty(aux.shape, dtype=torch.int64), entries, segments


library.define(
    "topk_encode(Tensor x, Tensor weight, Tensor? bias, int k, Tensor? pre_bias, bool relu, Tensor? dead, int k_aux,"
    " bool order) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    cpu=_cpu,
    cuda=_cuda,
    reference=_reference,
    fake=_fake,
)


def _backward_reference(grad, values, indices, x, weight, pre_bias, entries, segments, relu, need):
    grads = reference.topk_encode_backward(grad, values, indices, x, weight, pre_bias, relu)
    dtypes = (x.dtype, weight.dtype, weight.dtype, x.dtype)
    return tuple(
        g.to(dtype) if wanted else x.new_empty(0) for g, dtype, wanted in zip(grads, dtypes, need, strict=True)
    )


def _backward_cpu(grad, values, indices, x, weight, pre_bias, entries, segments, relu, need):
    if x.dtype == torch.float64:
        return _backward_reference(grad, values, indices, x, weight, pre_bias, entries, segments, relu, need)
    shapes = (x.shape, weight.shape, weight.shape[:1], x.shape[1:])
    outs = [library.output(shape, wanted) for shape, wanted in zip(shapes, need, strict=True)]
    arrays = map(library.array, (grad, values, indices, x, weight, pre_bias, None, entries, segments))
    _C.topk_encode_backward(*arrays, relu, library.threads(), *map(library.array, outs))
    return tuple(library.rounded(out, x.dtype) for out in outs)


def _backward_cuda(grad, values, indices, x, weight, pre_bias, entries, segments, relu, need):
    if x.dtype == torch.float64:
        return _backward_reference(grad, values, indices, x, weight, pre_bias, entries, segments, relu, need)
    kernel = library.kernels("topk_encode_backward").topk_encode_backward
    return kernel(grad, values, indices, x, weight, pre_bias, entries, segments, relu, need)


def _backward_fake(grad, values, indices, x, weight, pre_bias, entries, segments, relu, need):
    shapes = (x.shape, weight.shape, weight.shape[:1], x.shape[1:])
    return tuple(x.new_empty(s if wanted else (0,)) for s, wanted in zip(shapes, need, strict=True))


library.define(
    "topk_encode_backward(Tensor grad, Tensor values, Tensor indices, Tensor x, Tensor weight, Tensor? pre_bias,"
    " Tensor? entries, Tensor? segments, bool relu, bool[4] need) -> (Tensor, Tensor, Tensor, Tensor)",
    cpu=_backward_cpu,
    cuda=_backward_cuda,
    reference=_backward_reference,
    fake=_backward_fake,
)


def _setup_context(ctx, inputs, output):
    x, weight, _, _, pre_bias, relu, dead, k_aux, _ = inputs
    values, indices, aux_values, aux_indices, entries, segments = output
    ctx.mark_non_differentiable(indices, aux_indices, entries, segments)
    ctx.relu, ctx.k_aux = relu, k_aux
    ctx.save_for_backward(x, weight, pre_bias, dead, values, indices, aux_values, aux_indices, entries, segments)


def _backward(ctx, grad_values, _indices, grad_aux, _aux_indices, _entries, _segments):
    x, weight, pre_bias, dead, values, indices, aux_values, aux_indices, entries, segments = ctx.saved_tensors
    if ctx.k_aux:
        grad_aux = torch.where(dead[aux_indices], grad_aux, 0)  # padding slots are not dead latents
        grad_values = torch.cat([grad_values, grad_aux], 1)
        values, indices = torch.cat([values, aux_values], 1), torch.cat([indices, aux_indices], 1)
        entries = segments = None  # the order of the main codes alone no longer serves
    needs = ctx.needs_input_grad  # x, weight, bias, k, pre_bias, …
    need = [needs[0], needs[1], needs[2], needs[4]]
    grads = torch.ops.saekern.topk_encode_backward(
        grad_values.contiguous(), values, indices, x, weight, pre_bias, entries, segments, ctx.relu, need
    )
    gx, gw, gb, gp = (g if wanted else None for g, wanted in zip(grads, need, strict=True))
    return gx, gw, gb, None, gp, None, None, None, None


library.autograd("topk_encode", _backward, _setup_context)
