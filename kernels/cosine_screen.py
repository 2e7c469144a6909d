"""All cosines of two dictionaries in float16 on the tensor cores, of which only the maxima over groups of 8 are kept.

With û the float16 rounding of a unit row u, both known, |⟨u, v⟩ − ⟨û, v̂⟩| ≤ ‖u − û‖ ‖v‖ + ‖û‖ ‖v − v̂‖ + rounding of
the sums. A group whose maximum stays below a threshold by more than this bound holds nothing of interest; the others
are scored again: in float16 to see which of their 8 rows matter, these in float32. float16 rather than bfloat16 because
unit rows need no exponents: at the same speed the bound is 8 times smaller, 0.0003 at D = 768.

Why 8, for F = 16,384, D = 768 on an H200 (4.3 TB/s, L2 about 5.5 TB/s): the product is 0.41 TFLOP, 0.52 ms at 788
TFLOP/s. Maxima in float16, both ways, written and read: 2 · 2 · 2 F² / 8 bytes = 0.27 GB, 0.06 ms. Groups scored again,
1.1 a row: 2 · 1.1 · 8 · 2 F D bytes = 0.44 GB from L2, 0.08 ms. 4 or 16 in a group would cost 0.02 or 0.05 ms more.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from saekern.kernels.form import Form

GROUP = 8  # rows of a group; `member` and the reductions below are written for it
TILE_A, TILE_B = 256, 128  # a thread of 8 warps holds 4 × 32 scores, so that maxima over 8 rows take one exchange
BLOCK_K = 64
BAND = 8  # tile rows walked together: 8 · 256 rows of a and all of b's tile columns pass through L2
PREPARE_BLOCK = 1024
NOTHING = tl.constexpr(-4.0)  # the maximum of no cosines at all
ROUNDED = tl.constexpr(0.00049)  # > 2⁻¹¹ / (1 − 2⁻¹¹): what float16 does to a maximum, relative to what is stored


class Prepared(NamedTuple):
    """S dictionaries of one size, prepared once for any number of products."""

    rows: Tensor  # [S, F, D], contiguous
    rounded: Tensor  # [S, F, W] float16 unit rows, W = D padded with zeros to BLOCK_K; zero rows and bad ones are 0
    inverse: Tensor  # [S, F] float32 1 / ‖row‖; 0 for zero rows, NaN for rows with NaN or infinities
    residual: Tensor  # [S, F] float32 ‖u − û‖
    worst: Tensor  # [S] float32, the largest residual
    bad: Tensor  # [S] int32, the first row with NaN or infinities; F where there is none


@triton.jit
def prepare_kernel(
    rows,  # [R, D]
    rounded,  # [R, W]
    inverse,  # [R]
    residual,  # [R]
    D,
    W,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    squares = tl.zeros([BLOCK], tl.float64)  # neither overflows nor vanishes for any float32
    for first in range(0, D, BLOCK):
        x = tl.load(rows + row * D + first + at, mask=first + at < D, other=0.0).to(tl.float64)
        squares += x * x
    total = tl.sum(squares, 0)
    finite = total < float("inf")
    norm = tl.sqrt(tl.where(finite, total, 0.0))
    counts = norm >= 2.0**-126  # below, 1 / norm may overflow: such rows are zero rows
    scale = tl.where(counts, 1.0 / tl.where(counts, norm, 1.0), 0.0).to(tl.float32)
    squares32 = tl.zeros([BLOCK], tl.float32)
    for first in range(0, W, BLOCK):
        x = tl.load(rows + row * D + first + at, mask=first + at < D, other=0.0).to(tl.float32)
        unit = tl.where(counts, x, 0.0) * scale
        near = unit.to(tl.float16)
        off = unit - near.to(tl.float32)  # exact
        squares32 += off * off
        tl.store(rounded + row * W + first + at, near, mask=first + at < W)
    tl.store(inverse + row, tl.where(finite, scale, float("nan")))
    tl.store(residual + row, tl.sqrt_rn(tl.sum(squares32, 0)))


@triton.jit
def screen_kernel(
    a_rounded,  # [Sa, a_stride, W], of which rows a_first + [0, Fa) take part
    b_rounded,  # [Sb, Fb, W]
    pairs,  # [P, 2] int32: which of a's dictionaries with which of b's
    a_tops,  # [P, Fa, groups of b] float16: for each row the largest cosine in every group
    b_tops,  # [P, Fb, groups of a], or None
    a_first,
    a_stride,
    Fa,
    Fb,
    W,
    TILE_A: tl.constexpr,
    TILE_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BAND: tl.constexpr,
):
    tiles_a = tl.cdiv(Fa, TILE_A)
    tiles_b = tl.cdiv(Fb, TILE_B)
    slot = tl.program_id(0) // (tiles_a * tiles_b)
    tile = tl.program_id(0) % (tiles_a * tiles_b)
    band = tile // (BAND * tiles_b)
    height = tl.minimum(tiles_a - band * BAND, BAND)
    tile_a = band * BAND + tile % (BAND * tiles_b) % height
    tile_b = tile % (BAND * tiles_b) // height

    rows = tile_a * TILE_A + tl.arange(0, TILE_A)
    columns = tile_b * TILE_B + tl.arange(0, TILE_B)
    depth = tl.arange(0, BLOCK_K)
    first_a = tl.load(pairs + 2 * slot).to(tl.int64) * a_stride + a_first
    first_b = tl.load(pairs + 2 * slot + 1).to(tl.int64) * Fb
    # Rows beyond the last repeat it: cheaper than a mask in the loop.
    a_at = a_rounded + (first_a + tl.minimum(rows, Fa - 1))[:, None] * W + depth[None, :]  # [TILE_A, BLOCK_K]
    b_at = b_rounded + (first_b + tl.minimum(columns, Fb - 1))[None, :] * W + depth[:, None]  # [BLOCK_K, TILE_B]
    scores = tl.zeros([TILE_A, TILE_B], tl.float32)
    for _ in range(0, W, BLOCK_K):
        scores = tl.dot(tl.load(a_at), tl.load(b_at), scores)
        a_at += BLOCK_K
        b_at += BLOCK_K
    if (tile_a == tiles_a - 1) | (tile_b == tiles_b - 1):
        scores = tl.where((rows < Fa)[:, None] & (columns < Fb)[None, :], scores, NOTHING)

    # A group runs over the bits of a position (half a tile, 8, 1) that a thread of a wgmma tile holds, but for b_tops'
    # last, which comes last: 32 exchanges of registers a thread instead of 128.
    A_GROUPS: tl.constexpr = TILE_A // 8
    B_GROUPS: tl.constexpr = TILE_B // 8
    parts = tl.reshape(scores, (TILE_A, 2, TILE_B // 32, 2, 4, 2))
    tops = tl.reshape(tl.max(tl.max(tl.max(parts, 5), 3), 1), (TILE_A, B_GROUPS))
    group = tile_b * B_GROUPS + tl.arange(0, B_GROUPS)
    out = (slot.to(tl.int64) * Fa + rows)[:, None] * (tiles_b * B_GROUPS) + group[None, :]
    tl.store(a_tops + out, tops.to(tl.float16), mask=(rows < Fa)[:, None])
    if b_tops is not None:
        parts = tl.reshape(scores, (2, TILE_A // 32, 2, 4, 2, TILE_B))
        tops = tl.trans(tl.reshape(tl.max(tl.max(tl.max(parts, 2), 0), 2), (A_GROUPS, TILE_B)))
        group = tile_a * A_GROUPS + tl.arange(0, A_GROUPS)
        out = (slot.to(tl.int64) * Fb + columns)[:, None] * (tiles_a * A_GROUPS) + group[None, :]
        tl.store(b_tops + out, tops.to(tl.float16), mask=(columns < Fb)[:, None])


@triton.jit
def member(group, k, TILE: tl.constexpr):
    """The k-th row of a group, ascending with k."""
    inner = group % (TILE // 8)
    base = group // (TILE // 8) * TILE + inner // 4 * 16 + inner % 4 * 2
    return base + (k >> 2) * (TILE // 2) + ((k >> 1) & 1) * 8 + (k & 1)


@triton.jit
def error_bound(residual, worst, D):
    """On |cosine − approximate cosine| for a row with this residual: 1.002 covers norms not quite 1 and the rounding of
    the residuals; a tensor core adds n products and the sum so far, cuts each of them off at 2⁻²³ of the largest, and
    the result too: (n + 2) 2⁻²³ for every n, 1.5 D 2⁻²³ at worst, where n = 4 (8 or 16 in newer ones: 1.25 D, 1.13 D).
    The two other sums are trees of at most D / 128 + 64 additions."""
    return 1.002 * (residual + (1.0 + residual) * worst) + (1.6 * D + 128.0) * 2.0**-23


@triton.jit
def approximate(own, other, members, inside, W, BLOCK: tl.constexpr):
    """⟨û, v̂⟩ of one row with the 8 of a group, NOTHING where there is no row. other [F, W]."""
    at = tl.arange(0, BLOCK)
    sums = tl.zeros([8, BLOCK], tl.float32)
    for first in range(0, W, BLOCK):
        x = tl.load(own + first + at, mask=first + at < W, other=0.0).to(tl.float32)
        mask = inside[:, None] & (first + at < W)[None, :]
        y = tl.load(other + members.to(tl.int64)[:, None] * W + first + at[None, :], mask=mask, other=0.0)
        sums += x[None, :] * y.to(tl.float32)
    return tl.where(inside, tl.sum(sums, 1), NOTHING)


@triton.jit
def cosine(own, own_scale, other, other_scale, D, BLOCK: tl.constexpr):
    """⟨u, v⟩ in float32, the same bits whichever of the two comes first. own, other [D]."""
    at = tl.arange(0, BLOCK)
    sums = tl.zeros([BLOCK], tl.float32)
    for first in range(0, D, BLOCK):
        x = tl.load(own + first + at, mask=first + at < D, other=0.0).to(tl.float32)
        y = tl.load(other + first + at, mask=first + at < D, other=0.0).to(tl.float32)
        sums += (x * own_scale) * (y * other_scale)
    return tl.sum(sums, 0)


class Plan(NamedTuple):
    """How one pair is screened."""

    tiles: int  # programs a pair
    a_groups: int  # groups of a's rows, multiples of a tile's
    b_groups: int
    num_warps: int
    num_stages: int


def plan(a_rows: int, b_rows: int, shared_memory: int) -> Plan:
    tiles_a, tiles_b = triton.cdiv(a_rows, TILE_A), triton.cdiv(b_rows, TILE_B)
    stage = 2 * (TILE_A + TILE_B) * BLOCK_K
    stages = max(2, min(4, (shared_memory - 16_384) // stage))  # 16 KB: the maxima on their way to memory
    return Plan(tiles_a * tiles_b, tiles_a * TILE_A // GROUP, tiles_b * TILE_B // GROUP, 8, stages)


def shared_memory(tensor: Tensor) -> int:
    """Bytes that a program may have; an H200's where there is no GPU."""
    if not tensor.is_cuda:
        return 232_448
    return torch.cuda.get_device_properties(tensor.device).shared_memory_per_block_optin


