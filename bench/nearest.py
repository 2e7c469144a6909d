"""Best cosine partners of two dictionaries in both directions, against two blocked matrix products in torch."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from saekern import ops
from saekern.bench.common import Bench, Run, Shape, expect_close, generator

BLOCK = 1024  # rows of the torch version's cosine block: 64 MB at F = 16384


class Problem(NamedTuple):
    a: Tensor  # [F, D]
    b: Tensor  # [F, D]; half its rows are noisy copies of a's, as between two seeds
    a_best: Tensor  # [F] float64
    b_best: Tensor  # [F] float64


def inputs(shape: Shape) -> Problem:
    rows, width = int(shape["F"]), int(shape["D"])
    random = generator(shape)
    a = torch.randn(rows, width, generator=random)
    b = torch.randn(rows, width, generator=random)
    half = rows // 2
    b[:half] = a[torch.randperm(rows, generator=random)[:half]] + 0.5 * b[:half]
    a64, b64 = F.normalize(a.double(), dim=1), F.normalize(b.double(), dim=1)
    a_best, _ = blocked_max(a64, b64)
    b_best, _ = blocked_max(b64, a64)
    return Problem(a, b, a_best, b_best)


def blocked_max(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """For unit rows: the largest cosine of each row of a, and where; one [BLOCK, F] product at a time."""
    parts = [(block @ b.T).max(1) for block in a.split(BLOCK)]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


def torch_nearest(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What one writes without a library: each direction its own product, as torch has no max over both sides."""
    a, b = F.normalize(a, dim=1), F.normalize(b, dim=1)
    return *blocked_max(a, b), *blocked_max(b, a)


def setup(problem: Problem, provider: str) -> Run:
    a, b = problem.a, problem.b
    one_way = 2.0 * a.shape[0] * b.shape[0] * a.shape[1]
    if provider == "saekern":
        return Run(lambda: ops.nearest(a, b), lambda result: check(problem, result), flops=one_way)
    return Run(lambda: torch_nearest(a, b), lambda result: check(problem, result), flops=2 * one_way)


def check(problem: Problem, result: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    """Values within rounding of float64's, and the named partner has that cosine: a near tie may go either way."""
    bound = 4 * (problem.a.shape[1] + 4) * 2.0**-24  # Σ|products| of unit rows is at most 1
    a_cosine, a_index, b_cosine, b_index = result
    expect_close("a_cosine", a_cosine, problem.a_best, bound)
    expect_close("b_cosine", b_cosine, problem.b_best, bound)
    at_a = F.cosine_similarity(problem.a.double(), problem.b[a_index].double())
    at_b = F.cosine_similarity(problem.b.double(), problem.a[b_index].double())
    expect_close("cosine at a_index", at_a, problem.a_best, bound)
    expect_close("cosine at b_index", at_b, problem.b_best, bound)


BENCHES = (
    Bench(
        op="nearest",
        mode="both directions",
        shapes=({"F": 16384, "D": 512},),
        quick=({"F": 512, "D": 64},),
        providers=("saekern", "torch"),
        inputs=inputs,
        setup=setup,
    ),
)
