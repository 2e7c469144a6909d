"""Rows with the marginals of real activations and nothing else: what SAEs find there is not in the model."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from saekern.activations.rows import Rows, TensorRows


def shuffled_rows(
    rows: Rows, seed: int = 0, *, keep: Literal["marginals", "covariance"] = "marginals", batch: int = 65536
) -> TensorRows:
    """Every dimension permuted over the rows by its own random permutation: which values occur together is gone.

    "marginals" keeps each dimension's values, so its mean, outliers and sparsity. Where features lie along dimensions,
    as in a layer after its nonlinearity, they survive it, and an SAE may find them in every seed: a null that agrees is
    then a finding about the basis. "covariance" does the same to the principal components and turns them back: mean and
    covariance stay but for sampling error 1/√n, and directions of the basis go too.

    In memory: 4 n D bytes, float32; take fewer rows if that is too much. Train SAEs on it as on the real rows.

    Raises:
        ValueError: fewer than two rows, or an unknown `keep`.

    Source: ours.
    """
    if keep not in ("marginals", "covariance"):
        raise ValueError(f"keep: expected 'marginals' or 'covariance', got {keep!r}")
    count = len(rows)
    if count < 2:
        raise ValueError(f"rows: expected at least 2, got {count}")
    data = torch.empty(count, rows.width)
    for start in range(0, count, batch):
        data[start : start + batch] = rows.take(torch.arange(start, min(start + batch, count)))
    axes, mean = None, None
    if keep == "covariance":
        mean, axes = _principal_axes(data, batch)
        for part in data.split(batch):
            part.copy_((part.double() - mean) @ axes)
    state = np.random.SeedSequence([seed, count]).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(state) >> 1)  # manual_seed takes 63 bits
    for column in range(rows.width):
        data[:, column] = data[torch.randperm(count, generator=generator), column]
    if axes is not None:
        for part in data.split(batch):
            part.copy_(part.double() @ axes.T + mean)
    return TensorRows(data)


def _principal_axes(data: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """Mean [D] and eigenvectors of the covariance [D, D], float64."""
    mean = torch.stack([part.double().sum(0) for part in data.split(batch)]).sum(0) / len(data)
    scatter = torch.zeros(data.shape[1], data.shape[1], dtype=torch.float64)
    for part in data.split(batch):
        shifted = part.double() - mean
        scatter += shifted.T @ shifted
    return mean, torch.linalg.eigh(scatter / len(data)).eigenvectors
