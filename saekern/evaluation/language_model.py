"""What a language model loses when a hook's activations are replaced: cross entropy and KL divergence, in float64."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from saekern.activations.cache import first_positions
from saekern.activations.harvest import activations
from saekern.activations.hugging_face import check_hook, hooked
from saekern.evaluation.splice import replacement

BLOCK = 1 << 24  # logits at a time: 128 MiB in float64


@dataclass(frozen=True)
class CrossEntropyRecovered:
    """Cross entropies in nats per predicted token."""

    ce_clean: float
    """The model as it is."""
    ce_sae: float
    """With the hook's activations reconstructed by the SAE."""
    ce_zero: float
    """With the hook's activations set to zero."""

    @property
    def recovered(self) -> float:
        """(ce_zero − ce_sae) / (ce_zero − ce_clean): 1 is lossless, 0 no better than zeros, and it may be negative."""
        return _ratio(self.ce_zero - self.ce_sae, self.ce_zero - self.ce_clean)


@dataclass(frozen=True)
class Loss:
    """One way to run the model. KL(clean ‖ this one) and cross entropies are in nats."""

    ce: float
    """Mean over predicted tokens."""
    kl: float
    """Mean over positions; 0 for the model as it is."""
    ce_by_position: Tensor
    """Mean over sequences of the loss of token t + 1 at t, float64 [T − 1]; NaN where nothing counts."""
    kl_by_position: Tensor
    """Mean over sequences, float64 [T]; NaN where nothing counts."""


@dataclass(frozen=True)
class LanguageModelMetrics:
    """The model as it is, with the SAE, and ablated."""

    clean: Loss
    """The model as it is."""
    sae: Loss
    """With the SAE's reconstruction."""
    zero: Loss
    """With zeros."""
    mean: Loss
    """With the mean activation."""
    predicted: int
    """Predicted tokens that the cross entropies are means of."""
    positions: int
    """Positions that the KL divergences are means of."""

    def ce_recovered(self, ablation: str = "zero") -> float:
        """(CE_ablated − CE_sae) / (CE_ablated − CE_clean), ablated by "zero" or "mean". 1 is lossless."""
        ablated = self._ablated(ablation)
        return _ratio(ablated.ce - self.sae.ce, ablated.ce - self.clean.ce)

    def kl_recovered(self, ablation: str = "zero") -> float:
        """(KL_ablated − KL_sae) / KL_ablated, ablated by "zero" or "mean". 1 is lossless."""
        ablated = self._ablated(ablation)
        return _ratio(ablated.kl - self.sae.kl, ablated.kl)

    def _ablated(self, ablation: str) -> Loss:
        if ablation not in ("zero", "mean"):
            raise ValueError(f'ablation: expected "zero" or "mean", got {ablation!r}')
        return self.zero if ablation == "zero" else self.mean


def ce_recovered(
    model: Any, hook: str, sequences: Tensor, sae: Any, *, batch: int = 32, exclude_bos: bool = True
) -> CrossEntropyRecovered:
    """Cross entropy clean, with the SAE and with zeros at `hook`; arguments as in `cross_entropy`."""
    clean, spliced, zero = (
        cross_entropy(model, hook, sequences, replaced, batch=batch, exclude_bos=exclude_bos)
        for replaced in (None, sae, "zero")
    )
    return CrossEntropyRecovered(clean, spliced, zero)


@torch.no_grad()
def cross_entropy(
    model: Any, hook: str, sequences: Tensor, sae: Any = None, *, batch: int = 32, exclude_bos: bool = True
) -> float:
    """Mean next-token cross entropy in nats, with the activations at a hook replaced.

    Args:
        model: any TransformerLens model, or a Hugging Face model.
        hook: the hook's name; head dimensions are flattened for the SAE.
        sequences: int64 [count, context], context ≥ 2; every token but the first is predicted.
        sae: None leaves the model as it is, "zero" puts zeros, a row [D] itself, an SAE its reconstruction.
        batch: sequences a forward pass.
        exclude_bos: the first position is never replaced, as in a harvest without it.

    Raises:
        ValueError: sequences that are not int64 [count ≥ 1, context ≥ 2], or an unknown hook.
    """
    model = _checked(model, hook, sequences)
    total = 0.0
    for tokens in sequences.split(batch):
        tokens = tokens.to(model.cfg.device)
        logits = _logits(model, hook, tokens, None if sae is None else replacement(sae, exclude_bos), None)
        total += float(_losses(logits, None, tokens)[0][:, :-1].sum())
    return total / sequences[:, 1:].numel()


