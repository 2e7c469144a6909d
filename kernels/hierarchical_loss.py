"""L = 1/B Σ_b Σ_j w_j ‖x̂_bj − target_b‖², x̂_bj = bias + Σ_{i < c_bj} values[b,i] · weight[indices[b,i]], in one walk.

Cuts c_bj turn into steps, a weight for each code: that of the prefixes which end with it. So one budget or all of them,
the same for all rows or not, are one loop: add a code's row, and the residual's square by the code's step.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from saekern.kernels.decode import Slices, slices
from saekern.kernels.form import Form

CODES, CUTS = 32, 32  # of a row that are compared at a time
GATHER = 8  # codes of a row in flight: 16 bytes a thread each
REGISTERS = 128  # told to the assembler: left to itself it takes up to 168 in Triton 3.9
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@triton.jit
def step_kernel(
    cuts,  # [B, J] or [J] int64
    weights,  # [J] float32
    offsets,  # [B+1] int64, or None: then K codes a row
    steps,  # [nnz] float32 out: Σ w_j of the cuts just behind the code
    bare,  # [B] float32 out: Σ w_j of the cuts at 0
    owners,  # [nnz] int32 out: b · J + j, j the first cut beyond the code; −1 if there is none; or None
    ends,  # [nnz] int32 out: the same where that cut is just behind the code, else −1; or None
    K,
    J,
    cut_stride,  # J, or 0: the same cuts for all rows
    CODES: tl.constexpr,
    CUTS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    if offsets is not None:
        begin = tl.load(offsets + row)
        count = tl.load(offsets + row + 1) - begin
    else:
        begin = row * K
        count = tl.cast(K, tl.int64)
    for first in range(0, count + 1, CODES):
        size = first + tl.arange(0, CODES)  # of the prefix that ends with code size − 1
        below = tl.zeros([CODES], tl.int32)
        ending = tl.zeros([CODES], tl.int32)
        step = tl.zeros([CODES], tl.float32)
        for start in range(0, J, CUTS):
            numbers = start + tl.arange(0, CUTS)
            cut = tl.load(cuts + row * cut_stride + numbers, mask=numbers < J, other=2**62)
            weight = tl.load(weights + numbers, mask=numbers < J, other=0.0)
            hit = cut[None, :] == size[:, None]  # [CODES, CUTS]
            step += tl.sum(tl.where(hit, weight[None, :], 0.0), 1)
            ending += tl.sum(hit.to(tl.int32), 1)
            below += tl.sum((cut[None, :] < size[:, None]).to(tl.int32), 1)
        code = begin + size - 1
        exists = (size > 0) & (size <= count)
        tl.store(steps + code, step, mask=exists)
        tl.store(bare + row + size, step, mask=size == 0)
        if owners is not None:
            owner = (row * J + below).to(tl.int32)
            tl.store(owners + code, tl.where(below < J, owner, -1), mask=exists)
            tl.store(ends + code, tl.where(ending > 0, owner, -1), mask=exists)


@triton.jit
def row_codes(offsets, rows, exists, K):
    """Where the codes of `rows` begin, how many they are, and the most of any."""
    if offsets is not None:
        begin = tl.load(offsets + rows, mask=exists, other=0)
        count = tl.load(offsets + rows + 1, mask=exists, other=0) - begin
    else:
        begin = rows * K
        count = tl.where(exists, tl.cast(K, tl.int64), 0)
    return begin, count, tl.max(count, 0)


@triton.jit
def gathered_rows(
    values, indices, weight, codes, active, columns, inside, D, ROWS: tl.constexpr, BLOCK_D: tl.constexpr
):
    """weight[latent] and value · weight[latent] of every code, float32 [GATHER, ROWS, BLOCK_D]; 0 where not active."""
    latents = tl.load(indices + codes, mask=active, other=0)
    coefficients = tl.load(values + codes, mask=active, other=0.0).to(tl.float32)
    mask = active[:, :, None] & inside[None, None, :]
    # Threads take the axis with the longest runs first, then the next. Of two without runs Triton 3.6 takes the first
    # and later versions the last: codes instead of rows would be shared out, and 3.6 then spills. Only runs along
    # columns decide what one instruction loads, so that the rows' claim changes nothing else.
    at = tl.max_contiguous(latents[:, :, None] * D + columns[None, None, :], (1, ROWS, BLOCK_D))
    rows = tl.load(weight + at, mask=mask, other=0.0).to(tl.float32)
    return rows, coefficients[:, :, None] * rows


@triton.jit(do_not_specialize=["B"])
def prefix_kernel(
    values,  # [nnz]
    indices,  # [nnz] int64
    weight,  # [F, D]
    bias,  # [D] or None
    target,  # [B, D]
    offsets,  # [B+1] int64 or None
    steps,  # [nnz] float32
    bare,  # [B] float32
    out,  # [B, D]
    losses,  # [slices, cdiv(B, ROWS)] float32 out
    B,
    K,
    D,
    ROWS: tl.constexpr,
    GATHER: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    exists, inside = rows < B, columns < D
    begin, count, most = row_codes(offsets, rows, exists, K)
    at = rows[:, None] * D + columns[None, :]
    mask = exists[:, None] & inside[None, :]
    aim = tl.load(target + at, mask=mask, other=0.0).to(tl.float32)  # [ROWS, BLOCK_D]
    sum = tl.zeros([ROWS, BLOCK_D], tl.float32)
    if bias is not None:
        sum += tl.where(exists[:, None], tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)[None, :], 0.0)
    loss = tl.load(bare + rows, mask=exists, other=0.0)[:, None] * (sum - aim) * (sum - aim)
    for first in range(0, most, GATHER):
        numbers = first + tl.arange(0, GATHER)
        codes = begin[None, :] + numbers[:, None]  # [GATHER, ROWS]
        active = numbers[:, None] < count[None, :]
        step = tl.load(steps + codes, mask=active, other=0.0)
        _, terms = gathered_rows(values, indices, weight, codes, active, columns, inside, D, ROWS, BLOCK_D)
        residuals = (sum[None, :, :] + tl.cumsum(terms, 0)) - aim[None, :, :]
        loss += tl.sum(step[:, :, None] * residuals * residuals, 0)
        sum += tl.sum(terms, 0)
    tl.store(out + at, sum.to(out.dtype.element_ty), mask=mask)
    total = tl.sum(tl.sum(loss, 1), 0)
    tl.store(losses + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0), total)


def rows_a_program(cut: Slices, dtype: torch.dtype) -> int:
    """So many that a warp's 512 bytes are full with the slices of one code of each: then a thread holds all GATHER
    codes of its columns, and sums along them stay in it."""
    return max(1, min(16, 512 * cut.num_warps // (cut.BLOCK_D * dtype.itemsize)))


def plan(batch: int, latents: int, width: int, dtype: torch.dtype, codes: int) -> tuple[Slices, int]:
    """Slices and rows a program. `codes`: bytes of values, indices and steps."""
    cut = slices(width, dtype, latents + 2 * batch, codes)  # target's and x̂'s slices pass by too
    return cut, rows_a_program(cut, dtype)


def code_steps(
    values: Tensor, cuts: Tensor, weights: Tensor, offsets: Tensor | None, batch: int, owned: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """steps [nnz], bare [B], and with `owned` owners and ends [nnz]: see step_kernel."""
    steps = torch.empty(values.numel(), device=values.device)
    bare = torch.empty(batch, device=values.device)
    owners, ends = (steps.new_empty(len(steps), dtype=torch.int32) if owned else None for _ in range(2))
    if batch:
        with torch.cuda.device_of(values):
            step_kernel[(batch,)](
                cuts.contiguous(), weights.contiguous(), offsets, steps, bare, owners, ends, values.shape[-1],
                cuts.shape[-1], cuts.shape[-1] if cuts.dim() == 2 else 0, CODES, CUTS, num_warps=1,
            )  # fmt: skip
    return steps, bare, owners, ends


def hierarchical_loss(
    values: Tensor,
    indices: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    cuts: Tensor,
    weights: Tensor,
    offsets: Tensor | None,
    entries: Tensor | None,
    segments: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The loss, float32 [], 0 where there are no rows, and x̂ from all codes, [B, D] in weight's dtype.

    Indices are trusted to lie in [0, F), cuts to ascend from 0 to the number of codes. The order of the codes is for
    the gradients."""
    batch = target.shape[0]
    latents, width = weight.shape
    out = weight.new_empty(batch, width)
    cut, rows = plan(batch, latents, width, weight.dtype, values.nbytes + indices.nbytes + 4 * values.numel())
    if out.numel() == 0:
        return torch.zeros((), device=weight.device), out
    values, indices, weight, target = (t.contiguous() for t in (values, indices, weight, target))
    bias, offsets = (None if t is None else t.contiguous() for t in (bias, offsets))
    steps, bare, _, _ = code_steps(values, cuts, weights, offsets, batch, owned=False)
    grid = (triton.cdiv(batch, rows), cut.count)
    losses = torch.empty(cut.count, grid[0], device=weight.device)
    with torch.cuda.device_of(weight):
        prefix_kernel[grid](
            values, indices, weight, bias, target, offsets, steps, bare, out, losses, batch, values.shape[-1], width,
            rows, GATHER, cut.BLOCK_D, num_warps=cut.num_warps, maxnreg=REGISTERS,
        )  # fmt: skip
    return (losses.sum(dtype=torch.float64) / batch).to(torch.float32), out


