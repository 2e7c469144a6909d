"""float32 scores at the price of bfloat16 ones: the bound that screens them, and single scores exactly.

With x̂, ŵ the bfloat16 roundings of x (its pre-bias subtracted) and w, for any rounding modes of the sums

    |x·w − x̂·ŵ| ≤ ‖x − x̂‖ ‖w‖ + ‖x̂‖ ‖w − ŵ‖ + γ ‖x̂‖ ‖ŵ‖

with the roundings actually made, of which `round_kernel` takes the norms. Tensor cores cut every product and partial
sum off at 24 bits or more below the largest of what they add, so γ = D 2⁻²² is safe; the float32 sum of `dots` runs in
D / BLOCK_D steps, whence its own γ. Both are folded into the residuals: residual = ‖w − ŵ‖ + γ ‖w‖.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from saekern.kernels import streaming_select
from saekern.kernels.form import Form
from saekern.kernels.streaming_select import LOWEST, OVERFLOW, admit, cut, order_key

LARGEST = tl.constexpr((2 - 2.0**-7) * 2.0**127)  # finite in bfloat16
TILE = 8  # latents in flight a program
BLOCK_D = 256
WARPS = 4  # with TILE and BLOCK_D, what fixes the order of summation of `dots`
REGISTERS = 128  # of `overflow_kernel`, told to the assembler, which by itself aims at 64 or 72 and spills
DEPTH = 32  # additions that follow one another in its last sum over BLOCK_D, at most
SCORE_TILE = (64, 64, 32)  # rows, latents, width of a tile of `score_kernel`


@triton.jit(do_not_specialize=["n"])
def round_kernel(
    rows,  # [n, D] float32
    shift,  # [D], subtracted from every row, or None
    rounded,  # [n, D] bfloat16 out
    norms,  # [n] float32 out: an upper bound on the norms of a row and of its rounding
    residuals,  # [n] float32 out: of the norm of their difference, + gamma · norm
    n,
    D,
    gamma,
    inflation,  # 1 + what the sums here may lose
    TILE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    square = tl.zeros([TILE, BLOCK_D], tl.float32)
    difference = tl.zeros([TILE, BLOCK_D], tl.float32)
    special = tl.zeros([TILE, BLOCK_D], tl.int32)  # bit 0: not zero, bit 1: NaN
    for first in range(0, D, BLOCK_D):
        columns = first + tl.arange(0, BLOCK_D)
        mask = (row < n)[:, None] & (columns < D)[None, :]
        at = row[:, None] * D + columns[None, :]
        x = tl.load(rows + at, mask=mask, other=0.0)
        if shift is not None:
            x -= tl.load(shift + columns, mask=columns < D, other=0.0)[None, :]
        # A finite number that would round to infinity stays finite: 0 · ∞ would be NaN where the score is 0.
        y = tl.where(tl.abs(x) < float("inf"), tl.minimum(tl.maximum(x, -LARGEST), LARGEST), x).to(tl.bfloat16)
        tl.store(rounded + at, y, mask=mask)
        y = y.to(tl.float32)
        larger = tl.maximum(tl.abs(x), tl.abs(y))
        square += larger * larger
        difference += (x - y) * (x - y)
        special |= (x != 0).to(tl.int32) | ((x != x).to(tl.int32) << 1)
    # A square below 2⁻¹²⁶ may count as nothing, a denormal factor too.
    lost = D * 2.0**-126
    norm = tl.sqrt(tl.sum(square, 1) + lost) * inflation
    residual = tl.sqrt(tl.sum(difference, 1) + lost) * inflation + gamma * norm
    # With zeros only, or a NaN, all scores of the row are what they seem: `select_kernel` takes 0, 0 as a sign of that.
    exact = (tl.max(special & 1, 1) == 0) | (tl.max(special >> 1, 1) == 1)
    tl.store(norms + row, tl.where(exact, 0.0, norm), mask=row < n)
    tl.store(residuals + row, tl.where(exact, 0.0, residual), mask=row < n)


@triton.jit
def dots(row, shift, weight, latents, wanted, D, TILE: tl.constexpr, BLOCK_D: tl.constexpr):
    """⟨row − shift, weight[latents]⟩ in float32, in one fixed order."""
    sum = tl.zeros([TILE, BLOCK_D], tl.float32)
    for first in range(0, D, BLOCK_D):
        columns = first + tl.arange(0, BLOCK_D)
        inside = columns < D
        x = tl.load(row + columns, mask=inside, other=0.0).to(tl.float32)
        if shift is not None:
            x -= tl.load(shift + columns, mask=inside, other=0.0).to(tl.float32)
        mask = wanted[:, None] & inside[None, :]
        tile = tl.load(weight + latents.to(tl.int64)[:, None] * D + columns[None, :], mask=mask, other=0.0)
        sum += x[None, :] * tile.to(tl.float32)
    return tl.sum(sum, 1)


@triton.jit
def scores(row, shift, weight, bias, latents, wanted, D, TILE: tl.constexpr, BLOCK_D: tl.constexpr):
    score = dots(row, shift, weight, latents, wanted, D, TILE, BLOCK_D)
    if bias is not None:
        score += tl.load(bias + latents, mask=wanted, other=0.0)
    return score


@triton.jit
def shift_kernel(
    pre_bias, weight, bias, shift, D, F, TILE: tl.constexpr, BLOCK_D: tl.constexpr
):  # shift [F] float32 out: bias − ⟨pre_bias, weight[f]⟩
    latents = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside = latents < F
    shifts = -dots(pre_bias, None, weight, latents, inside, D, TILE, BLOCK_D)
    if bias is not None:
        shifts += tl.load(bias + latents, mask=inside, other=0.0).to(tl.float32)
    tl.store(shift + latents, shifts, mask=inside)


@triton.jit
def rescore_kernel(
    list,  # [rows, 3, CAPACITY] int32; the second plane becomes the keys of the exact scores
    state,
    x,  # [rows, D]
    shift,  # [D] or None
    weight,  # [F, D]
    bias,  # [F] or None
    row_norms,
    row_residuals,
    D,
    K,
    SUB: tl.constexpr,
    CAPACITY: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    list += row * (3 * CAPACITY)
    count = tl.load(state + row * 2)
    if count != OVERFLOW:
        known = (tl.load(row_norms + row) == 0) & (tl.load(row_residuals + row) == 0)
        count, _ = cut(list, count, K, known, 3, SUB, CAPACITY)
        tl.debug_barrier()
        for first in range(0, count, TILE):
            slots = first + tl.arange(0, TILE)
            held = slots < count
            latents = tl.load(list + slots, mask=held, other=0)
            score = scores(x + row * D, shift, weight, bias, latents, held, D, TILE, BLOCK_D)
            tl.store(list + CAPACITY + slots, order_key(score), mask=held)
        tl.store(state + row * 2, count)


@triton.jit
def overflow_kernel(
    list,
    state,
    scratch,  # [rows, stride] float32, stride ≥ min(SUB, F)
    x,
    shift,
    weight,
    bias,
    allowed,  # [F] or None
    D,
    F,
    K,
    stride,
    SUB: tl.constexpr,
    CAPACITY: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Rows whose candidates did not fit: all their scores exactly, SUB at a time. Other rows are left at once."""
    row = tl.program_id(0).to(tl.int64)
    list += row * (3 * CAPACITY)
    scratch += row * stride
    if tl.load(state + row * 2) == OVERFLOW:
        count = 0
        threshold = LOWEST
        for first in range(0, F, SUB):
            tl.debug_barrier()  # the last SUB scores have been looked at
            for begin in range(0, SUB, TILE):
                slots = begin + tl.arange(0, TILE)
                exists = first + slots < F
                score = scores(x + row * D, shift, weight, bias, first + slots, exists, D, TILE, BLOCK_D)
                tl.store(scratch + slots, score, mask=exists)
            tl.debug_barrier()
            latents = first + tl.arange(0, SUB)
            mask = latents < F
            if allowed is not None:
                mask = mask & (tl.load(allowed + latents, mask=mask, other=0) != 0)
            key = order_key(tl.load(scratch + tl.arange(0, SUB), mask=mask, other=0.0))
            key = tl.where(mask, key, LOWEST)
            count, threshold = admit(list, count, threshold, latents, key, key, K, True, 3, SUB, CAPACITY)
        tl.store(state + row * 2, count)


