"""What a language model loses when a hook's activations are replaced by an SAE's reconstruction."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from saekern.evaluation.rows import encode, reconstruction


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
        gap = self.ce_zero - self.ce_clean
        return (self.ce_zero - self.ce_sae) / gap if gap else float("nan")


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
        model: any TransformerLens model.
        hook: the hook's name; head dimensions are flattened for the SAE.
        sequences: int64 [count, context], context ≥ 2; every token but the first is predicted.
        sae: None leaves the model as it is, "zero" puts zeros, an SAE puts its reconstruction.
        batch: sequences a forward pass.
        exclude_bos: the first position is never replaced, as in a harvest without it.

    Raises:
        ValueError: sequences that are not int64 [count ≥ 1, context ≥ 2], or an unknown hook.
    """
    if sequences.dtype != torch.int64 or sequences.dim() != 2 or sequences.shape[0] < 1 or sequences.shape[1] < 2:
        raise ValueError(f"sequences: expected int64 [>= 1, >= 2], got {sequences.dtype} {list(sequences.shape)}")
    if hook not in model.hook_dict:
        raise ValueError(f"hook: {hook!r} is not a hook of this model")
    hooks = [] if sae is None else [(hook, replacement(sae, exclude_bos))]
    total = 0.0
    for tokens in sequences.split(batch):
        tokens = tokens.to(model.cfg.device)
        logits = model.run_with_hooks(tokens, return_type="logits", fwd_hooks=hooks)
        losses = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten(), reduction="none")
        total += float(losses.double().sum())
    return total / sequences[:, 1:].numel()


def replacement(sae: Any, exclude_bos: bool = True) -> Callable[..., Tensor]:
    """A TransformerLens hook function that puts zeros (sae="zero") or an SAE's reconstruction in place."""
    if isinstance(sae, str) and sae != "zero":
        raise ValueError(f'sae: expected an SAE, "zero" or None, got {sae!r}')

    def replace(activation: Tensor, hook: Any) -> Tensor:
        if isinstance(sae, str):
            out = torch.zeros_like(activation)
        else:
            x = activation.flatten(2).flatten(0, 1)  # [B·T, D]
            x_hat = reconstruction(sae, encode(sae, x), x)
            out = x_hat.to(activation).reshape(activation.shape)
        if exclude_bos:
            out[:, 0] = activation[:, 0]
        return out

    return replace
