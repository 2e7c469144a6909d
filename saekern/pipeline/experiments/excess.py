"""Reappearance beyond chance."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saekern import stability
from saekern.pipeline.check import require
from saekern.stability.interval import jackknife_interval

if TYPE_CHECKING:
    from saekern.pipeline.lab import Lab


@dataclass(frozen=True)
class ExcessSettings:
    """Reappearance beyond chance."""

    level: float = 0.05
    """False discovery rate of "beyond chance", and the share of chance matches that the calibrated θ leaves."""

    null_seeds: int = 16
    """Dictionaries in each null; no more than there are seeds."""

    draws: int = 1
    """Repetitions of each null."""

    seed: int = 0
    """Of the nulls."""

    def __post_init__(self) -> None:
        require(0 < self.level < 1, "excess.level", "a share in (0, 1)", self.level)
        for name, least in (("null_seeds", 2), ("draws", 1)):
            require(getattr(self, name) >= least, f"excess.{name}", f"at least {least}", getattr(self, name))


def run(lab: "Lab", settings: ExcessSettings, work: Path) -> dict[str, Any]:
    """`null_excess` against random and rotated dictionaries."""
    runs = min(settings.null_seeds, lab.seeds)
    options: dict[str, Any] = {"threshold": lab.threshold, "epsilon": lab.epsilon}
    chosen: dict[str, Any] = {"draws": settings.draws, "seed": settings.seed}
    dictionaries, live = lab.dictionaries[:runs], [*lab.live[:runs]]
    shapes = [tuple(d.shape) for d in dictionaries]
    controls = {
        "random": stability.random_null(shapes, device=lab.config.device, **chosen, **options),
        "rotated": stability.rotated_null(dictionaries, live=live, **chosen, **options),
    }
    found = stability.feature_stability(lab.pairs, **options)
    rate = [float(end) for end in jackknife_interval(lab.arrays["pair_matched"])]
    return {
        "runs": runs,
        "draws": settings.draws,
        "threshold": lab.threshold,
        "match_rate": dict(zip(("mean", "low", "high"), rate, strict=True)),
        "confidence": 0.95,
        "controls": {
            name: stability.null_excess(found, control, settings.level).to_json() for name, control in controls.items()
        },
    }
