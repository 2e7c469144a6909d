"""`pooling` over several divisions of the same seeds, so that its numbers have intervals."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saekern.activations import Rows
from saekern.sae import SAE
from saekern.stability.contributions import activation_mass
from saekern.stability.jackknife import Estimate, over_runs
from saekern.stability.pooling import ARMS, Pooling, divisions, pooling
from saekern.training import TrainConfig

# Fields of `PoolArm`.
METRICS = (
    *("ev_before", "mass_covered", "ev", "l0", "dead"),
    *("match_rate_before", "match_rate", "mean_cosine", "reappearance", "ce"),
)


@dataclass(frozen=True, eq=False)
class PoolSplits:
    """Made by `pool_splits`. N divisions."""

    runs: list[Pooling]
    """One a division; without its SAEs."""
    values: dict[str, dict[str, Tensor]]
    """By arm and field of `PoolArm`, float64 [N], the mean of both halves; "ce" only with a model."""
    confidence: float
    """Coverage of the intervals, each by itself."""

    def estimate(self, arm: str, metric: str) -> Estimate:
        """Mean over divisions and Student's interval; no interval with fewer than 3 of them.

        Divisions share their seeds. The interval says what other divisions of these seeds would give; other seeds would
        vary somewhat more.
        """
        return over_runs(self.values[arm][metric], self.confidence)

    def difference(self, a: str, b: str, metric: str) -> Estimate:
        """Arm a less arm b, paired by division."""
        return over_runs(self.values[a][metric] - self.values[b][metric], self.confidence)

    def to_json(self) -> dict[str, Any]:
        """Estimates, and every division's own numbers, as plain numbers."""
        metrics = list(self.values["pool"])
        first = self.runs[0]
        return {
            "divisions": len(self.runs),
            "seeds": [len(half) for half in first.halves],
            "size": first.size,
            "extra_rows": first.extra_rows,
            "rows": first.rows,
            "confidence": self.confidence,
            "arms": {arm: {name: self.estimate(arm, name).to_json() for name in metrics} for arm in ARMS},
            "differences": {
                f"pool - {arm}": {name: self.difference("pool", arm, name).to_json() for name in metrics}
                for arm in ARMS
                if arm != "pool"
            },
            "comparisons": (len(ARMS) - 1) * len(metrics),
            "runs": [run.to_json() for run in self.runs],
        }


def pool_splits(
    saes: Sequence[SAE],
    rows: Rows,
    held_out: Rows,
    config: TrainConfig,
    *,
    splits: int = 5,
    seed: int = 0,
    batch: int = 4096,
    confidence: float = 0.95,
    out: str | os.PathLike | None = None,
    **options: Any,
) -> PoolSplits:
    """`pooling` of several random divisions of the seeds into halves, each with its own single seeds (`divisions`).

    Args:
        saes, rows, held_out, config, options: as in `pooling`.
        splits: divisions; each trains six SAEs. Four seeds have 3 of them, five 10.
        out: folder for all trainings, from which the same call resumes.

    Raises:
        ValueError: as `pooling`, or no division.
    """
    if splits < 1:
        raise ValueError(f"splits: expected at least 1, got {splits}")
    statistics = [activation_mass(sae, held_out, batch) for sae in saes]
    runs = []
    for i, halves in enumerate(divisions(len(saes), splits, seed)):
        found = pooling(
            saes,
            rows,
            held_out,
            config,
            halves=halves,
            statistics=statistics,
            seed=seed + i,
            batch=batch,
            confidence=confidence,
            out=None if out is None else Path(out) / f"{i:03d}",
            **options,
        )
        found.saes.clear()  # 6 · 2 F D numbers a division
        runs.append(found)
    known = [name for name in METRICS if getattr(runs[0].arms["pool"], name) is not None]
    values = {
        arm: {
            name: torch.tensor([_mean(getattr(run.arms[arm], name)) for run in runs], dtype=torch.float64)
            for name in known
        }
        for arm in ARMS
    }
    return PoolSplits(runs, values, confidence)


def _mean(value: Any) -> float:
    return sum(value) / len(value) if isinstance(value, tuple) else float(value)
