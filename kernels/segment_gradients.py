"""Gradients of sparse codes, latent by latent: every latent's codes are summed by walks over its segment of the CSC.

A latent's first program walks up to 2 · CHUNK − 1 codes, to the first multiple of CHUNK that is at least CHUNK codes
away from its beginning. What lies beyond, which only hot latents have, is walked by `overflow` programs, one for each
multiple of CHUNK: it looks up whose code lies there. So their number is known without asking the device, and nothing
has to be planned before. A split latent's parts go to float32 partial sums, which `fold_kernel` adds in order.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from saekern.kernels.decode import Slices, slices
from saekern.kernels.form import Form

CHUNK = 128  # codes an overflow program walks: a latent active in 8192 rows becomes 64 programs
TILE = 4  # rows in flight a program; the mean segment is as short (8192 · 32 codes over 65,536 latents)
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
BLOCK = 1024  # codes a program whose dots are added over the slices


@triton.jit
def _owner(code, entries, indices, segments, exists):
    """The latent of a code, by its place in the order, and the latent's segment."""
    entry = code
    if entries is not None:
        entry = tl.load(entries + code, mask=exists, other=0)
    latent = tl.load(indices + entry, mask=exists, other=0)
    begin = tl.load(segments + latent, mask=exists, other=0)
    end = tl.load(segments + latent + 1, mask=exists, other=0)
    return latent, begin, end


