"""Archetypal benchmarks where the answer is known: SAEs on collages of objects, several sets of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from saekern.activations import Collages, Rows, TensorRows, collages
from saekern.sae import TopKSAE
from saekern.stability.classes import ClassBenchmark, class_benchmark
from saekern.stability.means import mean_interval

TRUTH = "truth"
METRICS = ("plausibility", "plausibility_excess", "identifiability", "excess")


@dataclass(frozen=True, eq=False)
class CollageBenchmark:
    """Each arm on every set. Made by `collage_benchmark`."""

    results: dict[str, list[ClassBenchmark]]
    """Arm → one result a set; "truth" is a TopKSAE whose latents are the objects: what can be reached."""
    confidence: float
    """Coverage of the intervals."""
    settings: dict[str, Any]
    """What the sets were, JSON types only."""

    def values(self, arm: str, metric: str) -> list[float]:
        """One number a set: "plausibility", "identifiability", or how far they exceed their nulls, "excess" and
        "plausibility_excess"."""
        if metric not in METRICS:
            raise ValueError(f"metric: expected one of {', '.join(METRICS)}, got {metric!r}")
        return [float(getattr(result, metric)) for result in self.results[arm]]

    def table(self) -> list[dict[str, Any]]:
        """One line an arm and metric: mean over sets with Student's interval, the nulls' mean, and the difference to
        the first arm, paired by set. Differences of several arms and metrics are several comparisons: no correction is
        made for their number."""
        first = next(iter(self.results))
        lines = []
        for arm, metric in ((arm, metric) for arm in self.results for metric in METRICS):
            own = self.values(arm, metric)
            mean = mean_interval(own, self.confidence)
            line: dict[str, Any] = {"arm": arm, "metric": metric, "mean": mean.mean}
            line |= {"lower": mean.lower, "upper": mean.upper, "sets": mean.units, "null": self._null(arm, metric)}
            line["dead"] = _mean([float((~result.live).sum()) for result in self.results[arm]])
            if arm != first:
                pairs = zip(own, self.values(first, metric), strict=True)
                difference = mean_interval([a - b for a, b in pairs], self.confidence)
                line |= {"difference": difference.mean}
                line |= {"difference_lower": difference.lower, "difference_upper": difference.upper}
            lines.append(line)
        return lines

    def _null(self, arm: str, metric: str) -> float | None:
        if metric.endswith("excess"):
            return 0.0
        name = {"plausibility": "plausibility_rotated", "identifiability": "identifiability_shuffled"}[metric]
        return _mean([value for result in self.results[arm] for value in getattr(result, name)])

    def to_json(self) -> dict[str, Any]:
        interval = f"Student's t over sets, {self.confidence:.0%}; differences to the first arm paired by set"
        return {"settings": self.settings, "interval": interval, "arms": self.table()}


def collage_benchmark(
    arms: Mapping[str, Callable[[Rows, int], Any]],
    *,
    sets: int = 12,
    count: int = 50_000,
    held_out: int = 8192,
    width: int = 64,
    objects: int = 20,
    parts: int = 4,
    noise: float = 0.3,
    offset: float = 0.0,
    draws: int = 3,
    seed: int = 0,
    confidence: float = 0.95,
) -> CollageBenchmark:
    """Trains each arm on each set of collages and measures plausibility and soft identifiability on held-out rows.

    Every arm sees the same rows of a set, so arms are compared set by set. Sets differ in their objects and rows.

    Args:
        arms: name → a function that makes and trains an SAE from rows and a seed (the number of the set):
            `lambda rows, seed: saekern.train(saekern.TopKSAE(64, 40, 4, init_seed=seed), rows, config).sae`. The first
            one is what the others are compared with. "truth" is added.
        sets: at least 2.
        count, held_out: rows to train on and to evaluate, for each set.
        width, objects, parts, noise, offset: of `activations.collages`.
        draws: of each null.
        seed: decides the sets and the nulls.
        confidence: coverage of the intervals.

    Raises:
        ValueError: no arms, one named "truth", fewer than 2 sets.

    Source: after Fel et al. 2025 (arXiv 2502.12892), who photograph 12 sets of 4-object collages through vision models;
    rows that are made without one are ours, as are the nulls.
    """
    if not arms or TRUTH in arms:
        raise ValueError(f'arms: expected at least one, none named "{TRUTH}", got {list(arms)}')
    if sets < 2 or count < 1 or held_out < 1:
        raise ValueError(f"expected sets >= 2, count and held_out >= 1, got {sets}, {count}, {held_out}")
    results: dict[str, list[ClassBenchmark]] = {arm: [] for arm in (*arms, TRUTH)}
    for number in range(sets):
        made = collages(
            count + held_out, width, objects, parts=parts, noise=noise, offset=offset, seed=seed * sets + number
        )
        rows, rest = (TensorRows(part) for part in made.rows.tensor.tensor_split([count]))
        for arm in results:
            sae = truth_sae(made, parts) if arm == TRUTH else arms[arm](rows, number)
            results[arm].append(
                class_benchmark(sae, rest, made.labels[count:], made.directions, draws=draws, seed=seed)
            )
    settings: dict[str, float] = {
        "sets": sets,
        "count": count,
        "held_out": held_out,
        "width": width,
        "objects": objects,
    }
    settings |= {"parts": parts, "noise": noise, "offset": offset, "seed": seed}
    return CollageBenchmark(results, confidence, settings)


def truth_sae(made: Collages, k: int) -> TopKSAE:
    """A TopKSAE that knows the objects: latent i writes direction i and reads what no other object writes (the
    pseudo-inverse; reading the directions themselves tells objects 0.02 worse, as others leak in), b_dec is what all
    rows share. Exact without noise for no more objects than dimensions."""
    sae = TopKSAE(made.rows.width, len(made.directions), k, init_seed=0)
    with torch.no_grad():
        sae.W_dec.copy_(made.directions)
        sae.W_enc.copy_(torch.linalg.pinv(made.directions.double()))  # [D, F]
        sae.b_dec.copy_(made.mean)
    return sae


def _mean(values: list[float]) -> float | None:
    known = [value for value in values if value == value]
    return sum(known) / len(known) if known else None
