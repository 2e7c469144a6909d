"""The codes of a batch sorted by latent (CSC): torch's stable radix sort, without host synchronisation."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from saekern.kernels.form import Form

BLOCK = 512


@triton.jit
def order_kernel(
    latents,  # [nnz] int32, ascending
    positions,  # [nnz] int64
    entries,  # [nnz] int32 out: positions
    segments,  # [F+1] int32 out: how many latents are below f
    nnz,
    F,
    halvings,  # of [0, nnz] until nothing is left
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    position = tl.load(positions + at, mask=at < nnz, other=0)
    tl.store(entries + at, position.to(tl.int32), mask=at < nnz)
    if tl.program_id(0) * BLOCK <= F:
        low = tl.zeros([BLOCK], tl.int32)
        high = low + nnz
        for _ in range(halvings):
            middle = low + (high - low) // 2
            below = tl.load(latents + middle, mask=middle < high, other=F) < at
            low = tl.where(below, middle + 1, low)
            high = tl.where(below, high, middle)
        tl.store(segments + at, low, mask=at <= F)


def latent_order(indices: Tensor, num_latents: int) -> tuple[Tensor, Tensor]:
    """entries [nnz] int32: positions of the codes, grouped by latent, ascending within one; segments [F+1] int32:
    entries[segments[f]:segments[f+1]] belong to latent f. The answer is unique, hence deterministic."""
    count = indices.numel()
    if count >= 2**31:
        raise ValueError(f"indices: expected fewer than 2^31 codes, got {count}")
    latents, positions = indices.reshape(-1).to(torch.int32).sort(stable=True)  # half the radix passes of int64
    entries = torch.empty_like(latents)
    segments = latents.new_empty(num_latents + 1)
    with torch.cuda.device_of(indices):
        order_kernel[(triton.cdiv(max(count, num_latents + 1), BLOCK),)](
            latents, positions, entries, segments, count, num_latents, count.bit_length(), BLOCK, num_warps=4
        )
    return entries, segments


def forms() -> list[Form]:
    signature = {"latents": "*i32", "positions": "*i64", "entries": "*i32", "segments": "*i32"}
    aligned = (*signature, "nnz", "F")
    signature |= dict.fromkeys(("nnz", "F", "halvings"), "i32")
    return [Form(order_kernel, signature, {"BLOCK": BLOCK}, num_warps=4, aligned=aligned, gather=True)]