@triton.jit(do_not_specialize=["n"])
def score_kernel(
    x,
    shift,
    weight,
    bias,
    scores,  # [n, F] float32 out
    n,
    D,
    F,
    ROWS: tl.constexpr,
    LATENTS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """All scores of a few rows, in float32 throughout."""
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    latents = tl.program_id(0) * LATENTS + tl.arange(0, LATENTS)
    sum = tl.zeros([ROWS, LATENTS], tl.float32)
    for first in range(0, D, WIDTH):
        columns = first + tl.arange(0, WIDTH)
        inside = columns < D
        here = (rows < n)[:, None] & inside[None, :]
        tile = tl.load(x + rows.to(tl.int64)[:, None] * D + columns[None, :], mask=here, other=0.0)
        if shift is not None:
            tile -= tl.load(shift + columns, mask=inside, other=0.0)[None, :]
        there = (latents < F)[None, :] & inside[:, None]
        w = tl.load(weight + latents.to(tl.int64)[None, :] * D + columns[:, None], mask=there, other=0.0)
        sum = tl.dot(tile, w, sum, input_precision="ieee")
    if bias is not None:
        sum += tl.load(bias + latents, mask=latents < F, other=0.0)[None, :]
    at = rows.to(tl.int64)[:, None] * F + latents[None, :]
    tl.store(scores + at, sum, mask=(rows < n)[:, None] & (latents < F)[None, :])


def rounded(rows: Tensor, shift: Tensor | None, out: Tensor, norms: Tensor, residuals: Tensor, gamma: float) -> None:
    count, width = rows.shape
    inflation = 1 + (width / BLOCK_D + DEPTH) * 2.0**-22
    round_kernel[(triton.cdiv(count, TILE),)](
        rows, shift, out, norms, residuals, count, width, gamma, inflation, TILE, BLOCK_D, num_warps=WARPS
    )


def row_gamma(width: int) -> float:
    """Of `dots`, with which the exact score is made."""
    return (width / BLOCK_D + DEPTH) * 2.0**-24


def weight_gamma(width: int) -> float:
    """Of the matrix product."""
    return (width + 16) * 2.0**-22


def shifts(pre_bias: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """bias − W pre_bias, float32 [F]: then x need not be rounded again after the pre-bias was subtracted from it."""
    out = torch.empty(weight.shape[0], device=weight.device)
    shift_kernel[(triton.cdiv(out.numel(), TILE),)](
        pre_bias, weight, bias, out, weight.shape[1], out.numel(), TILE, BLOCK_D, num_warps=WARPS
    )
    return out


def rescore(selection, x, shift, weight, bias, row_norms, row_residuals, scratch, stride: int) -> None:
    """The candidates' scores in float32; where they overflowed, all of the row's. `scratch` [rows · stride] is lost."""
    grid, (latents, width), s = (x.shape[0],), weight.shape, selection
    constants = (streaming_select.SUB, s.capacity, TILE, BLOCK_D)
    rescore_kernel[grid](
        s.list, s.state, x, shift, weight, bias, row_norms, row_residuals, width, s.k, *constants, num_warps=WARPS
    )  # fmt: skip
    overflow_kernel[grid](
        s.list, s.state, scratch, x, shift, weight, bias, s.allowed, width, latents, s.k, stride, *constants,
        num_warps=WARPS, maxnreg=REGISTERS,
    )  # fmt: skip


def exact_scores(x: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    rows, latents, width = SCORE_TILE
    # The second axis ends at 65,535 programs, which tiles of 4.19 M latents are. One axis, divided, takes 212 to 255
    # registers on sm_80 where this takes 168.
    grid = (triton.cdiv(weight.shape[0], latents), triton.cdiv(x.shape[0], rows))
    score_kernel[grid](
        x, shift, weight, bias, out, x.shape[0], x.shape[1], weight.shape[0], rows, latents, width, num_warps=WARPS
    )


def forms() -> list[Form]:
    made = [
        _form(round_kernel, {"rows": "*fp32", "shift": "*fp32", "rounded": "*bf16", "norms": "*fp32",
              "residuals": "*fp32"}, "n D", {"TILE": TILE, "BLOCK_D": BLOCK_D}, {"gamma": "fp32", "inflation": "fp32"}),
        _form(score_kernel, _operands() | {"scores": "*fp32"}, "n D F",
              dict(zip(("ROWS", "LATENTS", "WIDTH"), SCORE_TILE, strict=True)))._replace(registers=192),
    ]  # fmt: skip
    for name in ("bf16", "fp32"):
        pointers = {"pre_bias": f"*{name}", "weight": f"*{name}", "bias": f"*{name}", "shift": "*fp32"}
        made.append(_form(shift_kernel, pointers, "D F", {"TILE": TILE, "BLOCK_D": BLOCK_D}))
    for k in (64, 256, 512):
        size = streaming_select.capacity(k, True)
        constants = {"SUB": streaming_select.SUB, "CAPACITY": size, "TILE": TILE, "BLOCK_D": BLOCK_D}
        lists = {"list": "*i32", "state": "*i32"}
        norms = {"row_norms": "*fp32", "row_residuals": "*fp32"}
        made.append(_form(rescore_kernel, lists | _operands() | norms, "D K", constants))
        overflow = lists | {"scratch": "*fp32", "allowed": "*u8"} | _operands()
        form = _form(overflow_kernel, overflow, "D F K stride", constants)
        made.append(form._replace(registers=REGISTERS, capped=True))
    return made


def _operands() -> dict[str, str]:
    return dict.fromkeys(("x", "shift", "weight", "bias"), "*fp32")


def _form(kernel, pointers, sizes: str, constants, numbers=None) -> Form:
    signature = pointers | dict.fromkeys(sizes.split(), "i32") | (numbers or {})
    aligned = (*pointers, *(size for size in sizes.split() if size not in ("K", "n")))
    return Form(kernel, signature, constants, WARPS, aligned=aligned, gather=True, registers=128)
