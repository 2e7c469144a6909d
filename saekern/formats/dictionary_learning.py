"""dictionary_learning: `ae.pt`, a state dict, beside `config.json`, whose trainer.dict_class names the class.

What its own loader does and this does not: `AutoEncoder.from_pretrained` scales decoder columns to norm 1 and the
encoder by what they had. The same function, other tensors; fold=True does it.

What the library itself loses, and so cannot be read: its jumprelu's `apply_b_dec_to_input` (after loading it is False),
and the scale of activations (it is in the biases by the time that the last file is written).

Source: github.com/saprmarks/dictionary_learning, version 0.1.0, dictionary.py, utils.py, trainers/.
"""

from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saekern.formats import state_dict
from saekern.formats.checkpoint import Checkpoint
from saekern.formats.source import read_object, read_pickle
from saekern.formats.state_dict import Names
from saekern.sae import SAE, files

NAME = "dictionary_learning"
OPTIONS: dict[str, str] = {}
WEIGHTS, CONFIG = "ae.pt", "config.json"


class Class(NamedTuple):
    architecture: str  # ours
    subtract_b_dec: bool
    names: Names
    buffers: tuple[str, ...] = ()


LINEAR: Names = {
    "encoder.weight": ("W_enc", True),
    "encoder.bias": ("b_enc", False),
    "decoder.weight": ("W_dec", True),
}
PLAIN: Names = {name: (name, False) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
GATED: Names = {
    "encoder.weight": ("W_enc", True),
    "decoder.weight": ("W_dec", True),
    "decoder_bias": ("b_dec", False),
    "gate_bias": ("b_gate", False),
    "mag_bias": ("b_mag", False),
    "r_mag": ("r_mag", False),
}
CLASSES = {
    "AutoEncoder": Class("relu", True, {**LINEAR, "bias": ("b_dec", False)}),
    "AutoEncoderNew": Class("relu", False, {**LINEAR, "decoder.bias": ("b_dec", False)}),
    "GatedAutoEncoder": Class("gated", True, GATED),
    "JumpReluAutoEncoder": Class("jumprelu", False, {**PLAIN, "threshold": ("threshold", False)}),
    "AutoEncoderTopK": Class("topk", True, {**LINEAR, "b_dec": ("b_dec", False)}, ("k", "threshold")),
    "BatchTopKSAE": Class("batch_topk", True, {**LINEAR, "b_dec": ("b_dec", False)}, ("k", "threshold")),
    "MatryoshkaBatchTopKSAE": Class("matryoshka", True, PLAIN, ("k", "threshold", "group_sizes")),
}


def detect(path: Path) -> str | None:
    """Why the path looks like this format, or None."""
    file, config = _files(path)
    if file.is_file() and config.is_file():
        trainer = read_object(config).get("trainer")
        if isinstance(trainer, dict) and isinstance(trainer.get("dict_class"), str):
            return f"{file.name} and {CONFIG} with trainer.dict_class {trainer['dict_class']}"
    return None


def read(path: Path, options: Mapping[str, Any], fold: bool) -> Checkpoint:
    file, config_file = _files(path)
    config = read_object(config_file)
    trainer = config.get("trainer")
    name = trainer.get("dict_class") if isinstance(trainer, dict) else None
    if not isinstance(trainer, dict) or name not in CLASSES:
        raise ValueError(f"{config_file}: trainer.dict_class: expected one of {', '.join(CLASSES)}, got {name!r}")
    cls, notes = CLASSES[name], []
    content, about_backup = _without_backup(read_pickle(file), file)
    state = state_dict.checked(content, file)
    buffers = {buffer: _buffer(state, buffer, file) for buffer in cls.buffers}
    tensors = state_dict.renamed(state, cls.names, file, name)
    if any(turned for _, turned in cls.names.values()):
        notes.append(state_dict.transposed(cls.names))
    if about_backup:
        notes.append(
            "The state in the middle of a training (a backup): its SAE is read, the optimiser's state left out."
        )
        tensors, buffers = _unscaled(tensors, buffers, about_backup.get("norm_factor"), file, fold, notes)
    width, latents = _sizes(tensors, trainer, config_file)
    arguments: dict[str, Any] = {"d_in": width, "d_sae": latents, "subtract_b_dec": cls.subtract_b_dec}
    kept: dict[str, Any] = {"config": config, **({"backup": about_backup} if about_backup else {})}
    if cls.buffers:
        arguments["k"] = _k(buffers["k"], trainer, file)
        threshold = float(buffers["threshold"])
        kept["threshold"] = threshold
        if name == "AutoEncoderTopK":
            notes.append(f"threshold {threshold:g} is kept, not used: encoding takes the k largest, as theirs does.")
        else:
            if threshold <= 0:
                notes.append(f"threshold {threshold:g} is one not yet set: encoding is a plain ReLU, as theirs is.")
            tensors["threshold"] = buffers["threshold"].clamp(min=0)
    if name == "MatryoshkaBatchTopKSAE":
        arguments |= _groups(buffers["group_sizes"], trainer, latents, file, notes)
    if name == "JumpReluAutoEncoder":
        tensors["threshold"] = _clamped(tensors["threshold"], file, fold, notes)
    if name == "AutoEncoder":
        tensors = _normalised(tensors, fold, notes)
    return Checkpoint(NAME, cls.architecture, arguments, tensors, kept, _provenance(trainer), tuple(notes))


def write(sae: SAE, path: Path, options: Mapping[str, Any], fold: bool) -> None:
    known = tuple(dict.fromkeys(cls.architecture for cls in CLASSES.values()))
    architecture, tensors = state_dict.exported(sae, NAME, known, fold)
    names = [name for name, cls in CLASSES.items() if cls.architecture == architecture]
    name = next((name for name in names if CLASSES[name].subtract_b_dec == sae.subtract_b_dec), names[0])
    cls = CLASSES[name]
    tensors = state_dict.subtracting(sae, tensors, cls.subtract_b_dec, f"{NAME} ({name})", fold)
    kept = state_dict.kept(sae, NAME)
    if name == "JumpReluAutoEncoder":
        below = int((~(tensors["threshold"] >= 0)).sum())
        if below:
            raise ValueError(f"{NAME} has a ReLU after its thresholds, and {below} of this SAE's are below 0")
        tensors["threshold"] = state_dict.narrowed(tensors["threshold"], tensors["W_dec"].dtype)
    theirs = state_dict.named_back(tensors, cls.names)
    config = kept.get("config")
    config = config if isinstance(config, dict) else {}
    before = config.get("trainer")
    trainer = dict(before) if isinstance(before, dict) else _trainer(sae)
    trainer |= {"dict_class": name, "activation_dim": sae.d_in, "dict_size": sae.d_sae}
    if cls.buffers:
        trainer["k"] = sae.k
        theirs["k"] = torch.tensor(sae.k, dtype=torch.int32)
        theirs["threshold"] = torch.tensor(_threshold(name, tensors, kept), dtype=torch.float32)
    if name == "MatryoshkaBatchTopKSAE":
        prefixes: list[int] = sae.prefixes  # type: ignore[assignment]
        sizes = [end - start for start, end in zip([0, *prefixes], prefixes, strict=False)]
        if trainer.get("group_sizes") != sizes:
            trainer["group_fractions"] = [size / sae.d_sae for size in sizes]
            trainer["group_weights"] = sae.prefix_weights or [1 / len(sizes)] * len(sizes)
        trainer["group_sizes"] = sizes
        theirs["group_sizes"] = torch.tensor(sizes, dtype=torch.int64)
    state_dict.write_pickle(path / WEIGHTS, theirs)
    files.write_json(path / CONFIG, {**config, "trainer": trainer})


def _files(path: Path) -> tuple[Path, Path]:
    """The state dict, and the config beside it, or above it for one of `checkpoints/`."""
    if path.is_dir():
        return path / WEIGHTS, path / CONFIG
    beside = path.parent / CONFIG
    return path, beside if beside.is_file() or path.parent.name != "checkpoints" else path.parent.parent / CONFIG


def _without_backup(content: Any, file: Path) -> tuple[Any, dict[str, Any]]:
    """The state dict, and what a backup of a training says beside it."""
    if not isinstance(content, dict) or not {"ae", "step"} <= content.keys():
        return content, {}
    about = {name: content.get(name) for name in ("step", "norm_factor")}
    for name, value in about.items():
        if isinstance(value, Tensor) and value.numel() == 1:
            about[name] = value = value.item()
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise ValueError(f"{file}: {name}: expected a number, got {type(value).__name__}")
    return content["ae"], about


def _unscaled(
    tensors: dict[str, Tensor],
    buffers: dict[str, Tensor],
    factor: float | None,
    file: Path,
    fold: bool,
    notes: list[str],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Biases and thresholds of a backup, whose SAE reads x / norm_factor, for x itself: what the library does to the
    last file."""
    if factor is None or factor == 1:
        return tensors, buffers
    if not 0 < factor < float("inf"):
        raise ValueError(f"{file}: norm_factor: expected a positive number, got {factor}")
    if not fold:
        raise ValueError(
            f"{file}: a backup, whose SAE reads x / {factor:g} (norm_factor): fold=True multiplies biases and"
            " thresholds by it"
        )
    notes.append(f"Biases and thresholds times norm_factor {factor:g}: backups are in the scale of the training.")
    scaled = ("b_enc", "b_dec", "b_gate", "b_mag", "threshold")
    buffers = {name: t * factor if name == "threshold" and t >= 0 else t for name, t in buffers.items()}
    return {name: t * factor if name in scaled else t for name, t in tensors.items()}, buffers


def _buffer(state: dict[str, Tensor], name: str, file: Path) -> Tensor:
    """Taken out of the state dict."""
    if name not in state:
        raise ValueError(f"{file}: no {name!r}: written by a version that kept none? Its own loader refuses it as well")
    value = state.pop(name)
    if value.dim() != (1 if name == "group_sizes" else 0) or value.is_complex():
        raise ValueError(f"{file}: {name}: expected a number, got shape {list(value.shape)}")
    if name == "threshold" and not torch.isfinite(value):
        raise ValueError(f"{file}: threshold: expected a finite number, got {float(value)}")
    return value


def _sizes(tensors: dict[str, Tensor], trainer: Mapping[str, Any], config_file: Path) -> tuple[int, int]:
    latents, width = tensors["W_dec"].shape
    for name, size in (("activation_dim", width), ("dict_size", latents)):
        if name in trainer and trainer[name] != size:
            raise ValueError(f"{config_file}: {name} is {trainer[name]!r}, and the tensors have {size}")
    return width, latents


def _k(value: Tensor, trainer: Mapping[str, Any], file: Path) -> int:
    k = int(value)
    if value.is_floating_point() or trainer.get("k", k) != k:
        raise ValueError(f"{file}: k is {value.item()}, and {CONFIG} has {trainer.get('k')!r}")
    return k


def _groups(sizes: Tensor, trainer: Mapping[str, Any], latents: int, file: Path, notes: list[str]) -> dict[str, Any]:
    counts = [int(size) for size in sizes]
    if sizes.is_floating_point() or min(counts, default=0) < 1 or sum(counts) != latents:
        raise ValueError(f"{file}: group_sizes: expected whole numbers >= 1 with sum {latents}, got {counts[:20]}")
    weights = trainer.get("group_weights")
    usable = (
        isinstance(weights, list)
        and len(weights) == len(counts)
        and all(isinstance(w, (int, float)) and not isinstance(w, bool) and w > 0 for w in weights)
    )
    if not usable:
        notes.append("group_weights are missing or not positive: training would weight all groups the same.")
    return {"prefixes": list(accumulate(counts)), "prefix_weights": weights if usable else None}


def _clamped(threshold: Tensor, file: Path, fold: bool, notes: list[str]) -> Tensor:
    """A ReLU follows their threshold: below 0 it does nothing in encoding (their training has no such ReLU)."""
    if not torch.isfinite(threshold).all():
        raise ValueError(f"{file}: threshold: {int((~torch.isfinite(threshold)).sum())} entries are not finite")
    below = int((threshold < 0).sum())
    if below and not fold:
        raise ValueError(
            f"{file}: {below} thresholds are below 0, where their encoder is a ReLU (and their training is not):"
            " fold=True sets them to 0, which is the same in encoding"
        )
    if below:
        notes.append(f"{below} thresholds below 0 set to 0: the same in encoding, where a ReLU follows.")
    return threshold.clamp(min=0) if below else threshold


def _normalised(tensors: dict[str, Tensor], fold: bool, notes: list[str]) -> dict[str, Tensor]:
    norms = torch.linalg.vector_norm(tensors["W_dec"].double(), dim=1)
    norms = torch.where(norms > 0, norms, 1)
    if torch.allclose(norms, torch.ones_like(norms)):  # which is when their loader leaves them, too
        return tensors
    if not fold:
        notes.append("Decoder rows as stored; their loader scales them to norm 1, as fold=True does.")
        return tensors
    notes.append("Decoder rows scaled to norm 1 and the encoder by what they had, as their loader does.")
    dtype = tensors["W_dec"].dtype
    return {
        **tensors,
        "W_dec": (tensors["W_dec"].double() / norms[:, None]).to(dtype),
        "W_enc": (tensors["W_enc"].T.double() * norms[:, None]).to(dtype).T,
        "b_enc": (tensors["b_enc"].double() * norms).to(dtype),
    }


def _threshold(name: str, tensors: dict[str, Tensor], kept: Mapping[str, Any]) -> float:
    """−1 is theirs for one that is not set, which ours has as 0; a TopK's is what was kept."""
    before = kept.get("threshold")
    before = float(before) if isinstance(before, (int, float)) and not isinstance(before, bool) else -1.0
    if name == "AutoEncoderTopK":
        return before
    own = float(tensors["threshold"])
    return own if own > 0 else before if before <= 0 else -1.0


def _trainer(sae: SAE) -> dict[str, Any]:
    """What their readers ask for, of an SAE that never had a trainer of theirs."""
    model, hook = sae.provenance.get("model"), sae.provenance.get("hook")
    return {"lm_name": model or "", "layer": None, "submodule_name": hook}


def _provenance(trainer: Mapping[str, Any]) -> dict[str, Any]:
    found = {"model": trainer.get("lm_name"), "hook": trainer.get("submodule_name")}
    return {name: value for name, value in found.items() if isinstance(value, str) and value}
