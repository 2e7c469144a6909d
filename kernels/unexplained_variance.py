"""The reconstruction loss and its gradient: one pass over the rows each."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from saekern.kernels.form import Form

ROWS = 32  # rows a program walks: 8192 rows and D = 2304 make 256 · 5 programs
BLOCK_D = 512
BLOCK = 2048


@triton.jit(do_not_specialize=["B"])
def moments_kernel(
    target,  # [B, D]
    estimate,  # [B, D]
    column_sums,  # [chunks, D] float64 out: Σ (t − t_0), t_0 the first row
    scalars,  # [2, chunks, slices] float64 out: Σ (t − e)² and Σ (t − t_0)²
    B,
    D,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    chunk, part = tl.program_id(0), tl.program_id(1)
    columns = part * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = columns < D
    origin = tl.load(target + columns, mask=inside, other=0.0).to(tl.float32)
    sum = tl.zeros([BLOCK_D], tl.float64)
    square = tl.zeros([BLOCK_D], tl.float64)
    error = tl.zeros([BLOCK_D], tl.float64)
    for row in range(chunk * ROWS, tl.minimum(chunk * ROWS + ROWS, B)):
        at = tl.cast(row, tl.int64) * D + columns
        t = tl.load(target + at, mask=inside, other=0.0).to(tl.float32)
        e = tl.load(estimate + at, mask=inside, other=0.0).to(tl.float32)
        moved = t.to(tl.float64) - origin.to(tl.float64)
        missed = t.to(tl.float64) - e.to(tl.float64)
        sum += moved
        square += moved * moved
        error += missed * missed
    tl.store(column_sums + chunk.to(tl.int64) * D + columns, sum, mask=inside)
    chunks, slices = tl.num_programs(0), tl.num_programs(1)
    tl.store(scalars + chunk * slices + part, tl.sum(error, 0))
    tl.store(scalars + (chunks + chunk) * slices + part, tl.sum(square, 0))


@triton.jit
def fraction_kernel(
    column_sums,  # [D] float64: Σ (t − t_0)
    scalars,  # [2, parts] float64
    value,  # [] float32 out
    variance,  # [] float64 out
    B,  # 1 where there are no rows
    D,
    parts,
    BLOCK: tl.constexpr,
):
    """One program: for 8192 rows of D = 2304 it reads 40 KB."""
    error = tl.zeros([BLOCK], tl.float64)
    square = tl.zeros([BLOCK], tl.float64)
    for first in range(0, parts, BLOCK):
        at = first + tl.arange(0, BLOCK)
        error += tl.load(scalars + at, mask=at < parts, other=0.0)
        square += tl.load(scalars + parts + at, mask=at < parts, other=0.0)
    mean = tl.zeros([BLOCK], tl.float64)
    for first in range(0, D, BLOCK):
        at = first + tl.arange(0, BLOCK)
        sum = tl.load(column_sums + at, mask=at < D, other=0.0)
        mean += sum * sum
    total = tl.sum(square, 0) - tl.sum(mean, 0) / B
    total = tl.where(total == 0, 1.0, total)
    tl.store(value, (tl.sum(error, 0) / total).to(tl.float32))
    tl.store(variance, total)


@triton.jit
def scaled_difference_kernel(grad, variance, target, estimate, out, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    scale = (2.0 * tl.load(grad).to(tl.float64) / tl.load(variance)).to(tl.float32)
    e = tl.load(estimate + at, mask=inside, other=0.0).to(tl.float32)
    t = tl.load(target + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, (scale * (e - t)).to(out.dtype.element_ty), mask=inside)


def unexplained_variance(target: Tensor, estimate: Tensor) -> tuple[Tensor, Tensor]:
    """FVU float32 [] and the variance Σ‖t_b − t̄‖² float64 [], which is 1 where it would be 0.

    Sums are float64 and taken from the first row on, so that neither a large mean nor equal rows cost digits:
    Σ‖t − t̄‖² = Σ‖t − t_0‖² − ‖Σ(t − t_0)‖² / B."""
    batch, width = target.shape
    grid = (triton.cdiv(batch, ROWS), triton.cdiv(width, BLOCK_D))
    column_sums = torch.empty(grid[0], width, dtype=torch.float64, device=target.device)
    scalars = torch.empty(2, *grid, dtype=torch.float64, device=target.device)
    if scalars.numel():
        with torch.cuda.device_of(target):
            moments_kernel[grid](
                target.contiguous(), estimate.contiguous(), column_sums, scalars, batch, width, ROWS, BLOCK_D,
                num_warps=2,
            )  # fmt: skip
    value = torch.empty((), dtype=torch.float32, device=target.device)
    variance = torch.empty((), dtype=torch.float64, device=target.device)
    with torch.cuda.device_of(target):
        fraction_kernel[(1,)](
            column_sums.sum(0), scalars, value, variance, max(batch, 1), width, scalars[0].numel(), BLOCK, num_warps=8
        )
    return value, variance


def unexplained_variance_backward(grad: Tensor, target: Tensor, estimate: Tensor, variance: Tensor) -> Tensor:
    """2 grad (e − t) / variance, [B, D] in estimate's dtype."""
    out = torch.empty_like(estimate, memory_format=torch.contiguous_format)
    if out.numel():
        with torch.cuda.device_of(target):
            scaled_difference_kernel[(triton.cdiv(out.numel(), BLOCK),)](
                grad, variance, target.contiguous(), estimate.contiguous(), out, out.numel(), BLOCK, num_warps=4
            )
    return out


def forms() -> list[Form]:
    pointers = {"target": "*bf16", "estimate": "*bf16"}
    moments = Form(
        moments_kernel,
        pointers | {"column_sums": "*fp64", "scalars": "*fp64", "B": "i32", "D": "i32"},
        {"ROWS": ROWS, "BLOCK_D": BLOCK_D},
        num_warps=2,
        aligned=(*pointers, "column_sums", "scalars", "D"),
        gather=True,
    )
    difference = Form(
        scaled_difference_kernel,
        {"grad": "*fp32", "variance": "*fp64", **pointers, "out": "*bf16", "count": "i32"},
        {"BLOCK": BLOCK},
        num_warps=4,
        aligned=("grad", "variance", *pointers, "out", "count"),
        gather=True,
    )
    fraction = Form(
        fraction_kernel,
        {"column_sums": "*fp64", "scalars": "*fp64", "value": "*fp32", "variance": "*fp64"}
        | {"B": "i32", "D": "i32", "parts": "i32"},
        {"BLOCK": BLOCK},
        num_warps=8,
        aligned=("column_sums", "scalars", "value", "variance", "D", "parts"),
        gather=True,
    )
    return [moments, fraction, difference]
