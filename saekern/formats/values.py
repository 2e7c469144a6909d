"""Numbers and tensors of strangers' files, each checked before it is believed."""

import base64
import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

LARGEST = 2**31  # no SAE has so many of anything


def whole(config: Mapping[str, Any], name: str, where: object, least: int = 1) -> int:
    """A whole number in [least, 2³¹)."""
    value = config.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value < LARGEST or value % 1:
        raise ValueError(f"{where}: {name}: expected a whole number in [{least}, 2**31), got {_shown(value)}")
    return int(value)


def positive(config: Mapping[str, Any], name: str, where: object) -> float:
    """A finite number above 0."""
    value = config.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{where}: {name}: expected a finite number > 0, got {_shown(value)}")
    return float(value)


def flag(config: Mapping[str, Any], name: str, where: object, default: bool | None = None) -> bool:
    value = config.get(name, default)
    if not isinstance(value, bool):
        raise ValueError(f"{where}: {name}: expected true or false, got {_shown(value)}")
    return value


def choice(config: Mapping[str, Any], name: str, where: object, known: Collection[str], default: Any = None) -> str:
    value = config.get(name, default)
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{where}: {name}: expected one of {', '.join(known)}, got {_shown(value)}")
    return value


def check_tensors(tensors: Mapping[str, Tensor], shapes: Mapping[str, list[int]], where: object) -> None:
    """Just these names, of these shapes, in floating point: before arithmetic that would broadcast others."""
    if tensors.keys() != shapes.keys():
        missing, extra = sorted(shapes.keys() - tensors.keys()), sorted(tensors.keys() - shapes.keys())
        raise ValueError(f"{where}: tensors missing: {missing or 'none'}, unexpected: {extra or 'none'}")
    for name, shape in shapes.items():
        tensor = tensors[name]
        if list(tensor.shape) != shape or not tensor.is_floating_point():
            got = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
            raise ValueError(f"{where}: {name}: expected floating point of shape {shape}, got {got}")


def check_threshold(threshold: Tensor, where: object) -> None:
    if bool(threshold.isnan().any()):
        raise ValueError(f"{where}: {int(threshold.isnan().sum())} thresholds are NaN")


def exactly(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """The tensor in another type, if that holds its values."""
    cast = tensor.to(dtype)
    if not torch.equal(cast.to(tensor.dtype), tensor):
        kind = str(dtype).removeprefix("torch.")
        raise ValueError(f"{name}: {kind}, the type of W_enc, cannot hold its values; save sae.to(torch.float32)")
    return cast


def packed(tensor: Tensor) -> str:
    """float32 values as text, bit by bit: what a format has beside the weights, and a number for each latent of."""
    return base64.b64encode(tensor.detach().cpu().to(torch.float32).numpy().astype("<f4").tobytes()).decode()


def unpacked(text: str) -> Tensor:
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), dtype="<f4").astype(np.float32))


def _shown(value: Any) -> str:
    return repr(value) if len(repr(value)) < 60 else repr(value)[:60] + "…"
