"""The initialisation ablation: the same training from different beginnings, and how far apart the runs end."""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saekern.activations import Rows
from saekern.evaluation import measure
from saekern.sae import SAE
from saekern.sae.files import read_tensors
from saekern.stability.arms import Arm
from saekern.stability.jackknife import Estimate, over_pairs, over_runs
from saekern.stability.trajectories import trajectories
from saekern.stability.trajectory import Trajectories
from saekern.training import TrainConfig, train


@dataclass(frozen=True, eq=False)
class ArmResult:
    """One arm: S runs from one recipe."""

    name: str
    """The arm's."""
    factors: dict[str, Any]
    """The arm's."""
    trajectories: Trajectories
    """Distances at each step, in every geometry, with D(0), nulls and verdict."""
    explained_variance: Tensor
    """[S] float64, on the evaluated rows."""
    l0: Tensor
    """[S] mean active latents a row."""
    dead: Tensor
    """[S] share of latents set aside: they fired fewer than `min_firings` times on the evaluated rows."""

    def row(self, confidence: float) -> dict[str, Any]:
        """The arm's line of the table, as plain numbers."""
        runs = self.trajectories
        line: dict[str, Any] = {"arm": self.name, **self.factors, "runs": runs.runs}
        for name, one in runs.geometries.items():
            live, every, index, index_all = one.between, one.between_all, one.index, one.index_all
            line[name] = {
                "initial": _at(live, 0),
                "initial_all": _at(every, 0),
                "final": _at(live, -1),
                "final_all": _at(every, -1),
                "null": Estimate(*[one.null[-1].mean()] * 3).to_json()["mean"],
                "movement": _at(one.moved, -1),
                "same_at_start": float(one.same.nanmean()),
                "stabilisation_index": None if index is None else index.to_json(),
                "stabilisation_index_all": None if index_all is None else index_all.to_json(),
            }
        for name in ("explained_variance", "l0", "dead"):
            line[name] = over_runs(getattr(self, name), confidence).to_json()
        return line | {"shared_init": runs.shared, "verdict": runs.verdict}


@dataclass(frozen=True, eq=False)
class InitialisationAblation:
    """All arms on the same rows, with the same seeds. Made by `initialisation_ablation`."""

    arms: list[ArmResult]
    """In the order given; the first is what the others are compared with."""
    init_seeds: list[int]
    """[S], the same in every arm."""
    data_seeds: list[int]
    """[S] of the order of the rows."""
    steps: list[int]
    """[T] of the snapshots, 0 and the last step among them."""
    rows: int
    """Rows trained on, repeats included."""
    evaluated: int
    """Rows that EV, L0 and dead latents are from."""
    min_firings: int
    """Rows on which a latent must fire to count as live."""
    confidence: float
    """Of the intervals; those of differences hold jointly, by Bonferroni."""

    def differences(self, geometry: str = "raw", *, dead_too: bool = False) -> dict[str, Estimate]:
        """D(T) of each arm minus the first's, pair of seeds by pair of seeds, jackknifed over seeds. Negative: runs of
        the arm end closer together. The intervals hold jointly over the arms with `confidence` (Bonferroni).

        An arm with a shared initialisation is in the table like any other: its difference is descent.

        Args:
            dead_too: over all latents.
        """
        name = "distance_all" if dead_too else "distance"
        ends = [getattr(arm.trajectories.geometries[geometry], name)[-1] for arm in self.arms]
        level = 1 - (1 - self.confidence) / max(1, len(ends) - 1)
        return {
            arm.name: over_pairs(end - ends[0], len(self.init_seeds), level)
            for arm, end in zip(self.arms[1:], ends[1:], strict=True)
        }

    @property
    def notes(self) -> list[str]:
        """What must be said beside the table: a line for every arm that began at one place."""
        return [f"{arm.name}: {arm.trajectories.verdict}" for arm in self.arms if arm.trajectories.shared]

    def to_json(self) -> dict[str, Any]:
        """The table, a line an arm, and the differences, as plain numbers."""
        geometries = list(self.arms[0].trajectories.geometries)
        return {
            "init_seeds": self.init_seeds,
            "data_seeds": self.data_seeds,
            "steps": self.steps,
            "rows": self.rows,
            "evaluated": self.evaluated,
            "min_firings": self.min_firings,
            "interval": f"delete-one-seed jackknife, {self.confidence:.0%}",
            "comparisons": len(self.arms) - 1,
            "difference_interval": f"paired by seed, jackknife, jointly {self.confidence:.0%} (Bonferroni)",
            "notes": self.notes,
            "arms": [arm.row(self.confidence) for arm in self.arms],
            "differences": {
                name: {arm: found.to_json() for arm, found in self.differences(name).items()} for name in geometries
            },
        }


