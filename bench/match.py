"""Two dictionaries to their exact one-to-one matching, beside the one float32 matrix product of that size.

The product is what the fastest library of torch needs for all cosines, a tile at a time into memory that is used again;
a matching at 1.15 × has found the optimum, with proof, for 15 % on top. The proof is not believed: every pair is held
against the prices u and v here, by a pass of this file's own.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.optimize
import torch
import torch.nn.functional as F
from torch import Tensor

import saekern
from saekern.bench import assignment_instances as instances
from saekern.bench.common import Bench, Goal, Run, Shape, WrongAnswer
from saekern.matching.result import Certificate, Matching

ROWS, COLUMNS = 1024, 1024  # of a tile: 4 MB stay in L2 or L3; oneDNN is as fast as it gets from 256 rows on
SMALL = 2048  # up to here scipy's total is the judge as well
# A pair may stand this far above its prices: unit rows are rounded to float32 (2⁻²³ in a cosine), cosines and perhaps
# the prices too (2⁻²⁵ each).
VIOLATION = 2.0**-21


@dataclass(frozen=True)
class Problem:
    a: Tensor  # [n, D], unit rows
    b: Tensor  # [n, D]

    @property
    def flops(self) -> float:
        return 2.0 * self.a.shape[0] * self.b.shape[0] * self.a.shape[1]


def inputs(shape: Shape) -> Problem:
    return Problem(*instances.dictionaries(str(shape["kind"]), int(shape["n"]), int(shape["D"])))


def real_inputs(shape: Shape, data: Path | None) -> Problem:
    return Problem(*instances.real_pair(data, str(shape["pair"]), int(shape["n"])))


def setup(problem: Problem, provider: str) -> Run:
    a, b = problem.a, problem.b
    if provider == "gemm":
        return setup_gemm(problem)
    verify = {"verify": True} if provider == "saekern verify" else {}  # the library's own second pass
    return Run(
        lambda: saekern.match(a, b, method="assignment", **verify),
        lambda found: check(problem, found),
        note=lambda found: note(problem, found),
    )


def note(problem: Problem, found: Matching) -> str:
    proof = found.certificate
    if proof is None:
        return "no certificate"
    share = 100 * proof.rows_recomputed / problem.a.shape[0]
    return (
        f"{proof.rows_recomputed} rows recomputed ({share:.1f} %), gap {proof.gap:.1e}, exact: {proof.exact}, "
        f"verified: no pair stands above its prices"
    )


# The answer


def check(problem: Problem, found: Matching) -> None:
    """One-to-one with the cosines it states, and no other has a larger sum: by its prices, and by scipy where small."""
    primal = check_pairs(problem, found)
    n = problem.a.shape[0]
    if found.certificate is not None:
        check_prices(problem, found.certificate, primal)
    elif n > SMALL:
        raise WrongAnswer("no certificate, and too large for scipy")
    if n <= SMALL:
        cosine = (problem.a.double() @ problem.b.double().T).numpy()
        best = cosine[scipy.optimize.linear_sum_assignment(cosine, maximize=True)].sum()
        if not primal >= best - n * 2.0**-24:  # optimal for cosines rounded to float32
            raise WrongAnswer(f"total {primal:.12g}, the optimum is {best:.12g}")


def check_pairs(problem: Problem, found: Matching) -> float:
    """Σ of the float64 cosines."""
    if not np.array_equal(found.index.sort().values, np.arange(problem.a.shape[0])):
        raise WrongAnswer("not a permutation")
    primal = 0.0
    parts = zip(*(x.split(ROWS) for x in (problem.a, found.index, found.cosine)), strict=True)
    for rows, partners, stated in parts:
        cosine = F.cosine_similarity(rows.double(), problem.b[partners].double())
        if not ((stated.double() - cosine).abs() <= 2.0**-22).all():
            raise WrongAnswer("a stated cosine is not the pair's")
        primal += float(cosine.sum())
    return primal


def check_prices(problem: Problem, proof: Certificate, primal: float) -> None:
    """u_i + v_j ≥ cos(a_i, b_j) for all pairs, and Σ u + Σ v = Σ cosines: then no matching has a larger sum.

    float32 tiles find the pairs that could stand above their prices, (D + 2) 2⁻²⁴ being what a float32 sum of unit rows
    may be off by; those are computed again in float64."""
    a, b, u, v = problem.a, problem.b, proof.u.double(), proof.v.double()
    n, width = a.shape
    dual = float(u.sum() + v.sum())
    if not proof.exact:
        raise WrongAnswer("the certificate does not say that it is exact")
    if not abs(dual - primal) <= n * 2.0**-22:
        raise WrongAnswer(f"prices add up to {dual:.9g}, the cosines to {primal:.9g}")
    slack = (width + 2) * 2.0**-23
    u32, v32 = (u - slack).float(), v.float()
    buffer = torch.empty(ROWS, b.shape[0])
    for start in range(0, n, ROWS):
        rows = a[start : start + ROWS]
        above = torch.mm(rows, b.T, out=buffer[: len(rows)])
        above.sub_(u32[start : start + ROWS, None]).sub_(v32)
        i, j = (above > 0).nonzero(as_tuple=True)
        for at, to in zip(i.split(2**16), j.split(2**16), strict=True):
            cosine = F.cosine_similarity(rows[at].double(), b[to].double())
            worst = float((cosine - u[start + at] - v[to]).max())
            if not worst <= VIOLATION:
                raise WrongAnswer(f"a pair stands {worst:.3g} above its prices: not proven optimal")


# The product


def setup_gemm(problem: Problem) -> Run:
    """The faster of torch.mm into one buffer and oneDNN's product of packed tiles, tried on the first rows."""
    makers = {"torch.mm": mm_blocks, "oneDNN": packed_blocks}
    if not torch.backends.mkldnn.is_available():
        del makers["oneDNN"]
    few = Problem(problem.a[:ROWS], problem.b)
    fastest = min(makers, key=lambda name: quickest(makers[name](few)))
    return Run(
        makers[fastest](problem), lambda last: check_tile(problem, last), flops=problem.flops, note=lambda _: fastest
    )


