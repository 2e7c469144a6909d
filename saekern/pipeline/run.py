"""Run what is due."""

import dataclasses
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saekern.pipeline.config import StudyConfig
from saekern.pipeline.sources import Sources
from saekern.pipeline.stages import STAGES, steps
from saekern.pipeline.steps import Step, StudyFolder
from saekern.report import Results, load
from saekern.training.device import usable_device

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Study:
    """A study on disk."""

    path: Path
    """Its folder."""
    config: StudyConfig
    """What was asked for."""
    ran: tuple[str, ...]
    """Steps that this call ran; the others were complete."""

    @property
    def report(self) -> Path:
        """The page."""
        return self.path / "report.html"

    def results(self) -> Results:
        """The numbers, read from `results/`."""
        return load(self.path)

    def sae(self, index: int) -> Any:
        """The SAE of one seed, or the given one."""
        return Sources(dataclasses.replace(self.config, device="cpu"), self.path).sae(index)


def study(config: StudyConfig, out: str | os.PathLike, only: str | None = None, progress: bool = True) -> Study:
    """Harvest → train S seeds → evaluate → match all pairs → stability → latents → report, in the folder `out`.
    With `config.saes` nothing is trained, and without rows nothing harvested or evaluated either.

    A step is skipped when it is complete and neither its settings nor what it reads has changed (compared by hash). A
    kill at any moment costs at most the work since the last checkpoint: the same call continues. What a changed step
    left before stays until the new result is complete.

    Args:
        config: the settings; `saekern.StudyConfig.read(path)` reads JSON.
        out: the study's folder, made if missing.
        only: run one stage of harvest, saes, train, evaluate, match, stability, latents, report, if it is due. The
            stages it reads must be complete.
        progress: progress bars.

    Raises:
        ValueError: a stage that does not exist, or whose inputs are incomplete; an output that was cut short or altered
            since (the message names it); another process at work in the folder; a device that is not there.
        OSError: a full disk or an unreadable file; finished steps are intact.
    """
    if only is not None and only not in STAGES:
        raise ValueError(f"only: expected one of {', '.join(STAGES)}, got {only!r}")
    usable_device(config.device)
    folder = StudyFolder(out)
    ran = []
    with folder.locked():
        folder.repair()
        work = steps(config, folder, progress)
        folder.config = config.to_json()
        folder.forget({step.name for step in work})
        folder.save()
        for step in work:
            if only is not None and step.stage != only:
                continue
            _check_inputs(folder, step, work)
            reason = folder.due(step)
            if reason is None:
                log.debug("%s: complete", step.name)
                continue
            log.info("%s (%s)", step.name, reason)
            folder.run(step)
            ran.append(step.name)
    return Study(Path(out), config, tuple(ran))


def _check_inputs(folder: StudyFolder, step: Step, work: list[Step]) -> None:
    by_name = {other.name: other for other in work}
    for name in step.reads:
        reason = folder.due(by_name[name])
        if reason is not None:
            raise ValueError(f"{step.name} reads {name}, which is not complete ({reason}); run without only first")
