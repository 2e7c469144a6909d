"""The sparse decoder, forward and with its gradients, against torch's embedding_bag and a dense product."""

from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from saekern import ops
from saekern.bench.common import Bench, Goal, Run, Shape, expect_close, expect_same, generator, sum_bound

BAGS = ("embedding_bag", "embedding_bag sparse")


class Wanted(NamedTuple):
    """float64 results and the magnitudes Σ|products| of their sums."""

    out: Tensor  # [B, D]
    out_magnitude: Tensor
    grad_values: Tensor  # [B, K]
    grad_values_magnitude: Tensor
    grad_weight: Tensor  # [F, D]
    grad_weight_magnitude: Tensor
    most: int  # codes of the most frequent latent


class Problem:
    def __init__(self, shape: Shape) -> None:
        batch, width, latents, k = (int(shape[name]) for name in "BDFK")
        random = generator(shape)
        self.weight = torch.randn(latents, width, generator=random) / width**0.5
        self.values = torch.rand(batch, k, generator=random) + 0.1
        rank = torch.arange(1, latents + 1, dtype=torch.float32)
        # Zipf: a few latents fire on most rows, as in trained SAEs; they are what an unsplit backward pass waits for.
        chance = rank.reciprocal() if shape["latents"] == "zipf" else torch.ones(latents)
        self.indices = torch.multinomial(chance.expand(batch, -1), k, generator=random)  # [B, K], distinct in a row
        self.grad = torch.randn(batch, width, generator=random)

    @cached_property
    def wanted(self) -> Wanted:
        weight, values, grad, indices = self.weight.double(), self.values.double(), self.grad.double(), self.indices
        made = [torch.zeros_like(t) for t in (grad, grad, values, values, weight, weight)]
        for k in range(indices.shape[1]):
            at, value = indices[:, k], values[:, k, None]
            picked = weight[at]
            for target, product in ((0, value * picked), (1, value * picked.abs())):
                made[target] += product
            made[2][:, k], made[3][:, k] = (grad * picked).sum(1), (grad * picked).abs().sum(1)
            made[4].index_add_(0, at, value * grad)
            made[5].index_add_(0, at, value * grad.abs())
        return Wanted(*made, int(indices.flatten().bincount().max()))

    def check_out(self, out: Tensor) -> None:
        wanted = self.wanted
        expect_close("out", out, wanted.out, sum_bound(wanted.out, wanted.out_magnitude, self.indices.shape[1]))

    def check_gradients(self, grad_values: Tensor, grad_weight: Tensor) -> None:
        wanted = self.wanted
        bound = sum_bound(wanted.grad_values, wanted.grad_values_magnitude, self.grad.shape[1])
        expect_close("gradient to values", grad_values, wanted.grad_values, bound)
        bound = sum_bound(wanted.grad_weight, wanted.grad_weight_magnitude, wanted.most)
        expect_close("gradient to weight", grad_weight, wanted.grad_weight, bound)


def decoder(provider: str, problem: Problem):
    """values [B, K], weight [F, D] -> [B, D]."""
    indices = problem.indices
    if provider == "saekern":
        return lambda values, weight: ops.decode(values, indices, weight)
    if provider in BAGS:
        sparse = provider == BAGS[1]
        return lambda values, weight: F.embedding_bag(
            indices, weight, per_sample_weights=values, mode="sum", sparse=sparse
        )
    batch, latents = indices.shape[0], problem.weight.shape[0]
    return lambda values, weight: values.new_zeros(batch, latents).scatter(1, indices, values) @ weight


def setup_forward(problem: Problem, provider: str) -> Run:
    call = decoder(provider, problem)
    values, weight = problem.values, problem.weight
    gathered = 4.0 * values.numel() * weight.shape[1]  # bytes of weight rows read
    return Run(lambda: call(values, weight), problem.check_out, bytes=gathered)


def setup_backward(problem: Problem, provider: str) -> Run:
    """Gradients to values and weight; the weight's dense, or sparse where embedding_bag is asked for that."""
    call = decoder(provider, problem)
    values, weight = problem.values.clone().requires_grad_(), problem.weight.clone().requires_grad_()

    def forget() -> None:
        values.grad = weight.grad = None

    def step() -> Tensor:
        out = call(values, weight)
        out.backward(problem.grad)
        return out.detach()

    def check(out: Tensor) -> None:
        problem.check_out(out)
        problem.check_gradients(values.grad, weight.grad.to_dense())

    return Run(step, check, forget, kept_bytes=0 if provider == BAGS[1] else values.nbytes + weight.nbytes)


def setup_rows(problem: Problem, provider: str) -> Run:
    """The weight's gradient as the rows of the latents that fired; the peers' own form of it."""
    if provider != "saekern":
        return setup_backward(problem, provider)
    values, indices, weight = problem.values, problem.indices, problem.weight

    def step() -> tuple[Tensor, ops.RowGradients]:
        out = ops.decode(values, indices, weight)
        return out, ops.decode_row_gradients(problem.grad, values, indices, weight)

    def check(result: tuple[Tensor, ops.RowGradients]) -> None:
        out, gradients = result
        problem.check_out(out)
        expect_same("latents", gradients.latents, indices.unique())
        dense = torch.zeros_like(weight).index_copy_(0, gradients.latents, gradients.rows)
        problem.check_gradients(gradients.values, dense)

    return Run(step, check)


def bench(mode: str, providers: tuple[str, ...], setup, goals: tuple[Goal, ...]) -> Bench:
    return Bench(
        op="decode",
        mode=mode,
        shapes=tuple({"B": 512, "K": 32, "D": 768, "F": 16384, "latents": kind} for kind in ("uniform", "zipf")),
        quick=({"B": 64, "K": 8, "D": 64, "F": 512, "latents": "zipf"},),
        providers=providers,
        inputs=Problem,
        setup=setup,
        goals=goals,
    )


BENCHES = (
    bench("forward", ("saekern", BAGS[0], "dense"), setup_forward, ()),
    bench(
        "forward and backward, dense weight gradient",
        ("saekern", BAGS[0], "dense"),
        setup_backward,
        (Goal(BAGS[:1], faster=5),),
    ),
    bench("forward and backward, row gradients", ("saekern", *BAGS), setup_rows, (Goal(BAGS, faster=7),)),
)
