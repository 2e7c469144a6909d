"""Feature stability: how often a latent reappears in independently trained dictionaries."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saekern.matching import PairStore
from saekern.matching.all_pairs import AllPairs
from saekern.stability.histogram import CosineHistogram
from saekern.stability.initialisation import InitialDistance
from saekern.stability.interval import binomial_interval


@dataclass(frozen=True, eq=False)
class FeatureStability:
    """p̂ of every latent of every run, each run once the anchor. Made by `feature_stability`.

    S runs; tensors are [S, F] with F the largest dictionary: a run with fewer latents is padded with NaN or False.
    """

    probability: Tensor
    """[S, F] float64: share of the other runs in which the latent reappears; NaN for dead latents and padding."""
    lower: Tensor
    """[S, F] lower end of the Clopper–Pearson interval of p; NaN as in `probability`."""
    upper: Tensor
    """[S, F] upper end."""
    live: Tensor
    """[S, F] bool: the latents that were judged; False for dead latents and padding."""
    sizes: list[int]
    """[S] latents of each run."""
    seeds: list[int]
    """[S] labels of the runs."""
    threshold: float
    """θ: cosine from which two latents count as the same."""
    epsilon: float
    """ε: stable means p̂ ≥ 1 − ε, unstable p̂ ≤ ε."""
    confidence: float
    """Coverage of the intervals."""
    method: str
    """"nearest" (many-to-one, the definition) or "assignment" (one-to-one)."""
    cosines: CosineHistogram
    """The partners' cosines, over live latents, anchors and comparison runs."""
    initial: InitialDistance | None = None
    """Distance of the runs before training, if it was given."""

    @property
    def comparisons(self) -> int:
        """N = S − 1, runs each anchor is compared with."""
        return len(self.sizes) - 1

    @property
    def hits(self) -> Tensor:
        """[S, F] int64: in how many of the N other runs the latent reappears; 0 where not live."""
        return (self.probability.nan_to_num(0.0) * self.comparisons).round().to(torch.int64)

    @property
    def shared_init(self) -> bool | None:
        """Whether runs start from the same dictionary; None when no initial distance was given."""
        return None if self.initial is None else self.initial.shared

    @property
    def stable(self) -> Tensor:
        """[S, F] bool: p̂ ≥ 1 − ε. False everywhere when runs share their initialisation: they then agree by descent,
        and nothing was found twice."""
        if self.shared_init:
            return torch.zeros_like(self.live)
        return self.live & (self.hits >= self.comparisons - self._slack)

    @property
    def unstable(self) -> Tensor:
        """[S, F] bool: p̂ ≤ ε."""
        return self.live & (self.hits <= self._slack)

    @property
    def undecided(self) -> Tensor:
        """[S, F] bool: live, neither stable nor unstable."""
        return self.live & ~self.stable & ~self.unstable

    @property
    def _slack(self) -> int:
        return int(self.epsilon * self.comparisons + 1e-9)  # runs that may disagree; 1e-9: 0.05 · 20 is 1, not 0.999…

    @property
    def vacuous(self) -> bool:
        """N ε < 1: too few runs for ε to mean anything; stable says "in all", unstable "in none"."""
        return self._slack == 0

    @property
    def note(self) -> str:
        """What a reader must know before the numbers; empty when there is nothing."""
        notes = []
        if self.vacuous:
            notes.append(
                f"With {self.comparisons} comparisons epsilon = {self.epsilon:g} is vacuous: stable means found in all "
                "of the other runs, unstable in none."
            )
        if self.shared_init:
            notes.append("Shared initialisation: runs agree before training, so no latent is called stable.")
        return " ".join(notes)

    def ecdf(self, run: int | None = None) -> tuple[Tensor, Tensor]:
        """The values 0, 1/N, …, 1 of p̂ [N+1] and the share of live latents with p̂ at most that, of one run or all."""
        chosen = slice(None) if run is None else run
        counts = torch.bincount(self.hits[chosen][self.live[chosen]], minlength=self.comparisons + 1)
        grid = torch.arange(self.comparisons + 1, dtype=torch.float64) / self.comparisons
        return grid, counts.cumsum(0).to(torch.float64) / counts.sum()

    def to_json(self) -> dict[str, Any]:
        """The summary as plain numbers; None where nothing can be said.

        "live" is over live latents. "all" counts every latent, a dead one as never reappearing: what a reader gets who
        does not look for dead latents. Shares are means over anchors, "sd" their spread between anchors.
        """
        size = torch.tensor(self.sizes, dtype=torch.float64)
        living = self.live.sum(1).to(torch.float64)
        dead = size - living
        live: dict[str, Any] = {"latents": int(living.sum())}
        total: dict[str, Any] = {"latents": int(size.sum())}
        for name, mask in (("stable", self.stable), ("undecided", self.undecided), ("unstable", self.unstable)):
            count = mask.sum(1).to(torch.float64)
            live |= _share(name, count / living)
            total |= _share(name, (count + (dead if name == "unstable" else 0)) / size)
        summed = self.probability.nan_to_num(0.0).sum(1)
        live |= _share("mean_probability", summed / living)
        total |= _share("mean_probability", summed / size)
        levels = (0.01, 0.25, 0.5, 0.75, 0.99)
        return {
            "seeds": self.seeds,
            "comparisons": self.comparisons,
            "method": self.method,
            "threshold": self.threshold,
            "epsilon": self.epsilon,
            "interval": f"Clopper-Pearson, {self.confidence:.0%}",
            "vacuous": self.vacuous,
            "note": self.note,
            "shared_init": self.shared_init,
            "dead": dead.to(torch.int64).tolist(),
            "live": live,
            "all": total,
            "cosine_quantiles": {f"{q:g}": _number(self.cosines.quantile(q)) for q in levels},
        }

    def arrays(self) -> dict[str, Tensor]:
        """The tensors, by name, as a safetensors or npz file takes them."""
        masks = {"live": self.live, "stable": self.stable, "unstable": self.unstable}
        intervals = {"probability": self.probability, "lower": self.lower, "upper": self.upper}
        return intervals | masks | {"cosine_counts": self.cosines.counts}


