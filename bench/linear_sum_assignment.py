"""The exact assignment of two dictionaries' latents, against scipy."""

from typing import NamedTuple

import numpy as np
import scipy.optimize
import torch
import torch.nn.functional as F

import saekern
from saekern.bench.common import Bench, Goal, Run, Shape, WrongAnswer, generator


class Problem(NamedTuple):
    gain: np.ndarray  # [n, n] float32, maximised
    best: float


def inputs(shape: Shape) -> Problem:
    """SAE-like: cosines of two dictionaries in 512 dimensions that share 60 % of their latents, with noise, in another
    order. Uniform: independent numbers in [0, 1), the textbook's hard case."""
    n, random = int(shape["n"]), generator(shape)
    if shape["cost"] == "uniform":
        gain = torch.rand(n, n, generator=random)
    else:
        a = torch.randn(n, 512, generator=random)
        b = torch.randn(n, 512, generator=random)
        shared = 6 * n // 10
        b[:shared] = a[:shared] + 0.5 * b[:shared]
        b = b[torch.randperm(n, generator=random)]
        gain = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T
    matrix = gain.numpy()
    return Problem(matrix, total(matrix, *scipy.optimize.linear_sum_assignment(matrix, maximize=True)))


def total(gain: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> float:
    return float(gain[rows, columns].sum(dtype=np.float64))


def setup(problem: Problem, provider: str) -> Run:
    solve = saekern.linear_sum_assignment if provider == "saekern" else scipy.optimize.linear_sum_assignment
    return Run(lambda: solve(problem.gain, maximize=True), lambda found: check(problem, *found))


def check(problem: Problem, rows: np.ndarray, columns: np.ndarray) -> None:
    """A permutation with the optimal total; pairs may differ between optima. Totals are added in float64."""
    everything = np.arange(len(problem.gain))
    if not (np.array_equal(np.sort(rows), everything) and np.array_equal(np.sort(columns), everything)):
        raise WrongAnswer("not a permutation")
    got = total(problem.gain, rows, columns)
    if not abs(got - problem.best) <= 1e-9 * abs(problem.best):
        raise WrongAnswer(f"total {got:.12g}, the optimum is {problem.best:.12g}")


BENCHES = (
    Bench(
        op="linear_sum_assignment",
        mode="dense float32",
        shapes=({"n": 4096, "cost": "SAE-like"}, {"n": 4096, "cost": "uniform"}),
        quick=({"n": 256, "cost": "SAE-like"}, {"n": 256, "cost": "uniform"}),
        providers=("saekern", "scipy"),
        inputs=inputs,
        setup=setup,
        goals=(Goal(("scipy",), faster=3),),
    ),
)
