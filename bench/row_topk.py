"""The K largest of every row of a matrix that exists already, against torch.topk."""

import torch
from torch import Tensor

from saekern import ops
from saekern.bench.common import Bench, Goal, Run, Shape, expect_same, generator


def inputs(shape: Shape) -> tuple[Tensor, int]:
    """Normal scores, as an encoder's are; B rows such that no shape fits the caches of a desktop CPU."""
    scores = torch.randn(int(shape["B"]), int(shape["F"]), generator=generator(shape))
    return scores, int(shape["K"])


def setup(problem: tuple[Tensor, int], provider: str) -> Run:
    scores, k = problem
    call = {
        "saekern": lambda: ops.row_topk(scores, k),
        "torch": lambda: scores.topk(k),
        "torch unsorted": lambda: scores.topk(k, sorted=False),
    }[provider]
    return Run(call, lambda result: check(scores, k, *result), bytes=scores.nbytes)


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
        providers=("saekern", "torch", "torch unsorted"),
        inputs=inputs,
        setup=setup,
        goals=(
            Goal(("torch", "torch unsorted"), faster=5, only={"F": 2**14}),
            Goal(("torch", "torch unsorted"), faster=4.5, only={"F": 2**16}),
            Goal(("torch", "torch unsorted"), faster=4.5, only={"F": 2**17}),
        ),
    ),
)
