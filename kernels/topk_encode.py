"""The encoder: scores a cache-sized block at a time, the top k of every row picked out while the block is in L2.

Four paths, chosen by `plan`:

stream: bfloat16 and float16. A matrix product with float32 output into one buffer that is used again and again, each
    followed by `select_kernel`. A pre-bias goes into the scores as x·w + (bias − w·pre_bias), the bracket in float32,
    so that x − pre_bias is never rounded to 8 bits. A score is then within
    (D + 4) 2⁻²⁴ (Σ|x w| + Σ|pre_bias w| + |bias|) of the exact one where the product sums in float32.
screen: float32. The same with bfloat16 roundings of both operands and a bound on what that costs; what the bound
    cannot exclude is scored again in float32, in one fixed order (topk_screen.py). No TF32.
maxima: bfloat16 and float16 with D ≤ NARROW. One product over all latents, which also leaves the maxima of groups of
    scores, by which the selection skips nearly all of them (group_maxima.py). Takes up to 1.1 GB for the scores.
dense: k or k_aux above LARGEST_K. All scores of a few rows at a time, and a stable sort. Slower, as exact.
"""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from saekern.kernels import group_maxima, topk_screen
from saekern.kernels.latent_order import latent_order
from saekern.kernels.streaming_select import (
    LARGEST_K,
    SIZES,
    SUB,
    capacity,
    finish_kernel,
    planes,
    select_kernel,
    slots,
)

# Tiles of 128 × 256 scores a matrix product computes, by compute capability. Estimates, not measured: 256 tiles are
# 33.6 MB of float32, a little over half of an H200's L2, and 1.94 waves on its 132 multiprocessors; 192 are 25 MB of an
# A100's 40, and 1.78 waves on 108.
TILES = {8: 192, 9: 256}
TILE = (128, 256)
# Rows of x in flight at most, stream and screen. Every block of rows reads the weight, every chunk of latents reads x.
# At B = 8192, F = 65,536, D = 2304 that is 1.8 GB with 4096 rows × 2048 columns, 2.7 with 8192 × 1024. Screening rounds
# the weight anew for every block of rows, 6 bytes a number, and wants few blocks.
STREAM_ROWS, SCREEN_ROWS = 4096, 8192
# int32 words of candidate lists, stream and screen. At B = 8192, F = 65,536, k ≤ 256 the former takes 16.8 MB, with the
# scores' 33.6 MB 50 MB beyond the answer's own; with k_aux = 512 as well 50 + 33.6 MB.
STREAM_WORDS, SCREEN_WORDS = 16_000_000, 32_000_000
SCREEN_COLUMNS = 8192  # latents rounded to bfloat16 at a time: 67 MB at D = 4096
NARROW = 1024  # D up to which the product is so short that it pays to look at every score only once
MAXIMA_SCORES = 2**28  # in flight on that path: 1.07 GB, and 3 % of it for the maxima
DENSE_SCORES = 2**22  # of the dense path; its sort takes 6 times the 16.8 MB


class Plan(NamedTuple):
    path: str
    rows: int  # of x in flight
    columns: int  # latents a chunk
    capacity: int  # slots of a row's list
    aux_capacity: int
    row_blocks: int
    chunks: int
    launches: int  # products and kernels of ours, over all rows


