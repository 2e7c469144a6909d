"""How many seeds are enough for the distribution of p̂."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saekern import stability
from saekern.pipeline.check import require

if TYPE_CHECKING:
    from saekern.pipeline.lab import Lab


@dataclass(frozen=True)
class ConvergenceSettings:
    """How many seeds are enough."""

    distance: float = 0.05
    """Largest difference between two distributions of p̂ that counts as none."""

    draws: int = 20
    """Random choices of the runs."""

    seed: int = 0
    """Of the choices."""

    def __post_init__(self) -> None:
        require(0 < self.distance < 1, "convergence.distance", "a share in (0, 1)", self.distance)
        require(self.draws >= 1, "convergence.draws", "at least 1", self.draws)


def run(lab: "Lab", settings: ConvergenceSettings, work: Path) -> dict[str, Any]:
    """`ecdf_convergence` at powers of two, at half of the other runs, the largest size that two sets can have, and at
    all."""
    others = lab.seeds - 1
    if others < 2:
        return {"skipped": "two seeds compare once, so that there are no two sets of comparisons"}
    sizes = sorted({1 << i for i in range(others.bit_length()) if 1 << i <= others} | {others // 2, others})
    found = stability.ecdf_convergence(
        lab.pairs, lab.threshold, sizes=sizes, draws=settings.draws, seed=settings.seed
    ).to_json()
    # The size from which on, in all draws, two sets are near each other and near all runs. Either alone misleads: one
    # run gives every set the same two values of p̂, and the largest sets are nearly all runs.
    enough = None
    for line in reversed([line for line in found["lines"] if line["disjoint"]["max"] is not None]):
        if max(line["disjoint"]["max"], line["to_full"]["max"]) > settings.distance:
            break
        enough = line["runs"]
    return found | {"distance": settings.distance, "draws": settings.draws, "enough": enough}
