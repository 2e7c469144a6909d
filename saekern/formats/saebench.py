"""An SAE of ours as SAEBench's evaluations want one."""

import copy
import logging
import re
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from saekern.formats.dense_codes import LastCodes
from saekern.sae import SAE, NormalizedSAE, SparseCodes

LAYER = re.compile(r"\bblocks\.(\d+)\.")
UNIT = {torch.float64: 1e-5, torch.float32: 1e-5}  # SAEBench's tolerance; 1e-2 for the halves

logger = logging.getLogger(__name__)


def wrap(
    sae: SAE,
    model_name: str | None = None,
    hook_layer: int | None = None,
    hook_name: str | None = None,
    *,
    context_size: int = 128,
    training_tokens: int = -100_000,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Any:
    """A copy of this SAE as SAEBench's `BaseSAE`, with `cfg`, for `<evaluation>.run_eval(config, [("name", wrapped)],
    device, folder)` and `core.multiple_evals`. It encodes and decodes by our kernels.

    It is a copy because the evaluations convert it to the language model's dtype; it is meant to be evaluated, not
    trained. SAEBench compares latents by their codes and wants decoder rows of norm 1. Where ours are not (ReLU and
    JumpReLU SAEs read from elsewhere, archetypal ones) the norms n_i are folded: decoder rows w_i / n_i, codes n_i z_i,
    the same reconstruction up to rounding; a warning says so. Rows of zeros stay.

    `W_enc` and `b_enc`, of which SAEBench reads norms and cosines, are ours times n_i; of a KronSAE they are 0.

    Args:
        sae: any of ours but a NormalizedSAE, whose codes do not say how long the row was.
        model_name: as SAEBench names models ("pythia-70m-deduped"); None: `sae.provenance["model"]`.
        hook_layer: None: the number in hook_name.
        hook_name: None: `sae.provenance["hook"]`, or with a layer alone "blocks.<layer>.hook_resid_post".
        context_size, training_tokens: for the record in SAEBench's results.
        device, dtype: of the copy.

    Raises:
        ImportError: SAEBench is missing or does not import.
        ValueError: no model name or layer, or a NormalizedSAE.
    """
    if isinstance(sae, NormalizedSAE):
        raise ValueError(
            "sae: SAEBench decodes codes without their rows, so a NormalizedSAE cannot be wrapped; fold its norm or"
            " evaluate its base"
        )
    known = sae.provenance
    model_name = model_name or known.get("model")
    if hook_name is None:
        hook_name = known.get("hook") if hook_layer is None else f"blocks.{hook_layer}.hook_resid_post"
    if hook_layer is None:
        found = LAYER.search(hook_name or "")
        hook_layer = int(found.group(1)) if found else None
    for name, value in (("model_name", model_name), ("hook_layer", hook_layer)):
        if value is None:
            raise ValueError(f"{name}: expected one, as sae.provenance does not say it; got None")
    inner = copy.deepcopy(sae).eval().requires_grad_(False).to(device=device, dtype=dtype)
    wrapped = _class()(inner, model_name, hook_layer, hook_name)
    wrapped.cfg.context_size, wrapped.cfg.training_tokens = context_size, training_tokens
    return wrapped


@cache
def _class() -> Any:
    try:
        from sae_bench.custom_saes.base_sae import BaseSAE
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("sae_bench"):
            raise ImportError("wrap needs SAEBench: pip install sae-bench") from error
        raise ImportError(f"SAEBench cannot be imported: {error}") from error
    except (ImportError, RuntimeError, AttributeError) as error:
        raise ImportError(f"SAEBench cannot be imported: {error}") from error

    class SaekernBenchSAE(BaseSAE):
        """See `wrap`."""

        def __init__(self, sae: SAE, model_name: str, hook_layer: int, hook_name: str) -> None:
            weight = sae.dictionary
            # Of width 1: the base allocates four tensors of its own.
            super().__init__(1, 1, model_name, hook_layer, weight.device, weight.dtype, hook_name)
            scale = norms_to_fold(weight)
            if scale is not None:
                logger.warning("decoder rows have norms other than 1: folded, so that codes are multiplied by them")
            self.saekern, self.last = sae, LastCodes()
            self.register_buffer("scale", scale)
            self.W_dec = _frozen(weight if scale is None else weight / scale[:, None])
            self.W_enc = _frozen(_scaled(getattr(sae, "W_enc", weight.new_zeros(sae.d_in, sae.d_sae)), scale))
            self.b_enc = _frozen(_scaled(getattr(sae, "b_enc", weight.new_zeros(sae.d_sae)), scale))
            self.b_dec = _frozen(sae.b_dec)
            magnitudes: Tensor | None = getattr(sae, "b_mag", None)
            if magnitudes is not None:
                self.b_mag = _frozen(_scaled(magnitudes, scale))  # SAEBench reads it of gated ones
            self.cfg.d_in, self.cfg.d_sae = sae.d_in, sae.d_sae
            self.cfg.architecture = sae.architecture
            self.cfg.apply_b_dec_to_input = sae.subtract_b_dec
            self.cfg.device = str(weight.device)

        def encode(self, x: Tensor) -> Tensor:
            """[B, L, D] or [N, D] -> codes [..., F]."""
            values, indices, offsets = self.saekern.encode_sparse(self.saekern.flat(x.to(self.dtype)))
            if self.scale is not None:
                values = values * self.scale[indices]
            dense = self.last.dense(SparseCodes(values, indices, offsets), self.cfg.d_sae)
            return dense.reshape(*x.shape[:-1], self.cfg.d_sae)

        def decode(self, feature_acts: Tensor) -> Tensor:
            """[..., F] -> [..., D]."""
            return self.last.decode(feature_acts, self.W_dec, self.b_dec)

        def forward(self, x: Tensor) -> Tensor:
            return self.decode(self.encode(x))

        def to(self, *args: Any, **kwargs: Any) -> Any:
            super().to(*args, **kwargs)
            self.device, self.dtype = self.W_dec.device, self.W_dec.dtype
            self.cfg.device, self.cfg.dtype = str(self.device), str(self.dtype).removeprefix("torch.")
            return self

    return SaekernBenchSAE


def norms_to_fold(weight: Tensor) -> Tensor | None:
    """The norms [F] of decoder rows, 1 for rows of zeros; None where all are 1 to SAEBench's tolerance."""
    norms = torch.linalg.vector_norm(weight, dim=1, dtype=torch.promote_types(weight.dtype, torch.float32))
    norms = torch.where(norms > 0, norms, 1)
    if bool((norms - 1).abs().max() <= UNIT.get(weight.dtype, 1e-2)):
        return None
    return norms.to(weight.dtype)


def _scaled(tensor: Tensor, scale: Tensor | None) -> Tensor:
    return tensor if scale is None else tensor * scale


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach(), requires_grad=False)