def padded(width: int) -> int:
    return triton.cdiv(width, BLOCK_K) * BLOCK_K


def prepare(rows: Tensor) -> Prepared:
    """Of dictionaries [S, F, D]; F, D ≥ 1."""
    runs, count, width = rows.shape
    rows = rows.contiguous()
    depth = padded(width)
    rounded = rows.new_empty(runs, count, depth, dtype=torch.float16)
    inverse, residual = (rows.new_empty(runs, count, dtype=torch.float32) for _ in range(2))
    with torch.cuda.device_of(rows):
        prepare_kernel[(runs * count,)](rows, rounded, inverse, residual, width, depth, PREPARE_BLOCK, num_warps=4)
    numbers = torch.arange(count, dtype=torch.int32, device=rows.device)
    bad = torch.where(inverse.isnan(), numbers, count).amin(1).to(torch.int32)
    return Prepared(rows, rounded, inverse, residual, residual.amax(1), bad)


def screen(
    a: Prepared, b: Prepared, pairs: Tensor, both: bool, first: int = 0, most: int | None = None
) -> tuple[Tensor, Tensor | None]:
    """The group maxima of `pairs` [P, 2]: a's rows over groups of b's, and with `both` b's rows over groups of a's; of
    a's dictionaries at most `most` rows from `first` on."""
    (_, a_stride, width), b_rows, count = a.rounded.shape, b.rounded.shape[1], pairs.shape[0]
    a_rows = a_stride - first if most is None else min(most, a_stride - first)
    tiles, a_groups, b_groups, num_warps, num_stages = plan(a_rows, b_rows, shared_memory(a.rounded))
    a_tops = a.rounded.new_empty(count, a_rows, b_groups, dtype=torch.float16)
    b_tops = a.rounded.new_empty(count, b_rows, a_groups, dtype=torch.float16) if both else None
    with torch.cuda.device_of(a.rounded):
        screen_kernel[(count * tiles,)](
            a.rounded, b.rounded, pairs, a_tops, b_tops, first, a_stride, a_rows, b_rows, width, TILE_A, TILE_B,
            BLOCK_K, BAND, num_warps=num_warps, num_stages=num_stages,
        )  # fmt: skip
    return a_tops, b_tops