def forms() -> list[Form]:
    latents = (16_384, 65_536, 131_072)  # slices of every width
    prefixes = [_form(name, count, count == 65_536) for name in DTYPES for count in latents]
    return [_steps(ragged=False), _steps(ragged=True), *prefixes]


def _steps(ragged: bool) -> Form:
    signature = {"cuts": "*i64", "weights": "*fp32", "steps": "*fp32", "bare": "*fp32"}
    constants: dict[str, object] = {"CODES": CODES, "CUTS": CUTS}
    if ragged:
        signature |= {"offsets": "*i64", "owners": "*i32", "ends": "*i32"}
    else:
        constants |= dict.fromkeys(("offsets", "owners", "ends"))
    aligned = tuple(signature)
    return Form(step_kernel, signature | dict.fromkeys(("K", "J", "cut_stride"), "i32"), constants, 1, aligned=aligned)


def _form(name: str, latents: int, ragged: bool) -> Form:
    cut, rows = plan(8192, latents, 4096, DTYPES[name], 8192 * 64 * (12 + DTYPES[name].itemsize))
    pointer = f"*{name}"
    signature = dict.fromkeys(("values", "weight", "bias", "target", "out"), pointer)
    signature |= {"indices": "*i64", "steps": "*fp32", "bare": "*fp32", "losses": "*fp32"}
    constants: dict[str, object] = {"ROWS": rows, "GATHER": GATHER, "BLOCK_D": cut.BLOCK_D}
    if ragged:
        signature["offsets"] = "*i64"
    else:
        constants["offsets"] = None
    aligned = (*signature, "D")
    signature |= dict.fromkeys(("B", "K", "D"), "i32")
    return Form(
        prefix_kernel, signature, constants, cut.num_warps, aligned=aligned, gather=True, registers=REGISTERS,
        capped=True,
    )  # fmt: skip
