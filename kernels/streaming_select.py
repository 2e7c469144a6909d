"""The k largest of each row of scores that pass by in chunks: one program a row, its survivors in a short list.

A row's list holds (key, latent) pairs in ascending order of latents, where a key is an int32 that orders as the score
does. Scores above the threshold are appended. When the list would overflow it is cut to the k largest, and the
threshold rises to the k-th; one that is out of date only costs room. CAPACITY ≥ k + SUB, so that SUB more scores
always fit after a cut: nothing can be lost, whatever the data.

With a `Slack` the scores are known up to a bound. Then whatever may still be among the k largest stays, which may
not fit: such a row's count becomes OVERFLOW, and it takes no more.

PLANES of a list: 2, latents and keys; 3, latents and the keys' upper and lower bounds; 4, latents, keys and two words
that go along with each (kron_encode.py: the two factors of a score).
"""

from typing import NamedTuple

import triton
import triton.language as tl

from saekern.kernels.form import Form

SUB = 128  # scores looked at again, with room in the list for all of them, where one of a block passed
LARGEST_K = 512  # what the longest list is made for
LOWEST = tl.constexpr(-(2**31))  # below every key
HIGHEST = tl.constexpr(2**31 - 1)  # NaN's key
OVERFLOW = tl.constexpr(-1)


def capacity(k: int, screened: bool) -> int:
    """Slots of a row's list. A screened one also holds what the bound cannot exclude: about 2 k at D = 768 and 5 k at
    D = 4096 (normal scores, k = 64 of 65,536; an estimate, not measured)."""
    if not screened:
        return 512 if k <= 256 else 1024
    return 1024 if k <= 64 else 2048 if k <= 256 else 4096


def planes(screened: bool) -> int:
    return 3 if screened else 2


class Size(NamedTuple):
    block: int  # scores that a program looks at in one go
    warps: int
    registers: int  # told to the assembler, which by itself aims at 40 or 48 for the sake of more warps, and spills


# By slots of the list. One warp where that does: then nothing waits at a barrier, and with 72 registers 28 rows
# fit an SM, 64 bytes a thread in flight. The others are what compiles without a spill: 24 to 32 warps an SM.
SIZES = {512: Size(512, 1, 72), 1024: Size(1024, 4, 64), 2048: Size(1024, 4, 72), 4096: Size(2048, 8, 80)}


@triton.jit
def order_key(score):
    """Ascends with the score; ±0 tie, NaN is largest."""
    bits = score.to(tl.int32, bitcast=True)
    key = tl.where(score == 0, 0, bits ^ ((bits >> 31) & 0x7FFFFFFF))
    return tl.where(score != score, HIGHEST, key)


@triton.jit
def key_score(key):
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def kth_largest(keys, K):
    """The K-th largest key, LOWEST if fewer are above that: 32 rounds of counting, one a bit."""
    kth = tl.where(tl.sum((keys >= 0).to(tl.int32), 0) >= K, 0, LOWEST)
    for i in range(31):
        trial = kth | (0x40000000 >> i)
        kth = tl.where(tl.sum((keys >= trial).to(tl.int32), 0) >= K, trial, kth)
    return kth


@triton.jit
def cut(list, count, K, known, PLANES: tl.constexpr, SUB: tl.constexpr, CAPACITY: tl.constexpr):
    """Drops what cannot be among the K largest; returns the new count and threshold. `known`: scores are exact."""
    slots = tl.arange(0, CAPACITY)
    tl.debug_barrier()  # what other threads appended
    KEYS: tl.constexpr = 2 if PLANES == 3 else 1
    THIRD: tl.constexpr = 1 if PLANES == 2 else 2
    keys = tl.load(list + KEYS * CAPACITY + slots, mask=slots < count, other=LOWEST)
    kth = kth_largest(keys, K)
    room = K - tl.sum((keys > kth).to(tl.int32), 0)  # for ties, which go to the smaller latents: they stand first
    room = tl.where(known, room, CAPACITY)  # what ties by its bound may still win
    kept = 0
    for begin in range(0, count, SUB):  # in place: what is written was read before
        some = begin + tl.arange(0, SUB)
        there = some < count
        latents = tl.load(list + some, mask=there, other=0)
        high = tl.load(list + CAPACITY + some, mask=there, other=LOWEST)
        low = tl.load(list + THIRD * CAPACITY + some, mask=there, other=LOWEST)
        more = low
        if PLANES == 4:
            more = tl.load(list + 3 * CAPACITY + some, mask=there, other=0)
        ties = there & (high == kth)
        keep = (there & (high > kth)) | (ties & (tl.cumsum(ties.to(tl.int32), 0) <= room))
        tl.debug_barrier()  # all have read
        put(list, kept, latents, low, high, more, keep, PLANES, CAPACITY)
        room -= tl.sum(ties.to(tl.int32), 0)
        kept += tl.sum(keep.to(tl.int32), 0)
    return kept, kth


