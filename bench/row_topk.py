"""The K largest of every row of a matrix that exists already, against torch.topk, and against reading it once."""

import torch
from torch import Tensor

from saekern import ops
from saekern.bench.common import Bench, Goal, Run, Shape, expect_close, expect_same, generator, sum_bound


def inputs(shape: Shape) -> tuple[Tensor, int]:
    """Normal scores, as an encoder's are; B rows such that no shape fits the caches of a desktop CPU."""
    scores = torch.randn(int(shape["B"]), int(shape["F"]), generator=generator(shape))
    return scores, int(shape["K"])


ROOF = "torch sum"  # reads every score once: what memory's rate leaves to anybody, that day on that machine


def setup(problem: tuple[Tensor, int], provider: str) -> Run:
    scores, k = problem
    if provider == ROOF:
        return Run(lambda: scores.sum(1), lambda result: check_sums(scores, result), bytes=scores.nbytes)
    call = {
        "saekern": lambda: ops.row_topk(scores, k),
        "torch": lambda: scores.topk(k),
        "torch unsorted": lambda: scores.topk(k, sorted=False),
    }[provider]
    return Run(call, lambda result: check(scores, k, *result), bytes=scores.nbytes)


def check_sums(scores: Tensor, sums: Tensor) -> None:
    exact = scores.double()
    expect_close("sums", sums, exact.sum(1), sum_bound(exact.sum(1), exact.abs().sum(1), scores.shape[1]))


def check(scores: Tensor, k: int, values: Tensor, indices: Tensor) -> None:
    """Selection does no arithmetic, so it is exact. Random scores may tie: the indices must lead to the values."""
    expect_same("values", values.sort(1, descending=True).values, scores.sort(1, descending=True).values[:, :k])
    expect_same("scores at indices", scores.gather(1, indices), values)
    expect_same("indices without repetition", indices.sort(1).values.diff() > 0, torch.ones(len(scores), k - 1) > 0)


BENCHES = (
    Bench(
        op="row_topk",
        mode="forward",
        shapes=tuple({"B": 2**25 // latents, "F": latents, "K": 32} for latents in (2**14, 2**16, 2**17)),
        quick=({"B": 64, "F": 4096, "K": 32},),
        providers=("saekern", "torch", "torch unsorted", ROOF),
        inputs=inputs,
        setup=setup,
        goals=(
            Goal(("torch", "torch unsorted"), faster=5, only={"F": 2**14}),
            Goal(("torch", "torch unsorted"), faster=4.5, only={"F": 2**16}),
            Goal(("torch", "torch unsorted"), faster=4.5, only={"F": 2**17}),
        ),
    ),
)
