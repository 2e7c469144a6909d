"""The k largest products u·v of each row, from its pre-latents, which pass by a chunk of heads at a time.

The largest product of a head is that of its largest u and its largest v (of signed ones, the largest of the four with
the smallest as well), and rounding keeps the order: so it bounds all M·N of them, and some latent has it. Only heads
whose bound beats the row's threshold are expanded, into a list that streaming_select.py keeps. In the first chunk the
k-th largest bound of its heads stands in for a threshold.
"""

import triton
import triton.language as tl

from saekern.kernels.form import Form
from saekern.kernels.group_maxima import larger
from saekern.kernels.streaming_select import LARGEST_K, LOWEST, SUB, admit, cut, kth_largest, order_key, slots

PLANES = 4  # latent, key, u, v
WIDEST = 32  # u or v of a head that are loaded in one go
TILE = 1024  # of all heads that are: 32 a thread of one warp
MOST_HEADS = 128
INFINITY = tl.constexpr(float("inf"))


@triton.jit
def product(u, v, SIGNED: tl.constexpr):
    """The score that orders latents. Unless signed it is 0 where u or v is not positive, though the other be infinite;
    NaN stays NaN."""
    score = u * v
    if not SIGNED:
        score = tl.where(((u <= 0) & (v == v)) | ((v <= 0) & (u == u)), 0.0, score)
    return score


@triton.jit
def factor(factors, shift, at, mask):
    x = tl.load(factors + at, mask=mask, other=0.0)
    if shift is not None:
        x += tl.load(shift + at, mask=mask, other=0.0)
    return x


@triton.jit
def extremes(
    factors, shift, heads, exists, SIZE: tl.constexpr, BLOCK: tl.constexpr, HEADS: tl.constexpr, SIGNED: tl.constexpr
):
    """The largest and, if signed, the smallest of every head's SIZE factors; NaN if one is."""
    high = tl.full([HEADS], -INFINITY, tl.float32)
    flipped = high
    for begin in range(0, SIZE, BLOCK):
        member = begin + tl.arange(0, BLOCK)
        inside = exists[:, None]
        if SIZE % BLOCK != 0:
            inside = inside & (member < SIZE)[None, :]
        x = factor(factors, shift, heads[:, None] * SIZE + member[None, :], inside)
        high = larger(high, tl.reduce(tl.where(inside, x, -INFINITY), 1, larger))
        if SIGNED:
            flipped = larger(flipped, tl.reduce(tl.where(inside, -x, -INFINITY), 1, larger))
    return high, -flipped


