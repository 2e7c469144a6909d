"""Gemma Scope: `params.npz` of the first, `params.safetensors` and `config.json` of the second."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saekern.formats.checkpoint import Checkpoint
from saekern.formats.folding import not_negative, without_pre_bias
from saekern.formats.source import read_npz, read_object, read_safetensors, safetensors_shapes
from saekern.formats.values import check_tensors, check_threshold, exactly
from saekern.sae import SAE, ArchetypalSAE
from saekern.sae.files import replace, write_json, write_tensors

NAME = "gemma_scope"
OPTIONS = {
    "version": "to write: 1 (params.npz) or 2 (params.safetensors and config.json); default: as it was read, or 1"
}
NPZ, SAFETENSORS, CONFIG = "params.npz", "params.safetensors", "config.json"
NAMES = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
WRITTEN = ("relu", "jumprelu", "batch_topk", "matryoshka")


def detect(path: Path) -> str | None:
    """Why the path looks like this format, or None."""
    if (path / NPZ).is_file():
        return NPZ
    if path.suffix == ".npz" and path.is_file() and _is_one(path):
        return "an .npz with W_enc, W_dec and threshold"
    if (path / SAFETENSORS).is_file() and {"w_enc", "w_dec", "threshold"} <= safetensors_shapes(
        path / SAFETENSORS
    ).keys():
        return f"{SAFETENSORS} with w_enc, w_dec and threshold"
    return None


def read(path: Path, options: Mapping[str, Any], fold: bool) -> Checkpoint:
    """z = ReLU(s) · 1[s > threshold], s = x W_enc + b_enc: x itself, b_dec is not subtracted."""
    second = (path / SAFETENSORS).is_file() and not (path / NPZ).is_file()
    file = path / SAFETENSORS if second else path / NPZ if path.is_dir() else path
    notes: list[str] = []
    kept: dict[str, Any] = {"version": 2 if second else 1}
    config: dict[str, Any] = {}
    if second and (path / CONFIG).is_file():
        kept["config"] = config = read_object(path / CONFIG)
        _check(config, path / CONFIG)
    elif second:
        notes.append(f"No {CONFIG}: taken for a JumpReLU SAE, as all of Gemma Scope 2 are.")
    tensors = _renamed(read_safetensors(file) if second else read_npz(file), file, notes)
    if "embedding" in str(path):
        notes.append("SAEs of the embedding read rows from before Gemma multiplies them by √D.")
    d_in, d_sae = _sizes(tensors, file)
    vectors = {"b_enc": [d_sae], "b_dec": [d_in], "threshold": [d_sae]}
    check_tensors(tensors, {"W_enc": [d_in, d_sae], "W_dec": [d_sae, d_in], **vectors}, file)
    check_threshold(tensors["threshold"], file)
    tensors["threshold"] = not_negative(tensors["threshold"], fold, file, notes)
    known = {"model": config.get("model_name"), "hook": config.get("hf_hook_point_in")}
    provenance = {name: value for name, value in known.items() if isinstance(value, str)}
    arguments = {"d_in": d_in, "d_sae": d_sae, "subtract_b_dec": False}
    return Checkpoint(NAME, "jumprelu", arguments, tensors, kept, provenance, tuple(notes))


def write(sae: SAE, path: Path, options: Mapping[str, Any], fold: bool) -> None:
    """BatchTopK and Matryoshka are written with their threshold, ReLU with thresholds of 0: the same function. An
    encoder that subtracts b_dec needs fold: b_enc − b_dec W_enc. `path`: the folder, or a file that ends in .npz."""
    kept = sae.provenance.get(NAME, {})
    version = options.get("version", kept.get("version", 1))
    if version not in (1, 2) or isinstance(version, bool):
        raise ValueError(f"options: version: expected 1 or 2, got {version!r}")
    tensors = _written(sae, fold)
    if version == 1:
        # numpy has no bfloat16; wider holds the same values.
        wide = {name: t.float() if t.dtype == torch.bfloat16 else t for name, t in tensors.items()}
        arrays = {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in wide.items()}
        replace(path if path.suffix == ".npz" else path / NPZ, lambda temporary: _save(temporary, arrays))
        return
    given = {"model_name": sae.provenance.get("model"), "hf_hook_point_in": sae.provenance.get("hook")}
    config = {"architecture": "jump_relu", "width": sae.d_sae, **kept.get("config", {})}
    config |= {name: value for name, value in given.items() if value is not None}
    lower = {name: f"w{name[1:]}" if name.startswith("W") else name for name in NAMES}
    write_tensors(path / SAFETENSORS, {lower[name]: tensor for name, tensor in tensors.items()})
    write_json(path / CONFIG, config)


def _written(sae: SAE, fold: bool) -> dict[str, Tensor]:
    architecture = sae.base_architecture if isinstance(sae, ArchetypalSAE) else sae.architecture
    if architecture not in WRITTEN:
        kinds = "one threshold a latent, and nothing before it"
        raise ValueError(f"{NAME}: {type(sae).__name__} has no counterpart: Gemma Scope has {kinds}")
    b_enc, dtype = sae.b_enc.detach().cpu(), sae.W_enc.dtype
    if sae.subtract_b_dec and bool((sae.b_dec != 0).any()):
        if not fold:
            raise ValueError(
                f"{NAME}: this encoder reads x − b_dec, Gemma Scope's x; pass fold=True to have b_enc − b_dec W_enc"
                " written as b_enc, or train with subtract_b_dec=False"
            )
        b_enc = without_pre_bias(b_enc, sae.b_dec.detach().cpu(), sae.W_enc.detach().cpu())
    threshold: Tensor = getattr(sae, "threshold", torch.zeros((), dtype=dtype)).detach().cpu()
    if bool((threshold < 0).any()):
        raise ValueError(
            f"{NAME}: a threshold below 0 lets negative scores through, which Gemma Scope's JumpReLU cuts off"
        )
    tensors = {"W_enc": sae.W_enc, "W_dec": sae.W_dec, "b_enc": b_enc, "b_dec": sae.b_dec}
    tensors["threshold"] = exactly(threshold, dtype, "threshold").expand(sae.d_sae)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _save(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    with open(file, "wb") as handle:
        np.savez(handle, **arrays)  # type: ignore[arg-type]


def _is_one(file: Path) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError, NotImplementedError):
        return False
    return {"W_enc", "W_dec", "threshold"} <= {f"W{name[1:]}" if name.startswith("w_") else name for name in names}


def _check(config: Mapping[str, Any], where: Path) -> None:
    architecture, out = config.get("architecture"), config.get("hf_hook_point_out")
    if architecture != "jump_relu":
        raise ValueError(f"{where}: architecture: expected 'jump_relu', got {architecture!r}")
    if config.get("affine_connection"):
        raise ValueError(f"{where}: affine_connection: a transcoder with a skip connection has no counterpart here")
    if out is not None and out != config.get("hf_hook_point_in"):
        raise ValueError(f"{where}: hf_hook_point_out {out!r}: a transcoder has no counterpart here")


def _renamed(tensors: Mapping[str, Tensor], file: Path, notes: list[str]) -> dict[str, Tensor]:
    named = {f"W{name[1:]}" if name.startswith("w_") else name: tensor for name, tensor in tensors.items()}
    if "affine_skip_connection" in named:
        raise ValueError(f"{file}: affine_skip_connection: a transcoder with a skip connection has no counterpart here")
    scaling = named.pop("scaling_factor", None)
    if scaling is not None:
        if not bool((scaling == 1).all()):
            raise ValueError(f"{file}: scaling_factor has no counterpart here")
        notes.append("scaling_factor, all ones, is left out.")
    return named


def _sizes(tensors: Mapping[str, Tensor], file: Path) -> tuple[int, int]:
    encoder = tensors.get("W_enc")
    if encoder is None or encoder.dim() != 2:
        got = "none" if encoder is None else str(list(encoder.shape))
        raise ValueError(f"{file}: W_enc: expected a matrix [d_in, d_sae], got {got}")
    return encoder.shape[0], encoder.shape[1]
