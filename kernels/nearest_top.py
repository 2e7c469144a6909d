"""The m best cosine partners of every row and a bound on the rest: screened like `nearest`, the best kept as a list."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from saekern.kernels.cosine_screen import (
    NOTHING,
    ROUNDED,
    TILE_B,
    Prepared,
    approximate,
    cosine,
    error_bound,
    member,
    prepare,
    screen,
)
from saekern.kernels.form import Form
from saekern.kernels.nearest import BLOCK_D, CHUNK, TOPS_BYTES

WIDEST = 64  # partners a row kept as a list; more are sorted out of whole rows of cosines
REGISTERS = 168  # told to the assembler, which by itself aims at 96 and spills; 12 warps a multiprocessor
STRIP = 64  # cosines a program of `table_kernel`
TABLE = 2**24  # cosines at a time there: 64 MB, and 256 MB to sort them
LEAST = tl.constexpr(-(2**63))
MOST = tl.constexpr(2**63 - 1)


@triton.jit
def _pack(score, index):
    """An int64 that is larger for a better score, NaN best, and for a smaller index where scores tie."""
    bits = score.to(tl.int32, bitcast=True)  # never −0, as sums start at 0
    ordered = tl.where(score == score, bits ^ ((bits >> 31) & 0x7FFFFFFF), 0x7FFFFFFF)
    return (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - index).to(tl.int64)


@triton.jit
def _score(key):
    ordered = (key >> 32).to(tl.int32)
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _next(tops, first, groups, after, limit, slack, CHUNK: tl.constexpr):
    """The first group beyond `after`, of the CHUNK from `first`, that may hold a cosine of `limit`; `groups` if none.
    They are loaded anew, from L1, rather than kept in 32 registers across the loops below."""
    group = first + tl.arange(0, CHUNK)
    top = tl.load(tops + group, mask=group < groups, other=NOTHING).to(tl.float32)
    upper = top + tl.abs(top) * ROUNDED + slack
    return tl.min(tl.where((upper >= limit) & (group > after), group, groups), 0)


@triton.jit
def top_kernel(
    a_rows,  # [Fa, D]
    a_rounded,  # [Fa, W]
    a_inverse,  # [Fa]
    a_residual,  # [Fa]
    b_rows,  # [Fb, D]
    b_rounded,  # [Fb, W]
    b_inverse,  # [Fb]
    b_worst,  # [1]
    b_bad,  # [1]
    tops,  # [Fa, groups] float16
    cosines,  # [Fa, m] out
    indices,  # [Fa, m] int64 out
    rest,  # [Fa] out
    count,  # Fb
    D,
    W,
    groups,
    m,
    kept,  # min(m + 1, Fb): the one beyond the m is the bound on the rest
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    LIST: tl.constexpr,  # a power of two, at least `kept`
):
    row = tl.program_id(0).to(tl.int64)
    scale = tl.load(a_inverse + row)
    no_bad = tl.load(b_bad) >= count
    own_bad = scale != scale
    slot = tl.arange(0, LIST)
    # Empty places are below every key and differ; places beyond `kept` are never the least.
    keys = tl.where(slot < kept, slot.to(tl.int64) + LEAST, MOST)
    if own_bad | ((scale == 0) & no_bad):
        score = tl.where(own_bad, float("nan"), 0.0)
        keys = tl.where(slot < kept, _pack(tl.zeros([LIST], tl.float32) + score, slot), MOST)
    else:
        slack = error_bound(tl.load(a_residual + row), tl.load(b_worst), D)
        tops += row * groups

        # The kept-th largest maximum, bit by bit: as many cosines are no less, but for the error.
        threshold = tl.full([], -32768, tl.int32)
        for bit in range(16):
            trial = threshold + (32768 >> bit)
            reached = tl.zeros([CHUNK], tl.int32)
            for first in range(0, groups, CHUNK):
                group = first + tl.arange(0, CHUNK)
                top = tl.load(tops + group, mask=group < groups, other=NOTHING).to(tl.int16, bitcast=True).to(tl.int32)
                reached += ((top ^ ((top >> 31) & 0x7FFF)) >= trial).to(tl.int32)
            threshold = tl.where(tl.sum(reached, 0) >= kept, trial, threshold)
        bits = threshold ^ ((threshold >> 31) & 0x7FFF)
        least = bits.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
        # −16385 is −2: not so many groups have any rows. A row with NaN may be anywhere: then every row is scored.
        floor = tl.where((threshold > -16385) & no_bad, least - tl.abs(least) * ROUNDED - slack, NOTHING)

        limit = floor
        k = tl.arange(0, 8)
        for first in range(0, groups, CHUNK):
            following = _next(tops, first, groups, -1, limit, slack, CHUNK)
            while following < groups:
                members = member(following, k, TILE)
                inside = members < count
                near = approximate(a_rounded + row * W, b_rounded, members, inside, W, BLOCK_D)
                each = tl.min(tl.where(inside & (near + slack >= limit), k, 8), 0)
                while each < 8:
                    candidate = member(following, each, TILE)
                    at = candidate.to(tl.int64)
                    scale_b = tl.load(b_inverse + at)
                    score = cosine(a_rows + row * D, scale, b_rows + at * D, scale_b, D, 2 * BLOCK_D)
                    key = _pack(score, candidate)
                    worst = tl.min(keys, 0)
                    keys = tl.where((keys == worst) & (key > worst), key, keys)
                    known = _score(tl.min(keys, 0))  # NaN while places are empty
                    limit = tl.where((known > limit) & no_bad, known, limit)
                    each = tl.min(tl.where(inside & (near + slack >= limit) & (k > each), k, 8), 0)
                following = _next(tops, first, groups, following, limit, slack, CHUNK)

    keys = tl.where(slot < kept, keys, LEAST)
    for place in range(m):
        key = tl.max(keys, 0)
        tl.store(cosines + row * m + place, _score(key))
        tl.store(indices + row * m + place, 0x7FFFFFFF - (key & 0x7FFFFFFF))
        keys = tl.where(keys == key, LEAST, keys)
    beyond = _score(tl.max(keys, 0))
    tl.store(rest + row, tl.where(kept > m, beyond, -float("inf")))


@triton.jit(do_not_specialize=["n"])
def table_kernel(
    a_rows,  # [n, D]
    a_inverse,  # [n]
    b_rows,  # [Fb, D]
    b_inverse,  # [Fb]
    out,  # [n, Fb]
    n,
    count,  # Fb
    D,
    STRIP: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = (tl.program_id(0) % n).to(tl.int64)
    scale = tl.load(a_inverse + row)
    first = tl.program_id(0) // n * STRIP
    for column in range(first, tl.minimum(first + STRIP, count)):
        at = tl.full([], 0, tl.int64) + column
        score = cosine(a_rows + row * D, scale, b_rows + at * D, tl.load(b_inverse + at), D, 2 * BLOCK_D)
        tl.store(out + row * count + at, score)


def nearest_top(a: Tensor, b: Tensor, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """cosine [Fa, m] descending, index [Fa, m] int64 and rest [Fa], the largest cosine outside the list.

    Up to m = WIDEST most cosines are only screened; beyond it all are computed in float32 on the plain cores, blocks of
    rows of them sorted: for 16,384 latents of width 768, 0.8 TB from L2.
    """
    a_prepared, b_prepared = prepare(a[None]), prepare(b[None])
    path = _listed if m <= WIDEST else _sorted
    return path(a_prepared, b_prepared, m)


def _outputs(a: Prepared, m: int) -> tuple[Tensor, Tensor, Tensor]:
    count = a.rows.shape[1]
    cosines = a.inverse.new_empty(count, m)
    return cosines, torch.empty_like(cosines, dtype=torch.int64), a.inverse.new_empty(count)


def _listed(a: Prepared, b: Prepared, m: int) -> tuple[Tensor, Tensor, Tensor]:
    (_, a_count, width), count = a.rows.shape, b.rows.shape[1]
    cosines, indices, rest = _outputs(a, m)
    kept = min(m + 1, count)
    pair = torch.zeros(1, 2, dtype=torch.int32, device=a.rows.device)
    step = rows_at_once(count)
    for first in range(0, a_count, step):
        part = slice(first, first + step)
        tops, _ = screen(a, b, pair, False, first, step)
        with torch.cuda.device_of(tops):
            top_kernel[(tops.shape[1],)](
                *(t[0, part] for t in a[:4]), *b[:3], b.worst, b.bad, tops, cosines[part], indices[part], rest[part],
                count, width, b.rounded.shape[2], tops.shape[2], m, kept, TILE_B, CHUNK, BLOCK_D,
                triton.next_power_of_2(kept), num_warps=1, maxnreg=REGISTERS,
            )  # fmt: skip
    return cosines, indices, rest


def rows_at_once(count: int) -> int:
    """Rows of a whose group maxima among `count` rows take TOPS_BYTES; a multiple of 16 keeps pointers aligned."""
    return max(16, TOPS_BYTES // (2 * triton.cdiv(count, TILE_B) * (TILE_B // 8)) // 16 * 16)


def _sorted(a: Prepared, b: Prepared, m: int) -> tuple[Tensor, Tensor, Tensor]:
    (_, a_count, width), count = a.rows.shape, b.rows.shape[1]
    cosines, indices, rest = _outputs(a, m)
    rest.fill_(-torch.inf)
    step = max(1, TABLE // count)
    for first in range(0, a_count, step):
        part = slice(first, first + step)
        table = a.inverse.new_empty(cosines[part].shape[0], count)
        n = table.shape[0]
        with torch.cuda.device_of(table):
            # One axis, rows fastest: a second would end at 65,535 programs, 4.19 M latents.
            table_kernel[(n * triton.cdiv(count, STRIP),)](
                a.rows[0, part], a.inverse[0, part], b.rows, b.inverse, table, n, count, width, STRIP, BLOCK_D,
                num_warps=1,
            )  # fmt: skip
        values, order = table.sort(dim=1, descending=True, stable=True)
        cosines[part] = values[:, :m]
        indices[part] = order[:, :m]
        if m < count:
            rest[part] = values[:, m]
    return cosines, indices, rest


def forms() -> list[Form]:
    made = [_form("fp32", 128), _form("bf16", 4)]
    signature = {"a_rows": "*fp32", "a_inverse": "*fp32", "b_rows": "*fp32", "b_inverse": "*fp32", "out": "*fp32"}
    aligned = (*signature, "count", "D")
    signature |= {"n": "i32", "count": "i32", "D": "i32"}
    constants: dict[str, object] = {"STRIP": STRIP, "BLOCK_D": BLOCK_D}
    return [*made, Form(table_kernel, signature, constants, 1, aligned=aligned, gather=True, registers=128)]


def _form(name: str, length: int) -> Form:
    signature = {"a_rows": f"*{name}", "b_rows": f"*{name}", "a_rounded": "*fp16", "b_rounded": "*fp16"}
    signature |= dict.fromkeys(("a_inverse", "a_residual", "b_inverse", "b_worst", "cosines", "rest"), "*fp32")
    signature |= {"b_bad": "*i32", "tops": "*fp16", "indices": "*i64"}
    aligned = (*signature, "count", "D", "W", "groups")
    signature |= dict.fromkeys(("count", "D", "W", "groups", "m", "kept"), "i32")
    constants: dict[str, object] = {"TILE": TILE_B, "CHUNK": CHUNK, "BLOCK_D": BLOCK_D, "LIST": length}
    return Form(top_kernel, signature, constants, 1, aligned=aligned, gather=True, registers=REGISTERS, capped=True)
