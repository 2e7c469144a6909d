"""Dictionaries as matrices of atoms: which rows take part, and where the origin of their cosines lies."""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Side(NamedTuple):
    """A dictionary in a matching."""

    rows: Tensor  # [F, D] float32 or float64, finite
    live: Tensor  # [F] bool: the rows that take part
    largest: Tensor  # [F] the largest |entry| of each row

    def kept(self) -> tuple[Tensor, Tensor]:
        """The live rows, copied only where some are not, and the largest entries of those."""
        if bool(self.live.all()):
            return self.rows, self.largest
        return self.rows[self.live], self.largest[self.live]

    def to(self, dtype: torch.dtype) -> "Side":
        return Side(self.rows.to(dtype), self.live, self.largest.to(dtype))


def as_dictionary(source: Any, name: str = "dictionary") -> Tensor:
    """The decoder [F, D] of `source`: a tensor, or anything with a `.dictionary`. Half precision widens to float32.

    Raises:
        TypeError: neither a tensor nor an object with `.dictionary`.
        ValueError: not a matrix of finite floating-point numbers with at least one row and column.
    """
    return _measured(source, name)[0]


def _measured(source: Any, name: str) -> tuple[Tensor, Tensor]:
    """The rows, and the `largest_entry` of each."""
    rows = matrix_of(source, name)
    rows = rows if rows.dtype == torch.float64 else rows.to(torch.float32)
    largest = largest_entry(rows)
    finite = torch.isfinite(largest)  # isfinite(rows) would copy rows
    if not finite.all():
        bad = (~finite).nonzero()[:, 0]
        raise ValueError(f"{name}: expected finite entries, got NaN or Inf in {len(bad)} rows, first row {int(bad[0])}")
    return rows, largest


def matrix_of(source: Any, name: str) -> Tensor:
    """`as_dictionary` without a look at the numbers, in the type that they are stored in."""
    rows = source if isinstance(source, Tensor) else getattr(source, "dictionary", None)
    if not isinstance(rows, Tensor):
        raise TypeError(f"{name}: expected a tensor [F, D] or an SAE with .dictionary, got {type(source).__name__}")
    rows = rows.detach()
    if rows.dim() != 2 or rows.numel() == 0:
        raise ValueError(f"{name}: expected shape [F, D] with F, D >= 1, got {list(rows.shape)}")
    if not rows.is_floating_point():
        raise ValueError(f"{name}: expected a floating-point tensor, got {rows.dtype}")
    return rows


def live_rows(rows: Tensor, dead: Tensor | None, name: str = "dictionary") -> Tensor:
    """[F] bool: the rows that take part in matching, neither masked as dead nor of norm zero (no direction).

    Raises:
        ValueError: `dead` is not a bool tensor [F].
    """
    return _live(largest_entry(rows), dead, name)


def _live(largest: Tensor, dead: Tensor | None, name: str) -> Tensor:
    live = largest > 0
    if dead is None:
        return live
    if dead.dtype != torch.bool or dead.shape != live.shape:
        raise ValueError(f"dead mask of {name}: expected bool {list(live.shape)}, got {dead.dtype} {list(dead.shape)}")
    return live & ~dead.to(live.device)


def largest_entry(rows: Tensor) -> Tensor:
    """[F] the largest |entry| of each row, NaN where one is NaN.

    Not the norm: in float32 that of a row of 1e-23 is 0, and that of 1e20 infinite."""
    return torch.maximum(rows.amax(dim=1), -rows.amin(dim=1))  # vector_norm(ord=inf) takes ten times as long


def side_of(source: Any, dead: Tensor | None, name: str) -> Side:
    """One side of a matching. Every number is read once, which for 16,384 × 768 takes as long as the search.

    Raises:
        TypeError, ValueError: as `as_dictionary` and `live_rows`.
    """
    rows, largest = _measured(source, name)
    return Side(rows, _live(largest, dead, name), largest)


