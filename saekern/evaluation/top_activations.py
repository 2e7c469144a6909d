"""The rows in which latents are most active: where their meaning is looked for."""

from typing import Any

import torch
from torch import Tensor

from saekern.activations.rows import Rows
from saekern.evaluation.kept_rows import KeptRows
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
    slot_of = slots_of(latents, sae.dictionary.shape[0])
    best = KeptRows(len(latents), n)
    start = 0
    for x in batches(rows, batch):
        slots, values, row = entries(encode(sae, x), slot_of)
        best.add(slots[values > 0], row[values > 0] + start, values[values > 0])
        start += len(x)
    return best.rows, best.values


def slots_of(latents: Tensor, count: int) -> Tensor:
    """int64 [count]: where each of `count` latents stands in `latents`, −1 if it does not.

    Raises:
        ValueError: `latents` is not a list of distinct numbers from 0 to count − 1.
    """
    if latents.dtype != torch.int64 or latents.dim() != 1 or len(latents.unique()) != len(latents):
        raise ValueError(f"latents: expected distinct int64 [L], got {latents.dtype} {list(latents.shape)}")
    if len(latents) and (int(latents.min()) < 0 or int(latents.max()) >= count):
        raise ValueError(f"latents: expected 0 to {count - 1}, got {int(latents.min())} to {int(latents.max())}")
    slot_of = torch.full((count,), -1)
    slot_of[latents] = torch.arange(len(latents))
    return slot_of


def entries(codes: Any, slot_of: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The codes of the wanted latents that are not zero: slot, value and row within the batch, in row order."""
    values, indices = codes.values.cpu().float(), codes.indices.cpu()
    if codes.offsets is None:
        row = torch.arange(len(values)).repeat_interleave(values.shape[1])
    else:
        row = torch.arange(len(codes.offsets) - 1).repeat_interleave(codes.offsets.cpu().diff())
    values, slots = values.flatten(), slot_of[indices.flatten()]
    wanted = (slots >= 0) & (values != 0)
    return slots[wanted], values[wanted], row[wanted]