@torch.no_grad()
def losses_by_sequence(
    model: Any, hook: str, sequences: Tensor, sae: Any = None, *, exclude_bos: bool = True
) -> Tensor:
    """Mean next-token cross entropy of each sequence of one batch, float64 [count]: `cross_entropy` is their mean.

    Args:
        sae: as there; also a tensor [count, context, D], which stands in the activations' place as it is.

    Raises:
        ValueError: as `cross_entropy`.
    """
    model = _checked(model, hook, sequences)
    tokens = sequences.to(model.cfg.device)
    logits = _logits(model, hook, tokens, None if sae is None else replacement(sae, exclude_bos), None)
    return _losses(logits, None, tokens)[0][:, :-1].mean(1)


@torch.no_grad()
def language_model_metrics(
    model: Any,
    hook: str,
    sequences: Tensor,
    sae: Any,
    *,
    batch: int = 32,
    exclude_bos: bool = True,
    exclude_tokens: Sequence[int] = (),
    attention_mask: Tensor | None = None,
    mean: Tensor | None = None,
    ablate_all: bool = False,
) -> LanguageModelMetrics:
    """Cross entropy and KL divergence with an SAE, zeros and the mean activation at a hook, streamed in float64.

    Args:
        model, hook, sequences, sae, batch: as in `cross_entropy`.
        exclude_bos: the first real position of a sequence is never replaced. It is counted.
        exclude_tokens: ids at whose positions nothing is replaced and nothing is counted, neither the KL divergence nor
            the loss of the token after them: SAELens' `exclude_special_tokens`.
        attention_mask: [count, context], nonzero for real tokens. The model gets it; the rest is not replaced and not
            counted, as position or as predicted token.
        mean: the row [D] of the mean ablation; None: the mean at the replaced positions, by one more pass up to the
            hook.
        ablate_all: zeros and the mean stand at every position, also where the SAE does not, as in SAELens. That makes
            the ablation, and so what is recovered, larger where positions like BOS matter much.

    Raises:
        ValueError: as `cross_entropy`, or nothing is left to count.
    """
    model = _checked(model, hook, sequences)
    if attention_mask is not None and attention_mask.shape != sequences.shape:
        expected, got = list(sequences.shape), list(attention_mask.shape)
        raise ValueError(f"attention_mask: expected the shape of sequences, {expected}, got {got}")
    excluded = torch.tensor(list(exclude_tokens), dtype=torch.int64)

    def parts() -> Iterator[tuple[Tensor, Tensor | None, Tensor, Tensor]]:
        """tokens, attention mask, counted and replaced positions of each batch."""
        masks = repeat(None) if attention_mask is None else attention_mask.split(batch)
        for tokens, mask in zip(sequences.split(batch), masks, strict=False):
            counted = ~torch.isin(tokens, excluded)
            if mask is not None:
                counted &= mask.cpu() != 0
            replaced = counted & ~first_positions(counted, mask) if exclude_bos else counted
            yield tokens, mask, counted, replaced

    if mean is None:
        mean = _mean(model, hook, parts())
    ways = {"clean": None, "sae": sae, "zero": "zero", "mean": mean}
    sums = {name: _Sums(sequences.shape[1]) for name in ways}
    for tokens, mask, counted, replaced in parts():
        device = model.cfg.device
        tokens, mask = tokens.to(device), None if mask is None else mask.to(device)
        clean = _logits(model, hook, tokens, None, mask)
        predicted = counted[:, :-1] if mask is None else counted[:, :-1] & (mask[:, 1:].cpu() != 0)
        for name, what in ways.items():
            where = None if ablate_all and name != "sae" else replaced
            logits = clean if name == "clean" else _logits(model, hook, tokens, replacement(what, False, where), mask)
            ce, kl = _losses(logits, None if name == "clean" else clean, tokens)
            sums[name].add(ce[:, :-1], predicted, kl, counted)
    count = sums["clean"]
    if not count.predicted.sum() or not count.counted.sum():
        raise ValueError("sequences: nothing is left to count after excluding tokens and padding")
    losses = {name: each.means() for name, each in sums.items()}
    return LanguageModelMetrics(**losses, predicted=int(count.predicted.sum()), positions=int(count.counted.sum()))


