"""The seeds over the course of their training."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import saekern.sae
from saekern import stability
from saekern.pipeline.check import require
from saekern.pipeline.snapshots import snapshot_steps
from saekern.stability.jackknife import over_runs
from saekern.stability.lazy import Lazy

if TYPE_CHECKING:
    from saekern.pipeline.lab import Lab


@dataclass(frozen=True)
class TrajectoriesSettings:
    """Distances between runs at steps 0, 1, 2, 4, 8, …: these seeds then keep their parameters at those steps."""

    seeds: int = 5
    """Seeds, the first ones, that are followed."""

    share: float = 0.5
    """Of the other runs to which a latent must have locked in."""

    null_pairs: int = 2
    """Pairs of which one run is turned by a random rotation."""

    seed: int = 0
    """Of the rotations."""

    def __post_init__(self) -> None:
        require(self.seeds >= 3, "trajectories.seeds", "at least 3 (intervals leave one out)", self.seeds)
        require(0 < self.share <= 1, "trajectories.share", "a share in (0, 1]", self.share)
        require(self.null_pairs >= 1, "trajectories.null_pairs", "at least 1", self.null_pairs)


def run(lab: "Lab", settings: TrajectoriesSettings, work: Path) -> dict[str, Any]:
    """`stability.trajectories` of the first seeds, in the three geometries."""
    runs = min(settings.seeds, lab.seeds)
    if runs < 3:
        return {"skipped": f"{lab.seeds} seeds; intervals need at least 3"}
    steps = snapshot_steps(lab.config, 0)
    folders = lab.sources.sae_paths()[:runs]

    def snapshots(folder: Path) -> Lazy:
        def at(t: int) -> Tensor:
            sae = saekern.sae.load(folder, weights=f"snapshots/{steps[t]:08d}.safetensors")
            return sae.dictionary.detach()

        return Lazy(len(steps), at)

    found = stability.trajectories(
        [snapshots(folder) for folder in folders],
        steps,
        dead=list(~lab.live[:runs]),
        mean="atoms",  # as in the ablation
        covariance=lab.covariance,
        threshold=lab.threshold,
        null_pairs=settings.null_pairs,
        seed=settings.seed,
    )
    result = {"seeds": runs, "share": settings.share, "batch_size": lab.config.train.batch_size, **found.to_json()}
    at = torch.tensor(steps)
    for name, one in found.geometries.items():
        for curve, first in (("born", one.birth), ("locked_in", one.lock_in(settings.share))):
            reached = (first[:, None] >= 0) & (first[:, None] <= at[:, None]) & one.live[:, None]  # [S, T, F]
            shares = reached.sum(2).double() / one.live.sum(1, keepdim=True)
            result["geometries"][name][curve] = over_runs(shares.T).to_json()
    return result
