"""x̂_b = Σ_k values[b,k] · weight[indices[b,k]] + bias, for `[B, K]` codes or ragged (CSR) ones."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from saekern.kernels.form import Form

LOADS = 8  # of 16 bytes in flight a thread: they hide most of the latency
L2 = 40e6  # bytes that stay in L2 while a kernel runs: all of an A100's; an H100 and an H200 have 50 MB


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


def slices(width: int, dtype: torch.dtype, rows: int = 0, beside: int = 0) -> Slices:
    """The widest slice, from 512 columns to a line of 128 bytes, of which `rows` rows stay in L2 with `beside` bytes of
    codes that every slice reads again. 65,536 latents in bf16 take 16.8 MB at 128 columns (33.6 at 256 leave 6 where
    codes and the slice of the result want 9, at B = 8192 and K = 64), in float32 at 64; 131,072 in bf16 at 64; 16,384
    at 512. Where another width can help it, no more than an eighth of the lanes idle."""
    widest = min(512, triton.next_power_of_2(width))
    widths = [w for w in (512, 256, 128, 64, 32) if w <= widest and w * dtype.itemsize >= 128] or [widest]
    fitting = [w for w in widths if rows * w * dtype.itemsize + beside <= L2] or widths[-1:]
    block = next((w for w in fitting if triton.cdiv(width, w) * w <= 1.125 * width), fitting[0])
    return Slices(triton.cdiv(width, block), block, max(1, block * dtype.itemsize // 512))


class Plan(NamedTuple):
    grid: tuple[int, int]  # rows are the fast axis, slices the slow one
    slices: Slices
    gather: int  # rows of the dictionary in flight a program


def plan(batch: int, latents: int, width: int, dtype: torch.dtype, codes: int) -> Plan:
    """`codes`: bytes of values and indices."""
    cut = slices(width, dtype, latents + batch, codes)  # the result's slice passes by too
    return Plan((batch, cut.count), cut, in_flight(cut, dtype))


def in_flight(cut: Slices, dtype: torch.dtype) -> int:
    return min(32, LOADS * 512 * cut.num_warps // (cut.BLOCK_D * dtype.itemsize))


def decode(values: Tensor, indices: Tensor, weight: Tensor, bias: Tensor | None, offsets: Tensor | None) -> Tensor:
    """[B, D] in weight's dtype. Indices are trusted to lie in [0, F)."""
    batch = values.shape[0] if offsets is None else offsets.numel() - 1
    latents, width = weight.shape
    out = weight.new_empty(batch, width)
    grid, cut, gather = plan(batch, latents, width, weight.dtype, values.nbytes + indices.nbytes)
    if out.numel() == 0:
        return out
    values, indices, weight = values.contiguous(), indices.contiguous(), weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    offsets = None if offsets is None else offsets.contiguous()
    with torch.cuda.device_of(weight):
        decode_kernel[grid](
            values, indices, weight, bias, offsets, out, values.shape[-1], width, gather, cut.BLOCK_D,
            num_warps=cut.num_warps,
        )  # fmt: skip
    return out


def forms() -> list[Form]:
    latents = (4096, 16_384, 32_768, 65_536, 131_072)  # slices of every width
    return [_form(name, count, i % 2 == 1) for name in ("bf16", "fp32") for i, count in enumerate(latents)]


def _form(name: str, latents: int, ragged: bool) -> Form:
    dtype = torch.bfloat16 if name == "bf16" else torch.float32
    _, cut, gather = plan(8192, latents, 4096, dtype, 8192 * 64 * (8 + dtype.itemsize))
    pointer = f"*{name}"
    signature = {"values": pointer, "indices": "*i64", "weight": pointer, "bias": pointer, "out": pointer}
    constants: dict[str, object] = {"GATHER": gather, "BLOCK_D": cut.BLOCK_D}
    if ragged:
        signature["offsets"] = "*i64"
    else:
        constants["offsets"] = None
    aligned = (*signature, "D")
    signature |= {"K": "i32", "D": "i32"}
    return Form(decode_kernel, signature, constants, cut.num_warps, aligned=aligned, gather=True, registers=128)
