"""The experiment with feature pools: two pools from seeds that share nothing, trained on, beside single seeds."""

import copy
import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saekern.activations import Rows
from saekern.evaluation import cross_entropy, measure
from saekern.matching import PairStore, match
from saekern.sae import SAE
from saekern.stability.contributions import activation_mass, block_errors
from saekern.stability.features import feature_stability
from saekern.stability.interval import crossed_interval
from saekern.stability.pool import FeaturePool, feature_pool, pool_sae, random_pool
from saekern.training import TrainConfig, train

ARMS = ("pool", "single", "random")


@dataclass(frozen=True)
class PoolArm:
    """Two SAEs made the same way from disjoint halves of the seeds, before and after the extra training."""

    ev_before: tuple[float, float]
    """Explained variance of each half's, before."""
    mass_covered: tuple[float, float]
    """Share of the mass (mean |z|) of the other half's seeds whose latents have a partner of cosine ≥ θ here, before;
    the rest is what the choice of latents left out."""
    ev: tuple[float, float]
    """After."""
    l0: tuple[float, float]
    """Mean active latents a row, after."""
    dead: tuple[int, int]
    """Latents that fire on fewer than `min_firings` rows, after; set aside in what follows."""
    match_rate_before: float
    """Share of live latents of one half's SAE with a partner of cosine ≥ θ in the other's, mean of both directions,
    before the training."""
    match_rate: float
    """After."""
    mean_cosine: float
    """Mean cosine of the one-to-one assignment of both, after."""
    reappearance: tuple[float, float]
    """Mean share of the other half's original seeds in which a latent has a partner of cosine ≥ θ: p̂ by seeds that had
    no part in the choice."""
    ce: tuple[float, float] | None = None
    """Next-token cross entropy with the SAE in place, after, in nats; None without a model."""


@dataclass(frozen=True, eq=False)
class Pooling:
    """Pools beside single seeds and random pools. Made by `pooling`."""

    halves: tuple[list[int], list[int]]
    """Numbers of the seeds of each half."""
    singles: tuple[int, int]
    """The seed of each half that "single" is."""
    pools: tuple[FeaturePool, FeaturePool]
    """The chosen latents; runs are numbered within the half."""
    arms: dict[str, PoolArm]
    """"pool", "single" and "random", all trained on the same rows in the same order."""
    ev_gain: dict[str, tuple[float, float, float]]
    """EV of "pool" less that of "single" and of "random", after: mean and interval over both halves and blocks of rows
    together, paired."""
    size: int
    """Latents asked for."""
    extra_rows: int
    """Rows of the extra training."""
    rows: int
    """Rows of the evaluation."""
    confidence: float
    """Coverage of the intervals. The other numbers come from one division into halves and have none."""
    saes: dict[str, tuple[SAE, SAE]]
    """The trained SAEs of each arm."""

    def to_json(self) -> dict[str, Any]:
        """Everything but the SAEs as plain numbers."""
        return {
            "halves": list(self.halves),
            "singles": list(self.singles),
            "size": self.size,
            "extra_rows": self.extra_rows,
            "rows": self.rows,
            "confidence": self.confidence,
            "pools": [pool.to_json() for pool in self.pools],
            "arms": {name: _finite(dataclasses.asdict(arm)) for name, arm in self.arms.items()},
            "ev_gain": {name: _finite(list(found)) for name, found in self.ev_gain.items()},
        }


