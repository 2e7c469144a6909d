"""Where sparse autoencoders find single features, where only the space of them, and where neither: a phase diagram."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from saekern.activations import LowRankRows, TensorRows, low_rank_rows
from saekern.evaluation import measure
from saekern.sae import TopKSAE
from saekern.stability.features import FeatureStability, feature_stability
from saekern.stability.means import mean_interval
from saekern.stability.recovery import Recovery, feature_recovery, leading_vectors
from saekern.training import TrainConfig, train

TRAINING = TrainConfig(rows=200_000, batch_size=256, lr=3e-3, dead_after=10_000)


@dataclass(frozen=True, eq=False)
class PhaseCell:
    """One point of the grid: S seeds of an SAE on rows of one true model."""

    rank: int
    """Dimensions of the block."""
    noise: float
    """Expected norm of the noise."""
    k: int
    """Active latents a row, and expected active features."""
    recoveries: list[Recovery]
    """[S], one a seed."""
    explained_variance: list[float]
    """[S], on held-out rows."""
    stability: FeatureStability
    """p̂ of the S runs, live latents only."""
    cross: Tensor
    """[S, S] float64: share of the energy of run i's block latents in the first `rank` singular vectors of run j's; the
    diagonal is within a run. NaN where a run has no block latents."""
    principal: float
    """Share of the block features' energy in the `rank` leading principal directions of the rows: what the data's
    variance gives away without any SAE."""
    principal_cross: float
    """Mean over runs of the share of their block latents' energy in those directions: the control for `cross`."""
    scattered_probability: float
    """Mean p̂ of as many uniform random directions inside the block as each run has block latents: the null of their p̂,
    far from 0 in few dimensions."""

    def probability(self, block: bool) -> float:
        """Mean p̂ of live latents whose nearest true feature lies in the block, or of the others."""
        members = torch.stack([run.block if block else run.live & ~run.block for run in self.recoveries])
        return float(self.stability.probability[members].mean())

    @property
    def phase(self) -> str:
        """What was found of the block, in one word: "latents" when at least half of the excess over directions thrown
        into it is there, "subspace" when at least 0.9 of its energy is captured, "none" otherwise. Our thresholds."""
        if _mean([run.excess for run in self.recoveries]) >= 0.5:
            return "latents"
        return "subspace" if _mean([run.summary["captured"] for run in self.recoveries]) >= 0.9 else "none"

    def row(self, confidence: float = 0.95) -> dict[str, Any]:
        """The cell as one line of a table: means over seeds, `_lower` and `_upper` where seeds are independent, and the
        nulls beside them. Pairs of runs share runs, so what is over pairs has no interval here."""
        runs = len(self.recoveries)
        out: dict[str, Any] = {"rank": self.rank, "noise": self.noise, "k": self.k, "seeds": runs, "phase": self.phase}
        summaries = [run.summary for run in self.recoveries]
        for name in summaries[0]:
            out |= _with_interval(name, [summary[name] for summary in summaries], confidence)
            out[f"{name}_rotated"] = _draws(self.recoveries, "rotated", name)
            if name.startswith("low_rank"):
                out[f"{name}_scattered"] = _draws(self.recoveries, "scattered", name)
        out |= _with_interval("low_rank_excess", [run.excess for run in self.recoveries], confidence)
        out["captured_random"] = self.rank / self.recoveries[0].width
        out["captured_principal"] = _known(self.principal)
        off = ~torch.eye(runs, dtype=torch.bool)
        out["within"] = _known(float(self.cross.diagonal().nanmean()))
        out["cross"] = _known(float(self.cross[off].nanmean()))
        out["cross_principal"] = _known(self.principal_cross)
        out["probability_identifiable"] = _known(self.probability(block=False))
        out["probability_low_rank"] = _known(self.probability(block=True))
        out["probability_low_rank_scattered"] = _known(self.scattered_probability)
        out |= _with_interval("explained_variance", self.explained_variance, confidence)
        return out | {"dead": _mean([float((~run.live).sum()) for run in self.recoveries])}


@dataclass(frozen=True, eq=False)
class PhaseDiagram:
    """Cells over ranks × noises × ks. Made by `recovery_phases`."""

    cells: list[PhaseCell]
    """In the order of the product of ranks, noises and ks, the last fastest."""
    settings: dict[str, Any]
    """What else was set, JSON types only."""
    confidence: float
    """Coverage of the intervals."""

    def table(self) -> list[dict[str, Any]]:
        """One flat dict a cell, as a CSV file takes them."""
        return [cell.row(self.confidence) for cell in self.cells]

    def to_json(self) -> dict[str, Any]:
        interval = f"Student's t over the seeds of one true model, {self.confidence:.0%}"
        return {"settings": self.settings, "interval": interval, "cells": self.table()}


