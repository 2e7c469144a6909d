"""What a latent writes to the output: its decoder row through the model's unembedding."""

import re
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saekern import ops

# Hooks whose activations are not what the unembedding reads, whatever their width: queries, keys, values, heads before
# their output matrix, normalised streams, the inside of an MLP.
_ELSEWHERE = re.compile(r"hook_(q|k|v|z|rot_q|rot_k|result|normalized|pre|post)$|\b(q|k|v)\.hook_out$|\bo\.hook_in$")
_INSIDE = re.compile(r"\bln\w*\.|\bmlp\.(?!hook_out$)")


class Unembedding(NamedTuple):
    """logits = (centre(x) ⊙ gain) weight, up to the final norm's scale and constants that no direction changes."""

    weight: Tensor  # [D, V]
    gain: Tensor | None  # [D], of the final norm; None where it has none or the weights contain it
    centred: bool  # the final norm removes the mean


class LogitLens(NamedTuple):
    """Per latent, in logits for activation 1; the mean over the vocabulary is 0, as adding to all changes nothing."""

    top_tokens: Tensor  # int64 [L, m], most promoted first
    top_values: Tensor  # float32 [L, m]
    bottom_tokens: Tensor  # int64 [L, m], most suppressed first
    bottom_values: Tensor  # float32 [L, m]
    histogram: Tensor  # int64 [L, bins]: the whole vocabulary, equal bins between the two extremes


def unembedding_of(model: Any) -> Unembedding:
    """Of a TransformerLens model: `W_U` and the final norm's weight, unless processing has folded it in.

    Raises:
        ValueError: the model has no unembedding.
    """
    weight = getattr(model, "W_U", None)
    if not isinstance(weight, Tensor):
        raise ValueError(f"model: expected a language model with an unembedding W_U, got {type(model).__name__}")
    norm = getattr(model, "ln_final", None)
    gain = getattr(norm, "weight", None)
    if gain is None:
        gain = getattr(norm, "w", None)  # HookedTransformer's name
    if isinstance(gain, Tensor):
        gain = gain.detach() + getattr(norm, "uses_weight_offset", False)  # Gemma's norms scale by 1 + weight
    kind = str(getattr(model.cfg, "normalization_type", None) or "")
    rms = getattr(norm, "uses_rms_norm", not kind.startswith("LN"))
    return Unembedding(weight.detach(), gain if isinstance(gain, Tensor) else None, not rms)


def why_not(hook: str | None, width: int, unembedding: Unembedding) -> str | None:
    """A sentence where directions at `hook` cannot be read by the unembedding, None where they can."""
    if width != len(unembedding.weight):
        return f"No logit lens: rows are {width} wide and the unembedding reads {len(unembedding.weight)}."
    if hook is not None and (_ELSEWHERE.search(hook) or _INSIDE.search(hook)):
        return f"No logit lens: {hook} is not in the residual stream, which is what the unembedding reads."
    return None


@torch.no_grad()
def logit_lens(directions: Tensor, unembedding: Unembedding, m: int, bins: int = 64, batch: int = 256) -> LogitLens:
    """The m most promoted and most suppressed tokens of directions [L, D]; ties to the smaller token.

    (direction ⊙ gain) W_U, without its mean over the vocabulary, where the final norm centres also without the
    direction's own mean. The norm's scale is left out: it depends on the rest of the stream.

    Args:
        m: tokens at each end; at most the vocabulary's size V is given.
        bins: of the histogram.
        batch: directions at a time: memory is batch × V.
    """
    weight, gain, centred = unembedding
    weight = weight.float().cpu()
    m = min(m, weight.shape[1])
    parts: list[tuple[Tensor, ...]] = []
    for part in directions.float().cpu().split(batch):
        part = part - part.mean(1, keepdim=True) if centred else part
        logits = (part if gain is None else part * gain.float().cpu()) @ weight  # [batch, V]
        logits -= logits.double().mean(1, keepdim=True).float()
        top, top_tokens = ops.row_topk(logits, m)
        bottom, bottom_tokens = ops.row_topk(-logits, m)
        low, high = -bottom[:, :1], top[:, :1]
        place = ((logits - low) / (high - low).clamp(min=1e-30) * bins).long().clamp(0, bins - 1)
        counts = torch.zeros(len(part), bins, dtype=torch.int64).scatter_add_(1, place, torch.ones_like(place))
        parts.append((top_tokens, top, bottom_tokens, -bottom, counts))
    if not parts:
        parts.append((*(torch.empty(0, m) for _ in range(4)), torch.empty(0, bins)))
    return LogitLens(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