def plan(batch: int, width: int, latents: int, k: int, k_aux: int, dtype: torch.dtype, major: int = 9) -> Plan:
    """Which path, in which pieces. `major`: the device's compute capability.

    By estimates, not measurements: with the products at 790 TF/s (Triton's at 640) and 4.3 TB/s, 8192 rows of
    D = 768 take 1.4 ms by maxima and 1.6 by streaming for F = 65,536, at D = 2304 3.9 and 3.6, and an A100's own
    product is worth more than it saves. A second selection has to look at every score anyway."""
    screened = dtype == torch.float32
    narrow = width <= NARROW and latents <= group_maxima.WIDEST and major >= 9
    if narrow and not screened and k <= LARGEST_K and not k_aux:
        height = group_maxima.ROWS
        most = max(height, MAXIMA_SCORES // group_maxima.stride(latents) // height * height)
        blocks = triton.cdiv(batch, most)
        rows = min(batch, triton.cdiv(triton.cdiv(batch, max(blocks, 1)), height) * height)
        return Plan("maxima", rows, latents, capacity(k, False), 0, blocks, 1, 3 * blocks)
    if max(k, k_aux) > LARGEST_K:
        rows = max(1, min(batch, DENSE_SCORES // latents))
        blocks = triton.cdiv(batch, rows)
        return Plan("dense", rows, latents, 0, 0, blocks, 1, blocks)
    slots, aux_slots = capacity(k, screened), capacity(k_aux, screened) if k_aux else 0
    most, words = (SCREEN_ROWS, SCREEN_WORDS) if screened else (STREAM_ROWS, STREAM_WORDS)
    most = min(most, words // (planes(screened) * (slots + aux_slots)))
    blocks = triton.cdiv(batch, most)
    height, width = TILE
    rows = min(batch, triton.cdiv(triton.cdiv(batch, max(blocks, 1)), height) * height)
    columns = max(1, TILES.get(major, TILES[9]) // triton.cdiv(max(rows, 1), height)) * width
    columns = min(latents, columns, SCREEN_COLUMNS if screened else latents)
    blocks, chunks = triton.cdiv(batch, max(rows, 1)), triton.cdiv(latents, columns)
    selections = 2 if k_aux else 1
    launches = chunks * (1 + screened + selections) + selections * (3 if screened else 1) + screened
    return Plan("screen" if screened else "stream", rows, columns, slots, aux_slots, blocks, chunks, blocks * launches)


class Selection(NamedTuple):
    """One of the two top-k sets, and the lists it is made from."""

    k: int
    capacity: int
    list: Tensor  # [rows, planes, capacity] int32
    state: Tensor  # [rows, 2] int32
    allowed: Tensor | None  # [F] uint8
    padding: Tensor | None  # [k] int32
    values: Tensor
    indices: Tensor


def multiply(x: Tensor, weight: Tensor, out: Tensor) -> None:
    """x weightᵀ with float32 sums and output. The CPU has no such product of bfloat16, so it gets wider operands."""
    if out.device.type == "cpu":
        torch.mm(x.to(torch.float32), weight.to(torch.float32).T, out=out)
    else:
        torch.mm(x, weight.T, out_dtype=torch.float32, out=out)


def topk_encode(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    k: int,
    pre_bias: Tensor | None,
    relu: bool,
    dead: Tensor | None,
    k_aux: int,
    order: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """values, indices [B, k]; aux_values, aux_indices [B, k_aux]; entries, segments: the codes' order by latent, empty
    where `order` says no."""
    batch, latents = x.shape[0], weight.shape[0]
    values, aux_values = x.new_empty(batch, k), x.new_empty(batch, k_aux)
    indices, aux_indices = (torch.empty(v.shape, dtype=torch.int64, device=x.device) for v in (values, aux_values))
    x, weight = x.contiguous(), weight.contiguous()
    bias, pre_bias = (None if t is None else t.contiguous() for t in (bias, pre_bias))
    if batch:
        major = torch.cuda.get_device_capability(x.device)[0] if x.is_cuda else 9
        chosen = plan(batch, x.shape[1], latents, k, k_aux, x.dtype, major)
        allowed = padding = None
        if k_aux and dead is not None:
            allowed = dead.contiguous().view(torch.uint8)
            padding = torch.sort(allowed, stable=True).indices[:k_aux].to(torch.int32)  # live latents come first
        outs = (values, indices), (aux_values, aux_indices)
        with torch.cuda.device_of(x):
            run = {"dense": _dense, "maxima": _by_maxima}.get(chosen.path, _streamed)
            run(chosen, x, weight, bias, pre_bias, relu, allowed, padding, *outs)
    if order:
        return values, indices, aux_values, aux_indices, *latent_order(indices, latents)
    empty = torch.empty(0, dtype=torch.int32, device=x.device)
    return values, indices, aux_values, aux_indices, empty, empty.clone()


def _streamed(chosen: Plan, x, weight, bias, pre_bias, relu, allowed, padding, main, aux) -> None:
    (batch, width), latents, device = x.shape, weight.shape[0], x.device
    screened = chosen.path == "screen"
    scores = torch.empty(chosen.rows * chosen.columns, device=device)
    shift = bias if screened or pre_bias is None else topk_screen.shifts(pre_bias, weight, bias)
    selections = [_selection(chosen, chosen.capacity, None, None, *main)]
    if allowed is not None:
        if shift is None:
            shift = torch.zeros(latents, device=device)  # `select_kernel` with `allowed` alone spills on sm_90
        selections.append(_selection(chosen, chosen.aux_capacity, allowed, padding, *aux))
    norms = residuals = row_norms = row_residuals = None
    factor = weight_chunk = None
    if screened:
        factor = torch.empty(chosen.rows, width, dtype=torch.bfloat16, device=device)
        weight_chunk = torch.empty(chosen.columns, width, dtype=torch.bfloat16, device=device)
        norms, residuals = torch.empty(2, latents, device=device)
        row_norms, row_residuals = torch.empty(2, chosen.rows, device=device)
    for row in range(0, batch, chosen.rows):
        rows = x[row : row + chosen.rows]
        count = rows.shape[0]
        left = rows
        if screened:
            left = factor[:count]
            topk_screen.rounded(rows, pre_bias, left, row_norms, row_residuals, topk_screen.row_gamma(width))
        for first in range(0, latents, chosen.columns):
            right = weight[first : first + chosen.columns]
            columns = right.shape[0]
            if screened:
                exact, right = right, weight_chunk[:columns]
                gamma = topk_screen.weight_gamma(width)
                topk_screen.rounded(exact, None, right, norms[first:], residuals[first:], gamma)
            block_scores = scores[: count * columns].view(count, columns)
            multiply(left, right, block_scores)
            for s in selections:
                _select(s, block_scores, shift, norms, residuals, row_norms, row_residuals, first)
        for s in selections:
            if screened:
                topk_screen.rescore(s, rows, pre_bias, weight, bias, row_norms, row_residuals, scores, chosen.columns)
            _finish(s, row, count, relu)


def _selection(chosen: Plan, slots: int, allowed, padding, values, indices) -> Selection:
    words = torch.empty(chosen.rows, planes(chosen.path == "screen"), slots, dtype=torch.int32, device=values.device)
    state = torch.empty(chosen.rows, 2, dtype=torch.int32, device=values.device)
    return Selection(values.shape[1], slots, words, state, allowed, padding, values, indices)


def _select(s: Selection, scores, shift, norms, residuals, row_norms, row_residuals, first: int) -> None:
    size = SIZES[s.capacity]
    select_kernel[(scores.shape[0],)](
        scores, shift, s.list, s.state, s.allowed, norms, residuals, row_norms, row_residuals, first, scores.shape[1],
        s.k, planes(norms is not None), size.block, SUB, s.capacity, num_warps=size.warps, maxnreg=size.registers,
    )  # fmt: skip


def _finish(s: Selection, row: int, count: int, relu: bool) -> None:
    finish_kernel[(count,)](
        s.list, s.state, s.padding, s.values[row:], s.indices[row:], s.k, relu, s.list.shape[1], SUB, s.capacity,
        slots(s.k), num_warps=SIZES[s.capacity].warps,
    )  # fmt: skip


def _by_maxima(chosen: Plan, x, weight, bias, pre_bias, relu, allowed, padding, main, aux) -> None:
    shift = bias if pre_bias is None else topk_screen.shifts(pre_bias, weight, bias)
    s = _selection(chosen, chosen.capacity, None, None, *main)
    buffers = group_maxima.workspace(chosen.rows, weight.shape[0], x.device)
    for row in range(0, x.shape[0], chosen.rows):
        rows = x[row : row + chosen.rows]
        group_maxima.select(rows, weight, shift, s.k, s.list, s.state, buffers)
        _finish(s, row, rows.shape[0], relu)


def _dense(chosen: Plan, x, weight, bias, pre_bias, relu, allowed, padding, main, aux) -> None:
    latents, wide = weight.shape[0], x.dtype == torch.float32
    scores = torch.empty(chosen.rows, latents, device=x.device)
    shift = bias if wide or pre_bias is None else topk_screen.shifts(pre_bias, weight, bias)
    for row in range(0, x.shape[0], chosen.rows):
        rows = x[row : row + chosen.rows]
        block_scores = scores[: rows.shape[0]]
        if wide:
            topk_screen.exact_scores(rows, pre_bias, weight, bias, block_scores)
        else:
            multiply(rows, weight, block_scores)
            if shift is not None:
                block_scores += shift
        _sorted(block_scores, relu, main[0][row : row + chosen.rows], main[1][row : row + chosen.rows])
        if allowed is not None:
            block_scores.masked_fill_(allowed == 0, -torch.inf)
            values, indices = (out[row : row + chosen.rows] for out in aux)
            _sorted(block_scores, relu, values, indices, allowed)


def _sorted(scores: Tensor, relu: bool, values: Tensor, indices: Tensor, allowed: Tensor | None = None) -> None:
    score, latent = torch.sort(scores, dim=1, descending=True, stable=True)
    score, latent = score[:, : values.shape[1]], latent[:, : values.shape[1]]
    if allowed is not None:
        score = torch.where(allowed[latent] != 0, score, 0)
    values.copy_(score.relu() if relu else score)
    indices.copy_(latent)
