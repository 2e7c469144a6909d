"""For narrow x: all scores of a block of rows by one matrix product, whose tiles also leave the maximum of every GROUP
scores. The k-th largest group maximum bounds the k-th largest score from below, so a row's top k lie in the groups
that reach it: about k of them, which is all that is read back.

It saves the many short products and the second look at every score that the streaming path pays for, where the
product itself is short (D ≤ 1024), at the price of memory for the scores.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from saekern.kernels.form import Form
from saekern.kernels.streaming_select import LOWEST, SUB, admit, capacity, kth_largest, order_key

GROUP = 64
ROWS, LATENTS, WIDTH = 128, 256, 64  # a tile of the product
WARPS, STAGES = 8, 3
BAND = 8  # tiles of rows that share a column of tiles of latents while both are in L2
PLANES = 2
WIDEST = 2**18  # latents; more groups than that a program does not hold


@triton.jit
def larger(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit(do_not_specialize=["n"])
def score_maxima_kernel(
    x,  # [n, D]
    weight,  # [F, D]
    shift,  # [F] or None
    scores,  # [n rounded up to whole tiles, stride] float32 out
    maxima,  # [as many, stride / GROUP] float32 out
    n,
    D,
    F,
    stride,  # F rounded up to whole tiles
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    LATENTS: tl.constexpr,
    WIDTH: tl.constexpr,
    BAND: tl.constexpr,
    RAGGED: tl.constexpr,  # D is no multiple of WIDTH
):
    row_tiles = tl.cdiv(n, ROWS)
    column_tiles = tl.cdiv(F, LATENTS)
    program = tl.program_id(0)
    band = program // (BAND * column_tiles)
    height = tl.minimum(row_tiles - band * BAND, BAND)
    within = program - band * BAND * column_tiles
    row_tile = (band * BAND + within % height).to(tl.int64)
    column_tile = within // height
    # Rows and latents beyond the last read the last one: no mask in the loop, and no group's maximum changes.
    row = tl.minimum(row_tile * ROWS + tl.arange(0, ROWS), n - 1)
    latent = tl.minimum(column_tile * LATENTS + tl.arange(0, LATENTS), F - 1)
    column = tl.arange(0, WIDTH)
    left = x + row[:, None] * D + column[None, :]
    right = weight + latent.to(tl.int64)[None, :] * D + column[:, None]
    sum = tl.zeros([ROWS, LATENTS], tl.float32)
    for first in range(0, D, WIDTH):
        if RAGGED:
            inside = first + column < D
            tile = tl.load(left, mask=inside[None, :], other=0.0)
            sum = tl.dot(tile, tl.load(right, mask=inside[:, None], other=0.0), sum)
        else:
            sum = tl.dot(tl.load(left), tl.load(right), sum)
        left += WIDTH
        right += WIDTH
    if shift is not None:
        sum += tl.load(shift + latent).to(tl.float32)[None, :]
    own = tl.arange(0, ROWS)[:, None]
    best = tl.reduce(tl.reshape(sum, [ROWS, LATENTS // GROUP, GROUP]), 2, larger)
    groups = stride // GROUP
    maxima += row_tile * ROWS * groups + column_tile * (LATENTS // GROUP)
    tl.store(maxima + own * groups + tl.arange(0, LATENTS // GROUP)[None, :], best)
    scores += row_tile * ROWS * stride + column_tile * LATENTS
    tl.store(scores + own * stride + tl.arange(0, LATENTS)[None, :], sum)


@triton.jit
def group_select_kernel(
    scores,  # [n, stride] float32
    maxima,  # [n, stride / GROUP] float32
    list,  # [n, 2, CAPACITY] int32
    state,  # [n, 2] int32
    chosen,  # [n, stride / GROUP] int32, scratch
    F,
    stride,
    K,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,  # ≥ stride / GROUP, a power of two
    PLANES: tl.constexpr,
    SUB: tl.constexpr,
    CAPACITY: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    groups = stride // GROUP
    scores += row * stride
    chosen += row * groups
    list += row * (PLANES * CAPACITY)
    slots = tl.arange(0, GROUPS)
    exists = slots * GROUP < F
    best = tl.where(exists, order_key(tl.load(maxima + row * groups + slots, mask=exists, other=0.0)), LOWEST)
    bound = tl.maximum(kth_largest(best, K), LOWEST + 1)
    keep = best >= bound
    tl.store(chosen + tl.cumsum(keep.to(tl.int32), 0) - 1, slots, mask=keep)
    count = 0
    threshold = bound - 1
    tl.debug_barrier()
    codes = tl.arange(0, SUB)
    found = tl.sum(keep.to(tl.int32), 0)
    for begin in range(0, found, SUB // GROUP):
        slot = begin + codes // GROUP
        there = slot < found
        latents = tl.load(chosen + slot, mask=there, other=0) * GROUP + codes % GROUP
        there = there & (latents < F)
        key = tl.where(there, order_key(tl.load(scores + latents, mask=there, other=0.0)), LOWEST)
        count, threshold = admit(list, count, threshold, latents, key, key, K, True, PLANES, SUB, CAPACITY)
    tl.store(state + row * 2, count)


def stride(latents: int) -> int:
    return triton.cdiv(latents, LATENTS) * LATENTS


def groups(latents: int) -> int:
    """Groups a program of `group_select_kernel` holds: all of a row's."""
    return max(128, triton.next_power_of_2(stride(latents) // GROUP))


def warps(slots: int) -> int:
    """Of `group_select_kernel`: what compiles without a spill for any number of groups."""
    return slots // 128


def registers(groups: int) -> int:
    """Of `group_select_kernel`, told to the assembler, which by itself aims at 48 where 2048 groups take more."""
    return 64 if groups <= 2048 else 128


def select(
    x: Tensor, weight: Tensor, shift: Tensor | None, k: int, list: Tensor, state: Tensor, buffers: tuple[Tensor, ...]
) -> None:
    """Leaves the candidates for the top k in `list` and `state`; `buffers`: what `workspace` made."""
    (count, width), latents, slots = x.shape, weight.shape[0], list.shape[2]
    scores, maxima, chosen = buffers
    if x.device.type == "cpu":  # the interpreter's tl.dot would multiply the bits of bfloat16 as integers
        x, weight = x.to(torch.float32), weight.to(torch.float32)
    tiles = triton.cdiv(count, ROWS) * triton.cdiv(latents, LATENTS)
    score_maxima_kernel[(tiles,)](
        x, weight, shift, scores, maxima, count, width, latents, stride(latents), GROUP, ROWS, LATENTS, WIDTH, BAND,
        width % WIDTH != 0, num_warps=WARPS, num_stages=STAGES,
    )  # fmt: skip
    group_select_kernel[(count,)](
        scores, maxima, list, state, chosen, latents, stride(latents), k, GROUP, groups(latents), PLANES, SUB, slots,
        num_warps=warps(slots), maxnreg=registers(groups(latents)),
    )  # fmt: skip


def workspace(rows: int, latents: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    rows, width = triton.cdiv(rows, ROWS) * ROWS, stride(latents)
    scores = torch.empty(rows, width, device=device)
    maxima = torch.empty(rows, width // GROUP, device=device)
    return scores, maxima, torch.empty(rows, width // GROUP, dtype=torch.int32, device=device)


def forms() -> list[Form]:
    sizes = [(16384, 64), (65536, 64), (65536, 512), (131072, 64), (131072, 512), (WIDEST, 64)]
    return [_product("bf16"), _product("fp16"), *(_select(latents, k) for latents, k in sizes)]


def _product(name: str) -> Form:
    signature = {"x": f"*{name}", "weight": f"*{name}", "shift": "*fp32", "scores": "*fp32", "maxima": "*fp32"}
    aligned = (*signature, "D", "F", "stride")
    tile = {"GROUP": GROUP, "ROWS": ROWS, "LATENTS": LATENTS, "WIDTH": WIDTH, "BAND": BAND, "RAGGED": False}
    signature |= dict.fromkeys(("n", "D", "F", "stride"), "i32")
    return Form(score_maxima_kernel, signature, tile, WARPS, STAGES, aligned, matrix=True, gather=True, nan=True)


def _select(latents: int, k: int) -> Form:
    signature = {"scores": "*fp32", "maxima": "*fp32", "list": "*i32", "state": "*i32", "chosen": "*i32"}
    aligned = (*signature, "F", "stride")
    slots = capacity(k, False)
    constants = {"GROUP": GROUP, "GROUPS": groups(latents), "PLANES": PLANES, "SUB": SUB, "CAPACITY": slots}
    signature |= dict.fromkeys(("F", "stride", "K"), "i32")
    return Form(
        group_select_kernel, signature, constants, warps(slots), aligned=aligned, registers=registers(groups(latents)),
        capped=True,
    )  # fmt: skip
