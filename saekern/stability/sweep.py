"""How far the shares of stable and unstable latents hang on θ and ε."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from saekern.matching import PairStore
from saekern.matching.all_pairs import AllPairs
from saekern.stability.features import live_latents, pairs_of

THRESHOLDS = (0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.9)
EPSILONS = (0.0, 0.025, 0.05, 0.1, 0.2)


@dataclass(frozen=True, eq=False)
class StabilitySweep:
    """Feature stability at T thresholds θ and E tolerances ε. Made by `stability_sweep`."""

    thresholds: list[float]
    """[T] values of θ."""
    epsilons: list[float]
    """[E] values of ε."""
    hits: Tensor
    """[T, S, F] int32: in how many of the other runs the latent reappears; 0 where not live."""
    live: Tensor
    """[S, F] bool: the latents that were judged."""

    @property
    def comparisons(self) -> int:
        """N = S − 1."""
        return self.live.shape[0] - 1

    @property
    def mean_probability(self) -> Tensor:
        """[T, S] float64: mean p̂ of each anchor's live latents; NaN for an anchor without any."""
        return self.hits.sum(2).double() / (self.comparisons * self.live.sum(1))

    @property
    def stable(self) -> Tensor:
        """[T, E, S] float64: share of the anchor's live latents with p̂ ≥ 1 − ε."""
        return self._share(lambda hits, slack: hits >= self.comparisons - slack)

    @property
    def unstable(self) -> Tensor:
        """[T, E, S] float64: share with p̂ ≤ ε."""
        return self._share(lambda hits, slack: hits <= slack)

    @property
    def vacuous(self) -> list[bool]:
        """[E] N ε < 1: too few runs for this ε to differ from 0."""
        return [slack == 0 for slack in self._slacks]

    @property
    def _slacks(self) -> list[int]:
        return [int(epsilon * self.comparisons + 1e-9) for epsilon in self.epsilons]  # as in FeatureStability

    def _share(self, rule: Any) -> Tensor:
        living = self.live.sum(1).double()
        shares = [
            torch.stack([(rule(hits, slack) & self.live).sum(1) / living for slack in self._slacks])
            for hits in self.hits  # one θ at a time: a bool [S, F]
        ]
        return torch.stack(shares)

    def to_json(self) -> dict[str, Any]:
        """A line for each θ and ε: shares as means over anchors, "sd" their spread between anchors; plain numbers."""
        stable, unstable, mean = self.stable, self.unstable, self.mean_probability
        lines = []
        for t, threshold in enumerate(self.thresholds):
            for e, epsilon in enumerate(self.epsilons):
                line: dict[str, Any] = {"threshold": threshold, "epsilon": epsilon, "vacuous": self.vacuous[e]}
                line |= _spread("stable", stable[t, e]) | _spread("unstable", unstable[t, e])
                lines.append(line | _spread("mean_probability", mean[t]))
        return {"comparisons": self.comparisons, "live": int(self.live.sum()), "lines": lines}


def stability_sweep(
    dictionaries: Sequence[Any] | PairStore | AllPairs,
    thresholds: Sequence[float] = THRESHOLDS,
    epsilons: Sequence[float] = EPSILONS,
    live: Sequence[Tensor | None] | Tensor | None = None,
) -> StabilitySweep:
    """p̂ of every latent from every anchor at every θ, in one pass over the pairs; ε costs nothing more.

    At one θ and ε the same as `feature_stability`. Memory: 4 T bytes a latent and run. Give the null's dictionaries to
    the same function for the chance level of every cell: at small θ it is not 0.

    Args:
        dictionaries, live: as for `feature_stability`.
        thresholds, epsilons: distinct, ascending.

    Raises:
        ValueError: thresholds or epsilons out of range or order.
    """
    _check("thresholds", thresholds, -1, 1)
    _check("epsilons", epsilons, 0, 0.5)
    pairs = pairs_of(dictionaries, live)
    hits = torch.zeros(len(thresholds), len(pairs.sizes), max(pairs.sizes), dtype=torch.int32)
    for pair in pairs:
        for run, matching in ((pair.i, pair.forward), (pair.j, pair.backward)):
            cosine = matching.cosine.cpu()
            for t, threshold in enumerate(thresholds):
                hits[t, run, : len(cosine)] += cosine >= threshold  # NaN, without a partner, is no hit
    return StabilitySweep(list(thresholds), list(epsilons), hits, live_latents(pairs))


def _check(name: str, values: Sequence[float], low: float, high: float) -> None:
    ascending = all(a < b for a, b in pairwise(values))
    inside = all(low <= value <= high and (name != "epsilons" or value < high) for value in values)
    if not values or not ascending or not inside:
        raise ValueError(f"{name}: expected ascending values in {low}..{high}, got {list(values)}")


def _spread(name: str, values: Tensor) -> dict[str, float | None]:
    known = values[values.isfinite()]
    mean = known.mean().item() if len(known) else None
    return {name: mean, f"{name}_sd": known.std().item() if len(known) > 1 else None}
