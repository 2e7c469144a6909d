"""The same training from different beginnings."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from saekern import stability
from saekern.activations import ChosenRows
from saekern.pipeline.check import require

if TYPE_CHECKING:
    from saekern.pipeline.lab import Lab

# Every start, both normalisations, the constraint, and untied encoders, each beside the baseline: 12 arms of 30.
ARMS = (
    "random, l2, tied",
    "kmeans-shared, l2, tied",
    "kmeans-own, l2, tied",
    "kmeans-half, l2, tied",
    "data, l2, tied",
    "random, identity, tied",
    "kmeans-shared, identity, tied",
    "random, constraint, tied",
    "kmeans-shared, constraint, tied",
    "kmeans-own, constraint, tied",
    "random, l2, untied",
    "kmeans-shared, l2, untied",
)


@dataclass(frozen=True)
class InitialisationSettings:
    """The initialisation ablation."""

    arms: tuple[str, ...] = ARMS
    """Arms by name, "start, norm, encoder": starts random, kmeans-shared, kmeans-own, kmeans-half, data; norms l2,
    identity, constraint (RA-SAE); encoders tied, untied. The first is what the others are compared with."""

    full: bool = False
    """All 30 arms in place of `arms`."""

    d_sae: int | None = 1024
    """F; null: that of the study. The k-means has as many centroids."""

    seeds: int = 5
    """Runs an arm."""

    rows: int | None = 307_200
    """Rows of the k-means, and of each training, which sees each once; null: the study's, as often as it sees them."""

    seed: int = 0
    """Of the shared k-means and the nulls' rotations."""

    def __post_init__(self) -> None:
        names = {arm.name for arm in stability.initialisation_grid(2, 1)}
        for name in self.arms:
            require(name in names, "initialisation.arms", f"names among {'; '.join(sorted(names))}", name)
        require(0 < len(self.arms) == len(set(self.arms)), "initialisation.arms", "names, every one once", self.arms)
        require(self.seeds >= 3, "initialisation.seeds", "at least 3 (intervals leave one out)", self.seeds)
        require(self.d_sae is None or self.d_sae >= 1, "initialisation.d_sae", "at least 1 or null", self.d_sae)
        require(self.rows is None or self.rows >= 1, "initialisation.rows", "at least 1 or null", self.rows)


def run(lab: "Lab", settings: InitialisationSettings, work: Path) -> dict[str, Any]:
    """`stability.initialisation_ablation` of TopK SAEs of the study's sizes; its trainings lie in `work`."""
    train, k = lab.config.train, lab.config.sae.k
    d_sae = settings.d_sae or lab.config.sae.d_sae
    grid = stability.initialisation_grid(d_sae, k, points_seed=settings.seed)
    if not settings.full:
        named = {arm.name: arm for arm in grid}
        grid = [named[name] for name in settings.arms]
    first = lab.config.first_seed
    count = train.rows if settings.rows is None else max(settings.rows, train.batch_size)
    source: Any = lab.rows
    if settings.rows is not None and count < len(source):
        source = ChosenRows(source, torch.arange(count) * len(source) // count)
    found = stability.initialisation_ablation(
        grid,
        range(first, first + settings.seeds),
        source,
        dataclasses.replace(train, rows=count, snapshots=()),
        evaluated=lab.heldout,
        min_firings=lab.config.stability.min_firings,
        threshold=lab.threshold,
        seed=settings.seed,
        out=work / "training",
    )
    return {"d_sae": d_sae, "k": k, "batch_size": train.batch_size, **found.to_json()}
