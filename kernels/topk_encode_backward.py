"""The gradients of `topk_encode`: sparse in the latents, from the codes sorted by latent that `decode` uses too."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from saekern.kernels.decode import decode, slices
from saekern.kernels.form import Form
from saekern.kernels.latent_order import latent_order
from saekern.kernels.segment_gradients import segment_gradients

ROWS = 64  # rows a program adds: F = 65,536 makes 1024 partial sums
TILE = 8


@triton.jit
def weighted_row_sum_kernel(
    coefficients,  # [n] float32
    rows,  # [n, D]
    partials,  # [cdiv(n, ROWS), D] float32 out
    n,
    D,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    chunk = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = columns < D
    sum = tl.zeros([BLOCK_D], tl.float32)
    for first in range(0, ROWS, TILE):
        row = chunk * ROWS + first + tl.arange(0, TILE)
        coefficient = tl.load(coefficients + row, mask=row < n, other=0.0)
        mask = (coefficient != 0)[:, None] & inside[None, :]  # a latent that nobody used costs no memory traffic
        tile = tl.load(rows + row.to(tl.int64)[:, None] * D + columns[None, :], mask=mask, other=0.0)
        sum += tl.sum(coefficient[:, None] * tile.to(tl.float32), 0)
    tl.store(partials + chunk.to(tl.int64) * D + columns, sum, mask=inside)


def weighted_row_sum(coefficients: Tensor, rows: Tensor) -> Tensor:
    """Σ_i coefficients[i] · rows[i], float32 [D]; rows whose coefficient is 0 are not read."""
    count, width = rows.shape
    cut = slices(width, rows.dtype)
    partials = torch.empty(triton.cdiv(count, ROWS), width, device=rows.device)
    if partials.numel():
        with torch.cuda.device_of(rows):
            weighted_row_sum_kernel[(partials.shape[0], cut.count)](
                coefficients, rows, partials, count, width, ROWS, TILE, cut.BLOCK_D, num_warps=cut.num_warps
            )
    return partials.sum(0)


def topk_encode_backward(
    grad: Tensor,
    values: Tensor,
    indices: Tensor,
    x: Tensor,
    weight: Tensor,
    pre_bias: Tensor | None,
    entries: Tensor | None,
    segments: Tensor | None,
    relu: bool,
    need: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients to x [B, D], weight [F, D], bias [F] and pre_bias [D]; empty where `need` says no."""
    need_x, need_weight, need_bias, need_pre_bias = need
    coefficients = (torch.where(values <= 0, 0, grad) if relu else grad).contiguous()  # [B, K]; NaN passes
    x, weight = x.contiguous(), weight.contiguous()
    none = x.new_empty(0)
    grad_x = decode(coefficients, indices, weight, None, None) if need_x else none
    grad_weight = torch.empty_like(weight) if need_weight else none
    sums = torch.empty(weight.shape[0], device=x.device) if need_bias or need_pre_bias else None
    if need_weight or sums is not None:
        if entries is None or segments is None:
            entries, segments = latent_order(indices, weight.shape[0])
        segment_gradients(
            entries,
            segments,
            indices,
            x,
            codes_per_row=indices.shape[1],
            coefficients=coefficients,
            shift=None if pre_bias is None else pre_bias.contiguous(),
            row_sums=grad_weight if need_weight else None,
            sums=sums,
        )
    grad_bias = sums.to(x.dtype) if need_bias and sums is not None else none
    grad_pre_bias = -weighted_row_sum(sums, weight).to(x.dtype) if need_pre_bias and sums is not None else none
    return grad_x, grad_weight, grad_bias, grad_pre_bias


def forms() -> list[Form]:
    return [_form("bf16"), _form("fp32")]


def _form(name: str) -> Form:
    cut = slices(4096, torch.bfloat16 if name == "bf16" else torch.float32)
    signature = {"coefficients": "*fp32", "rows": f"*{name}", "partials": "*fp32", "n": "i32", "D": "i32"}
    aligned = ("coefficients", "rows", "partials", "D")
    constants = {"ROWS": ROWS, "TILE": TILE, "BLOCK_D": cut.BLOCK_D}
    return Form(weighted_row_sum_kernel, signature, constants, cut.num_warps, aligned=aligned, gather=True)
