"""Files that strangers made: read without running, following or believing what is in them."""

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from torch import Tensor

from saekern.sae.files import read_tensors

JSON_BYTES = 32 * 2**20  # the largest configuration known is 1.5 MB
RATIO = 100  # weights do not compress: a member that grows more than this is a bomb, not a checkpoint
SMALL = 64 * 2**20  # and below this nobody is hurt


def read_json(file: Path) -> Any:
    """The content of a JSON file: finite numbers only, and none of more than 4,300 digits.

    Raises:
        FileNotFoundError: not there.
        ValueError: too large, damaged, or with numbers that no configuration holds.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist")
    size = file.stat().st_size
    if size > JSON_BYTES:
        raise ValueError(f"{file}: {size:,} bytes; a configuration has at most {JSON_BYTES:,}")
    try:
        return json.loads(file.read_text(encoding="utf-8"), parse_constant=_no_constant, parse_float=_finite)
    except RecursionError as error:
        raise ValueError(f"{file} is not valid JSON: nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error


def read_object(file: Path) -> dict[str, Any]:
    """As `read_json`, for files that hold one object."""
    content = read_json(file)
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected a JSON object, got {type(content).__name__}")
    return content


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a file whose header was checked against its length."""
    return read_tensors(file)[0]


def safetensors_shapes(file: Path) -> dict[str, list[int]]:
    """Name -> shape, from the header alone."""
    try:
        with safetensors.safe_open(file, framework="pt") as handle:
            return {name: handle.get_slice(name).get_shape() for name in handle.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{file} is truncated or damaged: {error}") from error


def read_npz(file: Path) -> dict[str, Tensor]:
    """The arrays of an .npz file, numbers only.

    Raises:
        ValueError: damaged, compressed beyond reason, or with arrays of objects.
    """
    _check_zip(file)
    tensors = {}
    try:
        with np.load(file, allow_pickle=False) as arrays:
            for name in arrays.files:
                array = arrays[name]
                if not array.dtype.isnative:
                    array = array.astype(array.dtype.newbyteorder("="))
                tensors[name] = torch.from_numpy(array)
    except (ValueError, TypeError, EOFError, OSError, MemoryError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file} is not a readable .npz of numbers: {error}") from error
    return tensors


def read_pickle(file: Path) -> Any:
    """What torch.save wrote, tensors and plain containers only: nothing in the file is run.

    Raises:
        FileNotFoundError: not there.
        ValueError: damaged, or with anything that would have to be run to be read.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist")
    if zipfile.is_zipfile(file):
        _check_zip(file)
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle errors, EOFError, RuntimeError of the archive reader, KeyError of a torn one
        first = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        raise ValueError(f"{file}: refused, or damaged: tensors and plain containers only are read: {first}") from error


def child(folder: Path, name: str) -> Path:
    """`folder / name` for a name that came from a file or a user: it stays inside the folder.

    Raises:
        ValueError: absolute, with "..", or leading outside through a link.
    """
    inside = folder / name
    root = os.path.realpath(folder)
    if os.path.isabs(name) or "\\" in name or os.path.commonpath([root, os.path.realpath(inside)]) != root:
        raise ValueError(f"{name!r}: expected a name inside {folder}")
    return inside


def _check_zip(file: Path) -> None:
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist")
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        raise ValueError(f"{file} is truncated or damaged: {error}") from error
    there, whole = file.stat().st_size, sum(member.file_size for member in members)
    if whole > max(SMALL, RATIO * there):
        raise ValueError(f"{file}: {there:,} bytes would become {whole:,}; refused")


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not a number")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{text[:40]} is out of range")
    return value
