"""Shares of stable and unstable latents with intervals: the runs are the sample, not the latents."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saekern.matching import PairStore
from saekern.matching.all_pairs import AllPairs
from saekern.stability.features import live_latents, pairs_of
from saekern.stability.jackknife import Estimate, interval


@dataclass(frozen=True, eq=False)
class ShareIntervals:
    """Means over anchors of shares of their live latents. Made by `share_intervals`; NaN ends below three runs."""

    stable: Estimate
    """p̂ ≥ 1 − ε."""
    unstable: Estimate
    """p̂ ≤ ε."""
    mean_probability: Estimate
    """Mean p̂."""
    confidence: float
    """Coverage of the intervals."""

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, None for a missing end."""
        named = {name: getattr(self, name).to_json() for name in ("stable", "unstable", "mean_probability")}
        return named | {"confidence": self.confidence, "interval": "delete-one-run jackknife, Student's t"}


def share_intervals(
    dictionaries: Sequence[Any] | PairStore | AllPairs,
    threshold: float = 0.7,
    epsilon: float = 0.05,
    live: Sequence[Tensor | None] | Tensor | None = None,
    *,
    confidence: float = 0.95,
) -> ShareIntervals:
    """The shares of `feature_stability` and how far they would move with other runs.

    Each run is left out, as an anchor and as a comparison, and everything is counted again among the S − 1 others; the
    spread of those S answers gives the standard error (delete-one jackknife), and t with S − 1 degrees of freedom the
    interval. It errs upwards (Efron & Stein 1981) and says nothing below three runs. Latents of one anchor meet the
    same runs: an interval that counts them as independent is far too short. Ours: the papers give no interval for the
    shares. What it brackets are shares at this number of runs: more runs make "in all of them" harder.

    Args:
        dictionaries, threshold, epsilon, live: as for `feature_stability`. Memory: S bytes a latent and run.
    """
    pairs = pairs_of(dictionaries, live)
    runs = len(pairs.sizes)
    found = torch.zeros(runs, runs, max(pairs.sizes), dtype=torch.bool)  # [anchor, run, F]
    for pair in pairs:
        for i, j, matching in ((pair.i, pair.j, pair.forward), (pair.j, pair.i, pair.backward)):
            found[i, j, : len(matching.cosine)] = matching.cosine.cpu() >= threshold
    return of_found(found, live_latents(pairs), epsilon, confidence)


def of_found(found: Tensor, live: Tensor, epsilon: float, confidence: float = 0.95) -> ShareIntervals:
    """From whether each latent of each anchor was found in each run: found [S, S, F] bool, live [S, F] bool."""
    runs = len(found)
    hits = found.sum(1)
    total = _shares(hits, live, runs - 1, epsilon)
    without = torch.full((3, runs), torch.nan, dtype=torch.float64)
    if runs >= 3:
        for run in range(runs):
            kept = torch.arange(runs) != run
            without[:, run] = _shares((hits - found[:, run].to(hits.dtype))[kept], live[kept], runs - 2, epsilon)
    estimate = interval(total, without, confidence)
    stable, unstable, mean = (Estimate(*(end[i] for end in estimate)) for i in range(3))
    return ShareIntervals(stable, unstable, mean, confidence)


def _shares(hits: Tensor, live: Tensor, comparisons: int, epsilon: float) -> Tensor:
    """[3] stable, unstable and mean p̂, means over anchors that have live latents."""
    slack = int(epsilon * comparisons + 1e-9)  # as in FeatureStability
    living = live.sum(1).double()
    stable, unstable = ((mask & live).sum(1) for mask in (hits >= comparisons - slack, hits <= slack))
    mean = (hits * live).sum(1).double() / comparisons
    return torch.stack([(part / living).nanmean() for part in (stable, unstable, mean)])
