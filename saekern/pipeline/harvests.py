"""Steps that run a model over the study's token sequences and keep what a hook sees."""

from pathlib import Path
from typing import Any

from saekern import activations
from saekern.pipeline.row_source import RowSource
from saekern.pipeline.sources import Sources
from saekern.pipeline.steps import Step


def harvest_step(
    sources: Sources, plain: dict[str, Any], split: str, progress: bool, source: RowSource | None = None
) -> Step:
    """For the study's own rows, or for those of another source that is harvested."""
    settings = sources.config.activations
    other = "heldout_sequences" if split == "train" else "sequences"
    # The count of the other split matters only where both come from one file.
    kept = {k: v for k, v in plain["activations"].items() if k != other or settings.tokens is not None}
    hook = settings.hook
    name, folder = f"harvest/{split}", f"activations/{split}"
    if source is not None:
        hook = source.hook
        kept |= {"model": source.model, "hook": hook}
        if source.random:
            kept["random_model"] = sources.config.stability.null_seed
        name, folder = f"harvest/{source.harvested}-{split}", f"activations/{source.harvested}/{split}"
    kept["weights"] = activations.weights_hash(kept["model"])

    def run(work: Path) -> None:
        activations.harvest(
            sources.model if source is None else sources.model_of(source),
            hook,
            sources.sequences(split),
            work / split,
            batch=settings.batch,
            exclude_bos=settings.exclude_bos,
            progress=progress,
        )

    return Step(name, kept, (), (folder,), run)
