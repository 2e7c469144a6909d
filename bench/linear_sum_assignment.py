"""Dense exact assignment on one thread, against scipy and the solvers of lapx, lap and lapjv.

Costs are float32, 1 − cosine of two dictionaries or a matrix of `assignment_instances.py`, minimised. Every answer has
to be a permutation with scipy's total. What takes seconds is called once: its figure is the call that was checked.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import scipy.optimize
import torch

import saekern
from saekern.bench import assignment_instances as instances
from saekern.bench.assignment_peers import OTHERS, PEERS, solver
from saekern.bench.common import Bench, Goal, Run, Shape, WrongAnswer, generator

OURS = "saekern"


@dataclass(frozen=True)
class Problem:
    costs: list[np.ndarray]  # each [n, n] float32

    @cached_property
    def best(self) -> list[float]:
        """scipy's totals; only for checks, so that a process that measures memory need not wait for them."""
        return [total(cost, scipy.optimize.linear_sum_assignment(cost)[1]) for cost in self.costs]


def inputs(shape: Shape) -> Problem:
    kind, n = str(shape["cost"]), int(shape["n"])
    if kind in instances.MATRICES:
        return Problem([instances.matrix(kind, n).numpy()])
    return Problem([instances.cost_of(*instances.dictionaries(kind, n)).numpy()])


def real_inputs(shape: Shape, data: Path | None) -> Problem:
    pair = instances.real_pair(data, str(shape["pair"]), int(shape["n"]))
    return Problem([instances.cost_of(*pair).numpy()])


def small_inputs(shape: Shape) -> Problem:
    """As many problems as `problems` says, of every size from 1 to `largest` in turn."""
    random, largest = generator(shape), int(shape["largest"])
    sizes = [1 + i % largest for i in range(int(shape["problems"]))]
    return Problem([torch.rand(n, n, generator=random).numpy() for n in sizes])


def total(cost: np.ndarray, columns: np.ndarray) -> float:
    return float(cost[np.arange(len(cost)), columns].sum(dtype=np.float64))


def setup(problem: Problem, provider: str) -> Run:
    solve, version = (ours, "") if provider == OURS else solver(provider)
    return Run(
        lambda: [solve(cost) for cost in problem.costs],
        lambda found: check(problem, provider, found),
        version=version,
        note=lambda found: note(problem, found),
    )


def ours(cost: np.ndarray) -> np.ndarray:
    return saekern.linear_sum_assignment(cost)[1]


def check(problem: Problem, provider: str, found: list[np.ndarray]) -> None:
    """Permutations with the optimal totals, added in float64; pairs may differ between optima. Solvers that add up
    float32 prices are granted one rounding of the largest cost a row; ours is not."""
    for cost, columns, best in zip(problem.costs, found, problem.best, strict=True):
        columns = np.asarray(columns)
        if not np.array_equal(np.sort(columns), np.arange(len(cost))):
            raise WrongAnswer(f"{len(cost)} rows: not a permutation")
        allowed = 1e-9 * abs(best) if provider == OURS else len(cost) * 2.0**-24 * float(np.abs(cost).max())
        got = total(cost, columns)
        if not abs(got - best) <= allowed:
            raise WrongAnswer(f"{len(cost)} rows: total {got:.12g}, the optimum is {best:.12g}")


def note(problem: Problem, found: list[np.ndarray]) -> str:
    """Who is not exact is named, though the goals count it."""
    excess = [
        total(cost, columns) - best for cost, columns, best in zip(problem.costs, found, problem.best, strict=True)
    ]
    return f"total {max(excess):.1e} above the optimum" if max(excess) > 1e-9 * max(map(abs, problem.best)) else ""


def goals(scipy: float, best: float, **only: int | str) -> tuple[Goal, Goal]:
    """Of CPU time: nobody here has a second thread, and a machine that others use delays the clock."""
    return (
        Goal(("scipy",), faster=scipy, only=only, metric="cpu_ms"),
        Goal(PEERS, faster=best, only=only, metric="cpu_ms"),
    )


def dense(
    mode: str,
    shapes: tuple[Shape, ...],
    quick: tuple[Shape, ...],
    goals: tuple[Goal, ...],
    *,
    inputs: Callable[..., Problem] = inputs,
    providers: tuple[str, ...] = (OURS, *OTHERS),
    reads_data: bool = False,
) -> Bench:
    return Bench(
        op="linear_sum_assignment",
        mode=mode,
        shapes=shapes,
        quick=quick,
        providers=providers,
        inputs=inputs,
        setup=setup,
        goals=goals,
        rounds=(3, 50),
        once_above=2.0,
        threads=1,
        reads_data=reads_data,
    )


def sized(n: int, *kinds: str) -> tuple[Shape, ...]:
    return tuple({"n": n, "cost": kind} for kind in kinds)


CLUSTERED = ("aniso", "dupdead")
HARD = ("equal", "integers10", "integers1000", "zeros", "duplicates", "points")
PAIRS = ("0-1", "2-3")

BENCHES = (
    dense(
        "dense float32",
        (
            *sized(4096, "sae"),
            *sized(8192, "sae", "sae30", "dead", *CLUSTERED),
            *sized(16384, "sae", "uniform"),
        ),
        sized(256, *instances.DICTIONARIES, "uniform"),
        (
            *goals(12, 4.5, cost="sae", n=4096),
            *goals(25, 12, cost="sae", n=8192),
            *goals(60, 18, cost="sae", n=16384),
            *(goal for kind in ("sae30", "dead") for goal in goals(40, 15, cost=kind)),
            *(goal for kind in CLUSTERED for goal in goals(50, 7, cost=kind)),
            *goals(150, 25, cost="uniform"),
        ),
    ),
    dense(
        "dense float32, real pair",
        tuple({"pair": pair, "n": 8192} for pair in PAIRS),
        ({"pair": "0-1", "n": 256},),
        goals(45, 45),
        inputs=real_inputs,
        reads_data=True,
    ),
    dense(
        "dense float32, small",
        (*sized(1024, "sae", "uniform"), *sized(2048, "sae", "uniform")),
        sized(64, "sae", "uniform"),
        (Goal(OTHERS, within=1.0, metric="cpu_ms"),),
    ),
    dense(
        "dense float32, pathological",
        (*sized(4000, *HARD), *sized(2000, "products")),  # products take n³: scipy 2.7 s at 2000
        sized(200, *HARD, "products"),
        (Goal(OTHERS, within=1.2, plus=50, metric="cpu_ms"),),
    ),
    dense(
        "many small problems, float32",
        ({"problems": 10000, "largest": 64},),
        ({"problems": 70, "largest": 64},),
        (Goal(("scipy",), within=1.0, metric="cpu_ms"),),
        inputs=small_inputs,
        providers=(OURS, "scipy"),
    ),
)
