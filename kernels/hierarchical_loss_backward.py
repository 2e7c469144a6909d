"""The gradients of `hierarchical_loss`: a slice of columns at a time, what each code meets upstream, then its latents.

With r_c the residual of a row's first c codes, code i meets S_i = 2 grad / B · Σ_{j: c_j > i} w_j r_{c_j}. A program
walks its rows' codes twice: on to the last residual, then back, where it takes their rows away again and adds up S.
⟨S_i, W_i⟩ is taken on the way; S is written for the walk over latents (segment_gradients), one row a code, or one a cut
where these are fewer: S is the same from one cut to the next. A slice is so narrow that all of S fits into BUFFER.

S is kept in bfloat16 where the weight is: that moves Σ v S by at most 2⁻⁹ Σ |v S|, no more than the rounding of the
values v to bfloat16 has already; nothing else reads it. float16 would underflow (2 / B · r is below 10⁻⁵): float32.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from saekern.kernels.decode import Slices, slices
from saekern.kernels.form import Form
from saekern.kernels.hierarchical_loss import DTYPES, code_steps, gathered_rows, row_codes, rows_a_program
from saekern.kernels.latent_order import latent_order
from saekern.kernels.segment_gradients import CHUNK, TILE, fold_kernel, segment_kernel

GATHER = 8  # codes of a row in flight on the way there
BACK = {2: 2, 4: 4}  # on the way back, by bytes an element: twice as many take more than 128 registers
REGISTERS = 144  # told to the assembler: left to itself it takes 96 or 128 and keeps 8 bytes a thread in memory
BUFFER = 2**27  # bytes of S: 262,144 or 524,288 rows of 128 columns in bfloat16; 1,048,576 rows of 64


@triton.jit(do_not_specialize=["B"])
def suffix_kernel(
    values,  # [nnz]
    indices,  # [nnz] int64
    weight,  # [F, D]; as bias, target, estimate, grad_target and bias_partials from the slice's first column on
    bias,  # [D] or None
    target,  # [B, D]
    estimate,  # [B, D] x̂ from all codes, or None: then it is summed once more
    offsets,  # [B+1] int64 or None
    grad,  # [] float32
    steps,  # [nnz] float32
    bare,  # [B] float32
    ends,  # [nnz] int32: the row of S that ends with a code, or −1; None: each code has its own
    dots,  # [nnz] float32: ⟨S_i, W_i⟩ over the slices before; or None
    new_dots,  # [nnz] float32 out: with this slice
    suffixes,  # [rows, width] out: S; or None
    grad_target,  # [B, D] out, or None
    bias_partials,  # [cdiv(B, ROWS), D] float32 out, or None
    share,  # 1 / B
    B,
    K,
    D,
    width,
    ROWS: tl.constexpr,
    GATHER: tl.constexpr,
    BACK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK_D)
    exists, inside = rows < B, columns < width
    begin, count, most = row_codes(offsets, rows, exists, K)
    at = rows[:, None] * D + columns[None, :]
    mask = exists[:, None] & inside[None, :]
    first_residual = -tl.load(target + at, mask=mask, other=0.0).to(tl.float32)  # [ROWS, BLOCK_D]
    if bias is not None:
        shift = tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
        first_residual += tl.where(exists[:, None], shift[None, :], 0.0)
    if estimate is not None:
        residual = tl.load(estimate + at, mask=mask, other=0.0).to(tl.float32)
        residual -= tl.load(target + at, mask=mask, other=0.0).to(tl.float32)
    else:
        residual = first_residual
        for first in range(0, most, GATHER):
            numbers = first + tl.arange(0, GATHER)
            active = numbers[:, None] < count[None, :]  # [GATHER, ROWS]
            codes = begin[None, :] + numbers[:, None]
            _, terms = gathered_rows(values, indices, weight, codes, active, columns, inside, D, ROWS, BLOCK_D)
            residual += tl.sum(terms, 0)

    scale = 2.0 * share * tl.load(grad).to(tl.float32)
    suffix = tl.zeros([ROWS, BLOCK_D], tl.float32)
    for back in range(0, most, BACK):
        numbers = most - 1 - back - tl.arange(0, BACK)  # descending, so that sums over later codes are running sums
        active = (numbers >= 0)[:, None] & (numbers[:, None] < count[None, :])
        codes = begin[None, :] + numbers[:, None]
        step = tl.load(steps + codes, mask=active, other=0.0) * scale
        picked, terms = gathered_rows(values, indices, weight, codes, active, columns, inside, D, ROWS, BLOCK_D)
        later = tl.cumsum(terms, 0) - terms  # [BACK, ROWS, BLOCK_D]
        parts = step[:, :, None] * (residual[None, :, :] - later)
        sums = suffix[None, :, :] + tl.cumsum(parts, 0)
        suffix += tl.sum(parts, 0)
        residual -= tl.sum(terms, 0)
        if dots is not None:
            dot = tl.load(dots + codes, mask=active, other=0.0)
            tl.store(new_dots + codes, dot + tl.sum(sums * picked, 2), mask=active)
        if suffixes is not None:
            if ends is not None:
                slot = tl.load(ends + codes, mask=active, other=-1).to(tl.int64)
            else:
                slot = tl.where(active, codes, -1)
            place = suffixes + slot[:, :, None] * width + columns[None, None, :]
            kept = (slot >= 0)[:, :, None] & inside[None, None, :]
            tl.store(place, sums.to(suffixes.dtype.element_ty), mask=kept)
    if grad_target is not None or bias_partials is not None:
        weight_of_none = tl.load(bare + rows, mask=exists, other=0.0) * scale
        suffix += weight_of_none[:, None] * first_residual
        if grad_target is not None:
            tl.store(grad_target + at, (-suffix).to(grad_target.dtype.element_ty), mask=mask)
        if bias_partials is not None:
            partial = bias_partials + tl.program_id(0).to(tl.int64) * D + columns
            tl.store(partial, tl.sum(suffix, 0), mask=inside)


class Plan(NamedTuple):
    slices: Slices
    rows: int  # a program
    owned: bool  # S has a row a cut, not a row a code
    suffix_rows: int


def plan(batch: int, codes: int, cuts: int, latents: int, width: int, dtype: torch.dtype, need_weight: bool) -> Plan:
    """Of the slices that leave a slice of the dictionary in L2 the one whose S fits into BUFFER, or 128 bytes a row."""
    owned = need_weight and batch * cuts < codes
    suffix_rows = min(batch * cuts, codes) if need_weight else 0
    cut = slices(width, dtype, latents + batch, codes * (12 + dtype.itemsize))
    block, size = cut.BLOCK_D, kept_dtype(dtype).itemsize
    while suffix_rows * block * size > BUFFER and block * dtype.itemsize > 128:
        block //= 2
    cut = Slices(triton.cdiv(width, block), block, max(1, block * dtype.itemsize // 512))
    return Plan(cut, rows_a_program(cut, dtype), owned, suffix_rows)


def kept_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.bfloat16 if dtype == torch.bfloat16 else torch.float32


def hierarchical_loss_backward(
    grad: Tensor,
    values: Tensor,
    indices: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    x_hat: Tensor,
    cuts: Tensor,
    weights: Tensor,
    offsets: Tensor | None,
    entries: Tensor | None,
    segments: Tensor | None,
    need: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients to values, weight [F, D], bias [D] and target [B, D]; empty where `need` says no. `x_hat` is read where
    it is float32: rounded to 16 bits it would put 2⁻⁹ |x̂| into every residual."""
    need_values, need_weight, need_bias, need_target = need
    batch, num_codes = target.shape[0], values.numel()
    latents, width = weight.shape
    values, indices, weight, target, x_hat = (t.contiguous() for t in (values, indices, weight, target, x_hat))
    bias, offsets = (None if t is None else t.contiguous() for t in (bias, offsets))
    estimate = x_hat if x_hat.dtype == torch.float32 else None
    cut, rows, owned, suffix_rows = plan(batch, num_codes, cuts.shape[-1], latents, width, weight.dtype, need_weight)
    programs = triton.cdiv(batch, rows)
    steps, bare, owners, ends = code_steps(values, cuts, weights, offsets, batch, owned)
    before = torch.zeros(num_codes, device=weight.device) if need_values else None
    after = None if before is None else torch.empty_like(before)
    suffixes = weight.new_empty(suffix_rows * cut.BLOCK_D, dtype=kept_dtype(weight.dtype)) if need_weight else None
    grad_weight = torch.empty_like(weight) if need_weight else weight.new_empty(0)
    grad_target = torch.empty_like(target) if need_target else None
    partials = torch.empty(programs, width, device=weight.device) if need_bias else None
    walk = Walk(values, indices, grad_weight, entries, segments, owners) if need_weight else None
    for first in range(0, width, cut.BLOCK_D):
        part = slice(first, min(first + cut.BLOCK_D, width))
        size = part.stop - first
        kept = None if suffixes is None else suffixes[: suffix_rows * size].view(suffix_rows, size)
        if programs:
            with torch.cuda.device_of(weight):
                suffix_kernel[(programs,)](
                    values, indices, *(columns_of(t, part) for t in (weight, bias, target, estimate)), offsets, grad,
                    steps, bare, ends, before, after, kept, columns_of(grad_target, part), columns_of(partials, part),
                    1 / batch, batch, values.shape[-1], width, size, rows, GATHER, BACK[weight.itemsize], cut.BLOCK_D,
                    num_warps=cut.num_warps, maxnreg=REGISTERS,
                )  # fmt: skip
        before, after = after, before
        if walk is not None:
            walk.columns(kept, part, cut)
    if walk is not None:
        walk.fold()
    grad_values = values.new_empty(0) if before is None else before.to(values.dtype).view(values.shape)
    grad_bias = weight.new_empty(0) if partials is None else partials.sum(0).to(weight.dtype)
    return grad_values, grad_weight, grad_bias, target.new_empty(0) if grad_target is None else grad_target


