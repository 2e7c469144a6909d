"""SAELens' encoders: from rows to sparse codes by the rule of each architecture, or to SAELens' dense ones where
those take less time."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from saekern import ops
from saekern.acceleration.encoder import transposed, values_at
from saekern.acceleration.lazy import Codes, LazyTensor, lazy_codes
from saekern.ops import LatentOrder, RaggedCodes, checks, library
from saekern.ops.topk_encode import encode as encode_topk

# Above this part of active latents dense products take less time than sparse codes do: an estimate, not yet measured.
DENSE_ABOVE = 0.04
PROBED_ROWS = 8


class Scores(NamedTuple):
    """What pre-activations are made of, as it was in the forward pass; parameters may have moved on since."""

    x: Tensor  # [B, D]
    weight: Tensor  # [F, D]
    bias: Tensor  # [F]
    norm: Tensor | None  # [F]: decoder norms that multiply the pre-activations
    lead: tuple[int, ...]  # the batch's shape before it was flattened
    near: RaggedCodes | None = None  # JumpReLU: scores above, or less than half a bandwidth below, their thresholds

    @property
    def latents(self) -> int:
        return self.weight.shape[0]

    @property
    def differentiable(self) -> bool:
        return library.differentiable(self.x, self.weight, self.bias)

    @property
    def dtype(self) -> torch.dtype:
        """Of SAELens' pre-activations: products round to the autocast dtype, the bias does not."""
        device = self.x.device.type
        product = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.x.dtype
        return torch.promote_types(product, self.bias.dtype)

    def dense(self) -> Tensor:
        """[*lead, F]: SAELens' hidden_pre."""
        scores = self.x @ self.weight.T + self.bias
        return (scores if self.norm is None else scores * self.norm).view(*self.lead, self.latents)

    def compared(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """x, weight, bias of the scores that are compared with each other: with the norms, without gradients."""
        x, weight, bias = self.x.detach(), self.weight.detach(), self.bias.detach()
        if self.norm is not None:
            norm = self.norm.detach()
            weight, bias = weight * norm[:, None], bias * norm
        return checks.encoder(x, weight, bias, None)[:3]

    def chosen(self, codes: Codes, *, relu: bool = True) -> Codes:
        """The codes that were found among `compared`, without the norms and with gradients."""
        x, weight, bias, _ = checks.encoder(self.x, self.weight, self.bias, None)
        if self.norm is not None:
            codes = codes._replace(values=codes.values.to(self.dtype) / self.norm.detach()[codes.indices])
        return codes._replace(values=values_at(codes, x, weight, bias, relu=relu))


def scores_of(sae: Any, sae_in: Tensor) -> Scores:
    norm = sae.W_dec.norm(dim=-1) if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False) else None
    rows = sae_in.reshape(-1, sae_in.shape[-1])
    # The bias is copied, as `transposed` copies the weight: optimizers write in place, and Scores may be read later.
    return Scores(rows, transposed(sae.W_enc), sae.b_enc.clone(), norm, tuple(sae_in.shape[:-1]))


def lazily(scores: Scores, codes: Codes) -> tuple[LazyTensor, LazyTensor]:
    """SAELens' feature_acts and hidden_pre. Their `source`: the codes to decode, without the norms; the scores."""
    values = codes.values.to(scores.dtype)
    if scores.norm is not None:
        values = values * scores.norm[codes.indices]
    shape = (*scores.lead, scores.latents)
    acts = lazy_codes(codes._replace(values=values), shape)
    acts.source = codes
    hidden_pre = LazyTensor(scores.dense, shape, scores.dtype, scores.x.device, scores.differentiable)
    hidden_pre.source = scores
    return acts, hidden_pre


def topk(sae: Any, sae_in: Tensor) -> tuple[Tensor, Tensor]:
    scores, k = scores_of(sae, sae_in), int(sae.activation_fn.k)
    if scores.norm is None:
        values, indices, *_, order = encode_topk(scores.x, scores.weight, scores.bias, k)
        return lazily(scores, Codes(values, indices, scores.latents, order=order))
    with torch.no_grad():
        values, indices, _, _, *order = torch.ops.saekern.topk_encode(
            *scores.compared(), k, None, True, None, 0, scores.differentiable
        )
    return lazily(scores, scores.chosen(Codes(values, indices, scores.latents, order=sorted_by_latent(order))))


def batch_topk(sae: Any, sae_in: Tensor) -> tuple[Tensor, Tensor]:
    scores = scores_of(sae, sae_in)
    total = int(sae.activation_fn.k * scores.x.shape[0])
    with torch.no_grad():
        values, indices, offsets, *order = torch.ops.saekern.batch_topk_encode(
            *scores.compared(), total, None, scores.differentiable
        )
    return lazily(scores, scores.chosen(Codes(values, indices, scores.latents, offsets, sorted_by_latent(order))))


def sorted_by_latent(order: list[Tensor]) -> LatentOrder | None:
    return LatentOrder(*order) if order[1].numel() else None


def relu(sae: Any, sae_in: Tensor) -> tuple[Tensor, Tensor]:
    if many_active(sae, sae_in, 0.0):
        hidden_pre = sae_in @ sae.W_enc + sae.b_enc
        return sae.activation_fn(hidden_pre), hidden_pre
    return above(scores_of(sae, sae_in), 0.0)


def jumprelu(sae: Any, sae_in: Tensor) -> tuple[Tensor, Tensor]:
    """The inference class: pre-activations above both 0 and their threshold."""
    threshold = sae.threshold.detach().clamp(min=0)
    if many_active(sae, sae_in, threshold):
        hidden_pre = sae_in @ sae.W_enc + sae.b_enc
        return sae.activation_fn(hidden_pre) * (hidden_pre > sae.threshold), hidden_pre
    return above(scores_of(sae, sae_in), threshold)


def above(scores: Scores, threshold: Tensor | float) -> tuple[Tensor, Tensor]:
    found = ops.threshold_encode(scores.x, scores.weight, scores.bias, threshold)
    return lazily(scores, Codes(found.values, found.indices, scores.latents, found.offsets, found.order))


def many_active(sae: Any, sae_in: Tensor, threshold: Tensor | float) -> bool:
    """In some of the rows, do more than DENSE_ABOVE of the pre-activations exceed the threshold?"""
    with torch.no_grad():
        rows = sae_in.reshape(-1, sae_in.shape[-1])
        rows = rows[:: max(1, rows.shape[0] // PROBED_ROWS)][:PROBED_ROWS]
        active = (rows @ sae.W_enc + sae.b_enc) > threshold
        return bool(active.sum() > DENSE_ABOVE * active.numel())