def moderate(a: Side, b: Side, metric: str) -> tuple[Tensor, Tensor, float]:
    """The live rows of both sides, divided by powers of two where products could leave the range of float32, and what
    similarities of the result are to be multiplied by. Powers of two round nothing; mostly nothing is copied.

    Each row has its own for cosines, which do not see it; the dot product one for each side; distances one for both.
    """
    rows_a, largest_a = a.kept()
    rows_b, largest_b = b.kept()
    if metric == "cosine":
        return _divided(rows_a, _power(largest_a)), _divided(rows_b, _power(largest_b)), 1.0
    power_a, power_b = _power(largest_a.amax()), _power(largest_b.amax())
    if metric == "sqeuclidean":
        power_a = power_b = torch.maximum(power_a, power_b)
    return _divided(rows_a, power_a), _divided(rows_b, power_b), float(power_a) * float(power_b)


def _power(largest: Tensor) -> Tensor:
    """The power of two below each, 1 for those between 2⁻⁴⁰ and 2⁴⁰."""
    power = largest / (2 * torch.frexp(largest).mantissa)
    return torch.where((power > 2.0**-40) & (power < 2.0**40), torch.ones_like(power), power)


def _divided(rows: Tensor, power: Tensor) -> Tensor:
    return rows if bool((power == 1).all()) else rows / power.expand(len(rows))[:, None]


def center(dictionary: Any, mean: Tensor) -> Tensor:
    """d_i − mean for every atom, [F, D]. Nothing is normalised: every cosine of this package does that itself.
    Zero atoms stay zero, since they have no direction and are set aside in every matching.

    For dictionaries whose atoms lie in data space (archetypes, centroids): an offset shared by all atoms makes any two
    of them look alike. With ‖mean‖ four times the spread, independent random dictionaries have matched cosine 0.95
    (Brzozowski & Chung 2026, arXiv 2606.02061, name the effect).

    Args:
        dictionary: [F, D], or an SAE.
        mean: [D], the mean of the activations in the units of the atoms.

    Raises:
        ValueError: `mean` is not a finite [D].
    """
    rows = as_dictionary(dictionary)
    if list(mean.shape) != [rows.shape[1]] or not torch.isfinite(mean).all():
        raise ValueError(f"mean: expected finite entries, shape [{rows.shape[1]}], got shape {list(mean.shape)}")
    moved = rows.to(torch.float64) - mean.detach().to(rows.device, torch.float64)
    return torch.where(live_rows(rows, None)[:, None], moved, 0).to(rows.dtype)


def whiten(dictionary: Any, covariance: Tensor, floor: float = 1e-6) -> Tensor:
    """d_i Σ^(−1/2) for every atom, [F, D]: cosines then weigh every direction of the data alike.

    Args:
        covariance: Σ [D, D] of the activations, symmetric.
        floor: eigenvalues below floor · (the largest) are raised to it, so that noise directions do not blow up.

    Raises:
        ValueError: `covariance` is not a finite [D, D] with a positive eigenvalue, or floor is not in (0, 1].
    """
    rows = as_dictionary(dictionary)
    width = rows.shape[1]
    if list(covariance.shape) != [width, width] or not torch.isfinite(covariance).all():
        got = list(covariance.shape)
        raise ValueError(f"covariance: expected finite entries, shape [{width}, {width}], got shape {got}")
    if not 0 < floor <= 1:
        raise ValueError(f"floor: expected 0 < floor <= 1, got {floor}")
    values, vectors = torch.linalg.eigh(covariance.detach().to(rows.device, torch.float64))
    if not values[-1] > 0:
        raise ValueError(f"covariance: expected a positive eigenvalue, got {values[-1].item():.3g} as the largest")
    root = (vectors / values.clamp(min=floor * float(values[-1])).sqrt()) @ vectors.T  # [D, D]
    return (rows.to(torch.float64) @ root).to(rows.dtype)