def initialisation_ablation(
    arms: Sequence[Arm],
    init_seeds: Sequence[int],
    rows: Rows,
    config: TrainConfig,
    *,
    evaluated: Rows | None = None,
    vary_data: bool = True,
    min_firings: int = 1,
    threshold: float = 0.7,
    null_pairs: int = 2,
    seed: int = 0,
    confidence: float = 0.95,
    out: str | os.PathLike | None = None,
    progress: bool = False,
) -> InitialisationAblation:
    """Trains every arm from every seed on the same rows, and measures how far apart its runs begin and end.

    The table has D(0) beside D(T), over latents live in both runs and over all atoms, in raw, centred and whitened
    cosine, with rotated nulls; EV, L0 and dead latents; arms whose D(0) is 0 say so. "Centered" takes the mean atom of
    each dictionary away: it is the data's mean where atoms lie in data space, and near 0 where b_dec has taken that up.
    Not x̄ − b_dec: b_dec moves in training. On the shipped model's rows (F = 1024) it left an offset so much longer than
    a unit atom that independent random starts had D(0) = 0.04, where raw and rotated ones have 0.73.

    Memory: the T snapshots of one arm's S runs, S·T·F·D floats, beside one SAE in training.

    Args:
        arms: recipes, such as `initialisation_grid(...)` or `notebook_arms(...)`; the first is the baseline.
        init_seeds: S ≥ 2; intervals need 3, and mean something from about 5.
        config: of every run; its `snapshots` are the steps between 0 and the end.
        evaluated: rows of EV and of dead latents; None is `rows`.
        vary_data: run s has config.data_seed + s, in every arm alike; False: all runs the same order. Runs that share
            their encoder, decoder and order are one run.
        min_firings: rows on which a latent must fire not to count as dead.
        threshold, null_pairs, seed, confidence: as in `trajectories`.
        out: a folder of the trainings, which the same call resumes after a kill, with the same bits: `<out>/<arm>/<s>`.
            Their files stay.
        progress: a bar a run.

    Raises:
        ValueError: no arms, names that repeat, fewer than two seeds or repeated ones, what `train` refuses.

    Source: Brzozowski & Chung 2026, arXiv 2606.02061; the arms beyond theirs, intervals and nulls are ours.
    """
    seeds, names = [int(s) for s in init_seeds], [arm.name for arm in arms]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"arms: expected at least one, with different names, got {names}")
    if len(seeds) < 2 or len(set(seeds)) < len(seeds):
        raise ValueError(f"init_seeds: expected at least two, all different, got {seeds}")
    orders = [config.data_seed + (s if vary_data else 0) for s in range(len(seeds))]
    steps = sorted({0, *config.snapshots, config.steps})
    judged = rows if evaluated is None else evaluated
    covariance = moments(judged)[1]
    options: dict[str, Any] = {"threshold": threshold, "null_pairs": null_pairs, "seed": seed, "confidence": confidence}
    results = []
    for arm in arms:
        kept, measured = [], []
        for init_seed, order in zip(seeds, orders, strict=True):
            sae, settings = arm.make(init_seed, rows), dataclasses.replace(config, data_seed=order)
            label = f"{arm.name}, seed {init_seed}"
            folder = None if out is None else Path(out) / _file_name(arm.name) / f"{init_seed:03d}"
            kept.append(_dictionaries(sae, rows, settings, steps, folder, progress=progress, label=label))
            measured.append(measure(sae, judged))
        dead = [one.counts < min_firings for one in measured]
        found = trajectories(kept, steps, dead=dead, mean="atoms", covariance=covariance, **options)
        numbers = [
            (one.explained_variance, one.l0, float(d.double().mean())) for one, d in zip(measured, dead, strict=True)
        ]
        results.append(ArmResult(arm.name, arm.factors, found, *torch.tensor(numbers, dtype=torch.float64).T))
    return InitialisationAblation(
        results, seeds, orders, steps, config.steps * config.batch_size, len(judged), min_firings, confidence
    )


def _dictionaries(
    sae: SAE, rows: Rows, config: TrainConfig, steps: Sequence[int], folder: Path | None, **shown: Any
) -> list[Tensor]:
    """Trains `sae` and gives its dictionaries at the steps, the last of them the end."""
    if folder is None:
        recorder = Recorder(sae, steps)
        train(sae, rows, dataclasses.replace(config, snapshots=(), log_every=recorder.every), logger=recorder, **shown)
        return recorder.found
    train(sae, rows, dataclasses.replace(config, snapshots=tuple(steps)), out=folder, **shown)
    found = []
    for step in steps:  # ascending, so that the SAE has its last parameters again in the end
        sae.load_state_dict(read_tensors(folder / "snapshots" / f"{step:08d}.safetensors")[0])
        found.append(sae.dictionary.detach().clone())
    return found


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name)


class Recorder:
    """Keeps copies of an SAE's dictionary at some steps: a logger, which the training loop calls after its steps."""

    def __init__(self, sae: SAE, steps: Sequence[int]):
        self.sae, self.steps = sae, frozenset(steps)
        self.every = 1 if len(steps) > 2 else max(1, max(steps))
        self.found = [sae.dictionary.detach().clone()]  # training only moves b_dec before its first step

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        if step in self.steps:
            self.found.append(self.sae.dictionary.detach().clone())


@torch.no_grad()
def moments(rows: Rows, batch: int = 65536) -> tuple[Tensor, Tensor]:
    """The mean [D] and covariance [D, D] (divided by n) of rows, float64 sums about the first row."""
    first = rows.take(torch.zeros(1, dtype=torch.int64)).double()
    total, scatter = torch.zeros(rows.width, dtype=torch.float64), torch.zeros(rows.width, rows.width).double()
    for start in range(0, len(rows), batch):
        shifted = rows.take(torch.arange(start, min(start + batch, len(rows)))).double() - first
        total += shifted.sum(0)
        scatter += shifted.T @ shifted
    mean = total / len(rows)
    return mean + first[0], scatter / len(rows) - torch.outer(mean, mean)


def _at(estimate: Estimate, t: int) -> dict[str, Any]:
    return Estimate(*(value[t] for value in estimate)).to_json()
