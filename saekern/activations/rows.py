"""Where rows of activations come from: a tensor in memory, or shards on disk, memory-mapped."""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

# NumPy has no bfloat16: its bits are mapped as int16 and viewed as bfloat16 by torch.
_SAFETENSORS_DTYPES = {
    "F32": (np.float32, torch.float32),
    "F16": (np.float16, torch.float16),
    "BF16": (np.int16, torch.bfloat16),
    "F64": (np.float64, torch.float64),
}


@runtime_checkable
class Rows(Protocol):
    """Rows of width D that can be read in any order: what training and evaluation consume."""

    width: int

    def __len__(self) -> int: ...

    def take(self, indices: Tensor) -> Tensor:
        """Rows `indices` (int64 [n], in any order, repeats allowed) as float32 [n, D]."""
        ...


class TensorRows:
    """Rows of a tensor in memory, [n, D] of any floating dtype."""

    def __init__(self, tensor: Tensor):
        if tensor.dim() != 2 or not tensor.is_floating_point():
            raise ValueError(f"tensor: expected a floating [n, D], got {tensor.dtype} {list(tensor.shape)}")
        self.tensor = tensor
        self.width = tensor.shape[1]

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def take(self, indices: Tensor) -> Tensor:
        _check_indices(indices, len(self))
        return self.tensor.index_select(0, indices).float()


class ShardRows:
    """Rows of several [n_i, D] tensors one after the other, as if they were one; nothing is copied until `take`."""

    def __init__(self, shards: Sequence[Tensor]):
        if not shards:
            raise ValueError("shards: expected at least one")
        widths = {shard.shape[1] for shard in shards}
        if len(widths) != 1:
            raise ValueError(f"shards: expected one width, got {sorted(widths)}")
        self.shards = list(shards)
        self.width = widths.pop()
        self.starts = torch.tensor([0] + [len(shard) for shard in shards]).cumsum(0)  # [shards + 1]

    def __len__(self) -> int:
        return int(self.starts[-1])

    def take(self, indices: Tensor) -> Tensor:
        _check_indices(indices, len(self))
        ordered, order = indices.sort()  # each shard is read once, front to back
        bounds = torch.searchsorted(ordered, self.starts).tolist()
        out = torch.empty(len(indices), self.width)
        for shard, start, low, high in zip(self.shards, self.starts.tolist(), bounds, bounds[1:], strict=False):
            if low < high:
                out.index_copy_(0, order[low:high], shard.index_select(0, ordered[low:high] - start).float())
        return out


class ChosenRows:
    """Rows `indices` (int64 [n], repeats allowed) of other rows: half of them, or a bootstrap sample."""

    def __init__(self, rows: Rows, indices: Tensor):
        _check_indices(indices, len(rows))
        self.rows, self.indices = rows, indices
        self.width = rows.width
        self.provenance: dict[str, str] = getattr(rows, "provenance", {})

    def __len__(self) -> int:
        return self.indices.numel()

    def take(self, indices: Tensor) -> Tensor:
        _check_indices(indices, len(self))
        return self.rows.take(self.indices[indices])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of which rows are chosen, and of the fingerprint of what they are chosen from."""
        digest = hashlib.sha256(str(getattr(self.rows, "fingerprint", None)).encode())
        digest.update(self.indices.numpy().tobytes())
        return digest.hexdigest()


def open_shards(paths: Sequence[str | Path], key: str | None = None) -> ShardRows:
    """Memory-maps `.npy` and `.safetensors` files of shape [n_i, D], in the order given.

    Args:
        paths: files of float32, float16, bfloat16 (safetensors) or float64.
        key: the tensor's name in safetensors files; needed where a file holds several.

    Raises:
        FileNotFoundError, ValueError: a missing or truncated file, a wrong shape, dtype or key; the file is named.
    """
    return ShardRows([map_shard(Path(path), key) for path in paths])


def map_shard(path: Path, key: str | None = None) -> Tensor:
    """The tensor of one file, [n, D], memory-mapped (copy on write)."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such shard")
    if path.suffix == ".safetensors":
        tensor = _map_safetensors(path, key)
    elif path.suffix == ".npy":
        try:
            tensor = torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))
        except (ValueError, EOFError) as error:
            raise ValueError(f"{path}: truncated or not an .npy file ({error})") from error
    else:
        raise ValueError(f"{path}: expected a .npy or .safetensors file")
    if tensor.dim() != 2 or not tensor.is_floating_point():
        raise ValueError(f"{path}: expected a floating [n, D], got {tensor.dtype} {list(tensor.shape)}")
    return tensor


def _map_safetensors(path: Path, key: str | None) -> Tensor:
    size = path.stat().st_size
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        if size < 8 or header_size > size - 8:
            raise ValueError(f"{path}: truncated: {size} bytes hold no complete header")
        try:
            header = json.loads(file.read(header_size))
        except ValueError as error:
            raise ValueError(f"{path}: not a safetensors file ({error})") from error
    header.pop("__metadata__", None)
    expected = 8 + header_size + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size != expected:
        raise ValueError(f"{path}: truncated: expected {expected} bytes, found {size}")
    if key is None and len(header) == 1:
        key = next(iter(header))
    if key not in header:
        raise ValueError(f"{path}: expected the tensor {key!r}, found {sorted(header)}")
    entry = header[key]
    if entry["dtype"] not in _SAFETENSORS_DTYPES:
        raise ValueError(f"{path}: expected one of {sorted(_SAFETENSORS_DTYPES)}, got {entry['dtype']}")
    storage, dtype = _SAFETENSORS_DTYPES[entry["dtype"]]
    shape = tuple(entry["shape"])
    if 0 in shape:
        return torch.empty(shape, dtype=dtype)  # an empty file region cannot be mapped
    offset = 8 + header_size + entry["data_offsets"][0]
    return torch.from_numpy(np.memmap(path, storage, "c", offset, shape)).view(dtype)


def _check_indices(indices: Tensor, count: int) -> None:
    if indices.dtype != torch.int64 or indices.dim() != 1:
        raise ValueError(f"indices: expected int64 [n], got {indices.dtype} {list(indices.shape)}")
    if indices.numel() == 0:
        return
    smallest, largest = int(indices.min()), int(indices.max())
    if smallest < 0 or largest >= count:
        raise IndexError(f"indices: expected 0 to {count - 1}, got {smallest} to {largest}")
