"""Comparisons whose answer is known beforehand: what the numbers are by chance, and what they are for a copy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saekern.matching.geometry import as_dictionary
from saekern.stability.features import FeatureStability, feature_stability
from saekern.stability.histogram import CosineHistogram
from saekern.stability.lazy import Lazy


@dataclass(frozen=True, eq=False)
class Control:
    """Feature stability of dictionaries made for the purpose, several times over."""

    kind: str
    """"random", "rotated" (nothing should match) or "permuted" (everything should)."""
    draws: list[FeatureStability]
    """One result a draw."""

    @property
    def match_rate(self) -> Tensor:
        """[draws] share of (latent, other run) comparisons that reach the threshold."""
        return torch.stack([draw.probability.nanmean() for draw in self.draws])

    @property
    def cosines(self) -> CosineHistogram:
        """The partners' cosines of all draws together."""
        return CosineHistogram(torch.stack([draw.cosines.counts for draw in self.draws]).sum(0))

    def ecdf(self) -> tuple[Tensor, Tensor]:
        """As `FeatureStability.ecdf`, the mean over draws."""
        curves = [draw.ecdf() for draw in self.draws]
        return curves[0][0], torch.stack([share for _, share in curves]).mean(0)

    def to_json(self) -> dict[str, Any]:
        """Mean and range over draws as plain numbers."""
        levels = (0.01, 0.25, 0.5, 0.75, 0.99, 1.0)
        stable = [draw.to_json()["live"]["stable"] for draw in self.draws]
        return {
            "kind": self.kind,
            "draws": len(self.draws),
            "threshold": self.draws[0].threshold,
            "cosine_quantiles": {f"{q:g}": _range([draw.cosines.quantile(q) for draw in self.draws]) for q in levels},
            "match_rate": _range(self.match_rate.tolist()),
            "stable": _range(stable),
        }


def random_null(
    shapes: Sequence[tuple[int, int]],
    *,
    draws: int = 3,
    seed: int = 0,
    device: torch.device | str = "cpu",
    **options: Any,
) -> Control:
    """Independent Gaussian dictionaries: the cosines and the stability that chance gives at these sizes.

    The best cosine of a latent lies near 0.88 √(2 ln F / D): 0.150 at F = 2048, D = 512.

    Args:
        shapes: (F, D) of each run; as many runs as the null should have (time grows with their square).
        draws: repetitions with other random numbers, all derived from `seed`.
        device: where they are matched; the numbers are the same everywhere.
        options: threshold, epsilon, confidence of `feature_stability`.
    """
    if len(shapes) < 2 or any(len(shape) != 2 for shape in shapes):
        raise ValueError(f"shapes: expected at least two (F, D), got {list(shapes)}")

    def gaussian(draw: int, run: int) -> Tensor:
        return torch.randn(*shapes[run], generator=_generator(seed, draw, run)).to(device)

    return _control("random", len(shapes), draws, gaussian, options)


def rotated_null(dictionaries: Sequence[Any], *, draws: int = 1, seed: int = 0, **options: Any) -> Control:
    """Each dictionary turned by its own random rotation: the angles inside every dictionary stay, agreement goes.

    Unlike Gaussian rows it keeps clusters and duplicates of the real atoms, which make chance matches likelier.

    Args:
        options: live, threshold, epsilon, confidence of `feature_stability`.
    """

    def turned(draw: int, run: int) -> Tensor:
        return _turned(dictionaries, run, _generator(seed, draw, run))

    return _control("rotated", len(dictionaries), draws, turned, options)


def rotated_dictionaries(dictionaries: Sequence[Any], *, seed: int = 0) -> Lazy:
    """The dictionaries of `rotated_null`'s first draw, for other measures than feature stability. Encoders and decoders
    of the same runs, with the same seed, turn together."""
    return Lazy(len(dictionaries), lambda run: _turned(dictionaries, run, _generator(seed, 0, run)))


def permuted_control(dictionary: Any, *, copies: int = 3, draws: int = 1, seed: int = 0, **options: Any) -> Control:
    """Copies of one dictionary with its latents in random order: p̂ = 1 everywhere, or the matching is broken.

    Args:
        options: threshold, epsilon, confidence of `feature_stability`.
    """
    rows = as_dictionary(dictionary)

    def shuffled(draw: int, run: int) -> Tensor:
        return rows[torch.randperm(len(rows), generator=_generator(seed, draw, run)).to(rows.device)]

    return _control("permuted", copies, draws, shuffled, options)


def rotated_copies(dictionary: Any, *, copies: int = 3, draws: int = 1, seed: int = 0, **options: Any) -> Control:
    """Copies of one dictionary, each turned its own way: p̂ = 0 everywhere although every angle inside is the same, or
    the matching sees more than directions.

    Args:
        options: live, threshold, epsilon, confidence of `feature_stability`.
    """
    return rotated_null([as_dictionary(dictionary)] * copies, draws=draws, seed=seed, **options)


def random_rotation(width: int, generator: torch.Generator) -> Tensor:
    """A [D, D] float64 orthogonal matrix, uniform (Haar): QR of a Gaussian, signs fixed by R's diagonal
    (Mezzadri 2007, arXiv math-ph/0609050; without them the distribution depends on the QR routine)."""
    q, r = torch.linalg.qr(torch.randn(width, width, dtype=torch.float64, generator=generator))
    diagonal = r.diagonal()
    return q * torch.where(diagonal < 0, -1.0, 1.0)


def _control(kind: str, runs: int, draws: int, make: Callable[[int, int], Tensor], options: dict[str, Any]) -> Control:
    if draws < 1:
        raise ValueError(f"draws: expected draws >= 1, got {draws}")

    def one(draw: int) -> FeatureStability:
        return feature_stability(Lazy(runs, lambda run: make(draw, run)), **options)

    return Control(kind, [one(draw) for draw in range(draws)])


def _turned(dictionaries: Sequence[Any], run: int, generator: torch.Generator) -> Tensor:
    rows = as_dictionary(dictionaries[run], f"dictionaries[{run}]")
    rotation = random_rotation(rows.shape[1], generator).to(rows.device)
    return (rows.to(torch.float64) @ rotation).to(rows.dtype)


def _generator(seed: int, draw: int, run: int) -> torch.Generator:
    state = np.random.SeedSequence([seed, draw, run]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)  # manual_seed takes 63 bits


def _range(values: Sequence[float | None]) -> dict[str, float | None]:
    known = [value for value in values if value is not None and value == value]
    if not known:
        return {"mean": None, "min": None, "max": None}
    return {"mean": sum(known) / len(known), "min": min(known), "max": max(known)}
