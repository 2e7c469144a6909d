"""`saekern.load` and `saekern.save`: which format a path holds, and the way into and out of each.

A format is a module with
    NAME       as `format=` takes it;
    OPTIONS    what its files do not say and `options=` may: name -> one line of help;
    detect(path) -> str | None                       why the path looks like it, from content; None if it does not;
    read(path, options, fold) -> Checkpoint          ValueError for what it cannot read exactly;
    write(sae, path, options, fold) -> None          ValueError that names what the format cannot express.
`fold` allows both to change weights where only that expresses the same function (activation scale, decoder norms,
thresholds); without it they refuse and say so.
"""

import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from saekern.formats import native
from saekern.formats.checkpoint import Checkpoint, build
from saekern.formats.hub import locate
from saekern.sae import SAE, files

MODULES = (
    "native",
    "batchtopk",
    "dictionary_learning",
    "gemma_scope",
    "llamascopium",
    "openai",
    "overcomplete",
    "saelens",
    "sparsify",
)


def formats() -> dict[str, ModuleType]:
    """Name -> module, in the order in which they are asked."""
    modules = [import_module(f"saekern.formats.{name}") for name in MODULES]
    return {module.NAME: module for module in modules}


def detect(path: Path) -> dict[str, str]:
    """Every format that recognises the path -> why."""
    reasons = {name: module.detect(path) for name, module in formats().items()}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def load(
    path: str | os.PathLike,
    *,
    format: str | None = None,
    subfolder: str | None = None,
    revision: str | None = None,
    options: Mapping[str, Any] | None = None,
    fold: bool = False,
    weights: str = files.WEIGHTS,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> SAE:
    """An SAE from our files or another library's: a folder, a file, or the name of a Hugging Face repository.

    Nothing is guessed: what the files leave open is asked for by an error. `sae.provenance` keeps what the format says
    beside the weights, so that `save` in the same format gives the same file back.

    Args:
        path: a local path or "owner/name".
        format: None recognises it by content.
        subfolder: of a repository or a folder, the part with this SAE ("layers.3/seed0").
        revision: of a repository: branch, tag or commit.
        options: what this format's files do not say; `saekern convert --formats` lists them.
        fold: allow weights to change where the file's function (a scale of activations, decoder norms in the gate)
            can only be expressed so. The function stays the same up to rounding; the tensors do not.
        weights: of our own folders, another file such as "snapshots/00000008.safetensors".
        device, dtype: of the parameters; dtype None keeps the stored one.

    Raises:
        FileNotFoundError: nothing there, or a file is missing.
        ValueError: unknown or ambiguous format, damaged or hostile files, what cannot be read exactly.
        OSError: the hub cannot be reached.
    """
    found = locate(path, subfolder, revision)
    name = choose(found, format)
    if name == native.NAME:
        return files.load(found, weights=weights, device=device, dtype=dtype)
    if weights != files.WEIGHTS:
        raise ValueError(f"weights: only for our own format, but {found} is {name}; name the file itself as the path")
    return build(read(found, name, options, fold), device=device, dtype=dtype)


def examine(
    path: str | os.PathLike,
    *,
    format: str | None = None,
    subfolder: str | None = None,
    revision: str | None = None,
    options: Mapping[str, Any] | None = None,
    fold: bool = False,
) -> Checkpoint:
    """What `load` with the same arguments would read, without making an SAE of it; raises as `load`."""
    found = locate(path, subfolder, revision)
    return read(found, choose(found, format), options, fold)


def save(
    sae: SAE,
    path: str | os.PathLike,
    format: str = native.NAME,
    *,
    provenance: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    fold: bool = False,
) -> None:
    """Writes an SAE in our format or another library's.

    Args:
        path: the folder; a file where the format is one.
        format: "saekern", or a name that `saekern convert --formats` lists.
        provenance: JSON types, added to `sae.provenance`.
        options, fold: as for `load`.

    Raises:
        ValueError: an unknown format, or the name of what it cannot express.
        OSError: the files cannot be written; earlier ones are then intact.
    """
    if format == native.NAME:
        return files.save(sae, path, provenance=provenance)
    module, before = _module(format), sae.provenance
    sae.provenance = {**before, **(provenance or {})}
    try:
        module.write(sae, Path(path), _checked(module, options), fold)
    finally:
        sae.provenance = before


def read(path: Path, name: str, options: Mapping[str, Any] | None, fold: bool) -> Checkpoint:
    module = _module(name)
    return module.read(path, _checked(module, options), fold)


def choose(path: Path, format: str | None) -> str:
    """The format's name, given or recognised."""
    if format is not None:
        return _module(format).NAME
    found = detect(path)
    if len(found) == 1:
        return next(iter(found))
    if found:
        reasons = "; ".join(f"{name} ({reason})" for name, reason in found.items())
        raise ValueError(f"{path} could be {reasons}: pass format=")
    listed = ", ".join(sorted(p.name for p in path.iterdir())[:12]) if path.is_dir() else path.name
    raise ValueError(
        f"{path}: no known format (found: {listed or 'an empty folder'}). Known: {', '.join(formats())}; pass format="
        " or subfolder= if the SAE lies deeper"
    )


def _module(name: str) -> ModuleType:
    known = formats()
    if name not in known:
        raise ValueError(f"format: expected one of {', '.join(known)}, got {name!r}")
    return known[name]


def _checked(module: ModuleType, options: Mapping[str, Any] | None) -> Mapping[str, Any]:
    unknown = sorted(set(options or {}) - set(module.OPTIONS))
    if unknown:
        takes = ", ".join(module.OPTIONS) or "none"
        raise ValueError(f"options: {module.NAME} has no {unknown[0]!r}; it takes: {takes}")
    return dict(options or {})
