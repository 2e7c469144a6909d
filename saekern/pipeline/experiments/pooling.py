"""SAEs of the latents that most seeds found, beside single seeds and random pools."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saekern import evaluation, stability
from saekern.pipeline.check import require
from saekern.sae import HierarchicalTopKSAE, TopKSAE

if TYPE_CHECKING:
    from saekern.pipeline.lab import Lab


@dataclass(frozen=True)
class PoolingSettings:
    """Feature pools from disjoint halves of the seeds."""

    splits: int = 5
    """Divisions of the seeds into two halves; each trains six SAEs."""

    rows: int = 262_144
    """Rows of the training after the choice, 2 million in the paper; the single seeds get as many."""

    lr_share: float = 0.1
    """Its peak learning rate, as a share of the study's."""

    size: int | None = None
    """Latents of a pool; null: as many as a seed has."""

    loose: float = 0.9
    """Cosine below which latents fill a pool that is too small with θ."""

    sequences: int = 32
    """Held-out sequences through the model for the cross-entropy; 0 skips it."""

    seed: int = 0
    """Of the divisions and the random pools."""

    def __post_init__(self) -> None:
        for name, least in (("splits", 1), ("rows", 1), ("sequences", 0)):
            require(getattr(self, name) >= least, f"pooling.{name}", f"at least {least}", getattr(self, name))
        require(self.lr_share > 0, "pooling.lr_share", "a positive number", self.lr_share)
        require(self.size is None or self.size >= 1, "pooling.size", "at least 1 or null", self.size)
        require(-1 < self.loose <= 1, "pooling.loose", "a cosine in (-1, 1]", self.loose)


def run(lab: "Lab", settings: PoolingSettings, work: Path) -> dict[str, Any]:
    """`stability.pool_splits`; its trainings lie in `work` and resume from there."""
    if lab.seeds < 4:
        return {"skipped": f"{lab.seeds} seeds; two halves need at least 4"}
    kind = type(lab.saes[0])
    if kind not in (TopKSAE, HierarchicalTopKSAE):
        return {"skipped": f"latents of {kind.__name__} cannot be put together; only a TopK SAE's can"}
    train = lab.config.train
    peak = train.lr if train.lr is not None else 2e-4 * (16384 / lab.config.sae.d_sae) ** 0.5
    config = dataclasses.replace(
        train,
        rows=max(settings.rows, train.batch_size),
        lr=settings.lr_share * peak,
        data_seed=train.data_seed + lab.seeds,  # an order of the rows that no seed has seen
        snapshots=(),
    )
    texts = lab.model_with_texts(settings.sequences)
    found = stability.pool_splits(
        lab.saes,
        lab.rows,
        lab.heldout,
        config,
        splits=settings.splits,
        size=settings.size,
        threshold=lab.threshold,
        loose=max(settings.loose, lab.threshold),
        min_firings=lab.config.stability.min_firings,
        pairs=lab.pairs,
        seed=settings.seed,
        out=work / "training",
        **texts,
    )
    given = found.to_json() | {"lr": config.lr, "threshold": lab.threshold}
    if texts:
        _add_recovered(given, found, texts)
    return given


def _add_recovered(given: dict[str, Any], found: stability.PoolSplits, texts: dict[str, Any]) -> None:
    """The share of the cross-entropy between zeros and the model as it is that each arm keeps: linear in "ce"."""
    clean = evaluation.cross_entropy(**texts)
    span = evaluation.cross_entropy(**texts, sae="zero") - clean
    given |= {"ce_clean": clean, "ce_zero": clean + span}
    for values in found.values.values():
        values["recovered"] = 1 - (values["ce"] - clean) / (span or float("nan"))
    for arm, estimates in given["arms"].items():
        estimates["recovered"] = found.estimate(arm, "recovered").to_json()
    for name, estimates in given["differences"].items():
        a, b = name.split(" - ")
        estimates["recovered"] = found.difference(a, b, "recovered").to_json()
