"""How many seeds are enough: the distribution of p̂ from n comparison runs against that from all."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import binom
from torch import Tensor

from saekern.matching import PairStore
from saekern.matching.all_pairs import AllPairs
from saekern.stability.features import live_latents, pairs_of


@dataclass(frozen=True, eq=False)
class Convergence:
    """Distances between distribution functions of p̂, sup over p, for n of N comparison runs. By `ecdf_convergence`."""

    sizes: list[int]
    """[n] comparison runs used."""
    comparisons: int
    """N = S − 1."""
    threshold: float
    """θ."""
    to_full: Tensor
    """[sizes, draws] float64: from n runs drawn at random to all N. Goes to 0 at n = N by construction, because the n
    are among the N: no evidence of convergence near N."""
    disjoint: Tensor
    """[sizes, draws]: between two sets of n runs that share none; NaN where 2 n > N. This one is evidence."""
    expected: Tensor
    """[sizes]: the null of `to_full`: the distance that binomial noise and the grid of p̂ = k/n alone would leave if
    every latent reappeared with its own probability p̂_N, without sampling of runs. To compare with `to_full`."""

    def to_json(self) -> dict[str, Any]:
        """Mean, smallest and largest over draws as plain numbers; None where there is none."""
        lines = [
            {"runs": n, "to_full": _range(full), "disjoint": _range(apart), "expected": expected}
            for n, full, apart, expected in zip(
                self.sizes, self.to_full, self.disjoint, self.expected.tolist(), strict=True
            )
        ]
        return {"comparisons": self.comparisons, "threshold": self.threshold, "lines": lines}


def ecdf_convergence(
    dictionaries: Sequence[Any] | PairStore | AllPairs,
    threshold: float = 0.7,
    live: Sequence[Tensor | None] | Tensor | None = None,
    *,
    sizes: Sequence[int] | None = None,
    draws: int = 20,
    seed: int = 0,
) -> Convergence:
    """The largest distance between the distributions of p̂ over live latents of all anchors, from n runs and from N.

    A draw takes, for each anchor, a random order of the other runs; its first n are the sample, its next n the
    disjoint one. Memory: S bytes a latent and run (151 MB for 96 × 16384).

    Args:
        dictionaries, live: as for `feature_stability`.
        sizes: values of n, ascending, 1..N; default 1, 2, 4, … and N.

    Raises:
        ValueError: sizes, draws or threshold out of range, or no live latents.

    Source: that the distribution converges is argued by Gerasimov et al. 2026 (Glivenko–Cantelli); the distances and
    their null are ours.
    """
    if not -1 <= threshold <= 1:
        raise ValueError(f"threshold: expected a cosine in -1..1, got {threshold}")
    if draws < 1:
        raise ValueError(f"draws: expected draws >= 1, got {draws}")
    pairs = pairs_of(dictionaries, live)
    runs = len(pairs.sizes)
    everyone = runs - 1
    if sizes is None:
        sizes = [2**i for i in range(everyone.bit_length()) if 2**i < everyone] + [everyone]
    if not sizes or list(sizes) != sorted(set(sizes)) or sizes[0] < 1 or sizes[-1] > everyone:
        raise ValueError(f"sizes: expected ascending numbers of runs in 1..{everyone}, got {list(sizes)}")
    found = torch.zeros(runs, runs, max(pairs.sizes), dtype=torch.bool)  # [anchor, run, F]
    for pair in pairs:
        for i, j, matching in ((pair.i, pair.j, pair.forward), (pair.j, pair.i, pair.backward)):
            found[i, j, : len(matching.cosine)] = matching.cosine.cpu() >= threshold
    alive = live_latents(pairs)
    if not alive.any():
        raise ValueError("live: expected at least one live latent, got none")
    full = _distribution(found.sum(1)[alive], everyone)

    generator = torch.Generator().manual_seed(seed)
    to_full = torch.full((len(sizes), draws), torch.nan, dtype=torch.float64)
    disjoint = to_full.clone()
    for draw in range(draws):
        first = torch.zeros(len(sizes), everyone + 1, dtype=torch.int64)  # counts of hits over all anchors
        second = first.clone()
        for anchor in range(runs):
            others = torch.arange(runs)[torch.arange(runs) != anchor]
            order = others[torch.randperm(everyone, generator=generator)]
            total = found[anchor][order][:, alive[anchor]].to(torch.int16).cumsum(0)  # [N, live]
            for k, n in enumerate(sizes):
                first[k] += torch.bincount(total[n - 1], minlength=everyone + 1)
                if 2 * n <= everyone:
                    second[k] += torch.bincount(total[2 * n - 1] - total[n - 1], minlength=everyone + 1)
        for k, n in enumerate(sizes):
            sample = _cumulative(first[k, : n + 1])
            to_full[k, draw] = _distance(sample, full)
            if 2 * n <= everyone:
                disjoint[k, draw] = _distance(sample, _cumulative(second[k, : n + 1]))
    expected = torch.tensor([_distance(_mixture(full, n), full) for n in sizes], dtype=torch.float64)
    return Convergence(list(sizes), everyone, threshold, to_full, disjoint, expected)


def _distribution(hits: Tensor, runs: int) -> Tensor:
    return _cumulative(torch.bincount(hits, minlength=runs + 1))


def _cumulative(counts: Tensor) -> Tensor:
    """[n + 1]: share of latents with at most 0, 1, …, n hits."""
    return counts.cumsum(0).double() / counts.sum()


def _mixture(full: Tensor, n: int) -> Tensor:
    """The distribution of Bin(n, p)/n, p distributed as p̂_N."""
    everyone = len(full) - 1
    weight = torch.diff(full, prepend=full.new_zeros(1))  # [N + 1] share with k hits of N
    p = torch.arange(everyone + 1, dtype=torch.float64) / everyone
    table = binom.cdf(torch.arange(n + 1)[:, None].numpy(), n, p[None].numpy())  # [n + 1, N + 1]
    return torch.from_numpy(table) @ weight


def _distance(a: Tensor, b: Tensor) -> float:
    """sup over p of |A(p) − B(p)|, both step functions with jumps at k/n: looked at where either jumps, in integers."""
    n, m = len(a) - 1, len(b) - 1
    at_a, at_b = torch.arange(n + 1), torch.arange(m + 1)
    here = (a - b[at_a * m // n]).abs().max()
    there = (a[at_b * n // m] - b).abs().max()
    return float(torch.maximum(here, there))


def _range(values: Tensor) -> dict[str, float | None]:
    known = values[values.isfinite()]
    if not len(known):
        return {"mean": None, "min": None, "max": None}
    return {"mean": known.mean().item(), "min": known.min().item(), "max": known.max().item()}
