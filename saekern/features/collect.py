"""One pass over the rows: how often and how strongly latents fire, and in which rows."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from saekern.activations.rows import Rows
from saekern.evaluation.kept_rows import KeptRows
from saekern.evaluation.rows import batches, encode
from saekern.evaluation.top_activations import entries, slots_of
from saekern.features.histogram import Histograms


class Activity(NamedTuple):
    """What L chosen latents do in N rows. A latent is active where its code is not zero."""

    rows: int  # N
    counts: Tensor  # int64 [F]: rows in which each latent of the SAE is active
    latents: Tensor  # int64 [L]
    largest: Tensor  # float32 [L]: the largest code, 0 if none is positive
    mean: Tensor  # float64 [L]: mean code over the rows in which it is active, NaN for none
    histogram: Tensor  # int64 [L, BINS]: positive codes; bin i holds i·w ≤ z < (i+1)·w
    width: Tensor  # float64 [L]: w, a power of two; 0 without positive codes
    top_rows: Tensor  # int64 [L, top]: strongest first, −1 where there are fewer
    top_values: Tensor  # float32 [L, top]
    sample_rows: Tensor  # int64 [L, sample]: of all rows with a positive code, a sample without preference
    sample_values: Tensor  # float32 [L, sample]


@torch.no_grad()
def collect(
    sae: Any,
    rows: Rows,
    latents: Tensor,
    *,
    top: int = 8,
    sample: int = 64,
    groups: Tensor | None = None,
    batch: int = 4096,
    progress: bool = False,
) -> Activity:
    """Counts, histograms, strongest rows and a random sample of firing rows, in memory of L × (top + sample + BINS).

    The same for any batch size. The sample is decided by a hash of the row's number: the same in every run, and of two
    latents that fire in one row either both or neither prefer it.

    Args:
        sae: has `encode_sparse(x)` and `dictionary` [F, D].
        rows: [N, D].
        latents: distinct latents, int64 [L].
        top, sample: rows kept of each latent, at least 1.
        groups: int64 [N]: at most one of the strongest rows of a latent comes from each group (such as a sequence).
        batch: rows at a time.
        progress: show a bar.

    Raises:
        ValueError: latents that are repeated or not there, no rows, another width than the SAE's, codes not finite.
    """
    count, width = sae.dictionary.shape
    if width != rows.width:
        raise ValueError(f"rows: expected the SAE's width {width}, got {rows.width}")
    slot_of = slots_of(latents, count)
    counts = torch.zeros(count, dtype=torch.int64)
    largest, total = torch.zeros(len(latents)), torch.zeros(len(latents), dtype=torch.float64)
    histograms = Histograms(len(latents))
    best, sampled = KeptRows(len(latents), top, groups), KeptRows(len(latents), sample)
    start = 0
    with tqdm(total=len(rows), unit="row", unit_scale=True, desc="activity", disable=not progress) as bar:
        for x in batches(rows, batch):
            codes = encode(sae, x)
            if not torch.isfinite(codes.values).all():
                raise ValueError(f"codes of rows {start} to {start + len(x) - 1} are not finite")
            counts += torch.bincount(codes.indices[codes.values != 0].cpu(), minlength=count)
            slots, values, row = entries(codes, slot_of)
            row += start
            total.index_add_(0, slots, values.double())
            positive = values > 0
            slots, values, row = slots[positive], values[positive], row[positive]
            largest.scatter_reduce_(0, slots, values, "amax")
            histograms.add(slots, values)
            best.add(slots, row, values)
            sampled.add(slots, row, values, scattered(row))
            start += len(x)
            bar.update(len(x))
    return Activity(
        len(rows),
        counts,
        latents,
        largest,
        total / counts[latents],
        histograms.counts,
        histograms.width,
        best.rows,
        best.values,
        sampled.rows,
        sampled.values,
    )


def scattered(numbers: Tensor) -> Tensor:
    """float64: a fixed number that looks random for each number below 2³², no two the same."""
    mask = 2**32 - 1
    h = numbers & mask
    for shift, factor in ((16, 0x6C8E9CF5), (15, 0x5851F42D)):  # odd, below 2³¹: products stay below 2⁶³
        h = (h ^ (h >> shift)) * factor & mask
    return (h ^ (h >> 16)).double()
