"""Text that every Python installation has: the standard library's own source files, as bytes, split by file."""

import hashlib
import os
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

BOS = 0  # NUL cannot occur in Python source, so it can open every sequence without an extra token

# Tests differ between distributions; encodings and pydoc_data are generated tables; _sysconfigdata holds local paths.
_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"}
_SPLITS = ("train", "heldout")


def python_source_files(split: str) -> list[tuple[str, bytes]]:
    """(path relative to the standard library, contents) of every file of a split, sorted by path.

    One file in ten is held out, by the SHA-256 of its relative path, so the split does not depend on the installation.
    """
    if split not in _SPLITS:
        raise ValueError(f"split: expected one of {_SPLITS}, got {split!r}")
    return _read_files(split)


@cache
def _read_files(split: str) -> list[tuple[str, bytes]]:
    root = Path(sysconfig.get_path("stdlib"))
    files = []
    for path in sorted(_walk(root)):
        relative = path.relative_to(root)
        held_out = hashlib.sha256(relative.as_posix().encode()).digest()[0] % 10 == 0
        if held_out == (split == "heldout"):
            files.append((relative.as_posix(), path.read_bytes().replace(b"\0", b"")))
    if not files:
        raise FileNotFoundError(f"no Python source files below {root}: install the standard library's sources")
    return files


def _walk(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in _SKIPPED_FOLDERS]  # not descended into
        for name in names:
            if name.endswith(".py") and not name.startswith("_sysconfigdata"):
                yield Path(folder, name)


def python_source_sequences(split: str, context: int, count: int, seed: int) -> Tensor:
    """Byte tokens of non-overlapping windows of the standard library's files, in a random order.

    Args:
        split: "train" or "heldout", by file; the shipped model saw only "train".
        context: tokens a sequence; the first is BOS (0), the others are consecutive bytes of one file.
        count: sequences.
        seed: decides the order of the windows and where in each file the first one starts.

    Returns:
        int64 [count, context].

    Raises:
        ValueError: an unknown split, context < 2, or a count larger than the number of windows there are.
    """
    if context < 2:
        raise ValueError(f"context: expected at least 2 (BOS and one byte), got {context}")
    generator = np.random.default_rng(seed)
    width = context - 1
    windows = []
    for _, data in python_source_files(split):
        spare = len(data) % width if len(data) >= width else 0
        start = int(generator.integers(spare + 1))
        usable = (len(data) - start) // width * width
        windows.append(np.frombuffer(data, np.uint8, usable, start).reshape(-1, width))
    available = np.concatenate(windows)  # [N, context - 1]
    if not 0 <= count <= len(available):
        raise ValueError(f"count: the {split} split has {len(available)} windows of {width} bytes, got {count}")
    order = generator.permutation(len(available))[:count]
    sequences = torch.full((count, context), BOS, dtype=torch.int64)
    sequences[:, 1:] = torch.from_numpy(available[order].astype(np.int64))
    return sequences


def files_hash(files: list[tuple[str, bytes]]) -> str:
    """SHA-256 over the paths and contents, in order."""
    digest = hashlib.sha256()
    for name, data in files:
        digest.update(f"{name}\0{len(data)}\0".encode())
        digest.update(data)
    return digest.hexdigest()