def feature_stability(
    dictionaries: Sequence[Any] | PairStore | AllPairs,
    threshold: float = 0.7,
    epsilon: float = 0.05,
    live: Sequence[Tensor | None] | Tensor | None = None,
    *,
    confidence: float = 0.95,
    initial: InitialDistance | None = None,
) -> FeatureStability:
    """p̂_i = (1/N) Σ_k 1[s_ik ≥ θ], s_ik the cosine of latent i of the anchor with its partner in run k.

    The partner is the nearest latent of run k, signed cosine of decoder rows, many-to-one. Every run is the anchor
    once; N = S − 1. Given the latent, the runs are independent draws, so N p̂_i is binomial: its Clopper–Pearson
    interval is reported. Streams pair by pair; memory is that of the result and of two dictionaries.

    Args:
        dictionaries: S ≥ 2 dictionaries [F, D] or SAEs, F may differ; or their pairs, already matched.
        live: [S, F] bool, or where F differs one mask [F] (or None) a run: latents that fire. The others are set aside
            on both sides: not judged, and nobody's partner. A store already has its masks.
        confidence: coverage of the intervals.
        initial: the runs' `initial_distance`; where it says that they share their initialisation, none is stable.

    Raises:
        ValueError: parameters out of range, masks that do not fit, or masks given together with a store.

    Source: Gerasimov et al. 2026, arXiv 2606.12138, eq. 4; θ follows Leask et al. 2025.
    """
    if not -1 <= threshold <= 1:
        raise ValueError(f"threshold: expected a cosine in -1..1, got {threshold}")
    if not 0 <= epsilon < 0.5:
        raise ValueError(f"epsilon: expected 0 <= epsilon < 0.5, got {epsilon}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: expected 0 < confidence < 1, got {confidence}")
    pairs = pairs_of(dictionaries, live)
    runs, widest = len(pairs.sizes), max(pairs.sizes)
    hits = torch.zeros(runs, widest, dtype=torch.int64)
    histogram = CosineHistogram()
    for pair in pairs:
        for run, matching in ((pair.i, pair.forward), (pair.j, pair.backward)):
            cosine = matching.cosine.cpu()
            hits[run, : len(cosine)] += cosine >= threshold  # NaN, without a partner, is no hit
            histogram.add(cosine)
    alive = live_latents(pairs)

    comparisons = runs - 1
    low, high = binomial_interval(comparisons, confidence)
    probability, lower, upper = (
        torch.where(alive, values, torch.nan)
        for values in (hits.to(torch.float64) / comparisons, low[hits], high[hits])
    )
    seeds = pairs.seeds if isinstance(pairs, PairStore) else list(range(runs))
    return FeatureStability(
        probability,
        lower,
        upper,
        alive,
        list(pairs.sizes),
        seeds,
        threshold,
        epsilon,
        confidence,
        pairs.method,
        histogram,
        initial,
    )


def pairs_of(
    dictionaries: Sequence[Any] | PairStore | AllPairs, live: Sequence[Tensor | None] | Tensor | None
) -> PairStore | AllPairs:
    """Pairs as they are, or the nearest pairs of dictionaries, dead latents set aside."""
    if isinstance(dictionaries, PairStore | AllPairs):
        if live is not None:
            raise ValueError("live: expected None with a PairStore, which has its masks from match_all(dead=...)")
        return dictionaries
    return AllPairs(dictionaries, "nearest", None if live is None else [m if m is None else _not(m) for m in live])


def live_latents(pairs: PairStore | AllPairs) -> Tensor:
    """[S, F] bool: the latents that take part; False for dead ones and padding."""
    alive = torch.zeros(len(pairs.sizes), max(pairs.sizes), dtype=torch.bool)
    for run, size in enumerate(pairs.sizes):
        alive[run, :size] = pairs.live(run).cpu()
    return alive


def _not(mask: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        raise ValueError(f"live: expected bool masks, got {mask.dtype}")
    return ~mask


def _share(name: str, values: Tensor) -> dict[str, float | None]:
    known = values[values.isfinite()]  # a run whose latents are all dead has no share
    spread = known.std().item() if len(known) > 1 else float("nan")
    return {name: _number(known.mean().item()), f"{name}_sd": _number(spread)}


def _number(value: float) -> float | None:
    return value if value == value else None
