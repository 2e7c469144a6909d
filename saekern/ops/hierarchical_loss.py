"""The HierarchicalTopK loss: squared errors of a row's prefixes in one pass, and their gradients."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from saekern import _C, reference
from saekern.ops import checks, library
from saekern.ops.decode import check_codes
from saekern.ops.topk_encode import LatentOrder


class HierarchicalLoss(NamedTuple):
    loss: Tensor  # scalar
    x_hat: Tensor  # [B, D] from all codes, in weight's dtype; carries no gradient


def hierarchical_loss(
    values: Tensor,
    indices: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    budgets: Sequence[int] | None = None,
    weights: Sequence[float] | Tensor | None = None,
    *,
    offsets: Tensor | None = None,
    cuts: Tensor | None = None,
    order: LatentOrder | None = None,
) -> HierarchicalLoss:
    """L = 1/B Σ_b Σ_j w_j ‖bias + Σ_{i < c_bj} values[b,i] · weight[indices[b,i]] − target_b‖², Σ_j w_j = 1.

    Equivalent to: `x = bias + (values[..., None] * weight[indices]).cumsum(1)`, then
    `(x[:, [c - 1 for c in budgets]] - target[:, None]).square().sum(2).mean(0) @ weights`, without the [B, K, D]
    tensor.

    Args:
        values, indices: codes [B, K], indices int64 in [0, F), the first the most important; or ragged (CSR): both
            [nnz], with `offsets`.
        weight: decoder [F, D], one latent a row.
        bias: [D] or None.
        target: [B, D].
        budgets: the prefix lengths c_j, ascending in [1, K]; None is 1, 2, …, K. Of ragged rows, those shorter than
            c_j count whole.
        weights: positive, one for each budget or cut; they are divided by their sum. None: all the same.
        offsets: [B+1] int64, ascending from 0 to nnz; row b owns the codes offsets[b]:offsets[b+1].
        cuts: instead of budgets, prefix lengths of their own for each row, [B, J] int64, not descending along J, each
            between 0 and the row's number of codes.
        order: the codes sorted by latent, if the encoder made it (may save the backward pass a sort).

    Returns:
        loss, a float32 scalar (float64 for float64 input), and x_hat [B, D] from all codes of a row.

    Gradients flow to values, weight, bias and target. Sums run in a fixed order: the same bits for any thread count.

    Source: HierarchicalTopK, Balagansky et al. 2025 (arXiv 2505.24473).

    Raises:
        ValueError: shapes, dtypes, devices, budgets or weights that do not fit; on CPU also an index outside [0, F) or
            cuts that do not ascend within their row.
    """
    entries, segments = check_codes(values, indices, weight, offsets, order)
    checks.shape("target", target, (values.shape[0] if offsets is None else offsets.numel() - 1, weight.shape[1]))
    checks.floating("target", target)
    checks.same_device("target", target, weight, "weight")
    if (target.dtype == torch.float64) != (weight.dtype == torch.float64):
        checks.floating("target", target, weight, "weight")
    if torch.is_autocast_enabled(weight.device.type):
        dtype = torch.get_autocast_dtype(weight.device.type)
        weight, values = weight.to(dtype), values.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    if bias is not None:
        checks.shape("bias", bias, (weight.shape[1],))
        checks.floating("bias", bias, weight, "weight")
    checks.floating("values", values, weight, "weight")
    wide = torch.promote_types(weight.dtype, torch.float32)
    if cuts is not None:
        if budgets is not None:
            raise ValueError("budgets and cuts: expected one of the two, got both")
        checks.shape("cuts", cuts, (target.shape[0], "J"))
        checks.integer("cuts", cuts)
        checks.same_device("cuts", cuts, weight, "weight")
    elif budgets is not None:
        budgets = check_budgets(budgets, values.shape[1] if offsets is None else None)
        cuts = _on_device(tuple(budgets), torch.int64, weight.device)
    elif offsets is None:
        cuts = torch.arange(1, values.shape[1] + 1, device=weight.device)
    else:
        raise ValueError("budgets: expected prefix lengths, or cuts, for ragged codes, got None")
    shares = _shares(weights, cuts.shape[-1], wide, weight.device)
    return HierarchicalLoss(
        *torch.ops.saekern.hierarchical_loss(
            values, indices, weight, bias, target, cuts, shares, offsets, entries, segments
        )
    )


def check_budgets(budgets: Sequence[int], k: int | None) -> list[int]:
    """Budgets as a list, once they ascend in [1, k]; k None: no upper end."""
    budgets = list(budgets)
    if not budgets:
        raise ValueError("budgets: expected at least one, got []")
    if any(a >= b for a, b in pairwise(budgets)):
        raise ValueError(f"budgets: expected ascending prefix lengths, got {budgets}")
    if budgets[0] < 1 or (k is not None and budgets[-1] > k):
        raise ValueError(f"budgets: expected 1 <= budget{'' if k is None else f' <= K = {k}'}, got {budgets}")
    return budgets


def check_weights(weights: Sequence[float], count: int) -> list[float]:
    """Weights divided by their sum, once there is a positive one for each of `count` budgets."""
    weights = [float(w) for w in weights]
    if len(weights) != count:
        raise ValueError(f"weights: expected {count}, one for each budget, got {len(weights)}")
    if not all(0 < w < float("inf") for w in weights):
        raise ValueError(f"weights: expected positive numbers, got {weights}")
    total = sum(weights)
    return [w / total for w in weights]


def _shares(weights: Sequence[float] | Tensor | None, count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    if count == 0:
        raise ValueError("budgets: expected at least one prefix, got none")
    if weights is None:
        return torch.full((count,), 1 / count, dtype=dtype, device=device)
    if isinstance(weights, Tensor):  # its numbers are the caller's promise: asking for them waits for the device
        checks.shape("weights", weights, (count,))
        checks.floating("weights", weights)
        weights = weights.to(dtype=dtype, device=device)
        return weights / weights.sum()
    return _on_device(tuple(check_weights(weights, count)), dtype, device)


_TENSORS: dict[tuple, Tensor] = {}


def _on_device(numbers: tuple, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A few numbers as a tensor. On a device they stay there: a copy from the host is not allowed in a CUDA graph."""
    if device.type == "cpu" or torch.compiler.is_compiling():
        return torch.tensor(numbers, dtype=dtype, device=device)
    key = (numbers, dtype, device)
    if key not in _TENSORS:
        if len(_TENSORS) >= 64:
            _TENSORS.clear()
        with torch.inference_mode(False):  # what is made in that mode cannot be saved for a backward pass
            _TENSORS[key] = torch.tensor(numbers, dtype=dtype, device=device)
    return _TENSORS[key]


