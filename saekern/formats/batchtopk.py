"""bartbussmann's BatchTopK repository: `sae.pt`, a state dict, and `config.json` in `checkpoints/<name>_<step>/`.

Its TopK and BatchTopK encoders never read b_enc. Its BatchTopK chooses over the batch in inference as well; our
`encode_batch` is that choice, and encoding rows one by one takes a threshold, which the file does not have.

Source: github.com/bartbussmann/BatchTopK, sae.py, logs.py, config.py.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saekern.formats import state_dict
from saekern.formats.checkpoint import Checkpoint
from saekern.formats.source import read_object, read_pickle
from saekern.formats.state_dict import Names
from saekern.sae import SAE, NormalizedSAE, files

NAME = "batchtopk"
OPTIONS = {"threshold": "batchtopk: scores above it are active when rows are encoded one by one"}
WEIGHTS, CONFIG = "sae.pt", "config.json"
TYPES = {
    "vanilla": ("relu", True),
    "topk": ("topk", True),
    "batchtopk": ("batch_topk", True),
    "jumprelu": ("jumprelu", False),
}
PLAIN: Names = {name: (name, False) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
LOGS = "jumprelu.log_threshold"
EPS = 1e-5
DTYPES = {torch.float32: "torch.float32", torch.float16: "torch.float16", torch.bfloat16: "torch.bfloat16"}


def detect(path: Path) -> str | None:
    """Why the path looks like this format, or None."""
    file, config_file = _files(path)
    if file.is_file() and config_file.is_file():
        config = read_object(config_file)
        if {"sae_type", "act_size", "dict_size"} <= config.keys():
            return f"{file.name} and {CONFIG} with sae_type {config['sae_type']!r}"
    return None


def read(path: Path, options: Mapping[str, Any], fold: bool) -> Checkpoint:
    file, config_file = _files(path)
    config = read_object(config_file)
    kind = config.get("sae_type")
    if kind not in TYPES:
        raise ValueError(f"{config_file}: sae_type: expected one of {', '.join(TYPES)}, got {kind!r}")
    if kind != "batchtopk" and options:
        raise ValueError("options: threshold: only an SAE of type batchtopk takes one")
    architecture, subtract = TYPES[kind]
    names = {**PLAIN, **({LOGS: ("threshold", False)} if kind == "jumprelu" else {})}
    tensors = state_dict.renamed(state_dict.checked(read_pickle(file), file), names, file, f"a {kind} SAE")
    sizes = {"d_in": state_dict.number(config, "act_size", config_file)}
    sizes["d_sae"] = state_dict.number(config, "dict_size", config_file)
    kept: dict[str, Any] = {"config": config}
    base: dict[str, Any] = {"subtract_b_dec": subtract}
    notes: list[str] = []
    if kind in ("topk", "batchtopk"):
        base["k"] = state_dict.number(config, "top_k", config_file)
        tensors["b_enc"] = _unused(tensors["b_enc"], kind, file, fold, notes)
    if kind == "batchtopk":
        tensors["threshold"] = _threshold(options, file)
        notes.append("Rows are encoded by the threshold; encode_batch chooses over the batch, as theirs always does.")
    if kind == "jumprelu":
        logs = tensors["threshold"]
        tensors["threshold"] = state_dict.threshold_of(logs, False, file)
        kept[LOGS] = state_dict.packed(state_dict.wide(logs))
        notes.append("θ = exp(log_threshold).")
    found = {"model": config.get("model_name"), "hook": config.get("hook_point")}
    provenance = {name: value for name, value in found.items() if isinstance(value, str) and value}
    if config.get("input_unit_norm", False) is False:  # their default where it is missing
        return Checkpoint(NAME, architecture, sizes | base, tensors, kept, provenance, tuple(notes))
    notes.append("Rows are normalised (LayerNorm): input_unit_norm.")
    arguments = {**sizes, "norm": "layer_norm", "eps": EPS, "base": architecture, "base_args": base}
    inner = {f"base.{name}": tensor for name, tensor in tensors.items()}
    return Checkpoint(NAME, "normalized", arguments, inner, kept, provenance, tuple(notes))


def write(sae: SAE, path: Path, options: Mapping[str, Any], fold: bool) -> None:
    inner, normalised = sae, isinstance(sae, NormalizedSAE)
    if isinstance(sae, NormalizedSAE):
        if (sae.norm, sae.eps) != ("layer_norm", EPS):
            raise ValueError(f"{NAME} normalises rows by layer_norm with eps {EPS:g}, not {sae.norm} with {sae.eps:g}")
        inner = sae.base
    architecture, tensors = state_dict.exported(inner, NAME, tuple(ours for ours, _ in TYPES.values()), fold)
    kind = next(kind for kind, (ours, _) in TYPES.items() if ours == architecture)
    tensors = state_dict.subtracting(inner, tensors, TYPES[kind][1], f"{NAME} ({kind})", fold)
    if kind in ("topk", "batchtopk") and tensors["b_enc"].any():
        raise ValueError(f"{NAME}: its {kind} encoder has no b_enc, and that of this SAE is not 0")
    kept = state_dict.kept(sae, NAME)
    if kind == "batchtopk" and options.get("threshold") != (theta := float(tensors["threshold"])):
        raise ValueError(
            f"{NAME} has no threshold and chooses over each batch: this SAE's is {theta!r}; say that it may be left out"
            f" with options={{'threshold': {theta!r}}}"
        )
    before = kept.get("config")
    config = dict(before) if isinstance(before, dict) else {"seed": 0, "device": "cpu"}
    config |= {"sae_type": kind, "act_size": sae.d_in, "dict_size": sae.d_sae}
    if normalised or "input_unit_norm" in config:
        config["input_unit_norm"] = normalised
    config.setdefault("input_unit_norm", False)
    config.setdefault("dtype", DTYPES.get(inner.W_dec.dtype, "torch.float32"))
    for name, key in (("model", "model_name"), ("hook", "hook_point")):
        if sae.provenance.get(name):
            config.setdefault(key, sae.provenance[name])
    theirs = state_dict.named_back(tensors, PLAIN)
    if kind in ("topk", "batchtopk"):
        config["top_k"] = inner.k
    if kind == "jumprelu":
        before_logs = state_dict.unpacked(kept.get(LOGS), (sae.d_sae,), tensors["threshold"].dtype)
        logs = state_dict.logs_of(tensors["threshold"], before_logs, False, NAME, fold)
        theirs[LOGS] = state_dict.narrowed(logs, inner.W_dec.dtype)
    state_dict.write_pickle(path / WEIGHTS, theirs)
    files.write_json(path / CONFIG, config)


def _files(path: Path) -> tuple[Path, Path]:
    return (path / WEIGHTS, path / CONFIG) if path.is_dir() else (path, path.parent / CONFIG)


def _unused(b_enc: Tensor, kind: str, file: Path, fold: bool, notes: list[str]) -> Tensor:
    """Their encoder does not read it, and ours would."""
    if not b_enc.any():
        return b_enc
    if not fold:
        raise ValueError(f"{file}: b_enc is not 0, and a {kind} SAE never reads it: fold=True sets it to 0")
    notes.append("b_enc set to 0: their encoder never reads it.")
    return torch.zeros_like(b_enc)


def _threshold(options: Mapping[str, Any], file: Path) -> Tensor:
    value = options.get("threshold")
    if value is None:
        raise ValueError(
            f"{file}: a batchtopk SAE without a threshold, whose codes depend on the other rows of a batch: pass"
            " options={'threshold': ...}, such as the mean over batches of the smallest active score"
        )
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise ValueError(f"options: threshold: expected a positive number (0 would be a plain ReLU), got {value!r}")
    return torch.tensor(float(value), dtype=torch.float32)