@triton.jit(do_not_specialize=["nnz", "overflow"])
def segment_kernel(
    entries,  # [nnz] int32; or None: what belongs to codes is in this order itself
    segments,  # [F+1] int32
    positions,  # [F] int32: the output row of a latent, latents without codes left out; or None: row f
    indices,  # [nnz] int64
    row_table,  # [nnz] int32: the row of a code, −1 for a row of zeros; or None: K codes a row
    coefficients,  # [nnz]
    rows,  # [B, stride]
    shift,  # [D], subtracted from every row, or None
    weight,  # [F, D]; read only for dots
    row_sums,  # [F or fewer, D] out: Σ coefficient · (row − shift); or None
    row_partials,  # [2 overflow, D] float32
    sums,  # [F] out: Σ coefficient; or None
    sum_partials,  # [2 overflow] float32
    dots,  # [slices, nnz] float32 out: ⟨row, weight[latent]⟩ over a slice, in storage order; or None
    K,
    D,
    width,  # columns of `rows`, D of them or a slice; then all pointers but `rows` are to the slice's first column
    stride,
    nnz,
    overflow,
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    program = tl.program_id(0)  # overflow programs come first: the long work starts early
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = columns < width
    leads = program >= overflow
    at = (program + 1) * CHUNK  # where an overflow program begins
    latent, begin, end = _owner(at, entries, indices, segments, ~leads)
    if leads:
        latent = (program - overflow).to(tl.int64)
        begin = tl.load(segments + latent)
        end = tl.load(segments + latent + 1)
    exists = leads | (at - begin >= CHUNK)
    own_overflow = tl.cdiv(begin, CHUNK)  # a latent's first overflow program
    split = end - (own_overflow + 1) * CHUNK > 0
    first = tl.where(leads, begin, at)
    last = tl.minimum(tl.where(leads, (own_overflow + 1) * CHUNK, at + CHUNK), end)
    last = tl.where(exists, last, first)

    if dots is not None:
        own = tl.load(weight + latent * D + columns, mask=inside & exists, other=0.0).to(tl.float32)
    if shift is not None:
        moved = tl.load(shift + columns, mask=inside, other=0.0).to(tl.float32)
    row_sum = tl.zeros([BLOCK_D], tl.float32)
    sum = tl.zeros([TILE], tl.float32)
    for start in range(first, last, TILE):
        codes = start + tl.arange(0, TILE)
        active = codes < last
        entry = codes
        if entries is not None:
            entry = tl.load(entries + codes, mask=active, other=0)
        if row_table is not None:
            row = tl.load(row_table + entry, mask=active, other=-1)
        else:
            row = tl.where(active, entry // K, -1)
        mask = (row >= 0)[:, None] & inside[None, :]
        place = rows + row.to(tl.int64)[:, None] * stride + columns[None, :]  # [TILE, BLOCK_D]
        tile = tl.load(place, mask=mask, other=0.0).to(tl.float32)
        if dots is not None:
            tl.store(dots + tl.program_id(1).to(tl.int64) * nnz + entry, tl.sum(tile * own[None, :], 1), mask=active)
        if row_sums is not None or sums is not None:
            coefficient = tl.load(coefficients + entry, mask=active, other=0.0).to(tl.float32)
            sum += coefficient
            if shift is not None:
                tile -= moved[None, :]
            row_sum += tl.sum(coefficient[:, None] * tile, 0)

    slot = tl.where(leads, overflow + own_overflow, program).to(tl.int64)
    whole = leads & ~split
    if positions is not None:
        whole = whole & (end > begin)
        target = tl.load(positions + latent, mask=whole, other=0).to(tl.int64)
    else:
        target = latent
    if row_sums is not None:
        rounded = row_sum.to(row_sums.dtype.element_ty)
        tl.store(row_sums + target * D + columns, rounded, mask=inside & whole)
        tl.store(row_partials + slot * D + columns, row_sum, mask=inside & exists & split)
    if sums is not None:
        total = tl.sum(sum, 0)
        once = tl.program_id(1) == 0
        tl.store(sums + target, total.to(sums.dtype.element_ty), mask=whole & once)
        tl.store(sum_partials + slot, total, mask=exists & split & once)


@triton.jit(do_not_specialize=["overflow"])
def fold_kernel(
    entries,
    segments,
    positions,
    indices,
    row_sums,
    row_partials,
    sums,
    sum_partials,
    D,
    overflow,
    CHUNK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    program = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = columns < D
    at = (program + 1) * CHUNK
    latent, begin, end = _owner(at, entries, indices, segments, program < overflow)
    mine = (at - begin >= CHUNK) & (at - begin < 2 * CHUNK)  # one program a split latent: its first overflow program
    count = tl.where(mine, tl.cdiv(end - at, CHUNK), 0)  # parts beyond the first
    target = latent
    if positions is not None:
        target = tl.load(positions + latent, mask=mine, other=0).to(tl.int64)
    lead = (overflow + program).to(tl.int64)
    if row_sums is not None:
        row_sum = tl.load(row_partials + lead * D + columns, mask=inside & mine, other=0.0)
        for i in range(count):
            row_sum += tl.load(row_partials + (program + i).to(tl.int64) * D + columns, mask=inside, other=0.0)
        tl.store(row_sums + target * D + columns, row_sum.to(row_sums.dtype.element_ty), mask=inside & mine)
    if sums is not None:
        sum = tl.load(sum_partials + lead, mask=mine, other=0.0)
        for i in range(count):
            sum += tl.load(sum_partials + program + i)
        tl.store(sums + target, sum.to(sums.dtype.element_ty), mask=mine & (tl.program_id(1) == 0))


@triton.jit
def add_kernel(
    parts,  # [count, n] float32
    out,  # [n]
    count,
    n,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    sum = tl.zeros([BLOCK], tl.float32)
    for i in range(count):
        sum += tl.load(parts + tl.cast(i, tl.int64) * n + at, mask=inside, other=0.0)
    tl.store(out + at, sum.to(out.dtype.element_ty), mask=inside)


class Plan(NamedTuple):
    overflow: int  # programs for codes beyond the first ones of a latent: multiples of CHUNK below nnz
    grid: tuple[int, int]
    fold_grid: tuple[int, int]
    partial_rows: int  # float32 rows [D] of partial sums
    slices: Slices


def plan(num_codes: int, num_latents: int, batch: int, width: int, dtype: torch.dtype) -> Plan:
    """A slice of the rows [batch, BLOCK_D] stays in L2, with coefficients and dots; each slice costs one more walk over
    the codes: D = 2304 in bf16 and 8192 rows is 5 slices of 512 columns, 8.4 MB each."""
    overflow = max(0, num_codes - 1) // CHUNK
    cut = slices(width, dtype, batch, num_codes * (dtype.itemsize + 4))
    return Plan(overflow, (overflow + num_latents, cut.count), (overflow, cut.count), 2 * overflow, cut)


def segment_gradients(
    entries: Tensor,
    segments: Tensor,
    indices: Tensor,
    rows: Tensor,
    *,
    codes_per_row: int,
    offsets: Tensor | None = None,
    coefficients: Tensor | None = None,
    shift: Tensor | None = None,
    weight: Tensor | None = None,
    row_sums: Tensor | None = None,
    sums: Tensor | None = None,
    positions: Tensor | None = None,
) -> Tensor | None:
    """Fills `row_sums` [F, D] = Σ coefficient · (row − shift) and `sums` [F] = Σ coefficient over each latent's codes,
    whichever is given (with `positions`, row_sums holds the latents that have codes and no others). With `weight` it
    returns ⟨row, weight[latent]⟩ of every code [nnz] in weight's dtype, storage order; `shift` does not go with it."""
    num_codes, num_latents, (batch, width) = entries.numel(), segments.numel() - 1, rows.shape
    overflow, grid, fold_grid, partial_rows, cut = plan(num_codes, num_latents, batch, width, rows.dtype)
    device = rows.device
    if num_codes == 0:
        for out in (row_sums, sums):
            if out is not None:
                out.zero_()
        return None if weight is None else weight.new_zeros(0)
    indices = indices.contiguous()
    table = None if offsets is None else _rows_of(offsets, num_codes)
    row_partials = None if row_sums is None else torch.empty(partial_rows, width, device=device)
    sum_partials = None if sums is None else torch.empty(partial_rows, device=device)
    dots = None if weight is None else torch.empty(cut.count, num_codes, device=device)
    with torch.cuda.device_of(rows):
        segment_kernel[grid](
            entries, segments, positions, indices, table, coefficients, rows, shift, weight, row_sums, row_partials,
            sums, sum_partials, dots, codes_per_row, width, width, width, num_codes, overflow, CHUNK, TILE, cut.BLOCK_D,
            num_warps=cut.num_warps,
        )  # fmt: skip
        if overflow and (row_sums is not None or sums is not None):
            fold_kernel[fold_grid](
                entries, segments, positions, indices, row_sums, row_partials, sums, sum_partials, width, overflow,
                CHUNK, cut.BLOCK_D, num_warps=cut.num_warps,
            )  # fmt: skip
        if dots is None or weight is None:
            return None
        added = weight.new_empty(num_codes)
        add_kernel[(triton.cdiv(num_codes, BLOCK),)](dots, added, cut.count, num_codes, BLOCK, num_warps=4)
    return added


def _rows_of(offsets: Tensor, num_codes: int) -> Tensor:
    codes = torch.arange(num_codes, device=offsets.device)
    return torch.searchsorted(offsets, codes, right=True, out_int32=True) - 1


def forms() -> list[Form]:
    made = [_form(name, width, part) for name in DTYPES for width in (768, 4096) for part in ("decode", "encode")]
    made += [_fold(form) for form in made]
    for name in DTYPES:
        signature = {"parts": "*fp32", "out": f"*{name}", "count": "i32", "n": "i32"}
        aligned = ("parts", "out", "n")
        made.append(Form(add_kernel, signature, {"BLOCK": BLOCK}, num_warps=4, aligned=aligned, gather=True))
    return made


def _form(name: str, width: int, part: str) -> Form:
    cut = plan(8192 * 64, 65_536, 8192, width, DTYPES[name]).slices
    pointer, whole, wide = f"*{name}", "*i32", "*fp32"
    signature = dict.fromkeys(("entries", "segments"), whole) | {"indices": "*i64"}
    signature |= {"coefficients": pointer, "rows": pointer, "row_sums": pointer, "row_partials": wide}
    if part == "decode":
        signature |= {"weight": pointer, "dots": wide}
        absent = ("positions", "row_table", "shift", "sums", "sum_partials")
    else:
        signature |= {"shift": pointer, "sums": pointer, "sum_partials": wide}
        absent = ("positions", "row_table", "weight", "dots")
    aligned = (*signature, "D", "width", "stride")
    signature |= dict.fromkeys(("K", "D", "width", "stride", "nnz", "overflow"), "i32")
    constants = dict.fromkeys(absent) | {"CHUNK": CHUNK, "TILE": TILE, "BLOCK_D": cut.BLOCK_D}
    return Form(segment_kernel, signature, constants, cut.num_warps, aligned=aligned, gather=True, registers=128)


def _fold(form: Form) -> Form:
    names = fold_kernel.arg_names
    signature = {name: kind for name, kind in form.signature.items() if name in names}
    constants = {name: value for name, value in form.constants.items() if name in names}
    aligned = tuple(name for name in form.aligned if name in names)
    return form._replace(kernel=fold_kernel, signature=signature, constants=constants, aligned=aligned)
