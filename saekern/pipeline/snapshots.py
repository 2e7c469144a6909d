"""At which steps the runs of a study keep their parameters."""

from typing import TYPE_CHECKING

from saekern.training import doubling

if TYPE_CHECKING:
    from saekern.pipeline.config import StudyConfig


def snapshot_steps(config: "StudyConfig", index: int) -> tuple[int, ...]:
    """Step 0, on which D(0) is measured, those asked for, and 1, 2, 4, 8, … for the seeds whose trajectories are
    followed. In the parameters' own precision: at F = 1024 and D = 128 a snapshot is 1 MB, twelve of five runs 60.
    """
    return tuple(sorted({0, *config.train.snapshots, *trajectory_steps(config, index)}))


def trajectory_steps(config: "StudyConfig", index: int) -> tuple[int, ...]:
    """Steps that the experiment `trajectories` adds; none where it does not run or has seeds enough."""
    followed = "trajectories" in config.experiments.run and index < config.experiments.trajectories.seeds
    return doubling(config.train.steps) if followed else ()
