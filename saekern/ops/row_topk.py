"""The k largest of each row of a matrix that is already in memory."""

import torch
from torch import Tensor

from saekern import _C, reference
from saekern.ops import checks, library


def row_topk(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """values [B, k] descending and indices [B, k] int64 of the k largest in each row of scores [B, N].

    Equivalent to: `torch.topk(scores, k)`, with ties to the smaller index. NaN counts as largest. Exact.

    Gradients flow to scores (a scatter). Prefer `topk_encode`, which never forms the scores.

    Raises:
        ValueError: scores not a floating-point matrix, or k outside [1, N].
    """
    checks.shape("scores", scores, ("B", "N"))
    checks.floating("scores", scores)
    checks.between("k", k, 1, scores.shape[1], "N")
    return torch.ops.saekern.row_topk(scores, k)


def _cpu(scores, k):
    if scores.dtype == torch.float64:
        return reference.row_topk(scores, k)
    values, indices = torch.empty(scores.shape[0], k), torch.empty(scores.shape[0], k, dtype=torch.int64)
    _C.row_topk(library.array(scores), values.numpy(), indices.numpy(), library.threads(), library.isa())
    return values.to(scores.dtype), indices


def _fake(scores, k):
    values = scores.new_empty(scores.shape[0], k)
    return values, values.new_empty(values.shape, dtype=torch.int64)


library.define(
    "row_topk(Tensor scores, int k) -> (Tensor, Tensor)", cpu=_cpu, cuda=None, reference=reference.row_topk, fake=_fake
)


def _setup_context(ctx, inputs, output):
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])
    ctx.columns = inputs[0].shape[1]


def _backward(ctx, grad_values, _grad_indices):
    (indices,) = ctx.saved_tensors
    grad = grad_values.new_zeros(indices.shape[0], ctx.columns)
    return grad.scatter(1, indices, grad_values), None


library.autograd("row_topk", _backward, _setup_context)
