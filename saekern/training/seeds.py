"""Several seeds on the same rows."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from saekern.activations import Rows
from saekern.sae import SAE
from saekern.training.config import TrainConfig
from saekern.training.loop import TrainResult, train


def train_seeds(
    make: Callable[[int], SAE],
    init_seeds: Sequence[int],
    rows: Rows,
    config: TrainConfig,
    *,
    out: str | os.PathLike | None = None,
    progress: bool = True,
) -> list[TrainResult]:
    """Trains make(init_seed) for each seed, one after the other, on the same rows in the same order.

    Only the initialisation differs between the runs, as in studies of seed stability. Run i lives in `<out>/000`,
    `<out>/001`, …; after a kill, finished runs are read and the unfinished one resumes.
    """
    results = []
    for i, seed in enumerate(init_seeds):
        path = None if out is None else Path(out) / f"{i:03d}"
        label = f"seed {i + 1}/{len(init_seeds)}"
        results.append(train(make(seed), rows, config, out=path, progress=progress, label=label))
    return results