def _reference(values, indices, weight, bias, target, cuts, weights, offsets, entries, segments):
    return reference.hierarchical_loss(values, indices, weight, bias, target, cuts, weights, offsets)


def _cpu(values, indices, weight, bias, target, cuts, weights, offsets, entries, segments):
    if weight.dtype == torch.float64:
        return _reference(values, indices, weight, bias, target, cuts, weights, offsets, entries, segments)
    x_hat = library.output(target.shape)
    arrays = map(library.array, (values, indices, weight, bias, target, cuts, weights, offsets))
    total = _C.hierarchical_loss(*arrays, library.threads(), library.array(x_hat))
    return torch.tensor(total / max(target.shape[0], 1), dtype=torch.float32), x_hat.to(weight.dtype)


def _cuda(values, indices, weight, bias, target, cuts, weights, offsets, entries, segments):
    if weight.dtype == torch.float64:
        return _reference(values, indices, weight, bias, target, cuts, weights, offsets, entries, segments)
    kernel = library.kernels("hierarchical_loss").hierarchical_loss
    return kernel(values, indices, weight, bias, target, cuts, weights, offsets, entries, segments)


def _fake(values, indices, weight, bias, target, cuts, weights, offsets, entries, segments):
    wide = torch.promote_types(weight.dtype, torch.float32)
    return weight.new_empty((), dtype=wide), weight.new_empty(target.shape)