@triton.jit
def put(list, count, latents, low, high, more, keep, PLANES: tl.constexpr, CAPACITY: tl.constexpr):
    """Stores those to `keep` from slot `count` on."""
    position = count + tl.cumsum(keep.to(tl.int32), 0) - 1
    tl.store(list + position, latents, mask=keep)
    tl.store(list + CAPACITY + position, high, mask=keep)
    if PLANES >= 3:
        tl.store(list + 2 * CAPACITY + position, low, mask=keep)
    if PLANES == 4:
        tl.store(list + 3 * CAPACITY + position, more, mask=keep)


@triton.jit
def read(scores, shift, allowed, columns, length, first, norms, residuals, row_residual, row_norm, known):
    """Two keys between which the true score's lies, equal where scores are exact, of scores[columns]; LOWEST where
    there is no score or it is not allowed."""
    inside = columns < length
    latents = first + columns
    if allowed is not None:  # first, so that scores of live latents are not even read
        inside = inside & (tl.load(allowed + latents, mask=inside, other=0) != 0)
    score = tl.load(scores + columns, mask=inside, other=0.0)
    if shift is not None:
        score += tl.load(shift + latents, mask=inside, other=0.0).to(tl.float32)
    if norms is not None:
        norm = tl.load(norms + latents, mask=inside, other=0.0)
        residual = tl.load(residuals + latents, mask=inside, other=0.0)
        # 2⁻²⁰ is for the roundings of this line, 2⁻²² |score| for those of adding the bias, and e, to the score.
        e = (row_residual * norm + row_norm * residual) * (1 + 2.0**-20) + tl.abs(score) * 2.0**-22
        e = tl.where(known, 0.0, e)
        low, high = order_key(score - e), order_key(score + e)
        low = tl.where((low == HIGHEST) & (known == 0), LOWEST, low)  # NaN: anything is possible
    else:
        low = order_key(score)
        high = low
    return low, tl.where(inside, high, LOWEST)


@triton.jit
def admit(
    list, count, threshold, latents, low, high, K, known,
    PLANES: tl.constexpr, SUB: tl.constexpr, CAPACITY: tl.constexpr, more=None,
):  # fmt: skip
    """Takes those of SUB latents in that may be among the K largest; returns the new count and threshold. With 4 planes
    `low` and `more` are the words that go along.

    A later latent has to beat the threshold: with a tie it would lose to the K smaller ones that reach it."""
    found = tl.sum((high > threshold).to(tl.int32), 0)
    if found > 0:
        if count + found > CAPACITY:
            count, threshold = cut(list, count, K, known, PLANES, SUB, CAPACITY)
            found = tl.sum((high > threshold).to(tl.int32), 0)
        if PLANES == 3:
            full = count + found > CAPACITY
            count = tl.where(full, OVERFLOW, count)
            threshold = tl.where(full, HIGHEST, threshold)
            found = tl.where(full, 0, found)
        put(list, count, latents, low, high, more, high > threshold, PLANES, CAPACITY)
        count += found
    return count, threshold


