"""The best cosine partner of every row, both ways, for many pairs of dictionaries: screened, then scored in float32."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from saekern.kernels.cosine_screen import (
    GROUP,
    NOTHING,
    ROUNDED,
    TILE_A,
    TILE_B,
    Prepared,
    approximate,
    cosine,
    error_bound,
    member,
    plan,
    prepare,
    screen,
    shared_memory,
)
from saekern.kernels.form import Form

CHUNK = 512  # maxima looked at together: 32 bytes a thread
BLOCK_D = 128  # float16 columns of a step, twice as many in float32: 8 rows of 256 bytes in flight a warp
REGISTERS = 168  # at most: 12 warps a multiprocessor or more
TOPS_BYTES = 2**28  # of maxima at a time: two pairs of 16,384 latents
MOST_PAIRS = 16_384  # a launch: program numbers stay below 2^31 for the small dictionaries of which so many fit


@triton.jit
def _settle(
    group,
    best,
    index,
    floor,
    slack,
    own,  # [D], [W] and scale of the row
    own_rounded,
    own_scale,
    rows,  # the other dictionary: [F, D], [F, W], [F]
    rounded,
    inverse,
    start,  # its first row's number
    F,
    D,
    W,
    TILE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """best and index after a look at one group. No answer is below floor."""
    k = tl.arange(0, 8)
    members = member(group, k, TILE)
    upper = approximate(own_rounded, rounded, members, members < F, W, BLOCK_D) + slack
    following = tl.min(tl.where(upper >= tl.maximum(best, floor), k, 8), 0)
    while following < 8:
        candidate = member(group, following, TILE)
        at = candidate.to(tl.int64)
        score = cosine(own, own_scale, rows + at * D, tl.load(inverse + at), D, 2 * BLOCK_D)
        better = (score > best) | ((score == best) & (start + candidate < index))
        best = tl.where(better, score, best)
        index = tl.where(better, start + candidate, index)
        following = tl.min(tl.where((upper >= tl.maximum(best, floor)) & (k > following), k, 8), 0)
    return best, index


@triton.jit
def pick_kernel(
    own_rows,  # [S, own_stride, D]: the dictionary whose rows look for partners
    own_rounded,  # [S, own_stride, W]
    own_inverse,  # [S, own_stride]
    own_residual,  # [S, own_stride]
    rows,  # [S', stride, D]: the other one
    rounded,  # [S', stride, W]
    inverse,  # [S', stride]
    worst,  # [S']
    bad,  # [S']
    pairs,  # [P, 2]
    tops,  # [P, own_count, groups]
    cosines,  # [P, own_stride] out
    indices,  # [P, own_stride] int64 out
    own_start,  # own_count rows from here on look for partners
    own_stride,
    own_count,
    start,  # among `count` rows from here on
    stride,
    count,
    D,
    W,
    groups,
    CONTINUED: tl.constexpr,  # what the outputs hold is the best among earlier rows
    SIDE: tl.constexpr,  # where in a pair the first dictionary is
    TILE: tl.constexpr,  # of the other dictionary's groups
    CHUNK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    slot = program // own_count
    row = own_start + program % own_count
    place = slot * own_stride + row
    own = tl.load(pairs + 2 * slot + SIDE).to(tl.int64) * own_stride + row
    partner = tl.load(pairs + 2 * slot + 1 - SIDE).to(tl.int64)
    scale = tl.load(own_inverse + own)
    first_bad = tl.load(bad + partner)
    own_bad = scale != scale
    best = tl.where(own_bad | (first_bad < stride), float("nan"), 0.0)
    index = tl.where((first_bad < stride) & (scale == scale), first_bad, 0)
    if (scale != 0) & (best == 0):
        slack = error_bound(tl.load(own_residual + own), tl.load(worst + partner), D)
        own_rows += own * D
        own_rounded += own * W
        rows += (partner * stride + start) * D
        rounded += (partner * stride + start) * W
        inverse += partner * stride + start
        tops += program * groups

        highest = tl.full([CHUNK], NOTHING, tl.float32)
        at = tl.zeros([CHUNK], tl.int32)
        for first in range(0, groups, CHUNK):
            group = first + tl.arange(0, CHUNK)
            top = tl.load(tops + group, mask=group < groups, other=NOTHING).to(tl.float32)
            at = tl.where(top > highest, group, at)
            highest = tl.maximum(top, highest)
        summit = tl.max(highest, 0)
        leader = tl.min(tl.where(highest == summit, at, groups), 0)
        floor = summit - tl.abs(summit) * ROUNDED - slack  # some cosine is no less

        # The leader first: with its exact cosine for a threshold fewer groups remain than with the floor.
        if CONTINUED:
            best = tl.load(cosines + place)
            index = tl.load(indices + place).to(tl.int32)
        else:
            best = tl.full([], NOTHING, tl.float32)
            index = tl.full([], 0, tl.int32) + stride
        best, index = _settle(
            leader, best, index, floor, slack, own_rows, own_rounded, scale, rows, rounded, inverse, start, count, D, W,
            TILE, BLOCK_D,
        )  # fmt: skip
        for first in range(0, groups, CHUNK):
            group = first + tl.arange(0, CHUNK)
            top = tl.load(tops + group, mask=group < groups, other=NOTHING).to(tl.float32)
            upper = tl.where(group == leader, NOTHING, top + tl.abs(top) * ROUNDED + slack)
            following = tl.min(tl.where(upper >= tl.maximum(best, floor), group, groups), 0)
            while following < groups:
                best, index = _settle(
                    following, best, index, floor, slack, own_rows, own_rounded, scale, rows, rounded, inverse, start,
                    count, D, W, TILE, BLOCK_D,
                )  # fmt: skip
                following = tl.min(tl.where((upper >= tl.maximum(best, floor)) & (group > following), group, groups), 0)
    tl.store(cosines + place, best)
    tl.store(indices + place, index.to(tl.int64))


class Batch(NamedTuple):
    pairs: int  # that share a launch
    rows: int  # of a's dictionary at a time: all of them, or fewer where one pair's maxima are more than TOPS_BYTES


def batch(a_rows: int, b_rows: int, memory: int) -> Batch:
    shape = plan(a_rows, b_rows, memory)
    pairs = TOPS_BYTES // (2 * (a_rows * shape.b_groups + b_rows * shape.a_groups))
    if pairs:
        return Batch(min(pairs, MOST_PAIRS), a_rows)
    tile = 2 * (TILE_A * shape.b_groups + b_rows * TILE_A // GROUP)
    return Batch(1, max(1, TOPS_BYTES // tile) * TILE_A)


def nearest_pairs(a: Prepared, b: Prepared, pairs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For each of `pairs` [P, 2] int32, a[pairs[p, 0]] with b[pairs[p, 1]]: a_cosine, a_index [P, Fa] and b_cosine,
    b_index [P, Fb]. Memory beyond that: TOPS_BYTES."""
    a_rows, b_rows, count = a.rows.shape[1], b.rows.shape[1], pairs.shape[0]
    pairs = pairs.contiguous()
    a_cosine, b_cosine = (a.inverse.new_empty(count, rows) for rows in (a_rows, b_rows))
    a_index, b_index = (torch.empty_like(cosines, dtype=torch.int64) for cosines in (a_cosine, b_cosine))
    step, most = batch(a_rows, b_rows, shared_memory(a.rounded))
    for begin in range(0, count, step):
        part = slice(begin, begin + step)
        for first in range(0, a_rows, most):
            block = (first, min(most, a_rows - first))
            a_tops, b_tops = screen(a, b, pairs[part], True, *block)
            _pick(a, block, b, (0, b_rows), pairs[part], a_tops, 0, a_cosine[part], a_index[part])
            _pick(b, (0, b_rows), a, block, pairs[part], b_tops, 1, b_cosine[part], b_index[part])
    return a_cosine, a_index, b_cosine, b_index