@triton.jit(do_not_specialize=["first", "heads"])
def kron_select_kernel(
    p,  # [rows, p_stride] float32: ⟨x, weight_p⟩ of the chunk's heads, M each
    q,  # [rows, q_stride] float32: N each
    p_shift,  # [heads · M] float32, added to every row of p, or None
    q_shift,
    list,  # [rows, 4, CAPACITY] int32: latents, keys of u·v, u, v
    state,  # [rows, 2] int32: count, threshold
    chosen,  # [rows, HEADS] int32, scratch
    allowed,  # [F] uint8: latents that count; or None: all
    allowed_heads,  # [H] uint8: heads with such a latent
    first,  # the head of column 0
    heads,
    p_stride,
    q_stride,
    K,
    M: tl.constexpr,
    N: tl.constexpr,
    SIGNED: tl.constexpr,
    P_BLOCK: tl.constexpr,
    Q_BLOCK: tl.constexpr,
    HEADS: tl.constexpr,
    PLANES: tl.constexpr,
    SUB: tl.constexpr,
    CAPACITY: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    p += row * p_stride
    q += row * q_stride
    list += row * (PLANES * CAPACITY)
    state += row * 2
    chosen += row * HEADS
    count = tl.where(first == 0, 0, tl.load(state))
    threshold = tl.where(first == 0, LOWEST, tl.load(state + 1))
    for start in range(0, heads, HEADS):
        head = start + tl.arange(0, HEADS)
        exists = head < heads
        if allowed_heads is not None:
            exists = exists & (tl.load(allowed_heads + first + head, mask=exists, other=0) != 0)
        p_high, p_low = extremes(p, p_shift, head, exists, M, P_BLOCK, HEADS, SIGNED)
        q_high, q_low = extremes(q, q_shift, head, exists, N, Q_BLOCK, HEADS, SIGNED)
        tame = (p_high < INFINITY) & (q_high < INFINITY)
        best = p_high * q_high
        if SIGNED:  # ∞ · 0 is NaN, hence the largest, and shows in no extreme
            tame = tame & (p_low > -INFINITY) & (q_low > -INFINITY)
            best = larger(larger(best, p_low * q_low), larger(p_high * q_low, p_low * q_high))
        else:
            best = tl.where((p_high > 0) & (q_high > 0), best, 0.0)
        bound = order_key(best)
        if allowed is None:  # noqa: SIM102 (known at compile time, the other is not)
            if first + start == 0:
                sure = tl.where(exists & tame, bound, LOWEST)
                threshold = tl.maximum(kth_largest(sure, K), LOWEST + 1) - 1
        passes = exists & ((bound > threshold) | ~tame)
        found = tl.sum(passes.to(tl.int32), 0)
        if found > 0:
            tl.debug_barrier()  # the last block's heads have been read
            tl.store(chosen + tl.cumsum(passes.to(tl.int32), 0) - 1, head, mask=passes)
            tl.debug_barrier()
            for begin in range(0, found * (M * N), SUB):
                pair = begin + tl.arange(0, SUB)
                slot = pair // (M * N)
                there = slot < found
                own = tl.load(chosen + slot, mask=there, other=0)
                pair -= slot * (M * N)
                latents = (first + own) * (M * N) + pair
                if allowed is not None:
                    there = there & (tl.load(allowed + latents, mask=there, other=0) != 0)
                u = factor(p, p_shift, own * M + pair // N, there)
                v = factor(q, q_shift, own * N + pair % N, there)
                key = tl.where(there, order_key(product(u, v, SIGNED)), LOWEST)
                u, v = u.to(tl.int32, bitcast=True), v.to(tl.int32, bitcast=True)
                count, threshold = admit(list, count, threshold, latents, u, key, K, True, PLANES, SUB, CAPACITY, v)
    tl.debug_barrier()  # every warp has loaded the state
    tl.store(state, count)
    tl.store(state + 1, threshold)


@triton.jit
def kron_finish_kernel(
    list,
    state,
    padding,  # [K] int32: latents for the slots that no latent fills; or None: there are none
    values,  # [rows, K] out
    indices,  # [rows, K] int64 out
    u,  # [rows, K] float32 out
    v,
    K,
    eps,
    ROOT: tl.constexpr,
    SIGNED: tl.constexpr,
    PLANES: tl.constexpr,
    SUB: tl.constexpr,
    CAPACITY: tl.constexpr,
    SLOTS: tl.constexpr,  # ≥ K, a power of two
):
    row = tl.program_id(0).to(tl.int64)
    list += row * (PLANES * CAPACITY)
    count, _ = cut(list, tl.load(state + row * 2), K, True, PLANES, SUB, CAPACITY)
    tl.debug_barrier()
    slots = tl.arange(0, SLOTS)
    held = slots < count
    key = tl.load(list + CAPACITY + slots, mask=held, other=0)
    # One integer that ascends as the keys descend, then with the place in the list, as latents do.
    packed = tl.where(held, ((~key).to(tl.int64) << 32) | slots.to(tl.int64), 0x7FFFFFFFFFFFFFFF)
    place = (tl.sort(packed) & 0x7FFFFFFF).to(tl.int32)
    latents = tl.load(list + place, mask=held, other=0).to(tl.int64)
    own_u = tl.load(list + 2 * CAPACITY + place, mask=held, other=0).to(tl.float32, bitcast=True)
    own_v = tl.load(list + 3 * CAPACITY + place, mask=held, other=0).to(tl.float32, bitcast=True)
    score = product(own_u, own_v, SIGNED)
    if ROOT:
        score = tl.sqrt_rn(score + eps)
    if SIGNED:
        score = tl.where(score <= 0, 0.0, score)
    if padding is not None:
        spare = tl.load(padding + slots - count, mask=(slots >= count) & (slots < K), other=0)
        score = tl.where(held, score, 0.0)
        latents = tl.where(held, latents, spare.to(tl.int64))
    at, inside = row * K + slots, slots < K
    tl.store(values + at, score.to(values.dtype.element_ty), mask=inside)
    tl.store(indices + at, latents, mask=inside)
    tl.store(u + at, own_u, mask=inside)
    tl.store(v + at, own_v, mask=inside)


def blocks(m: int, n: int) -> tuple[int, int, int]:
    """P_BLOCK, Q_BLOCK, HEADS."""
    wide = [min(WIDEST, triton.next_power_of_2(size)) for size in (m, n)]
    return wide[0], wide[1], min(MOST_HEADS, TILE // max(wide))


def capacity(k: int) -> int:
    """Slots of a row's list: k ≤ LARGEST_K and SUB more."""
    return 256 if k <= 128 else 512 if k <= 384 else 1024


# By slots of the list: warps of a program; registers, told to the assembler.
SIZES = {256: (2, 96), 512: (2, 96), 1024: (4, 80)}


def select(p, q, p_shift, q_shift, s, chosen, m: int, n: int, first: int, heads: int, signed: bool) -> None:
    """Heads `first` and following into the lists of a `Selection`."""
    warps, registers = SIZES[s.list.shape[2]]
    p_block, q_block, count = blocks(m, n)
    kron_select_kernel[(p.shape[0],)](
        p, q, p_shift, q_shift, s.list, s.state, chosen, s.allowed, s.allowed_heads, first, heads, p.stride(0),
        q.stride(0), s.k, m, n, signed, p_block, q_block, count, PLANES, SUB, s.list.shape[2], num_warps=warps,
        maxnreg=registers,
    )  # fmt: skip


def finish(s, row: int, count: int, eps: float, root: bool, signed: bool) -> None:
    outs = [out[row:] for out in s.outs]
    kron_finish_kernel[(count,)](
        s.list, s.state, s.padding, *outs, s.k, eps, root, signed, PLANES, SUB, s.list.shape[2], slots(s.k),
        num_warps=SIZES[s.list.shape[2]][0],
    )  # fmt: skip


def forms() -> list[Form]:
    shapes = [(64, 4, 8, False, False), (64, 4, 8, True, False), (LARGEST_K, 4, 8, False, True)]
    shapes += [(256, 2, 4, False, False), (64, 16, 64, True, True), (64, 3, 5, False, False)]
    made = [_select(*shape) for shape in shapes]
    return [*made, _finish("bf16", 64, False), _finish("fp32", 256, False), _finish("bf16", LARGEST_K, True)]


def _select(k: int, m: int, n: int, signed: bool, some: bool) -> Form:
    signature = dict.fromkeys(("p", "q", "p_shift", "q_shift"), "*fp32")
    signature |= dict.fromkeys(("list", "state", "chosen"), "*i32")
    size = capacity(k)
    warps, registers = SIZES[size]
    constants: dict[str, object] = dict(zip(("P_BLOCK", "Q_BLOCK", "HEADS"), blocks(m, n), strict=True))
    constants |= {"M": m, "N": n, "SIGNED": signed, "PLANES": PLANES, "SUB": SUB, "CAPACITY": size}
    for name in ("allowed", "allowed_heads"):
        if some:
            signature[name] = "*u8"
        else:
            constants[name] = None
    aligned = (*signature, "p_stride", "q_stride")
    signature |= dict.fromkeys(("first", "heads", "p_stride", "q_stride", "K"), "i32")
    gather = n % 4 == 0
    return Form(
        kron_select_kernel, signature, constants, warps, aligned=aligned, gather=gather, nan=True,
        registers=registers, capped=True,
    )  # fmt: skip


def _finish(name: str, k: int, padded: bool) -> Form:
    signature = {"list": "*i32", "state": "*i32", "values": f"*{name}", "indices": "*i64", "u": "*fp32", "v": "*fp32"}
    size = capacity(k)
    constants: dict[str, object] = {"ROOT": True, "SIGNED": False, "PLANES": PLANES, "SUB": SUB}
    constants |= {"CAPACITY": size, "SLOTS": slots(k)}
    if padded:
        signature["padding"] = "*i32"
    else:
        constants["padding"] = None
    aligned = tuple(signature)
    signature |= {"K": "i32", "eps": "fp32"}
    return Form(kron_finish_kernel, signature, constants, SIZES[size][0], aligned=aligned, registers=128)