def pooling(
    saes: Sequence[SAE],
    rows: Rows,
    held_out: Rows,
    config: TrainConfig,
    *,
    size: int | None = None,
    threshold: float = 0.7,
    loose: float = 0.9,
    min_firings: int = 1,
    halves: tuple[Sequence[int], Sequence[int]] | None = None,
    statistics: Sequence[tuple[Tensor, Tensor]] | None = None,
    pairs: PairStore | None = None,
    seed: int = 0,
    blocks: int = 50,
    batch: int = 4096,
    confidence: float = 0.95,
    model: Any = None,
    hook: str | None = None,
    sequences: Tensor | None = None,
    exclude_bos: bool = True,
    out: str | os.PathLike | None = None,
    progress: bool = False,
) -> Pooling:
    """Divides the seeds at random into two halves, and from each makes an SAE of its `feature_pool`, one of one of its
    seeds and one of a `random_pool`; trains all six on the same rows; and asks how alike the two of a kind are.

    Pools from the same seeds would agree because they share latents; from disjoint ones they agree because the choice
    picks what is found again. The single seed gets the same extra rows. The training begins from the given parameters:
    `config.pre_bias_rows` is set to 0, as otherwise b_dec would start anew.

    Args:
        saes: S ≥ 4 TopK SAEs of one width and k, on the CPU or one device. They are not changed.
        rows: of the extra training, 2 million in the source.
        held_out: rows for masses, firings and every number; p̂ is over the half's own seeds.
        config: of the extra training; its learning rate should be small.
        size: latents of the pool; None: the first SAE's d_sae.
        min_firings: a latent that fires on fewer held-out rows is dead.
        halves: numbers of the seeds of each half, the "single" one first; None draws them (`divisions`).
        statistics: `activation_mass` of each SAE on `held_out`, if known.
        pairs: nearest partners of all SAEs, if known, with the same live latents.
        model, hook, sequences, exclude_bos: as in `masking`, for the cross entropies.
        out: folder for the six trainings, from which the same call resumes.

    Raises:
        ValueError: fewer than 4 SAEs, halves that share a seed or have fewer than two, or as `feature_pool`,
            `pool_sae` and `train`.

    Source: Gerasimov et al. 2026 (arXiv 2606.12138); the algorithm and this evaluation are ours.
    """
    if len(saes) < 4:
        raise ValueError(f"saes: expected at least 4, two for each half, got {len(saes)}")
    first, second = map(list, divisions(len(saes), 1, seed)[0] if halves is None else halves)
    if min(len(first), len(second)) < 2 or len({*first, *second}) < len(first + second):
        raise ValueError(f"halves: expected two or more seeds in each and none twice, got {first} and {second}")
    both = (first, second)
    size = saes[0].d_sae if size is None else size
    config = dataclasses.replace(config, pre_bias_rows=0)
    if statistics is None:
        statistics = [activation_mass(sae, held_out, batch) for sae in saes]
    live = [counts >= min_firings for _, counts in statistics]
    pools: list[FeaturePool] = []
    starts: dict[str, list[SAE]] = {name: [] for name in ARMS}
    for half, members in enumerate(both):
        own, alive = [saes[s] for s in members], [live[s] for s in members]
        if pairs is None:
            probability = feature_stability(own, threshold, live=alive).probability
        else:
            probability = _probability(pairs, members, alive, threshold)
        masses = [statistics[s][0] for s in members]
        pools.append(feature_pool(own, probability, masses, size, threshold=threshold, loose=loose))
        starts["pool"].append(pool_sae(own, pools[-1]))
        starts["single"].append(copy.deepcopy(own[0]))
        drawn = random_pool(own, alive, len(pools[-1].latent), seed=2 * seed + half)
        starts["random"].append(pool_sae(own, drawn))
    others = [[(saes[s], ~live[s]) for s in both[1 - half]] for half in range(2)]
    masses = [[statistics[s][0] for s in both[1 - half]] for half in range(2)]
    arms, errors = {}, {}
    for name, pair in starts.items():
        before = [measure(sae, held_out, batch) for sae in pair]
        dead = [m.counts < min_firings for m in before]
        rate = _agreement(pair, dead, threshold)
        held = [_covered(*given, threshold) for given in zip(pair, dead, others, masses, strict=True)]
        for half, sae in enumerate(pair):
            folder = None if out is None else Path(out) / f"{name}-{half}"
            train(sae, rows, config, out=folder, progress=progress, label=name)
        after = [measure(sae, held_out, batch) for sae in pair]
        dead = [m.counts < min_firings for m in after]
        seen = [_reappearance(sae, mask, rest, threshold) for sae, mask, rest in zip(pair, dead, others, strict=True)]
        loss = None
        if model is not None and hook is not None and sequences is not None:
            ce = [cross_entropy(model, hook, sequences, sae, exclude_bos=exclude_bos) for sae in pair]
            loss = ce[0], ce[1]
        assigned = match(pair[0], pair[1], "assignment", dead=(dead[0], dead[1])).cosine.double().nanmean()
        arms[name] = PoolArm(
            (before[0].explained_variance, before[1].explained_variance),
            (held[0], held[1]),
            (after[0].explained_variance, after[1].explained_variance),
            (after[0].l0, after[1].l0),
            (int(dead[0].sum()), int(dead[1].sum())),
            rate,
            _agreement(pair, dead, threshold),
            float(assigned),
            (seen[0], seen[1]),
            loss,
        )
        measured = [block_errors(sae, held_out, min(blocks, len(held_out)), batch) for sae in pair]
        errors[name] = torch.stack([sums * (len(sums) / (total or float("nan"))) for sums, total in measured])
    gain = {}
    for name in ("single", "random"):
        mean, lower, upper = crossed_interval(errors[name] - errors["pool"], confidence)
        gain[name] = (float(mean), float(lower), float(upper))
    trained = {name: (pair[0], pair[1]) for name, pair in starts.items()}
    return Pooling(
        (sorted(first), sorted(second)),
        (first[0], second[0]),
        (pools[0], pools[1]),
        arms,
        gain,
        size,
        config.steps * config.batch_size,
        len(held_out),
        confidence,
        trained,
    )