def recovery_phases(
    *,
    ranks: Sequence[int] = (2, 4, 8, 16, 32),
    noises: Sequence[float] = (0.0, 0.1, 0.3),
    ks: Sequence[int] = (2, 4, 8),
    seeds: int = 5,
    width: int = 64,
    identifiable: int = 64,
    low_rank: int = 48,
    decay: float = 0.0,
    d_sae: int | None = None,
    config: TrainConfig = TRAINING,
    held_out: int = 8192,
    threshold: float = 0.9,
    stability_threshold: float = 0.7,
    draws: int = 3,
    seed: int = 0,
    confidence: float = 0.95,
    progress: Callable[[str], None] | None = None,
) -> PhaseDiagram:
    """Trains S TopKSAEs for each (rank, noise, K) on `low_rank_rows` and measures what they recover.

    Runs of one cell differ in their initialisation alone (seeds 0 … S − 1, the same rows in the same order). All cells
    have the same isolated features, so that they can be compared in pairs; the rows have K active features on average.
    Each row is seen once where `config.rows` rows are drawn. A latent is dead when it is active in none of the held-out
    rows. The grid and the sizes are ours: the paper's (Gerasimov et al. 2026, arXiv 2606.12138) are not published.

    Args:
        ranks, noises, ks: the grid; ks also sets the number of active features.
        seeds: S ≥ 2.
        width, identifiable, low_rank, decay: of `low_rank_rows`.
        d_sae: latents; None is the number of true features.
        config: of the training; its data_seed orders the rows of all runs.
        held_out: further rows of the same model, for explained variance and dead latents.
        threshold: cosine from which a true feature counts as recovered.
        stability_threshold: θ of p̂.
        draws: of each null of `feature_recovery`.
        seed: decides the true models, rows and nulls.
        progress: called with a line before each cell.

    Raises:
        ValueError: an empty axis, fewer than two seeds, no held-out rows, or sizes that `low_rank_rows` refuses.
    """
    for name, axis in (("ranks", ranks), ("noises", noises), ("ks", ks)):
        if not len(axis):
            raise ValueError(f"{name}: expected at least one value, got none")
    if seeds < 2 or held_out < 1:
        raise ValueError(f"expected seeds >= 2 and held_out >= 1, got {seeds} and {held_out}")
    d_sae = identifiable + low_rank if d_sae is None else d_sae
    cells = []
    for rank, noise, k in product(ranks, noises, ks):
        if progress is not None:
            progress(f"rank {rank}, noise {noise:g}, K {k}")
        truth = low_rank_rows(
            config.rows + held_out,
            width,
            identifiable=identifiable,
            low_rank=low_rank,
            rank=rank,
            active=float(k),
            decay=decay,
            noise=noise,
            seed=seed,
        )
        cells.append(_cell(truth, noise, k, d_sae, seeds, config, threshold, stability_threshold, draws, seed))
    settings = {
        "width": width,
        "identifiable": identifiable,
        "low_rank": low_rank,
        "decay": decay,
        "d_sae": d_sae,
        "seeds": seeds,
        "rows": config.rows,
        "held_out": held_out,
        "threshold": threshold,
        "stability_threshold": stability_threshold,
        "seed": seed,
    }
    return PhaseDiagram(cells, settings, confidence)


def _cell(
    truth: LowRankRows,
    noise: float,
    k: int,
    d_sae: int,
    seeds: int,
    config: TrainConfig,
    threshold: float,
    stability_threshold: float,
    draws: int,
    seed: int,
) -> PhaseCell:
    width, rank = truth.rows.width, len(truth.basis)
    rows, held_out = (TensorRows(part) for part in truth.rows.tensor.tensor_split([config.rows]))
    dictionaries, found, explained = [], [], []
    for init_seed in range(seeds):
        sae = train(TopKSAE(width, d_sae, k, init_seed=init_seed), rows, config, progress=False).sae
        metrics = measure(sae, held_out)
        dictionaries.append(sae.dictionary)
        explained.append(metrics.explained_variance)
        found.append(feature_recovery(sae, truth, live=~metrics.dead, threshold=threshold, draws=draws, seed=seed))
    block = [
        F.normalize(dictionary[run.block].double(), dim=1) for dictionary, run in zip(dictionaries, found, strict=True)
    ]
    generator = torch.Generator().manual_seed(seed)
    thrown = [torch.randn(len(latents), rank, generator=generator) for latents in block if len(latents)]
    by_chance = (
        feature_stability(thrown, stability_threshold).probability if len(thrown) > 1 else torch.tensor(torch.nan)
    )
    centred = rows.tensor.double() - rows.tensor.double().mean(0)
    principal = torch.linalg.eigh(centred.T @ centred)[1].flip(1)[:, :rank].T  # [rank, D]
    return PhaseCell(
        rank,
        noise,
        k,
        found,
        explained,
        feature_stability(dictionaries, stability_threshold, live=[run.live for run in found]),
        torch.tensor([[_energy(a, leading_vectors(b, rank)) for b in block] for a in block], dtype=torch.float64),
        _energy(truth.dictionary[~truth.identifiable].double(), principal),
        _mean([_energy(a, principal) for a in block]),
        float(by_chance.nanmean()),
    )


def _energy(rows: Tensor, vectors: Tensor) -> float:
    """Share of the energy of rows [n, D] in the span of orthonormal vectors [r, D]; NaN where either is empty."""
    if not len(rows) or not len(vectors):
        return float("nan")
    return float((rows @ vectors.T).square().sum() / rows.square().sum())


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if value == value]
    return sum(known) / len(known) if known else float("nan")


def _draws(runs: list[Recovery], null: str, name: str) -> float | None:
    return _known(_mean([draw[name] for run in runs for draw in getattr(run, null)]))


def _with_interval(name: str, values: Sequence[float], confidence: float) -> dict[str, float | None]:
    found = mean_interval(values, confidence)
    return {name: found.mean, f"{name}_lower": found.lower, f"{name}_upper": found.upper}


def _known(value: float) -> float | None:
    return value if value == value else None
