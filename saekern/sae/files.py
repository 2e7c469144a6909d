"""The native files of an SAE: `config.json` and `sae.safetensors` in one folder, each replaced as a whole or not."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from saekern.sae.archetypal import ArchetypalSAE
from saekern.sae.base import SAE
from saekern.sae.batch_topk import BatchTopKSAE
from saekern.sae.gated import GatedSAE
from saekern.sae.hierarchical import HierarchicalTopKSAE
from saekern.sae.jumprelu import JumpReLUSAE
from saekern.sae.kron import KronSAE
from saekern.sae.matryoshka import MatryoshkaSAE
from saekern.sae.normalized import NormalizedSAE
from saekern.sae.relu import ReLUSAE
from saekern.sae.topk import TopKSAE
from saekern.version import __version__

FORMAT = "saekern"
VERSION = 1
CONFIG = "config.json"
WEIGHTS = "sae.safetensors"
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.uint8: "U8",
}
ARCHITECTURES: dict[str, type[SAE]] = {
    cls.architecture: cls
    for cls in (
        ArchetypalSAE,
        BatchTopKSAE,
        GatedSAE,
        HierarchicalTopKSAE,
        JumpReLUSAE,
        KronSAE,
        MatryoshkaSAE,
        NormalizedSAE,
        ReLUSAE,
        TopKSAE,
    )
}


def save(sae: SAE, path: str | os.PathLike, *, provenance: Mapping[str, Any] | None = None) -> None:
    """Writes `<path>/sae.safetensors`, then `<path>/config.json`. `provenance` (JSON types) is added to
    `sae.provenance` and kept in the config.

    Raises:
        OSError: the folder cannot be written or the disk is full; earlier files are then intact.
    """
    config = describe(sae, provenance)
    write_weights(Path(path) / WEIGHTS, sae)
    write_json(Path(path) / CONFIG, config)


def load(
    path: str | os.PathLike,
    *,
    weights: str = WEIGHTS,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> SAE:
    """Reads what `save` or training wrote. `weights` names another file of the folder, such as
    "snapshots/00000008.safetensors"; `dtype` None keeps the stored one.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: not a saekern SAE, a newer version, an unknown architecture, or damaged or foreign weights.
    """
    path = Path(path)
    config = read_config(path)
    tensors, metadata = read_tensors(path / weights)
    if json.loads(metadata.get("sae", "null")) != config["sae"]:
        raise ValueError(
            f"{path / weights} and {path / CONFIG} describe different SAEs: a save was interrupted or mixed"
        )
    sae = ARCHITECTURES[config["architecture"]](**config["sae"], device="meta")
    try:
        sae.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{path / weights}: {error}") from error
    sae.provenance = dict(config.get("provenance", {}))
    return sae.requires_grad_().to(device=device, dtype=dtype)


def describe(sae: SAE, provenance: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The content of config.json."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "architecture": sae.architecture,
        "sae": sae.config(),
        "provenance": {**sae.provenance, "saekern": __version__, "torch": torch.__version__, **(provenance or {})},
    }


def read_config(path: str | os.PathLike) -> dict[str, Any]:
    """`<path>/config.json`, checked; the weights are not touched."""
    file = Path(path) / CONFIG
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist: expected the folder of a saved SAE")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        found = config.get("format") if isinstance(config, dict) else type(config).__name__
        raise ValueError(f'{file}: expected format "{FORMAT}", got {json.dumps(found)}')
    if config.get("version", 0) > VERSION:
        raise ValueError(
            f"{file}: version {config['version']} is newer than {VERSION}, the newest that saekern {__version__} reads"
        )
    if config.get("architecture") not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise ValueError(f'{file}: unknown architecture "{config.get("architecture")}", expected one of: {known}')
    return config


def read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file."""
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist")
    try:
        with safetensors.safe_open(file, framework="pt") as handle:
            return {name: handle.get_tensor(name) for name in handle.keys()}, handle.metadata() or {}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{file} is truncated or damaged: {error}") from error


def write_weights(file: Path, sae: SAE, dtype: torch.dtype | None = None) -> None:
    """The parameters, contiguous, with the architecture's config in the header; rounded to `dtype`, as `sae.to(dtype)`
    would be, where one is given."""
    tensors = sae.state_dict()
    if dtype is not None:
        modules = [(f"{name}." if name else "", m) for name, m in sae.named_modules() if isinstance(m, SAE)]
        wide = {prefix + name for prefix, module in modules for name in module.wide}
        tensors = {
            name: tensor.to(dtype) if tensor.is_floating_point() and name not in wide else tensor
            for name, tensor in tensors.items()
        }
    write_tensors(file, tensors, {"sae": json.dumps(sae.config())})


def write_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """A safetensors file, written in place of the old one as a whole."""
    replace(file, lambda temporary: stream_tensors(temporary, tensors, metadata))


def stream_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """The safetensors format: header length (8 bytes), JSON header, tensors back to back.

    safetensors' own writer (0.8) goes through a file of random name, which a killed process would leave behind at every
    kill; this one also copies no more than one tensor at a time, and always writes the same bytes for the same content.
    """
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # keeps every tensor aligned
    end = 0
    for name in names:
        tensor = tensors[name]
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(file, "wb") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            flat = tensors[name].detach().cpu().contiguous().reshape(-1)
            handle.write(flat.view(torch.uint8).numpy().data)


def write_json(file: Path, content: Any) -> None:
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    replace(file, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def replace(file: Path, write: Callable[[Path], Any]) -> None:
    """`write` fills a temporary file beside `file`, which then takes its name: readers see the old content or the new.

    The temporary name is fixed, so that one left by a killed process is overwritten, not collected.
    """
    temporary = file.with_name(file.name + ".tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with open(temporary, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, file)
    except OSError as error:
        if temporary.is_file():
            temporary.unlink(missing_ok=True)
        raise OSError(f"cannot write {file} ({error}); what was there before is unchanged") from error
