"""x̂_b = Σ_k values[b,k] · weight[indices[b,k]] + bias, for `[B, K]` codes or ragged (CSR) ones."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from saekern.kernels.form import Form

GATHER = 8  # rows of the dictionary in flight a program: 8 loads of 16 bytes a thread hide most of the latency


@triton.jit
def decode_kernel(
    values,  # [nnz]
    indices,  # [nnz] int64
    weight,  # [F, D]
    bias,  # [D] or None
    offsets,  # [B+1] int64, or None: then K codes a row
    out,  # [B, D]
    K,
    D,
    GATHER: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = columns < D
    if offsets is not None:
        begin = tl.load(offsets + row)
        end = tl.load(offsets + row + 1)
    else:
        begin = row * K
        end = begin + K
    sum = tl.zeros([BLOCK_D], tl.float32)
    if bias is not None:
        sum += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    for first in range(begin, end, GATHER):
        codes = first + tl.arange(0, GATHER)
        active = codes < end
        latents = tl.load(indices + codes, mask=active, other=0)
        coefficients = tl.load(values + codes, mask=active, other=0.0).to(tl.float32)
        mask = active[:, None] & inside[None, :]
        rows = tl.load(weight + latents[:, None] * D + columns[None, :], mask=mask, other=0.0)  # [GATHER, BLOCK_D]
        sum += tl.sum(coefficients[:, None] * rows.to(tl.float32), 0)
    tl.store(out + row * D + columns, sum.to(out.dtype.element_ty), mask=inside)


class Slices(NamedTuple):
    """How programs share the width D: slice by slice, 16 bytes a thread."""

    count: int
    BLOCK_D: int
    num_warps: int


def slices(width: int, dtype: torch.dtype) -> Slices:
    """A slice is narrow, so that the dictionary's slice [F, BLOCK_D] stays in L2 while all rows pass by (F = 65,536 in
    bf16: 34 MB at 256 columns), and divides D where it can, so that no lane idles in the last one."""
    block = next((w for w in (512, 256, 128) if width % w == 0), min(512, triton.next_power_of_2(width)))
    return Slices(triton.cdiv(width, block), block, max(1, block * dtype.itemsize // 512))


class Plan(NamedTuple):
    grid: tuple[int, int]  # rows are the fast axis, slices the slow one
    slices: Slices


def plan(batch: int, width: int, dtype: torch.dtype) -> Plan:
    cut = slices(width, dtype)
    return Plan((batch, cut.count), cut)


def decode(values: Tensor, indices: Tensor, weight: Tensor, bias: Tensor | None, offsets: Tensor | None) -> Tensor:
    """[B, D] in weight's dtype. Indices are trusted to lie in [0, F)."""
    batch = values.shape[0] if offsets is None else offsets.numel() - 1
    codes = values.shape[-1]
    width = weight.shape[1]
    out = weight.new_empty(batch, width)
    grid, cut = plan(batch, width, weight.dtype)
    if out.numel() == 0:
        return out
    values, indices, weight = values.contiguous(), indices.contiguous(), weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    offsets = None if offsets is None else offsets.contiguous()
    with torch.cuda.device_of(weight):
        decode_kernel[grid](
            values, indices, weight, bias, offsets, out, codes, width, GATHER, cut.BLOCK_D, num_warps=cut.num_warps
        )
    return out


def forms() -> list[Form]:
    return [_form(name, width, ragged) for name in ("bf16", "fp32") for width, ragged in ((768, False), (4096, True))]


def _form(name: str, width: int, ragged: bool) -> Form:
    cut = slices(width, torch.bfloat16 if name == "bf16" else torch.float32)
    pointer = f"*{name}"
    signature = {"values": pointer, "indices": "*i64", "weight": pointer, "bias": pointer, "out": pointer}
    constants: dict[str, object] = {"GATHER": GATHER, "BLOCK_D": cut.BLOCK_D}
    if ragged:
        signature["offsets"] = "*i64"
    else:
        constants["offsets"] = None
    aligned = (*signature, "D")
    signature |= {"K": "i32", "D": "i32"}
    return Form(decode_kernel, signature, constants, cut.num_warps, aligned=aligned, gather=True, registers=128)
