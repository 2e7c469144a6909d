"""How far the shares of stable and unstable latents hang on θ and ε."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saekern import stability
from saekern.pipeline.check import require
from saekern.stability.sweep import EPSILONS, THRESHOLDS

if TYPE_CHECKING:
    from saekern.pipeline.lab import Lab


@dataclass(frozen=True)
class ThresholdsSettings:
    """Shares of stable latents at other θ and ε."""

    thresholds: tuple[float, ...] = THRESHOLDS
    """θ, ascending; the study's own is added."""

    epsilons: tuple[float, ...] = EPSILONS
    """ε, ascending; the study's own is added."""

    null_seeds: int = 32
    """Rotated dictionaries in the null; no more than there are seeds."""

    seed: int = 0
    """Of the rotations."""

    def __post_init__(self) -> None:
        for name, low, high in (("thresholds", -1, 1), ("epsilons", 0, 0.499)):
            values = getattr(self, name)
            valid = all(low <= v <= high for v in values) and all(a < b for a, b in pairwise(values))
            require(valid, f"thresholds.{name}", f"ascending values in {low}..{high}", list(values))
        require(self.null_seeds >= 2, "thresholds.null_seeds", "at least 2", self.null_seeds)


def run(lab: "Lab", settings: ThresholdsSettings, work: Path) -> dict[str, Any]:
    """`stability_sweep` of the seeds and of rotated dictionaries; intervals over runs at the study's ε."""
    thresholds = sorted({*settings.thresholds, lab.threshold})
    epsilons = sorted({*settings.epsilons, lab.epsilon})
    runs = min(settings.null_seeds, lab.seeds)
    rotated = stability.rotated_dictionaries(lab.dictionaries[:runs], seed=settings.seed)
    null = stability.stability_sweep(rotated, thresholds, epsilons, [*lab.live[:runs]])
    intervals = [stability.share_intervals(lab.pairs, threshold, lab.epsilon) for threshold in thresholds]
    return {
        "threshold": lab.threshold,
        "epsilon": lab.epsilon,
        "thresholds": thresholds,
        "epsilons": epsilons,
        "intervals": [line.to_json() for line in intervals],
        "confidence": 0.95,
        "seeds": stability.stability_sweep(lab.pairs, thresholds, epsilons).to_json(),
        "null": {"runs": runs} | null.to_json(),
    }
