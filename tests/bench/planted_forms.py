"""Kernels with the faults that bench/sass.py exists to refuse, and a sound one; compiled, never run."""

import triton
import triton.language as tl

from saekern.kernels.form import Form


@triton.jit
def copy(x, y, TILE: tl.constexpr):
    at = tl.arange(0, TILE)
    tl.store(y + at, tl.load(x + at))


@triton.jit
def hold_everything(x, y, TILE: tl.constexpr):
    """1024 floats a thread are alive between the two passes."""
    at = tl.arange(0, TILE)
    value = tl.load(x + at)
    tl.store(y + at, value - tl.max(value, 0))


@triton.jit
def largest(x, y, TILE: tl.constexpr):
    tl.store(y, tl.max(tl.load(x + tl.arange(0, TILE)), 0))


def forms() -> list[Form]:
    pointers = {"x": "*fp32", "y": "*fp32"}
    aligned = ("x", "y")
    return [
        Form(copy, pointers, {"TILE": 1024}, num_warps=4, aligned=aligned, gather=True),
        Form(copy, pointers, {"TILE": 1024}, num_warps=4, gather=True),
        Form(copy, pointers, {"TILE": 1024}, num_warps=4, aligned=aligned, matrix=True),
        Form(copy, pointers, {"TILE": 1024}, num_warps=4, aligned=aligned, registers=8),
        Form(hold_everything, pointers, {"TILE": 32768}, num_warps=1, aligned=aligned),
        Form(largest, pointers, {"TILE": 1024}, num_warps=4, aligned=aligned, nan=True),
    ]
