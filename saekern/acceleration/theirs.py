"""When a library's own code runs instead of ours."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from saekern.acceleration.lazy import Codes, LazyTensor, lazy_codes

SAMPLE = 16  # rows whose scores are counted before ragged codes of a whole batch are made
# Share of latents per row up to which ragged codes are faster than a dense product, loss and gradients included.
SPARSE_ENOUGH = 0.04

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
GLOBAL_HOOKS = tuple(f"_global{name}" for name in HOOKS)


def theirs(owner: Any, name: str) -> Callable[..., Any]:
    """The library's own method, bound."""
    return getattr(type(owner), name).__get__(owner)


def codes_in(f: Any) -> Codes | None:
    """What an encoder of ours left in `source`, unless somebody wrote into the dense codes since or wants their
    gradient."""
    if not isinstance(f, LazyTensor) or not isinstance(f.source, Codes):
        return None
    untouched = f.made is None or (f.made._version == 0 and not f.made.retains_grad)
    return f.source if untouched else None


def lazily(codes: Codes, shape: tuple[int, ...]) -> LazyTensor:
    """Dense codes of that shape that `codes_in` finds the sparse ones in."""
    lazy = lazy_codes(codes, shape)
    lazy.source = codes
    return lazy


def hooked(*modules: nn.Module) -> bool:
    """Does anybody listen to what goes through these modules? Our code goes past them."""
    own = any(getattr(module, name) for module in modules for name in HOOKS)
    return own or any(getattr(torch_module, name, None) for name in GLOBAL_HOOKS)


def fits(x: Tensor, *weights: Tensor | None) -> bool:
    """Can our ops take these? What they cannot, mixed dtypes or a traced graph, is left to the library."""
    first = weights[0]
    if first is None or torch.compiler.is_compiling() or x.dim() < 2 or not x.is_floating_point():
        return False
    mixed = torch.is_autocast_enabled(x.device.type)
    tensors = [x, *(weight for weight in weights if weight is not None)]
    return all((mixed or tensor.dtype == x.dtype) and tensor.device == x.device for tensor in tensors)


@torch.no_grad()
def sparse_enough(
    x: Tensor, weight: Tensor, bias: Tensor | None, pre_bias: Tensor | None, threshold: Tensor | float
) -> bool:
    """Are few enough scores above the threshold, by the scores of some rows of x [B, D]?"""
    rows = x[:: max(1, x.shape[0] // SAMPLE)][:SAMPLE]
    if pre_bias is not None:
        rows = rows - pre_bias
    scores = torch.nn.functional.linear(rows, weight, bias)
    above = (scores > threshold).sum()
    return bool(above <= SPARSE_ENOUGH * scores.numel())