def columns_of(tensor: Tensor | None, part: slice) -> Tensor | None:
    return None if tensor is None else tensor[..., part]


class Walk:
    """Over the codes latent by latent, once a slice: what belongs to them is put into that order once."""

    def __init__(
        self,
        values: Tensor,
        indices: Tensor,
        grad_weight: Tensor,
        entries: Tensor | None,
        segments: Tensor | None,
        owners: Tensor | None,
    ) -> None:
        if entries is None or segments is None:
            entries, segments = latent_order(indices, grad_weight.shape[0])
        self.grad_weight, self.segments = grad_weight, segments
        self.values = values.view(-1).index_select(0, entries)
        self.latents = indices.view(-1).index_select(0, entries)
        self.table = entries if owners is None else owners.index_select(0, entries)
        self.overflow = max(0, len(entries) - 1) // CHUNK
        self.partials = torch.empty(2 * self.overflow, grad_weight.shape[1], device=values.device)

    def columns(self, suffixes: Tensor, part: slice, cut: Slices) -> None:
        rows, width = self.grad_weight.shape
        with torch.cuda.device_of(suffixes):
            segment_kernel[(self.overflow + rows, 1)](
                None, self.segments, None, self.latents, self.table, self.values, suffixes, None, None,
                self.grad_weight[:, part], self.partials[:, part], None, None, None, 0, width, suffixes.shape[1],
                suffixes.shape[1], len(self.table), self.overflow, CHUNK, TILE, cut.BLOCK_D, num_warps=cut.num_warps,
            )  # fmt: skip

    def fold(self) -> None:
        if self.overflow:
            with torch.cuda.device_of(self.partials):
                cut = slices(self.grad_weight.shape[1], self.grad_weight.dtype)
                fold_kernel[(self.overflow, cut.count)](
                    None, self.segments, None, self.latents, self.grad_weight, self.partials, None, None,
                    self.grad_weight.shape[1], self.overflow, CHUNK, cut.BLOCK_D, num_warps=cut.num_warps,
                )  # fmt: skip


