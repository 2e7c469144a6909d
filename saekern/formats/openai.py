"""OpenAI's sparse_autoencoder: one `.pt` file, a state dict with the activation's name and settings among the tensors.

Its loader takes TopK to mean that rows are normalised (LayerNorm without weights), and anything else that they are not.

Source: github.com/openai/sparse_autoencoder, model.py.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saekern.formats import state_dict
from saekern.formats.checkpoint import Checkpoint
from saekern.formats.source import read_pickle
from saekern.formats.state_dict import Names
from saekern.sae import SAE, NormalizedSAE

NAME = "openai"
OPTIONS = {"activation": "ReLU or TopK, for a file that names none", "k": "of such a file's TopK"}
NAMES: Names = {
    "encoder.weight": ("W_enc", True),
    "decoder.weight": ("W_dec", True),
    "latent_bias": ("b_enc", False),
    "pre_bias": ("b_dec", False),
}
STATISTICS = {
    "stats_last_nonzero": torch.int64,
    "latents_activation_frequency": torch.float32,
    "latents_mean_square": torch.float32,
}
WITHIN = ("activation.k", "activation.postact_fn")
"""What its state_dict() writes of a TopK beside activation_state_dict, and its own strict loader then does not expect:
left out unless the file had them."""
EPS = 1e-5


def detect(path: Path) -> str | None:
    """Why the path looks like this format, or None."""
    names = state_dict.pickled_names(path)
    return "a state dict with latent_bias and pre_bias" if b"latent_bias" in names and b"pre_bias" in names else None


def read(path: Path, options: Mapping[str, Any], fold: bool) -> Checkpoint:
    content = read_pickle(path)
    content = dict(content) if isinstance(content, dict) else content
    activation, k = _activation(content, options, path)
    within = [name for name in WITHIN if isinstance(content.pop(name, None), (int, str))]
    state = state_dict.checked(content, path)
    statistics = {name: state.pop(name) for name in STATISTICS if name in state}
    tensors = state_dict.renamed(state, NAMES, path, "an autoencoder")
    latents, width = tensors["W_dec"].shape
    packed = {name: state_dict.packed(_counted(statistics, name, latents, path)) for name in statistics}
    kept: dict[str, Any] = {"statistics": packed, **({"within": True} if within else {})}
    notes = [state_dict.transposed(NAMES)]
    if statistics:
        notes.append(f"Kept beside the SAE, not used: {', '.join(statistics)}.")
    sizes = {"d_in": width, "d_sae": latents}
    if activation == "ReLU":
        return Checkpoint(NAME, "relu", sizes, tensors, kept, {}, tuple(notes))
    notes.append("Rows are normalised (LayerNorm), as its loader does for TopK.")
    arguments = {**sizes, "norm": "layer_norm", "eps": EPS, "base": "topk", "base_args": {"k": k}}
    inner = {f"base.{name}": tensor for name, tensor in tensors.items()}
    return Checkpoint(NAME, "normalized", arguments, inner, kept, {}, tuple(notes))


def write(sae: SAE, path: Path, options: Mapping[str, Any], fold: bool) -> None:
    if path.is_dir():
        raise ValueError(f"{path} is a folder: {NAME} keeps one file")
    inner = sae
    if isinstance(sae, NormalizedSAE):
        if (sae.norm, sae.eps, sae.base.architecture) != ("layer_norm", EPS, "topk"):
            raise ValueError(
                f"{NAME} normalises rows by layer_norm with eps {EPS:g}, and for TopK only; this SAE is"
                f" {sae.base.architecture} on {sae.norm} with eps {sae.eps:g}"
            )
        inner = sae.base
    elif sae.architecture == "topk":
        raise ValueError(f"{NAME} takes TopK to mean that rows are normalised, and those of this SAE are not")
    architecture, tensors = state_dict.exported(inner, NAME, ("topk", "relu"), fold)
    tensors = state_dict.subtracting(inner, tensors, True, NAME, fold)
    theirs: dict[str, Any] = state_dict.named_back(tensors, NAMES)
    kept = state_dict.kept(sae, NAME)
    statistics = kept.get("statistics")
    for name, dtype in STATISTICS.items():
        text = statistics.get(name) if isinstance(statistics, dict) else None
        before = state_dict.unpacked(text, (sae.d_sae,), dtype)
        start = torch.ones if name == "latents_activation_frequency" else torch.zeros  # as its constructor has them
        theirs[name] = start(sae.d_sae, dtype=dtype) if before is None else before
    if architecture == "topk":
        settings = {"k": inner.k, "postact_fn": "ReLU"}
        theirs |= (
            {f"activation.{name}": value for name, value in settings.items()} if kept.get("within") is True else {}
        )
        theirs |= {"activation": "TopK", "activation_state_dict": settings}
    else:
        theirs |= {"activation": "ReLU", "activation_state_dict": {}}
    state_dict.write_pickle(path, theirs)


def _activation(content: Any, options: Mapping[str, Any], path: Path) -> tuple[str, int | None]:
    """Taken out of the state dict, with its settings; (name, k)."""
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a state dict, got {type(content).__name__}")
    named, settings = content.pop("activation", None), content.pop("activation_state_dict", {})
    if named is None and "activation" not in options:
        raise ValueError(f"{path}: no activation in the file: pass options={{'activation': 'ReLU'}}, or 'TopK' and 'k'")
    for option in options if named is not None else ():
        raise ValueError(f"options: {option}: the file has its own activation, {named!r}")
    activation = options["activation"] if named is None else named
    if activation not in ("ReLU", "TopK"):
        raise ValueError(f"{path}: activation {activation!r}: expected ReLU or TopK; saekern has no other")
    if activation == "ReLU":
        return activation, None
    if named is None:
        settings = {"k": options.get("k"), "postact_fn": "ReLU"}
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: activation_state_dict: expected a dict, got {type(settings).__name__}")
    if settings.get("postact_fn") != "ReLU":
        raise ValueError(
            f"{path}: postact_fn {settings.get('postact_fn')!r}: after TopK saekern has a ReLU, which keeps no negative"
        )
    k = settings.get("k")
    plain = {**settings, "k": int(k)} if isinstance(k, Tensor) and k.numel() == 1 else settings
    return activation, state_dict.number(plain, "k", path)


def _counted(statistics: Mapping[str, Tensor], name: str, latents: int, path: Path) -> Tensor:
    tensor = statistics[name]
    if tensor.shape != (latents,) or tensor.dtype != STATISTICS[name]:
        raise ValueError(
            f"{path}: {name}: expected {STATISTICS[name]} [{latents}], got {tensor.dtype} {list(tensor.shape)}"
        )
    return tensor
