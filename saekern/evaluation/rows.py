"""How well an SAE describes rows, and how often each of its latents fires, in one pass over them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saekern.activations.rows import Rows


@dataclass(frozen=True)
class RowMetrics:
    """What one pass over rows gives."""

    rows: int
    """Rows evaluated."""
    explained_variance: float
    """1 − Σ‖x − x̂‖² / Σ‖x − x̄‖²; NaN where all rows are equal."""
    l0: float
    """Mean number of active latents a row."""
    counts: Tensor
    """Rows in which each latent is active, int64 [F]."""

    @property
    def dead(self) -> Tensor:
        """Latents that were active in no row, bool [F]."""
        return self.counts == 0


@torch.no_grad()
def measure(sae: Any, rows: Rows, batch: int = 4096) -> RowMetrics:
    """Explained variance, L0 and firing counts of an SAE on rows, in one pass.

    Explained variance is the fraction of variance explained over all rows and dimensions together, sums in float64. It
    is neither the mean of per-row ratios nor the one that first removes the residual's mean (which is never smaller).
    A latent is active where its code is not zero.

    Args:
        sae: has `encode_sparse(x)` (values, indices, offsets), `decode(codes)` or `reconstruct(codes, x)`, and
            `dictionary` [F, D].
        rows: [n, D] with n ≥ 1 and the SAE's D.
        batch: rows at a time.

    Raises:
        ValueError: no rows, or a width that is not the SAE's.
    """
    residual, variance = 0.0, Variance(rows.width)
    counts = torch.zeros(_dictionary(sae, rows).shape[0], dtype=torch.int64)
    for x in batches(rows, batch):
        codes = encode(sae, x)
        counts += torch.bincount(codes.indices[codes.values != 0].cpu(), minlength=len(counts))
        residual += float((x.double() - reconstruction(sae, codes, x).cpu().double()).square().sum())
        variance.add(x)
    total = variance.total()
    explained = 1 - residual / total if total else float("nan")
    return RowMetrics(len(rows), explained, int(counts.sum()) / len(rows), counts)


def explained_variance(sae: Any, rows: Rows, batch: int = 4096) -> float:
    """1 − Σ‖x − x̂‖² / Σ‖x − x̄‖² over all rows and dimensions together; see `measure`."""
    return measure(sae, rows, batch).explained_variance


@torch.no_grad()
def density(sae: Any, rows: Rows, batch: int = 4096) -> Tensor:
    """Rows in which each latent is active (its code is not zero), int64 [F]; divide by len(rows) for the frequency."""
    counts = torch.zeros(_dictionary(sae, rows).shape[0], dtype=torch.int64)
    for x in batches(rows, batch):
        codes = encode(sae, x)
        counts += torch.bincount(codes.indices[codes.values != 0].cpu(), minlength=len(counts))
    return counts


def l0(sae: Any, rows: Rows, batch: int = 4096) -> float:
    """Mean number of active latents a row."""
    return int(density(sae, rows, batch).sum()) / len(rows)


class DensityHistogram(NamedTuple):
    """How often latents are active, on a logarithmic scale."""

    edges: Tensor  # float64 [bins + 1], log10 of the frequency, up to 0
    latents: Tensor  # int64 [bins]: a bin holds its left edge, the last one both
    dead: int  # latents that were active in no row: they have no logarithm


def density_histogram(counts: Tensor, rows: int, bins: int = 40) -> DensityHistogram:
    """From firing counts [F] in `rows` rows (`density`, or `measure(...).counts`): latents by log10 of their frequency,
    from one row to all of them."""
    if rows < 1 or bins < 1:
        raise ValueError(f"rows and bins: expected at least 1, got {rows} and {bins}")
    low = -max(float(torch.tensor(rows, dtype=torch.float64).log10()), 1e-9)
    edges = torch.linspace(low, 0, bins + 1, dtype=torch.float64)
    found = counts[counts > 0].cpu().double().div(rows).log10()
    place = (torch.bucketize(found, edges, right=True) - 1).clamp(0, bins - 1)
    return DensityHistogram(edges, torch.bincount(place, minlength=bins), int((counts == 0).sum()))


def pca_explained_variance(rows: Rows, k: int, batch: int = 65536) -> float:
    """Fraction of variance that the k leading principal components explain: exact, from the float64 covariance.

    The yardstick for an SAE with k active latents: the best k-dimensional subspace through the mean.

    Raises:
        ValueError: no rows, or k outside 0 … D.
    """
    if not 0 <= k <= rows.width:
        raise ValueError(f"k: expected 0 to {rows.width} (the rows' width), got {k}")
    first = rows.take(torch.zeros(min(1, len(rows)), dtype=torch.int64)).double()  # as in Variance
    total = torch.zeros(rows.width, dtype=torch.float64)
    scatter = torch.zeros(rows.width, rows.width, dtype=torch.float64)
    for x in batches(rows, batch):
        shifted = x.double() - first
        total += shifted.sum(0)
        scatter += shifted.T @ shifted
    mean = total / len(rows)
    eigenvalues = torch.linalg.eigvalsh(scatter / len(rows) - torch.outer(mean, mean)).flip(0).clamp(min=0)
    everything = float(eigenvalues.sum())
    return float(eigenvalues[:k].sum()) / everything if everything else float("nan")


class Variance:
    """Σ‖x − x̄‖² of a stream, in float64, about its first row, so that a large common mean does not cancel digits."""

    def __init__(self, width: int) -> None:
        self.count, self.square = 0, 0.0
        self.first = self.sum = torch.zeros(width, dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        if self.count == 0:
            self.first = x[0].double()
        x = x.double() - self.first
        self.count += len(x)
        self.sum = self.sum + x.sum(0)
        self.square += float(x.square().sum())

    def total(self) -> float:
        return self.square - float(self.sum.square().sum()) / self.count if self.count else 0.0


def batches(rows: Rows, batch: int) -> Iterator[Tensor]:
    """The rows in order, float32 [≤ batch, D]."""
    if len(rows) == 0:
        raise ValueError("rows: expected at least one row, got none")
    for start in range(0, len(rows), batch):
        yield rows.take(torch.arange(start, min(start + batch, len(rows))))


def encode(sae: Any, x: Tensor) -> Any:
    dictionary = sae.dictionary
    return sae.encode_sparse(x.to(dictionary.device, dictionary.dtype))


def reconstruction(sae: Any, codes: Any, x: Tensor) -> Tensor:
    """x̂ of rows x from their codes: `sae.reconstruct(codes, x)`, or `sae.decode(codes)` where there is only that."""
    if not hasattr(sae, "reconstruct"):
        return sae.decode(codes)
    dictionary = sae.dictionary
    return sae.reconstruct(codes, x.to(dictionary.device, dictionary.dtype))


def _dictionary(sae: Any, rows: Rows) -> Tensor:
    dictionary = sae.dictionary
    if dictionary.shape[1] != rows.width:
        raise ValueError(f"rows: expected the SAE's width {dictionary.shape[1]}, got {rows.width}")
    return dictionary