class _Sums:
    """Sums by position of one way to run the model."""

    def __init__(self, context: int) -> None:
        self.ce, self.kl = torch.zeros(context - 1, dtype=torch.float64), torch.zeros(context, dtype=torch.float64)
        self.predicted, self.counted = torch.zeros_like(self.ce), torch.zeros_like(self.kl)

    def add(self, ce: Tensor, predicted: Tensor, kl: Tensor, counted: Tensor) -> None:
        self.ce += torch.where(predicted, ce, 0).sum(0)
        self.kl += torch.where(counted, kl, 0).sum(0)
        self.predicted += predicted.sum(0)
        self.counted += counted.sum(0)

    def means(self) -> Loss:
        ce, kl = self.ce / self.predicted, self.kl / self.counted
        return Loss(float(self.ce.sum() / self.predicted.sum()), float(self.kl.sum() / self.counted.sum()), ce, kl)


def _mean(model: Any, hook: str, parts: Iterator[tuple[Tensor, Tensor | None, Tensor, Tensor]]) -> Tensor:
    total, count = torch.zeros((), dtype=torch.float64), 0
    for tokens, mask, _, replaced in parts:
        rows = activations(model, hook, tokens, mask).cpu().double()
        total = total + torch.where(replaced[:, :, None], rows, 0).sum((0, 1))
        count += int(replaced.sum())
    return total / max(1, count)


def _logits(model: Any, hook: str, tokens: Tensor, function: Any, mask: Tensor | None) -> Tensor:
    options = {} if mask is None else {"attention_mask": mask}
    hooks = [] if function is None else [(hook, function)]
    return model.run_with_hooks(tokens, return_type="logits", fwd_hooks=hooks, **options)


def _losses(logits: Tensor, clean: Tensor | None, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """−log p(next token) and KL(clean ‖ logits), float64 [B, T] on the CPU. The last position predicts nothing: 0."""
    following = torch.cat([tokens[:, 1:], tokens[:, -1:]], 1).flatten()
    ce = torch.zeros(tokens.numel(), dtype=torch.float64, device=logits.device)
    kl = torch.zeros_like(ce)
    flat, original = logits.flatten(0, 1), None if clean is None else clean.flatten(0, 1)
    step = max(1, BLOCK // flat.shape[1])
    for start in range(0, len(flat), step):
        part = slice(start, start + step)
        log_q = flat[part].double().log_softmax(-1)
        ce[part] = -log_q.gather(1, following[part, None])[:, 0]
        if original is not None:
            log_p = original[part].double().log_softmax(-1)
            kl[part] = torch.where(log_p.isneginf(), 0, log_p.exp() * (log_p - log_q)).sum(1)
    ce, kl = ce.view(tokens.shape), kl.view(tokens.shape)
    ce[:, -1] = 0
    return ce.cpu(), kl.cpu()


def _checked(model: Any, hook: str, sequences: Tensor) -> Any:
    if sequences.dtype != torch.int64 or sequences.dim() != 2 or sequences.shape[0] < 1 or sequences.shape[1] < 2:
        raise ValueError(f"sequences: expected int64 [>= 1, >= 2], got {sequences.dtype} {list(sequences.shape)}")
    model = hooked(model)
    check_hook(model, hook)
    return model


def _ratio(gain: float, gap: float) -> float:
    return gain / gap if gap else float("nan")
