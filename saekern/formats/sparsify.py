"""sparsify (`eai-sparsify`): `cfg.json` and `sae.safetensors` in a folder named after the hookpoint, or its `seed{n}`.

Its encoder takes the k largest after the ReLU and ours before it: the same values; where fewer than k are positive the
indices of zeros may differ. Its forward pass runs in bfloat16 on a GPU; with `multi_topk` it returns the codes and x̂ of
the 4 k largest, while encode and decode, which ours is, take k.

Source: github.com/EleutherAI/sparsify, PyPI eai-sparsify 1.3.3, config.py, sparse_coder.py, trainer.py.
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from saekern.formats import state_dict
from saekern.formats.checkpoint import Checkpoint
from saekern.formats.source import read_object, read_safetensors
from saekern.formats.state_dict import Names
from saekern.sae import SAE, files

NAME = "sparsify"
OPTIONS: dict[str, str] = {}
WEIGHTS, CONFIG = "sae.safetensors", "cfg.json"
SEED = re.compile(r"seed\d+")
DEPTH, LISTED = 3, 12  # run / hookpoint / seed; how many an error names

NAMES: Names = {
    "encoder.weight": ("W_enc", True),
    "encoder.bias": ("b_enc", False),
    "W_dec": ("W_dec", False),
    "b_dec": ("b_dec", False),
}
DEFAULTS = {
    "activation": "topk",
    "expansion_factor": 32,
    "normalize_decoder": True,
    "num_latents": 0,
    "k": 32,
    "multi_topk": False,
    "skip_connection": False,
    "transcode": False,
}
SHAPE = {"activation": "topk", "signed": False, "transcode": False, "skip_connection": False}
OTHERS = {
    "signed": "signed latents (the k largest magnitudes, with their signs)",
    "transcode": "a transcoder, which predicts another module's output from x",
    "skip_connection": "a skip connection, W_skip x",
}


def detect(path: Path) -> str | None:
    """Why the path looks like this format, or None."""
    if not path.is_dir():
        return None
    if _is_sae(path):
        return f"{CONFIG} and {WEIGHTS}"
    inside = next(_saes(path, DEPTH), None)
    return None if inside is None else f"{CONFIG} and {WEIGHTS} in {inside.relative_to(path)}"


def read(path: Path, options: Mapping[str, Any], fold: bool) -> Checkpoint:
    if path.is_dir() and not _is_sae(path):
        _refuse_several(path)
    config_file, file = path / CONFIG, path / WEIGHTS
    config = read_object(config_file)
    activation = config.get("activation", DEFAULTS["activation"])
    if activation != "topk":
        about = " (the largest of each of k groups)" if activation == "groupmax" else ""
        raise ValueError(f"{config_file}: activation {activation!r}{about} is not one that saekern has; topk is")
    for name, what in OTHERS.items():
        if config.get(name, False) is not False:
            raise ValueError(f"{config_file}: {name}: {what}: saekern has no such SAE")
    k, width = state_dict.number(config, "k", config_file), state_dict.number(config, "d_in", config_file)
    latents = _latents(config, width, config_file)
    tensors = read_safetensors(file)
    if len({tensor.dtype for tensor in tensors.values()}) > 1:
        found = ", ".join(f"{name} {tensor.dtype}" for name, tensor in sorted(tensors.items()))
        raise ValueError(f"{file}: expected one type, which its own loader takes from the first tensor, got {found}")
    tensors = state_dict.renamed(tensors, NAMES, file, "a sparsify SAE")
    if tensors["W_dec"].shape != (latents, width):
        raise ValueError(f"{file}: W_dec: {CONFIG} says [{latents}, {width}], got {list(tensors['W_dec'].shape)}")
    notes = [state_dict.transposed(NAMES)]
    if not config.get("num_latents"):
        notes.append(f"num_latents 0 means d_in x expansion_factor = {latents}.")
    if config.get("multi_topk"):
        notes.append(f"multi_topk: its forward pass gives x̂ of the {4 * k} largest, its encoder the {k}, as ours does.")
    arguments = {"d_in": width, "d_sae": latents, "k": k}
    kept = {"cfg": config, **({"seed": path.name} if SEED.fullmatch(path.name) else {})}
    return Checkpoint(NAME, "topk", arguments, tensors, kept, _provenance(path), tuple(notes))


def write(sae: SAE, path: Path, options: Mapping[str, Any], fold: bool) -> None:
    _, tensors = state_dict.exported(sae, NAME, ("topk",), fold)
    tensors = state_dict.subtracting(sae, tensors, True, NAME, fold)
    before = state_dict.kept(sae, NAME).get("cfg")
    config = dict(before) if isinstance(before, dict) else dict(DEFAULTS)
    config |= {name: value for name, value in SHAPE.items() if name in config} | {"k": sae.k, "d_in": sae.d_in}
    if _latents_or_none(config, sae.d_in) != sae.d_sae:
        config["num_latents"] = sae.d_sae
    files.write_tensors(path / WEIGHTS, state_dict.named_back(tensors, NAMES), {"format": "pt"})
    files.write_json(path / CONFIG, config)


def _is_sae(path: Path) -> bool:
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


def _saes(path: Path, depth: int) -> Iterator[Path]:
    """The folders below this one that hold an SAE, in the order of their names."""
    with os.scandir(path) as entries:
        folders = sorted(entry.path for entry in entries if entry.is_dir(follow_symlinks=False))
    for folder in map(Path, folders):
        if _is_sae(folder):
            yield folder
        elif depth > 1:
            yield from _saes(folder, depth - 1)


def _refuse_several(path: Path) -> None:
    found = [str(folder.relative_to(path)) for folder in _saes(path, DEPTH)]
    if not found:
        raise FileNotFoundError(f"{path}: no {CONFIG} with {WEIGHTS}, here or in its folders")
    more = f" and {len(found) - LISTED} more" if len(found) > LISTED else ""
    listed = ", ".join(repr(name) for name in found[:LISTED])
    raise ValueError(f"{path} holds {len(found)} SAE(s): pass subfolder= one of {listed}{more}")


def _latents(config: Mapping[str, Any], width: int, where: Path) -> int:
    if config.get("num_latents", 0) == 0:
        return width * state_dict.number(config, "expansion_factor", where)
    return state_dict.number(config, "num_latents", where)


def _latents_or_none(config: Mapping[str, Any], width: int) -> int | None:
    try:
        return _latents(config, width, Path(CONFIG))
    except ValueError:
        return None


def _provenance(path: Path) -> dict[str, Any]:
    """The hookpoint is the folder's name; the model is in the run's config above it, where there is one."""
    folder = path.absolute()
    folder = folder.parent if SEED.fullmatch(folder.name) else folder
    run = folder.parent / "config.json"
    try:
        content = read_object(run)
    except (OSError, ValueError):
        return {}
    if not isinstance(content.get("sae"), dict):
        return {}
    model = content.get("model")
    return {"hook": folder.name, **({"model": model} if isinstance(model, str) else {})}