def mm_blocks(problem: Problem):
    buffer, transposed = torch.empty(ROWS, problem.b.shape[0]), problem.b.T

    def call() -> Tensor:
        for rows in problem.a.split(ROWS):
            last = torch.mm(rows, transposed, out=buffer[: len(rows)])
        return last

    return call


def packed_blocks(problem: Problem):
    """b lies in oneDNN's order before the clock starts; a tile is freed before the next one is made."""
    packed = [torch.ops.mkldnn._reorder_linear_weight(part, ROWS) for part in problem.b.split(COLUMNS)]

    def call() -> Tensor:
        for rows in problem.a.split(ROWS):
            for part in packed:
                last = torch.ops.mkldnn._linear_pointwise(rows, part, None, "none", [], "")
        return last

    return call


def quickest(call) -> float:
    spent = []
    for _ in range(4):
        start = time.perf_counter()
        call()
        spent.append(time.perf_counter() - start)
    return min(spent)


def check_tile(problem: Problem, last: Tensor) -> None:
    """The last tile to float32 rounding: a product in a lower precision would not be the same work."""
    rows, columns = last.shape
    want = problem.a[-rows:].double() @ problem.b[-columns:].double().T
    if not ((last - want).abs() <= (problem.a.shape[1] + 2) * 2.0**-24).all():
        raise WrongAnswer("the product is not float32-exact")


# The benches


def match_bench(
    mode: str,
    shapes: tuple[Shape, ...],
    quick: tuple[Shape, ...],
    goals: tuple[Goal, ...],
    *,
    inputs=inputs,
    providers=("saekern", "gemm"),
    **rest,
) -> Bench:
    return Bench(
        "match", mode, shapes, quick, providers, inputs, setup, goals, rounds=(3, 50), weighed=("saekern",), **rest
    )


SHARP = Goal(("gemm",), within=0.6, elsewhere=1.15)
KINDS = {
    "sae": SHARP,
    "sae30": SHARP,
    "dead": Goal(("gemm",), within=2.0),
    "dupdead": Goal(("gemm",), within=4.0),
    "aniso": Goal(("gemm",), within=4.0),
}
PAIRS = ("0-1", "0-2", "0-3", "1-2", "1-3", "2-3")
QUICK = {"n": 192, "D": 64}

BENCHES = (
    match_bench(
        "assignment",
        tuple({"kind": kind, "n": n, "D": 768} for n in (16384, 32768) for kind in KINDS),
        tuple({"kind": kind, **QUICK} for kind in KINDS),
        tuple(goal._replace(only={"kind": kind}) for kind, goal in KINDS.items()),
        once_above=10.0,
    ),
    match_bench(
        "assignment, real pair",
        tuple({"pair": pair, "n": 8192, "D": 384} for pair in PAIRS),
        ({"pair": "0-1", "n": 192, "D": 384},),
        (SHARP,),
        inputs=real_inputs,
        reads_data=True,
    ),
    match_bench(
        "assignment, one call",
        tuple({"kind": "sae30", "n": n, "D": 768} for n in (65536, 131072)),
        ({"kind": "sae30", **QUICK},),
        (
            Goal((), at_most=40e3, only={"n": 65536}),
            Goal((), at_most=150e3, only={"n": 131072}),
            Goal((), at_most=572, metric="peak_mib"),  # 0.6 GB above the dictionaries
            Goal(("gemm",), within=1.15),
        ),
        providers=("saekern", "saekern verify", "gemm"),
        once_above=0.0,
        long=True,
    ),
)
