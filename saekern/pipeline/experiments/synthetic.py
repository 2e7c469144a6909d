"""SAEs on rows whose true features are known."""

import dataclasses
import json
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saekern import stability
from saekern.pipeline.check import require
from saekern.pipeline.steps import write_json
from saekern.stability.phases import TRAINING

if TYPE_CHECKING:
    from saekern.pipeline.lab import Lab

BIAS_ROWS = 4096  # the geometric median of 32,768 takes longer than the training of so small an SAE


@dataclass(frozen=True)
class SyntheticSettings:
    """Isolated features and features in a block of few dimensions, over a grid. It reads nothing of the study."""

    ranks: tuple[int, ...] = (2, 4, 8, 16, 32)
    """Dimensions of the block."""

    noises: tuple[float, ...] = (0.0, 0.3)
    """Expected norms of the noise."""

    ks: tuple[int, ...] = (2, 4)
    """Active latents a row, and active features on average."""

    seeds: int = 5
    """SAEs for each point of the grid."""

    rows: int = 200_000
    """Rows of each training."""

    width: int = 64
    """D."""

    identifiable: int = 64
    """Isolated features."""

    low_rank: int = 48
    """Features in the block."""

    seed: int = 0
    """Of the true models and the nulls."""

    def __post_init__(self) -> None:
        for name in ("ranks", "noises", "ks"):
            require(len(getattr(self, name)) > 0, f"synthetic.{name}", "at least one value", getattr(self, name))
        for name, least in (("seeds", 3), ("rows", TRAINING.batch_size), ("width", 1)):
            require(getattr(self, name) >= least, f"synthetic.{name}", f"at least {least}", getattr(self, name))


def run(lab: "Lab", settings: SyntheticSettings, work: Path) -> dict[str, Any]:
    """`stability.recovery_phases`, a file in `work` for each point of the grid that is done."""
    cells, shared = [], {}
    for rank, noise, k in product(settings.ranks, settings.noises, settings.ks):
        path = work / f"rank-{rank}-noise-{noise:g}-k-{k}.json"
        if not path.exists():
            found = stability.recovery_phases(
                ranks=(rank,),
                noises=(noise,),
                ks=(k,),
                seeds=settings.seeds,
                width=settings.width,
                identifiable=settings.identifiable,
                low_rank=settings.low_rank,
                config=dataclasses.replace(TRAINING, rows=settings.rows, pre_bias_rows=BIAS_ROWS),
                seed=settings.seed,
            )
            write_json(path, found.to_json())
        shared = json.loads(path.read_text(encoding="utf-8"))
        cells += shared["cells"]
    return {**shared, "cells": cells}
