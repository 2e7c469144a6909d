"""What stable and unstable latents fire on, and whether that tells them apart."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saekern import stability
from saekern.pipeline.check import require

if TYPE_CHECKING:
    from saekern.pipeline.lab import Lab

BINS = 24


@dataclass(frozen=True)
class StatisticsSettings:
    """Activation statistics of stable and unstable latents."""

    anchors: int = 6
    """The first seeds, whose latents are described. The predictor is fitted on the first and judged on the others."""

    min_firings: int = 100
    """Latents that fire less often on the held-out rows are left out: their statistics tell that they are dead."""

    draws: int = 20
    """Permutations of the labels for the predictor's null."""

    seed: int = 0
    """Of the shuffled tokens and the permutations."""

    def __post_init__(self) -> None:
        for name in ("anchors", "min_firings", "draws"):
            require(getattr(self, name) >= 1, f"statistics.{name}", "at least 1", getattr(self, name))


def run(lab: "Lab", settings: StatisticsSettings, work: Path) -> dict[str, Any]:
    """`activation_statistics` of the anchors with their tokens and with shuffled ones, `compare_groups` of both, and
    `predict_stability`."""
    anchors = list(range(min(settings.anchors, lab.seeds)))
    for name, group in (("stable", lab.stable), ("unstable", lab.unstable)):
        if not bool(group[0].any()):
            return {"skipped": f"seed 0 has no {name} latents"}
    judged = stability.feature_stability(lab.pairs, lab.threshold, lab.epsilon)
    options: dict[str, Any] = {"min_firings": settings.min_firings}
    statistics, shuffled = (
        [
            stability.activation_statistics(
                lab.saes[run], lab.heldout, lab.tokens, lab.sequence_numbers, shuffle_seed=seed, **options
            )
            for run in anchors
        ]
        for seed in (None, settings.seed)
    )
    groups = stability.compare_groups(statistics, judged, anchors)
    if min(groups.stable[0], groups.unstable[0]) < 2:
        few = f"seed 0 has {groups.stable[0]} stable and {groups.unstable[0]} unstable latents"
        return {"skipped": f"{few} that fire {settings.min_firings} times"}
    found: dict[str, Any] = {
        "rows": len(lab.heldout),
        "min_firings": settings.min_firings,
        "groups": groups.to_json(),
        "shuffled": stability.compare_groups(shuffled, judged, anchors).to_json(),
        "histograms": {
            name: _histograms(values, judged.stable[0], judged.unstable[0])
            for name, values in statistics[0].table().items()
        },
        "predictor": None,
    }
    if len(anchors) > 1:
        predictor = stability.predict_stability(
            statistics, judged, anchors=anchors, draws=settings.draws, seed=settings.seed
        )
        found["predictor"] = predictor.to_json()
    return found


def _histograms(values: Tensor, stable: Tensor, unstable: Tensor) -> dict[str, list[float]]:
    """Edges and the counts of the first anchor's two groups."""
    known = values[values.isfinite() & (stable | unstable)[: len(values)]]
    low, high = float(known.min()), float(known.max())
    edges = torch.linspace(low, high if high > low else low + 1, BINS + 1, dtype=torch.float64)
    found: dict[str, list[float]] = {"edges": edges.tolist()}
    for name, group in (("stable", stable), ("unstable", unstable)):
        chosen = values[group[: len(values)] & values.isfinite()]
        found[name] = torch.histogram(chosen.double(), edges).hist.tolist()
    return found
