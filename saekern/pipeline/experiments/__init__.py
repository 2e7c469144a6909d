"""The experiments of a study: settings, and how each asks the laboratory.

An experiment is one file here, its function in `saekern.stability`, and its section in `saekern.report.sections`, all
of one name. It is also a stage: `saekern study --only masking`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from saekern.pipeline.experiments import (
    archetypal,
    convergence,
    initialisation,
    interpretation,
    masking,
    notebooks,
    pooling,
    statistics,
    strict_rule,
    subspaces,
    synthetic,
    thresholds,
    trajectories,
)

if TYPE_CHECKING:
    from saekern.pipeline.lab import Lab


class Experiment(NamedTuple):
    """How a study runs one."""

    run: "Callable[[Lab, Any, Path], dict[str, Any]]"
    """Gets the laboratory, its settings, and a folder that outlives a kill, for what is worth keeping. Returns what it
    found as plain JSON values: `results/<name>.json`; {"skipped": why} where there is nothing to measure."""
    needs: tuple[str, ...] = ()
    """What it cannot do without: "rows" (activations), "text" (their tokens), "training" (by the study)."""
    variants: bool = False
    """Whether it reads the study's variants."""
    alone: bool = False
    """Whether it reads nothing that the study made."""
    config: tuple[str, ...] = ()
    """Settings of the study, such as "train", that its result depends on beside those of the steps that it reads."""


# In the order in which they run.
EXPERIMENTS = {
    "thresholds": Experiment(thresholds.run),
    "convergence": Experiment(convergence.run),
    "strict_rule": Experiment(strict_rule.run),
    "statistics": Experiment(statistics.run, needs=("rows", "text")),
    "masking": Experiment(masking.run, needs=("rows",)),
    "subspaces": Experiment(subspaces.run, needs=("rows",)),
    "synthetic": Experiment(synthetic.run, alone=True),
    "pooling": Experiment(pooling.run, needs=("rows",), config=("train",)),
    "initialisation": Experiment(
        initialisation.run, needs=("rows",), config=("first_seed", "sae", "stability", "train")
    ),
    "notebooks": Experiment(notebooks.run, needs=("rows",), config=("stability",)),
    "trajectories": Experiment(trajectories.run, needs=("rows", "training"), config=("stability", "train")),
    "archetypal": Experiment(archetypal.run, needs=("rows",), variants=True),
    "interpretation": Experiment(interpretation.run, needs=("rows", "text"), variants=True),
}
