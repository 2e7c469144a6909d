"""Argument checks shared by the ops: a ValueError that says what was expected and what came."""

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def shape(name: str, tensor: Tensor, expected: tuple[int | str, ...]) -> None:
    """`expected` holds sizes, or letters for sizes that are free."""
    wrong = tensor.dim() != len(expected) or any(
        isinstance(size, int) and size != actual for size, actual in zip(expected, tensor.shape, strict=True)
    )
    if wrong:
        wanted = ", ".join(str(size) for size in expected)
        raise ValueError(f"{name}: expected shape [{wanted}], got {list(tensor.shape)}")


def floating(name: str, tensor: Tensor, like: Tensor | None = None, like_name: str = "") -> None:
    if tensor.dtype not in FLOATS:
        raise ValueError(f"{name}: expected a floating-point tensor, got {tensor.dtype}")
    if like is not None and tensor.dtype != like.dtype:
        raise ValueError(f"{name}: expected {like.dtype} like {like_name}, got {tensor.dtype}")


def same_device(name: str, tensor: Tensor, like: Tensor, like_name: str) -> None:
    if tensor.device != like.device:
        raise ValueError(f"{name}: expected device {like.device} like {like_name}, got {tensor.device}")


def encoder(
    x: Tensor, weight: Tensor, bias: Tensor | None, pre_bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """An encoder's x [B, D], weight [F, D], bias [F], pre_bias [D], in the autocast dtype where autocast is on."""
    floating("x", x)
    shape("x", x, ("B", "D"))
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
        pre_bias = None if pre_bias is None else pre_bias.to(dtype)
    width = x.shape[1]
    shape("weight", weight, ("F", width))
    for name, tensor, size in (("bias", bias, weight.shape[0]), ("pre_bias", pre_bias, width)):
        if tensor is not None:
            shape(name, tensor, (size,))
            floating(name, tensor, x, "x")
            same_device(name, tensor, x, "x")
    floating("weight", weight, x, "x")
    same_device("weight", weight, x, "x")
    return x, weight, bias, pre_bias


def integer(name: str, tensor: Tensor, dtype: torch.dtype = torch.int64) -> None:
    if tensor.dtype != dtype:
        raise ValueError(f"{name}: expected {str(dtype).removeprefix('torch.')}, got {tensor.dtype}")


def between(name: str, value: int, low: int, high: int, high_name: str) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name}: expected {low} <= {name} <= {high_name} = {high}, got {value}")
