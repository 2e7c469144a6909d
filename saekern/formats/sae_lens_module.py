"""An SAE of ours as one of SAELens', for its transformers and tools."""

from collections.abc import Mapping
from typing import Any

from saekern.sae import SAE, NormalizedSAE
from saekern.sae.files import ARCHITECTURES, describe

PREFIX = "saekern_"
NORMS = {"layer_norm": "layer_norm", "constant_norm": "constant_norm_rescale"}  # ours -> SAELens' name


def to_sae_lens(sae: SAE, *, metadata: Mapping[str, Any] | None = None) -> Any:
    """A `sae_lens.SAE` around this SAE: the same parameters, not copies, and our kernels.

    It goes wherever SAELens takes an SAE: `HookedSAETransformer` and `SAETransformerBridge` (`add_sae`, `saes([...])`,
    `run_with_saes`, `run_with_cache_with_saes`, with and without error term), with the hook points that their own
    have. The SAE itself is its attribute `saekern`.

    Where SAELens has an equal class (StandardSAE, TopKSAE, JumpReLUSAE, GatedSAE), `saekern.save(sae, path,
    format="saelens")` and `sae_lens.SAE.load_from_disk(path)` give that: for people who have no saekern. This here
    takes every architecture and keeps our speed.

    - While nobody has put a hook on `hook_sae_acts_pre`, no dense product is computed. With one (`run_with_cache` puts
      one everywhere unless `names_filter` says otherwise) scores and codes come from torch's dense product, and differ
      from ours in their last bits.
    - Decoding codes that `encode` just made takes our sparse kernel; codes that somebody changed, the dense product.
    - Of a NormalizedSAE `decode` undoes the scale of the rows that were encoded last, as SAELens' normalising SAEs do.
    - `save_model` writes the class `saekern_<architecture>`. `sae_lens.SAE.load_from_disk` reads it where saekern is
      installed and `saekern.formats.register_sae_lens()` was called; others get a KeyError with that name.
    - Folding (`fold_W_dec_norm` and the like) is refused: it would change what the encoder selects.

    Args:
        sae: any of ours. Moving or converting either moves both.
        metadata: SAELens' `cfg.metadata`, such as hook_name="blocks.5.hook_resid_post" and model_name="gpt2-small".
            Without them they come from `sae.provenance` ("hook", "model").

    Raises:
        ImportError: SAELens is missing or does not import; it needs TransformerLens older than 4.
        TypeError: not an SAE of ours.
    """
    if not isinstance(sae, SAE) or not isinstance(sae, ARCHITECTURES.get(sae.architecture, ())):
        raise TypeError(f"sae: expected one of saekern's architectures, got {type(sae).__name__}")
    module, configs = register_sae_lens()
    base = sae.base if isinstance(sae, NormalizedSAE) else sae
    known = _metadata(sae, metadata)
    config = configs[sae.architecture](
        d_in=sae.d_in,
        d_sae=sae.d_sae,
        dtype=str(sae.b_dec.dtype).removeprefix("torch."),
        device=str(sae.b_dec.device),
        apply_b_dec_to_input=base.subtract_b_dec,
        normalize_activations=NORMS[sae.norm] if isinstance(sae, NormalizedSAE) else "none",
        reshape_activations="hook_z" if str(known.get("hook_name")).endswith("_z") else "none",
        saekern=describe(sae),
    )
    for name, value in known.items():
        config.metadata[name] = value
    return module.around(sae, config)


def register_sae_lens() -> tuple[Any, Mapping[str, Any]]:
    """Tells SAELens the classes of our architectures, once; its `SAE.load_from_disk` then reads what `save_model` of
    them wrote. Returns the module's class, and the config's by architecture.

    Raises:
        ImportError: SAELens is missing or does not import.
    """
    try:
        from saekern.formats import sae_lens_classes
    except (ImportError, RuntimeError, AttributeError) as error:
        raise ImportError(_explain(error)) from error
    return sae_lens_classes.SaekernSAE, sae_lens_classes.CONFIGS


def _metadata(sae: SAE, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Later ones win: what SAELens kept beside the weights, what we know, what the caller says."""
    kept = sae.provenance.get("saelens")
    kept = kept.get("metadata") if isinstance(kept, Mapping) else None
    kept = {name: value for name, value in (kept or {}).items() if "sae_lens" not in name}  # versions: of who writes it
    names = {"model_name": "model", "hook_name": "hook"}
    ours = {name: sae.provenance[key] for name, key in names.items() if key in sae.provenance}
    return {**kept, **ours, **(given or {})}


def _explain(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and (error.name or "").startswith("sae_lens"):
        return "to_sae_lens needs SAELens 6, and that TransformerLens older than 4: pip install sae-lens"
    if "torchvision" in str(error) or "PreTrainedModel" in str(error):
        return f"SAELens cannot be imported ({error}). An installed torchvision does not fit this PyTorch: uninstall it"
    return (
        f"SAELens cannot be imported ({error}). It needs TransformerLens older than 4; with a newer one use"
        " saekern.evaluation.splice"
    )
