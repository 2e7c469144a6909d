"""SAEs that exist already, in place of trained ones: what they are, and whether their files have changed."""

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from saekern import formats
from saekern.formats.dictionary import READERS
from saekern.formats.hub import PATTERNS, locate
from saekern.matching.geometry import as_dictionary, live_rows
from saekern.pipeline.steps import Step, sha256, write_json
from saekern.sae import SAE

# A training run's own state: it changes while the SAE's files beside it do not.
UNREAD = ("state.safetensors",)
BARE = "a dictionary alone"


def is_bare(path: str) -> bool:
    """Whether the path is a file with matrices in it: a dictionary to match, which cannot encode rows."""
    return not Path(path).is_dir() and Path(path).suffix in READERS


def sae(path: str, device: str) -> SAE:
    """The SAE at `path`.

    Raises:
        ValueError: what holds a dictionary alone, or no format known.
    """
    if is_bare(path):
        raise ValueError(
            f"{path} holds {BARE}: rows need an SAE in a known format; without rows (activations.model null, no "
            "cache) it can be studied"
        )
    return formats.load(path, device=device)


def dictionary(path: str, device: str = "cpu") -> Tensor:
    return formats.read_dictionary(path).to(device)


def encoder(path: str, device: str = "cpu") -> Tensor:
    rows = formats.read_encoder(path)
    if rows is None:
        raise ValueError(f"{path} has no encoder that can be read as [F, D]")
    return rows.to(device)


def sae_steps(paths: tuple[str, ...], folder: Path) -> list[Step]:
    """A step for every SAE: it looks at it once, and again when the content of its files has changed."""
    hashes = [_hashes(path, folder / "checkpoints" / f"{i:03d}.stat.json") for i, path in enumerate(paths)]
    first: dict[str, str] = {}
    for path, found in zip(paths, hashes, strict=True):
        other = first.setdefault(_digest(found), path)
        if other != path:
            raise ValueError(f"saes: expected different SAEs, but {path} and {other} have the same content")
    return [
        Step(
            name=f"saes/{i:03d}",
            settings={},
            reads=(),
            outputs=(f"checkpoints/{i:03d}.json",),
            run=partial(_look, path, found, folder / "checkpoints", f"{i:03d}"),
            external=_digest(found),
        )
        for i, (path, found) in enumerate(zip(paths, hashes, strict=True))
    ]


def _look(path: str, hashes: dict[str, dict[str, Any]], folder: Path, name: str, work: Path) -> None:
    found: dict[str, Any]
    if is_bare(path):
        rows = formats.read_dictionary(path)
        found = {"format": Path(path).suffix[1:], "architecture": BARE, "k": None}
        found["encoder"] = formats.read_encoder(path) is not None
    else:
        one = formats.load(path)
        rows, k = one.dictionary, getattr(one, "k", None)
        found = {"format": formats.choose(locate(path), None), "architecture": one.architecture, "k": k}
        found["encoder"] = getattr(one, "W_enc", None) is not None
    found |= {"latents": rows.shape[0], "width": rows.shape[1], "zero": int(zero_rows(rows, path).sum())}
    found["content"] = _digest(hashes)  # what depends on the SAE reads this file
    write_json(folder / f"{name}.stat.json", hashes)
    write_json(work / f"{name}.json", found)


def _hashes(path: str, known: Path) -> dict[str, dict[str, Any]]:
    """Name of each file that the SAE may be read from -> its size, time and SHA-256. `known` is what this function
    found before: a file of that size and time is not read again."""
    before: dict[str, dict[str, Any]] = json.loads(known.read_text(encoding="utf-8")) if known.exists() else {}
    found = {}
    for file in _files(locate(path)):
        status, old = file.stat(), before.get(str(file), {})
        entry = {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
        same = all(old.get(name) == value for name, value in entry.items())
        found[str(file)] = entry | {"sha256": old["sha256"] if same else sha256(file)}
    return found


def _files(path: Path) -> list[Path]:
    """The path's own files, and configurations of the folders above, where some formats keep theirs."""
    if path.is_dir():
        own = sorted(p for pattern in PATTERNS for p in path.glob(pattern) if p.name not in UNREAD)
        above = [path.parent]
    else:
        own, above = [path], [path.parent, path.parent.parent]
    return own + [folder / "config.json" for folder in above if (folder / "config.json").is_file()]


def _digest(hashes: dict[str, dict[str, Any]]) -> str:
    """Of the contents alone: an SAE that was moved or copied is the same."""
    lines = [f"{Path(name).name} {entry['sha256']}" for name, entry in hashes.items()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def check_equal(name: str, described: list[dict[str, Any]], paths: tuple[str, ...]) -> None:
    """Raises ValueError for SAEs of different "width", or of different numbers of "latents", which matching allows and
    experiments do not."""
    for path, one in zip(paths, described, strict=True):
        if one[name] != described[0][name]:
            raise ValueError(f"saes: {path} has {name} {one[name]}, expected {described[0][name]} as in {paths[0]}")


def zero_rows(rows: Tensor, name: str = "dictionary") -> Tensor:
    """[F] bool: latents without a direction, all that can be called dead without activations."""
    return ~live_rows(as_dictionary(rows, name), None).cpu()
