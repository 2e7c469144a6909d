"""scores = (x − pre_bias) Wᵀ + bias;  the k largest of each row, descending, ties to the smaller index."""

import torch
from torch import Tensor

from saekern.reference.precision import accumulation
from saekern.reference.row_topk import row_topk


def scores(x: Tensor, weight: Tensor, bias: Tensor | None, pre_bias: Tensor | None) -> Tensor:
    wide = accumulation(x)
    centred = x.to(wide) if pre_bias is None else x.to(wide) - pre_bias.to(wide)
    product = centred @ weight.to(wide).T  # [B, F]
    return product if bias is None else product + bias.to(wide)


def topk_encode(
    x: Tensor, weight: Tensor, bias: Tensor | None, k: int, *, pre_bias: Tensor | None = None, relu: bool = True
) -> tuple[Tensor, Tensor]:
    values, indices = row_topk(scores(x, weight, bias, pre_bias), k)
    return (values.relu() if relu else values).to(x.dtype), indices


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
    """The top k of all latents and the top k_aux of the dead ones. Slots beyond the number of dead latents hold value 0
    at the smallest live indices, so that shapes do not depend on data."""
    score = scores(x, weight, bias, pre_bias)
    values, indices = row_topk(score, k)
    aux_values, aux_indices = row_topk(score.masked_fill(~dead, -torch.inf), k_aux)
    # A dead latent may itself score −inf, where it ties with the live ones; the number of dead latents decides.
    aux_values = torch.where(dead[aux_indices], aux_values, 0)
    if relu:
        values, aux_values = values.relu(), aux_values.relu()
    return values.to(x.dtype), indices, aux_values.to(x.dtype), aux_indices


def topk_encode_backward(
    grad: Tensor, values: Tensor, indices: Tensor, x: Tensor, weight: Tensor, pre_bias: Tensor | None, relu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients to x, weight, bias and pre_bias. Only the chosen scores carry gradient; ReLU blocks those ≤ 0."""
    wide = accumulation(x)
    grad = grad.to(wide)
    if relu:
        grad = torch.where(values <= 0, 0, grad)  # NaN passes, as in torch.relu
    centred = x.to(wide) if pre_bias is None else x.to(wide) - pre_bias.to(wide)
    grad_scores = torch.zeros(x.shape[0], weight.shape[0], dtype=wide, device=x.device)
    grad_scores.scatter_add_(1, indices, grad)
    grad_x = grad_scores @ weight.to(wide)
    return grad_x, grad_scores.T @ centred, grad_scores.sum(0), -grad_x.sum(0)