library.define(
    "hierarchical_loss(Tensor values, Tensor indices, Tensor weight, Tensor? bias, Tensor target, Tensor cuts,"
    " Tensor weights, Tensor? offsets, Tensor? entries, Tensor? segments) -> (Tensor, Tensor)",
    cpu=_cpu,
    cuda=_cuda,
    reference=_reference,
    fake=_fake,
)


def _backward_reference(
    grad, values, indices, weight, bias, target, x_hat, cuts, weights, offsets, entries, segments, need
):
    grads = reference.hierarchical_loss_backward(grad, values, indices, weight, bias, target, cuts, weights, offsets)
    dtypes = (values.dtype, weight.dtype, weight.dtype, target.dtype)
    return tuple(
        g.to(dtype) if wanted else weight.new_empty(0) for g, dtype, wanted in zip(grads, dtypes, need, strict=True)
    )


def _backward_cpu(grad, values, indices, weight, bias, target, x_hat, cuts, weights, offsets, entries, segments, need):
    if weight.dtype == torch.float64:
        return _backward_reference(
            grad, values, indices, weight, bias, target, x_hat, cuts, weights, offsets, entries, segments, need
        )
    shapes = (values.shape, weight.shape, weight.shape[1:], target.shape)
    outs = [library.output(shape, wanted) for shape, wanted in zip(shapes, need, strict=True)]
    arrays = map(library.array, (values, indices, weight, bias, target, cuts, weights, offsets))
    scale = 2 * grad.item() / max(target.shape[0], 1)
    _C.hierarchical_loss_backward(scale, *arrays, library.threads(), *map(library.array, outs))
    dtypes = (values.dtype, weight.dtype, weight.dtype, target.dtype)
    return tuple(library.rounded(out, dtype) for out, dtype in zip(outs, dtypes, strict=True))


def _backward_cuda(grad, values, indices, weight, bias, target, x_hat, cuts, weights, offsets, entries, segments, need):
    arguments = (grad, values, indices, weight, bias, target, x_hat, cuts, weights, offsets, entries, segments, need)
    if weight.dtype == torch.float64:
        return _backward_reference(*arguments)
    return library.kernels("hierarchical_loss").hierarchical_loss_backward(*arguments)


def _backward_fake(grad, values, indices, weight, bias, target, x_hat, cuts, weights, offsets, entries, segments, need):
    likes = ((values, values.shape), (weight, weight.shape), (weight, weight.shape[1:]), (target, target.shape))
    return tuple(
        like.new_empty(shape) if wanted else (like if i == 3 else weight).new_empty(0)
        for i, ((like, shape), wanted) in enumerate(zip(likes, need, strict=True))
    )


library.define(
    "hierarchical_loss_backward(Tensor grad, Tensor values, Tensor indices, Tensor weight, Tensor? bias, Tensor target,"
    " Tensor x_hat, Tensor cuts, Tensor weights, Tensor? offsets, Tensor? entries, Tensor? segments, bool[4] need)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    cpu=_backward_cpu,
    cuda=_backward_cuda,
    reference=_backward_reference,
    fake=_backward_fake,
)


def _setup_context(ctx, inputs, output):
    values, indices, weight, bias, target, cuts, weights, offsets, entries, segments = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(values, indices, weight, bias, target, output[1], cuts, weights, offsets, entries, segments)


def _backward(ctx, grad, _):
    needs = ctx.needs_input_grad  # values, indices, weight, bias, target, …
    need = [needs[0], needs[2], needs[3], needs[4]]
    grads = torch.ops.saekern.hierarchical_loss_backward(grad, *ctx.saved_tensors, need)
    gv, gw, gb, gt = (g if wanted else None for g, wanted in zip(grads, need, strict=True))
    return gv, None, gw, gb, gt, None, None, None, None, None


library.autograd("hierarchical_loss", _backward, _setup_context)
