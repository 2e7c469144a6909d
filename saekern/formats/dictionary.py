"""A dictionary from wherever it lies: the folder of an SAE, or an array that somebody else saved."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors
import torch
from torch import Tensor

from saekern.formats.registry import load
from saekern.formats.source import safetensors_shapes

DECODER, ENCODER = "W_dec", "W_enc"
READERS = (".npy", ".safetensors")  # of arrays


def read_dictionary(path: str | os.PathLike, tensor: str | None = None, transpose: bool = False) -> Tensor:
    """The decoder [F, D], one latent a row, of an SAE in any format that `saekern.load` recognises, or of an array.

    The arrays of files are mapped, not read: their pages come from the file when they are used, and can go again. They
    keep the type that they are stored in; matching widens halves to float32, which is a copy.

    Args:
        path: an SAE (a folder, "owner/name" on the hub), for which the other arguments mean nothing; or an array, a
            `.npy` or a `.safetensors` file.
        tensor: which one of a safetensors file; None takes "W_dec", or else its only matrix.
        transpose: the file holds [D, F], a latent a column, as `torch.nn.Linear` keeps a decoder's weight. Nothing is
            guessed from a shape or a name. Matching copies such an array once.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: another kind of file, a damaged one, no matrix of floating-point numbers, or no tensor of that name;
            the message lists those that there are.
    """
    path = Path(path)
    if path.is_dir() or path.suffix not in READERS:
        return load(path).dictionary.detach()
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: expected an SAE, a .npy or a .safetensors file")
    rows = _read_npy(path) if path.suffix == ".npy" else _read_safetensors(path, tensor)
    if rows.dim() != 2 or not rows.is_floating_point():
        got = f"{rows.dtype} {list(rows.shape)}"
        raise ValueError(f"{path}: expected a matrix [F, D] of floating-point numbers, got {got}")
    return rows.T if transpose else rows


def read_encoder(path: str | os.PathLike) -> Tensor | None:
    """The encoder [F, D], a latent a row as in `read_dictionary`, of an SAE, or of a safetensors file with W_enc beside
    W_dec; None where there is none: an architecture without W_enc, an array alone.

    The file's W_enc may be [F, D] or [D, F]; W_dec's shape tells which. For F = D it cannot, and the answer is None.

    Raises:
        FileNotFoundError, ValueError: as `read_dictionary`.
    """
    path = Path(path)
    if path.is_dir() or path.suffix not in READERS:
        weight = getattr(load(path), ENCODER, None)
        return None if weight is None else weight.detach().T
    if path.suffix == ".npy":
        return None
    decoder, names = read_dictionary(path), safetensors_shapes(path)
    if ENCODER not in names or DECODER not in names or decoder.shape[0] == decoder.shape[1]:
        return None
    rows = _read_safetensors(path, ENCODER)
    rows = rows if rows.shape == decoder.shape else rows.T
    return rows if rows.shape == decoder.shape and rows.is_floating_point() else None


def _read_npy(path: Path) -> Tensor:
    try:
        # Copy-on-write, and nobody writes: torch warns about memory that is read-only.
        array = np.load(path, mmap_mode="c", allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"{path} is not a readable .npy array: {error}") from error
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    try:
        return torch.from_numpy(array)
    except TypeError as error:  # text, records, dates
        raise ValueError(f"{path}: expected a matrix [F, D] of floating-point numbers, got {array.dtype}") from error


def _read_safetensors(path: Path, tensor: str | None) -> Tensor:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
            return file.get_tensor(_choose(path, shapes, tensor))
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is truncated or damaged: {error}") from error


def _choose(path: Path, shapes: Mapping[str, list[int]], tensor: str | None) -> str:
    matrices = [name for name, shape in shapes.items() if len(shape) == 2]
    if tensor is None and DECODER in shapes:
        return DECODER
    if tensor is None and len(matrices) == 1:
        return matrices[0]
    if tensor in shapes:
        return str(tensor)
    listed = ", ".join(f"{name} {shape}" for name, shape in sorted(shapes.items()))
    wanted = f"no tensor {tensor!r}" if tensor is not None else f"no {DECODER}, and {len(matrices)} matrices"
    raise ValueError(f"{path}: {wanted}; name one of its tensors (--tensor): {listed or 'none'}")
