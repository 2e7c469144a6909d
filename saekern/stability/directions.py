"""Directions of a set of rows, by the energy that they have along them."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from saekern.matching.geometry import live_rows


class Subspace(NamedTuple):
    """Directions of a set of rows, by falling energy; made by `subspace`."""

    basis: Tensor  # [D, q] float64, orthonormal columns, q the rank of the rows
    energy: Tensor  # [q] float64, the energies σ² that the rows have along them


def subspace(rows: Tensor, *, centred: bool = False) -> Subspace:
    """The right singular vectors of the normalised rows [n, D] and σ². Rows of norm zero are left out.

    Args:
        centred: subtract the rows' mean after normalising, so that a direction shared by all rows is not the first.
    """
    unit = unit_rows(rows, centred)
    values, vectors = torch.linalg.eigh(unit.T @ unit)  # [D, D]: smaller than the rows, and squares are what is asked
    values, vectors = values.flip(0), vectors.flip(1)
    # What float32 rows leave outside their span is 1e-14 of the energy; such directions are arbitrary.
    kept = int((values > 1e-12 * values.sum()).sum())
    return Subspace(vectors[:, :kept], values[:kept])


def principal_directions(covariance: Tensor, width: int) -> Tensor:
    """Eigenvectors of a covariance [D, D] by falling eigenvalue, the columns of a float64 [D, D]."""
    if list(covariance.shape) != [width, width] or not torch.isfinite(covariance).all():
        raise ValueError(f"covariance: expected finite entries, shape [{width}, {width}], got {list(covariance.shape)}")
    return torch.linalg.eigh(covariance.detach().cpu().double())[1].flip(1)


def unit_rows(rows: Tensor, centred: bool) -> Tensor:
    rows = rows.detach().cpu().double()
    unit = F.normalize(rows[live_rows(rows, None)], dim=1)
    return unit - unit.mean(0) if centred else unit
