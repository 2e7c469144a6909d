"""All pairs of a study's seeds once more, beside what the study itself keeps."""

import dataclasses
import os
from pathlib import Path

import torch

from saekern.matching import PairStore, match_all
from saekern.matching.pair import Method
from saekern.pipeline.config import StudyConfig
from saekern.pipeline.measure import dead_masks
from saekern.pipeline.sources import Sources
from saekern.pipeline.steps import StudyFolder


def match_study(
    path: str | os.PathLike,
    method: Method = "assignment",
    store: str | os.PathLike | None = None,
    progress: bool = True,
) -> PairStore:
    """The matching of every pair of seeds of the study in `path`, into `<path>/pairs-<method>`, whole or continued.

    Latents that are dead for the study are set aside. Its own `pairs/` has the nearest partners of all seeds and the
    assignments of the first few; those files belong to its records and stay as they are.

    Args:
        store: another folder to write to.

    Raises:
        FileNotFoundError: no study there.
        ValueError: a seed that is not trained and evaluated yet; another process at work in the folder.
    """
    folder = StudyFolder(path)
    if not folder.file.exists():
        raise FileNotFoundError(f"{folder.file} does not exist: expected the folder of a study")
    config = StudyConfig.from_json(folder.config)
    if not torch.cuda.is_available():
        config = dataclasses.replace(config, device="cpu")  # a study that was brought here from elsewhere
    with folder.locked():
        for i in range(config.seeds):
            looked = f"saes/{i:03d}" if config.saes else f"train/{i:03d}"
            for step in (looked, f"evaluate/{i:03d}") if config.has_rows else (looked,):
                if folder.fingerprint(step) is None:
                    raise ValueError(f"{folder.path}: {step} is not complete; `saekern study` completes it")
        sources = Sources(config, folder.path)
        first = 0 if config.saes else config.first_seed
        seeds = range(first, first + config.seeds)
        target = Path(store) if store is not None else folder.path / f"pairs-{method}"
        return match_all(sources.dictionaries, method, target, progress, dead=dead_masks(sources), seeds=seeds)
