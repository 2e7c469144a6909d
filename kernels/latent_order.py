"""The codes of a batch sorted by latent (CSC): torch's stable radix sort, without host synchronisation."""

import torch
from torch import Tensor


def latent_order(indices: Tensor, num_latents: int) -> tuple[Tensor, Tensor]:
    """entries [nnz] int32: positions of the codes, grouped by latent, ascending within one; segments [F+1] int32:
    entries[segments[f]:segments[f+1]] belong to latent f. The answer is unique, hence deterministic."""
    if indices.numel() >= 2**31:
        raise ValueError(f"indices: expected fewer than 2^31 codes, got {indices.numel()}")
    latents, entries = indices.reshape(-1).to(torch.int32).sort(stable=True)  # half the radix passes of int64
    bounds = torch.arange(num_latents + 1, dtype=torch.int32, device=indices.device)
    return entries.to(torch.int32), torch.searchsorted(latents, bounds, out_int32=True)
