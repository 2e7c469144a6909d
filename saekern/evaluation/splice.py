"""SAEs in the place of a model's activations: reconstructions, zeros or a mean at a hook."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from saekern.activations.cache import first_positions
from saekern.activations.hugging_face import check_hook, hooked
from saekern.evaluation.rows import encode, reconstruction


class Splice:
    """What stands at a hook. The attributes are the arguments of `splice`, and may be changed between passes.

    It is a TransformerLens hook function: `model.run_with_hooks(tokens, fwd_hooks=[(hook, Splice(sae))])`.
    """

    def __init__(
        self,
        sae: Any,
        *,
        error_term: bool = False,
        exclude_bos: bool = True,
        mask: Tensor | None = None,
        edit: Callable[[Any], Any] | None = None,
        dense: bool = False,
    ) -> None:
        if isinstance(sae, str) and sae != "zero":
            raise ValueError(f'sae: expected an SAE, "zero", a row or None, got {sae!r}')
        self.sae, self.error_term, self.exclude_bos, self.mask = sae, error_term, exclude_bos, mask
        self.edit, self.dense = edit, dense

    def __call__(self, activation: Tensor, hook: Any = None) -> Tensor:
        x = activation.flatten(2) if activation.dim() > 2 else activation  # [B, T, D]: heads are flattened
        if isinstance(self.sae, str):
            out = torch.zeros_like(activation)
        elif isinstance(self.sae, Tensor):
            out = self.sae.to(x).expand(x.shape).reshape(activation.shape)
        else:
            width = self.sae.dictionary.shape[1]
            if x.shape[-1] != width:
                name = getattr(hook, "name", None)
                raise ValueError(f"hook: {name!r} has {x.shape[-1]} dimensions, the SAE {width}")
            out = self._reconstruction(x).to(activation).reshape(activation.shape)
        replaced = self._replaced(activation)
        return out if replaced is None else torch.where(replaced, out, activation)

    def _reconstruction(self, x: Tensor) -> Tensor:
        sae, shape = self.sae, x.shape
        flat = x.reshape(-1, shape[-1])  # [B·T, D]
        codes = encode(sae, flat)
        if self.edit is None and not self.error_term:
            return reconstruction(sae, codes, flat)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.edit is None):
            plain = reconstruction(sae, codes, flat)  # before the edit, which may be in place
        x_hat = plain
        if self.edit is not None:
            edited = self._edited(codes, shape)
            ragged = getattr(edited, "offsets", None) is not None
            x_hat = reconstruction(sae, edited, flat if ragged else x).reshape(plain.shape)
        return x_hat + (flat.to(plain) - plain).detach() if self.error_term else x_hat

    def _edited(self, codes: Any, shape: torch.Size) -> Any:
        if self.dense:
            d_sae = self.sae.dictionary.shape[0]
            given = codes.dense(d_sae).reshape(*shape[:-1], d_sae)
        elif codes.offsets is None:
            given = codes._replace(
                values=codes.values.reshape(*shape[:-1], -1), indices=codes.indices.reshape(*shape[:-1], -1)
            )
        else:
            given = codes
        assert self.edit is not None
        edited = self.edit(given)
        return given if edited is None else edited

    def _replaced(self, activation: Tensor) -> Tensor | None:
        """Where the activation is replaced, broadcastable to it; None: everywhere."""
        lead, mask = activation.shape[:-1][:2], self.mask
        if mask is not None and mask.shape != lead:
            raise ValueError(f"mask: expected the activation's {list(lead)}, got {list(mask.shape)}")
        replaced = None if mask is None else mask.to(activation.device) != 0
        # A pass over one position is a step of a generation that keeps earlier ones in a cache.
        if self.exclude_bos and activation.dim() > 2 and activation.shape[1] > 1:
            later = ~first_positions(activation, mask)
            replaced = later if replaced is None else replaced & later
        if replaced is None:
            return None
        return replaced.reshape(*replaced.shape, *(1,) * (activation.dim() - replaced.dim()))


@contextmanager
def splice(
    model: Any,
    sae: Any,
    hook: str | None = None,
    *,
    error_term: bool = False,
    exclude_bos: bool = True,
    mask: Tensor | None = None,
    edit: Callable[[Any], Any] | None = None,
    dense: bool = False,
) -> Iterator[Splice]:
    """While the context lasts, every pass of the model has the SAE's reconstruction in place of a hook's activation.

    Plain calls, `run_with_hooks` and `run_with_cache` see it, in any dtype of the model; contexts nest.

    Args:
        model: a TransformerLens model, or a torch module such as a Hugging Face model (see `HookedModule`).
        sae: any SAE of saekern. Also "zero" or a row [D], to compare with.
        hook: the hook's or submodule's name; None: where the SAE's rows came from, if it knows. Head dimensions are
            flattened for the SAE.
        error_term: add (x − x̂) without gradient, x̂ being the reconstruction without the edit: the model computes what
            it would, but for the edit, and gradients flow through the codes.
        exclude_bos: leave the first real token of a sequence as it is (an image has none: its first token is CLS).
        mask: [B, T], an attention mask; where it is 0 the activation stays as it is. For other batches assign to the
            `.mask` of what the context gives.
        edit: a function of the codes, which returns others or changes them in place. It gets SparseCodes, [B, T, K] or
            ragged rows of B·T; with `dense` a tensor [B, T, F].

    Raises:
        ValueError: an unknown hook, none where the SAE knows none, a width that is not the SAE's.
    """
    name = hook if hook is not None else (getattr(sae, "provenance", None) or {}).get("hook")
    if not isinstance(name, str):
        raise ValueError(
            'hook: this SAE does not know where its rows came from; pass the hook, such as "blocks.5.hook_resid_pre",'
            ' or the name of a submodule, such as "transformer.h.4"'
        )
    model = hooked(model)
    check_hook(model, name)
    spliced = Splice(sae, error_term=error_term, exclude_bos=exclude_bos, mask=mask, edit=edit, dense=dense)
    with model.hooks(fwd_hooks=[(name, spliced)]):
        yield spliced


def replacement(sae: Any, exclude_bos: bool = True, mask: Tensor | None = None) -> Splice:
    """A hook function that puts zeros (sae="zero"), a row [D] or an SAE's reconstruction in place."""
    return Splice(sae, exclude_bos=exclude_bos, mask=mask)