def divisions(count: int, splits: int, seed: int = 0) -> list[tuple[list[int], list[int]]]:
    """Random divisions of `count` seeds into two halves, the first of each half being its "single" one. No seed is
    single twice before all have been, if that is possible. No division comes twice: the interval over them would be too
    short; few seeds have fewer of them than asked for."""
    generator = np.random.default_rng([seed, 0])
    turns = generator.permutation(count)
    found: dict[frozenset, tuple[list[int], list[int]]] = {}
    for i in range(splits):
        for attempt in range(100):
            if attempt >= 50:  # with these two no other division is left
                turns = generator.permutation(count)
            leaders = [int(turns[(2 * i + half) % count]) for half in range(2)]
            rest = [s for s in generator.permutation(count).tolist() if s not in leaders]
            middle = count // 2 - 1
            halves = [leaders[0], *rest[:middle]], [leaders[1], *rest[middle:]]
            if (key := frozenset(map(frozenset, halves))) not in found:
                found[key] = halves
                break
    return list(found.values())


def _probability(pairs: PairStore, members: Sequence[int], live: Sequence[Tensor], threshold: float) -> Tensor:
    """p̂ among some of the runs, [runs, F], NaN where dead."""
    found = []
    for s, alive in zip(members, live, strict=True):
        hits = torch.stack([pairs[s, k].cosine.cpu() >= threshold for k in members if k != s])
        found.append(torch.where(alive.cpu(), hits.double().mean(0), torch.nan))
    return torch.stack(found)


def _agreement(pair: Sequence[SAE], dead: Sequence[Tensor], threshold: float) -> float:
    rates = [_reappearance(pair[i], dead[i], [(pair[1 - i], dead[1 - i])], threshold) for i in range(2)]
    return sum(rates) / 2


def _covered(
    sae: SAE, dead: Tensor, others: Sequence[tuple[SAE, Tensor]], masses: Sequence[Tensor], threshold: float
) -> float:
    """Mean over other SAEs of the share of their latents' mass that has a partner here."""
    shares = []
    for (other, theirs), mass in zip(others, masses, strict=True):
        cosine = match(other, sae, "nearest", dead=(theirs, dead)).cosine.cpu()
        shares.append(float(mass[cosine >= threshold].sum() / (mass.sum() or float("nan"))))
    return sum(shares) / len(shares)


def _reappearance(sae: SAE, dead: Tensor, others: Sequence[tuple[SAE, Tensor]], threshold: float) -> float:
    """Mean over other dictionaries of the share of live latents with a partner there."""
    shares = []
    for other, theirs in others:
        cosine = match(sae, other, "nearest", dead=(dead, theirs)).cosine.cpu()
        shares.append(int((cosine >= threshold).sum()) / max(1, int((~dead).sum())))
    return sum(shares) / len(shares)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if value != value else value
