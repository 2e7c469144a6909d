"""All pairs of many dictionaries by nearest partner, from a lazy sequence, beside the plain products of that size.

A call matches `pairs` of the S (S − 1) / 2 pairs; S is in the shape, and the note extrapolates to all of them. The
dictionaries are drawn from their seeds when they are asked for, as if they were read from disk, and not kept.
"""

import math
from collections.abc import Iterator
from itertools import combinations, islice
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from saekern.bench.common import Bench, Run, Shape, WrongAnswer
from saekern.matching.all_pairs import AllPairs
from saekern.stability.lazy import Lazy

BLOCK = 1024  # rows of the product's tile: 64 MB at F = 16384


class Problem(NamedTuple):
    shape: Shape
    dictionaries: Lazy
    pairs: list[tuple[int, int]]

    @property
    def flops(self) -> float:
        return 2.0 * len(self.pairs) * int(self.shape["F"]) ** 2 * int(self.shape["D"])


def inputs(shape: Shape) -> Problem:
    """Half the latents of every dictionary are noisy copies of common ones, as between seeds."""
    rows, width, seeds, few = (int(shape[name]) for name in ("F", "D", "S", "pairs"))

    common = torch.randn(rows // 2, width, generator=torch.Generator().manual_seed(0))

    def make(seed: int) -> Tensor:
        own = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed + 1))
        own[: rows // 2].mul_(0.5).add_(common)
        return own

    used = next(n for n in range(2, seeds + 1) if n * (n - 1) // 2 >= few)
    return Problem(shape, Lazy(used, make), list(islice(combinations(range(used), 2), few)))


def setup(problem: Problem, provider: str) -> Run:
    if provider == "gemm":
        return Run(lambda: products(problem), lambda result: None, flops=problem.flops, note=lambda _: note(problem))
    # Made before the clock: it hashes every dictionary once, which grows with S and not with its pairs.
    pairs = AllPairs(problem.dictionaries, "nearest")
    return Run(
        lambda: nearest(pairs, problem.pairs),
        lambda result: check(problem, result),
        flops=problem.flops,
        note=lambda _: note(problem),
    )


def nearest(pairs: AllPairs, positions: list[tuple[int, int]]) -> tuple[list[float], Tensor]:
    """Mean best cosine of every pair, and the last pair's: each pair is let go as a store would."""
    means, last = [], torch.empty(0)
    for pair in pairs.compute(positions):
        last = pair.forward.cosine
        means.append(float(last.mean()))
    return means, last


def products(problem: Problem) -> float:
    """torch's product of every pair in tiles that are used again; the dictionaries are drawn as for the matching."""
    total, buffer = 0.0, torch.empty(BLOCK, int(problem.shape["F"]))
    for a, b in drawn(problem):
        for rows in a.split(BLOCK):
            total += float(torch.mm(rows, b.T, out=buffer[: len(rows)])[0, 0])
    return total


def drawn(problem: Problem) -> Iterator[tuple[Tensor, Tensor]]:
    at, first = -1, torch.empty(0)
    for i, j in problem.pairs:
        if i != at:
            at, first = i, problem.dictionaries[i]
        yield first, problem.dictionaries[j]


def check(problem: Problem, result: tuple[list[float], Tensor]) -> None:
    """Every 64th latent of the last pair, in float64."""
    means, last = result
    if len(means) != len(problem.pairs) or not all(map(math.isfinite, means)):
        raise WrongAnswer(f"{len(means)} pairs of {len(problem.pairs)}, or not finite")
    a, b = (problem.dictionaries[i].double() for i in problem.pairs[-1])
    want = (F.normalize(a[::64]) @ F.normalize(b).T).max(1).values
    worst = float((last[::64].double() - want).abs().max())
    if not worst <= 4 * (a.shape[1] + 4) * 2.0**-24:
        raise WrongAnswer(f"a best cosine is off by {worst:.3g}")


def note(problem: Problem) -> str:
    everything = math.comb(int(problem.shape["S"]), 2)
    return (
        f"measured on {len(problem.pairs)} pairs; extrapolated to all {everything} pairs: "
        f"x {everything / len(problem.pairs):.4g}; time includes drawing the dictionaries"
    )


BENCHES = (
    Bench(
        op="all_pairs",
        mode="nearest, lazy",
        shapes=({"S": 96, "F": 16384, "D": 768, "pairs": 32},),
        quick=({"S": 4, "F": 512, "D": 64, "pairs": 3},),
        providers=("saekern", "gemm"),
        inputs=inputs,
        setup=setup,
        once_above=20.0,
        rounds=(1, 3),
        weighed=("saekern",),
        long=True,
    ),
)