@triton.jit
def select_kernel(
    scores,  # [rows, columns] float32
    shift,  # [F], added to every row of scores, or None
    list,  # [rows, PLANES, CAPACITY] int32: latents, keys; if bounded, the keys' upper and lower bounds
    state,  # [rows, 2] int32: count, threshold
    allowed,  # [F] uint8: latents that count; or None: all
    norms,  # [F] float32; or None: scores are exact. |error| ≤ row_residuals · norms + row_norms · residuals
    residuals,  # [F] float32
    row_norms,  # [rows] float32
    row_residuals,  # [rows] float32
    first,  # the latent of column 0
    columns,
    K,
    PLANES: tl.constexpr,  # 3 with norms, else 2
    BLOCK: tl.constexpr,
    SUB: tl.constexpr,
    CAPACITY: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    scores += row * columns
    list += row * (PLANES * CAPACITY)
    state += row * 2
    count = tl.where(first == 0, 0, tl.load(state))
    threshold = tl.where(first == 0, LOWEST, tl.load(state + 1))
    row_norm, row_residual, known = 0.0, 0.0, True
    if norms is not None:
        row_norm, row_residual = tl.load(row_norms + row), tl.load(row_residuals + row)
        known = (row_norm == 0) & (row_residual == 0)
    for start in range(0, columns, BLOCK):
        block = start + tl.arange(0, BLOCK)
        _, best = read(scores, shift, allowed, block, columns, first, norms, residuals, row_residual, row_norm, known)
        if tl.max(best, 0) > threshold:
            for begin in range(start, start + BLOCK, SUB):  # again, from L1: holding BLOCK keys doubles the registers
                some = begin + tl.arange(0, SUB)
                low, high = read(
                    scores, shift, allowed, some, columns, first, norms, residuals, row_residual, row_norm, known
                )
                count, threshold = admit(
                    list, count, threshold, first + some, low, high, K, known, PLANES, SUB, CAPACITY
                )
    tl.debug_barrier()  # every warp has loaded the state
    tl.store(state, count)
    tl.store(state + 1, threshold)


@triton.jit
def finish_kernel(
    list,
    state,
    padding,  # [K] int32: latents for the slots that no latent fills; or None: there are none
    values,  # [rows, K] out
    indices,  # [rows, K] int64 out
    K,
    RELU: tl.constexpr,
    PLANES: tl.constexpr,
    SUB: tl.constexpr,
    CAPACITY: tl.constexpr,
    SLOTS: tl.constexpr,  # ≥ K, a power of two
):
    row = tl.program_id(0).to(tl.int64)
    list += row * (PLANES * CAPACITY)
    count, _ = cut(list, tl.load(state + row * 2), K, True, 2, SUB, CAPACITY)
    tl.debug_barrier()
    slots = tl.arange(0, SLOTS)
    held = slots < count
    latents = tl.load(list + slots, mask=held, other=0)
    key = tl.load(list + CAPACITY + slots, mask=held, other=0)
    # One integer that ascends as the keys descend, then as the latents ascend.
    packed = tl.where(held, ((~key).to(tl.int64) << 32) | latents.to(tl.int64), 0x7FFFFFFFFFFFFFFF)
    packed = tl.sort(packed)
    score = key_score((~(packed >> 32)).to(tl.int32))
    latents = packed & 0xFFFFFFFF
    if RELU:
        score = tl.where(score < 0, 0.0, score)
    if padding is not None:
        spare = tl.load(padding + slots - count, mask=(slots >= count) & (slots < K), other=0)
        score = tl.where(held, score, 0.0)
        latents = tl.where(held, latents, spare.to(tl.int64))
    tl.store(values + row * K + slots, score.to(values.dtype.element_ty), mask=slots < K)
    tl.store(indices + row * K + slots, latents, mask=slots < K)


def slots(k: int) -> int:
    return max(16, triton.next_power_of_2(k))


def forms() -> list[Form]:
    selections = [(64, False, False), (64, False, True), (512, False, True)]
    selections += [(64, True, False), (64, True, True), (256, True, True), (512, True, True)]
    made = [_select(*selection) for selection in selections]
    made.append(made[0]._replace(signature=made[0].signature | {"shift": "*bf16"}))  # the bias itself
    return [
        *made,
        _finish("bf16", 64, False, False),
        _finish("bf16", 512, False, True),
        _finish("fp32", 512, True, True),
    ]


def _select(k: int, screened: bool, some: bool) -> Form:
    signature = {"scores": "*fp32", "shift": "*fp32", "list": "*i32", "state": "*i32"}
    length = capacity(k, screened)
    size = SIZES[length]
    constants = {"PLANES": planes(screened), "BLOCK": size.block, "SUB": SUB, "CAPACITY": length}
    for names, kind, present in (
        (("allowed",), "*u8", some),
        (("norms", "residuals", "row_norms", "row_residuals"), "*fp32", screened),
    ):
        if present:
            signature |= dict.fromkeys(names, kind)
        else:
            constants |= dict.fromkeys(names, None)
    aligned = (*signature, "first", "columns")
    signature |= dict.fromkeys(("first", "columns", "K"), "i32")
    return Form(
        select_kernel, signature, constants, size.warps, aligned=aligned, gather=not some, registers=size.registers,
        capped=True,
    )  # fmt: skip


def _finish(name: str, k: int, screened: bool, padded: bool) -> Form:
    signature = {"list": "*i32", "state": "*i32", "values": f"*{name}", "indices": "*i64"}
    size = capacity(k, screened)
    constants: dict[str, object] = {"RELU": True, "PLANES": planes(screened), "SUB": SUB}
    constants |= {"CAPACITY": size, "SLOTS": slots(k)}
    if padded:
        signature["padding"] = "*i32"
    else:
        constants["padding"] = None
    aligned = tuple(signature)
    return Form(finish_kernel, signature | {"K": "i32"}, constants, SIZES[size].warps, aligned=aligned, registers=128)
