"""The rows in which latents are most active: where their meaning is looked for."""

from typing import Any

import torch
from torch import Tensor

from saekern.activations.rows import Rows
from saekern.evaluation.rows import batches, encode


@torch.no_grad()
def top_activations(sae: Any, rows: Rows, latents: Tensor, n: int, batch: int = 4096) -> tuple[Tensor, Tensor]:
    """For each latent the n rows with its largest codes, descending, ties to the smaller row.

    Args:
        sae: has `encode_sparse(x)` and `dictionary` [F, D].
        rows: [N, D].
        latents: distinct latents, int64 [L].
        n: rows a latent.
        batch: rows at a time.

    Returns:
        row indices int64 [L, n] and codes float32 [L, n]; −1 and 0 where a latent is active in fewer than n rows.

    Raises:
        ValueError: a repeated latent or one outside 0 … F−1, n < 1, no rows.
    """
    count = sae.dictionary.shape[0]
    if latents.dtype != torch.int64 or latents.dim() != 1 or len(latents.unique()) != len(latents):
        raise ValueError(f"latents: expected distinct int64 [L], got {latents.dtype} {list(latents.shape)}")
    if n < 1:
        raise ValueError(f"n: expected at least 1, got {n}")
    if len(latents) and (int(latents.min()) < 0 or int(latents.max()) >= count):
        raise ValueError(f"latents: expected 0 to {count - 1}, got {int(latents.min())} to {int(latents.max())}")
    slot_of = torch.full((count,), -1)
    slot_of[latents] = torch.arange(len(latents))
    best_rows = torch.full((len(latents), n), -1)
    best_values = torch.zeros(len(latents), n)
    start = 0
    for x in batches(rows, batch):
        slots, values, row = _entries(encode(sae, x), slot_of)
        # Equal to the n-th best is not enough: the earlier row stays.
        better = values > best_values[slots, -1]
        _merge(best_rows, best_values, slots[better], values[better], row[better] + start)
        start += len(x)
    return best_rows, best_values


def _entries(codes: Any, slot_of: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The positive codes of the wanted latents: slot, value and row within the batch, in row order."""
    values, indices = codes.values.cpu().float(), codes.indices.cpu()
    if codes.offsets is None:
        row = torch.arange(len(values)).repeat_interleave(values.shape[1])
    else:
        row = torch.arange(len(codes.offsets) - 1).repeat_interleave(codes.offsets.cpu().diff())
    values, slots = values.flatten(), slot_of[indices.flatten()]
    wanted = (slots >= 0) & (values > 0)
    return slots[wanted], values[wanted], row[wanted]


def _merge(best_rows: Tensor, best_values: Tensor, slots: Tensor, values: Tensor, row: Tensor) -> None:
    touched = slots.unique()
    n = best_rows.shape[1]
    slots = torch.cat([touched.repeat_interleave(n), slots])
    values = torch.cat([best_values[touched].flatten(), values])
    row = torch.cat([best_rows[touched].flatten(), row])
    order = values.argsort(descending=True, stable=True)  # what was there comes first among equals
    order = order[slots[order].argsort(stable=True)]
    slots, values, row = slots[order], values[order], row[order]
    rank = torch.arange(len(slots)) - torch.searchsorted(slots, slots)
    keep = rank < n
    best_rows[slots[keep], rank[keep]] = row[keep]
    best_values[slots[keep], rank[keep]] = values[keep]