def forms() -> list[Form]:
    made = []
    for name in DTYPES:
        # One budget of 4, all of 32, all of 128: slices of 128 and 64 columns in bfloat16.
        for codes, cuts in ((32, 4), (32, 32), (128, 128)):
            made += _pair(name, plan(8192, 8192 * codes, cuts, 65_536, 4096, DTYPES[name], True), cuts == 128)
    return made + [_fold(name) for name in DTYPES]


def _pair(name: str, plan: Plan, ragged: bool) -> list[Form]:
    pointer, wide = f"*{name}", "*fp32"
    kept = "*bf16" if name == "bf16" else wide
    signature = dict.fromkeys(("values", "weight", "bias", "target", "grad_target"), pointer)
    signature |= {"indices": "*i64", "suffixes": kept}
    signature |= dict.fromkeys(("grad", "steps", "bare", "dots", "new_dots", "bias_partials"), wide)
    optional = {"estimate": pointer if name == "fp32" else None, "ends": "*i32" if plan.owned else None}
    optional |= {"offsets": "*i64" if ragged else None}
    signature |= {key: kind for key, kind in optional.items() if kind}
    constants: dict[str, object] = {"ROWS": plan.rows, "GATHER": GATHER, "BACK": BACK[DTYPES[name].itemsize]}
    constants["BLOCK_D"] = plan.slices.BLOCK_D
    constants |= {key: None for key, kind in optional.items() if not kind}
    aligned = (*signature, "D", "width")
    signature |= {"share": "fp32"} | dict.fromkeys(("B", "K", "D", "width"), "i32")
    warps = plan.slices.num_warps
    walk = Form(
        suffix_kernel, signature, constants, warps, aligned=aligned, gather=True, registers=REGISTERS, capped=True
    )

    absent = ("entries", "positions", "shift", "weight", "sums", "sum_partials", "dots")
    signature = {"segments": "*i32", "indices": "*i64", "row_table": "*i32", "coefficients": pointer, "rows": kept}
    signature |= {"row_sums": pointer, "row_partials": wide}
    aligned = (*signature, "D", "width", "stride")
    signature |= dict.fromkeys(("K", "D", "width", "stride", "nnz", "overflow"), "i32")
    constants = dict.fromkeys(absent) | {"CHUNK": CHUNK, "TILE": TILE, "BLOCK_D": plan.slices.BLOCK_D}
    return [walk, Form(segment_kernel, signature, constants, warps, aligned=aligned, gather=True, registers=128)]


def _fold(name: str) -> Form:
    cut = slices(4096, DTYPES[name])
    signature = {"segments": "*i32", "indices": "*i64", "row_sums": f"*{name}", "row_partials": "*fp32"}
    aligned = (*signature, "D")
    signature |= {"D": "i32", "overflow": "i32"}
    constants = dict.fromkeys(("entries", "positions", "sums", "sum_partials"))
    constants |= {"CHUNK": CHUNK, "BLOCK_D": cut.BLOCK_D}
    return Form(fold_kernel, signature, constants, cut.num_warps, aligned=aligned, gather=True)