def _pick(own, own_block, other, block, pairs, tops, side, cosines, indices):
    _, own_stride, width = own.rows.shape
    with torch.cuda.device_of(tops):
        pick_kernel[(len(pairs) * own_block[1],)](
            own.rows, own.rounded, own.inverse, own.residual, other.rows, other.rounded, other.inverse, other.worst,
            other.bad, pairs, tops, cosines, indices, own_block[0], own_stride, own_block[1], block[0],
            other.rows.shape[1], block[1], width, own.rounded.shape[2], tops.shape[2], block[0] > 0, side,
            (TILE_B, TILE_A)[side], CHUNK, BLOCK_D, num_warps=1,
        )  # fmt: skip


def nearest(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """a_cosine, a_index [Fa], b_cosine, b_index [Fb] of a [Fa, D] and b [Fb, D]."""
    pair = torch.zeros(1, 2, dtype=torch.int32, device=a.device)
    a_cosine, a_index, b_cosine, b_index = nearest_pairs(prepare(a[None]), prepare(b[None]), pair)
    return a_cosine[0], a_index[0], b_cosine[0], b_index[0]


def forms() -> list[Form]:
    return [_form(name, side, tile) for name, side, tile in (("fp32", 0, TILE_B), ("bf16", 1, TILE_A))]


def _form(name: str, side: int, tile: int) -> Form:
    signature = dict.fromkeys(("own_rows", "rows"), f"*{name}") | dict.fromkeys(("own_rounded", "rounded"), "*fp16")
    signature |= dict.fromkeys(("own_inverse", "own_residual", "inverse", "worst", "cosines"), "*fp32")
    signature |= {"bad": "*i32", "pairs": "*i32", "tops": "*fp16", "indices": "*i64"}
    numbers = ("own_start", "own_stride", "own_count", "start", "stride", "count", "D", "W", "groups")
    aligned = (*signature, *numbers)
    signature |= dict.fromkeys(numbers, "i32")
    constants = {"CONTINUED": side == 1, "SIDE": side, "TILE": tile, "CHUNK": CHUNK, "BLOCK_D": BLOCK_D}
    return Form(
        pick_kernel, signature, constants, 1, aligned=aligned, gather=True, registers=168
    )  # 12 warps a multiprocessor or more