def forms() -> list[Form]:
    prepared = {"rounded": "*fp16", "inverse": "*fp32", "residual": "*fp32"}
    aligned = ("rows", *prepared, "D", "W")
    signature = {"rows": "*fp32", **prepared, "D": "i32", "W": "i32"}
    made = [Form(prepare_kernel, signature, {"BLOCK": PREPARE_BLOCK}, 4, aligned=aligned, gather=True)]
    constants: dict[str, object] = {"TILE_A": TILE_A, "TILE_B": TILE_B, "BLOCK_K": BLOCK_K, "BAND": BAND}
    for both, memory in ((True, 232_448), (False, 166_912)):  # of an H200 and of an A100: four stages and three
        signature = {"a_rounded": "*fp16", "b_rounded": "*fp16", "pairs": "*i32", "a_tops": "*fp16"}
        if both:
            signature["b_tops"] = "*fp16"
        numbers = ("a_first", "a_stride", "Fa", "Fb", "W")
        aligned = (*signature, *numbers)
        signature |= dict.fromkeys(numbers, "i32")
        shape = plan(16_384, 16_384, memory)
        absent = {} if both else {"b_tops": None}
        made.append(
            Form(
                screen_kernel,
                signature,
                constants | absent,
                shape.num_warps,
                shape.num_stages,
                aligned,
                matrix=True,
                gather=True,
            )
        )
    return made
