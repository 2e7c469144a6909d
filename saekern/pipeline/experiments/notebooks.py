"""The four arms of the released notebooks, on the study's rows or on a file's."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from saekern import stability
from saekern.activations import TensorRows, open_shards
from saekern.pipeline.check import require

if TYPE_CHECKING:
    from saekern.pipeline.lab import Lab


@dataclass(frozen=True)
class NotebooksSettings:
    """The notebooks' arms with their hyper-parameters: F = 200, K = 3, 100 points."""

    activations: str | None = None
    """A file of rows: .npy [n, D], .safetensors, or .npz, whose only array is taken with all but its last dimension
    flattened; null: rows of the study. A change inside the file goes unnoticed."""

    rows: int = 76_800
    """Rows, evenly spaced, as many as the notebooks have; or all there are."""

    epochs: int = 20
    """Times that the training sees each."""

    seeds: int = 5
    """Runs an arm; the notebooks have two."""

    more: bool = False
    """Four further arms, which take the comparison apart."""

    seed: int = 0
    """Of the shared k-means and the nulls' rotations."""

    def __post_init__(self) -> None:
        for name, least in (("rows", 100), ("epochs", 1), ("seeds", 3)):
            require(getattr(self, name) >= least, f"notebooks.{name}", f"at least {least}", getattr(self, name))


def run(lab: "Lab", settings: NotebooksSettings, work: Path) -> dict[str, Any]:
    """`stability.initialisation_ablation` of `notebook_arms`, rows as they are and centred; trainings in `work`."""
    source = lab.rows if settings.activations is None else file_rows(Path(settings.activations))
    count = min(settings.rows, len(source))
    raw = source.take(torch.arange(count) * len(source) // count).float()
    found: dict[str, Any] = {"file": settings.activations, "rows": count, "width": raw.shape[1]}
    found["epochs"] = settings.epochs
    for name, rows in (("centred", (raw.double() - raw.double().mean(0)).float()), ("uncentred", raw)):
        ablation = stability.initialisation_ablation(
            stability.notebook_arms(points_seed=settings.seed, more=settings.more),
            range(settings.seeds),
            TensorRows(rows),
            stability.notebook_config(count, epochs=settings.epochs),
            threshold=lab.threshold,
            seed=settings.seed,
            out=work / name,
        )
        beside = stability.beside_published(ablation, centred=name == "centred")
        found[name] = {**ablation.to_json(), "beside": beside}
    return found


def file_rows(path: Path) -> Any:
    """The rows of a file.

    Raises:
        FileNotFoundError, ValueError: missing, damaged, or not of one floating array; the file is named.
    """
    if path.suffix != ".npz":
        return open_shards([path])
    try:
        with np.load(path, allow_pickle=False) as arrays:
            known = {name: arrays[name] for name in arrays.files if arrays[name].dtype.kind == "f"}
    except (ValueError, EOFError, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path}: truncated or not an .npz file ({error})") from error
    if len(known) != 1 or next(iter(known.values())).ndim < 2:
        shapes = {name: list(array.shape) for name, array in known.items()}
        raise ValueError(f"{path}: expected one floating array [..., D], got {shapes}")
    only: Tensor = torch.from_numpy(next(iter(known.values())))
    return TensorRows(only.reshape(-1, only.shape[-1]))
