"""The HierarchicalTopK loss with its gradients, against cumulative sums in plain torch, eager or compiled; and the
memory of its layer beside that of plain TopK."""

import copy
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

import saekern
from saekern import ops
from saekern.bench.common import Absent, Bench, Goal, Run, Shape, WrongAnswer, expect_close, generator

CUMSUM = ("torch", "torch.compile")
# A gradient of some 10⁴ products rounds to about 1e-6 of its norm; a lost term or factor shows in percent.
GRADIENT_TOLERANCE = 1e-4


class Wanted(NamedTuple):
    """float64."""

    loss: Tensor
    values: Tensor  # [B, K]
    weight: Tensor  # [F, D]
    bias: Tensor  # [D]


class Problem:
    """Shape: B, D, F, K; budgets "all" or how many, spread over 1 … K as powers of two are."""

    def __init__(self, shape: Shape) -> None:
        batch, width, latents, k = (int(shape[name]) for name in "BDFK")
        random = generator(shape)
        self.budgets = None if shape["budgets"] == "all" else [k >> i for i in reversed(range(int(shape["budgets"])))]
        self.weight = torch.randn(latents, width, generator=random) / width**0.5
        self.values = (torch.rand(batch, k, generator=random) + 0.1).sort(1, descending=True).values
        # Zipf: a few latents fire on most rows, as in trained SAEs.
        chance = torch.arange(1, latents + 1, dtype=torch.float32).reciprocal()
        self.indices = torch.multinomial(chance.expand(batch, -1), k, generator=random)  # [B, K], distinct in a row
        self.bias = 0.2 * torch.randn(width, generator=random)
        self.target = torch.randn(batch, width, generator=random)

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.values, self.weight, self.bias

    @cached_property
    def wanted(self) -> Wanted:
        leaves = [t.double().requires_grad_() for t in self.inputs]
        loss = cumulative(*leaves, self.indices, self.target.double(), self.budgets)
        return Wanted(loss.detach(), *torch.autograd.grad(loss, leaves))


def cumulative(
    values: Tensor, weight: Tensor, bias: Tensor, indices: Tensor, target: Tensor, budgets: list[int] | None
) -> Tensor:
    """What one writes in an afternoon; the [B, K, D] tensor and several of its size exist."""
    prefixes = (values[..., None] * weight[indices]).cumsum(1) + bias
    if budgets is not None:
        prefixes = prefixes[:, [c - 1 for c in budgets]]
    return (prefixes - target[:, None]).square().sum(2).mean()


def setup(problem: Problem, provider: str) -> Run:
    values, weight, bias = leaves = [t.clone().requires_grad_() for t in problem.inputs]
    function = torch.compile(cumulative) if provider == "torch.compile" else cumulative

    def forget() -> None:
        for leaf in leaves:
            leaf.grad = None

    def call() -> Tensor:
        if provider == "saekern":
            made = ops.hierarchical_loss(values, problem.indices, weight, bias, problem.target, problem.budgets)
            loss = made.loss
        else:
            loss = function(values, weight, bias, problem.indices, problem.target, problem.budgets)
        loss.backward()
        return loss.detach()

    if provider == "torch.compile":
        try:
            call()
        except Exception as error:  # a missing or broken compiler shows in many ways
            raise Absent(f"torch.compile failed: {str(error).splitlines()[0]}") from error
        forget()

    def check(loss: Tensor) -> None:
        wanted = problem.wanted
        expect_close("loss", loss, wanted.loss, 1e-5 * float(wanted.loss))
        for name, leaf in zip(("values", "weight", "bias"), leaves, strict=True):
            want = getattr(wanted, name)
            error = float((leaf.grad.double() - want).norm() / want.norm())
            if not error <= GRADIENT_TOLERANCE:
                raise WrongAnswer(f"gradient to {name}: off by {error:.2e} of its norm")

    return Run(call, check, forget, kept_bytes=sum(leaf.nbytes for leaf in leaves))


def layer_inputs(shape: Shape) -> tuple[Shape, Tensor]:
    batch, width = int(shape["B"]), int(shape["D"])
    return shape, torch.randn(batch, width, generator=generator(shape))


def setup_layer(problem: tuple[Shape, Tensor], provider: str) -> Run:
    """Loss and backward of our two layers at equal sizes: what a step holds beside its optimiser."""
    shape, x = problem
    make = saekern.TopKSAE if provider == "TopKSAE" else saekern.HierarchicalTopKSAE
    sae = make(int(shape["D"]), int(shape["F"]), int(shape["K"]), init_seed=0)

    def call() -> Tensor:
        loss = sae.loss(x).total
        loss.backward()
        return loss.detach()

    def check(loss: Tensor) -> None:
        with torch.no_grad():
            want = copy.deepcopy(sae).double().loss(x.double()).total
        expect_close("loss", loss, want, 1e-5 * float(want))

    return Run(call, check, sae.zero_grad, kept_bytes=sum(parameter.nbytes for parameter in sae.parameters()))


BENCHES = (
    Bench(
        op="hierarchical_loss",
        mode="forward and backward",
        shapes=tuple({"B": 1024, "K": 32, "D": 512, "F": 16384, "budgets": count} for count in ("all", 4)),
        quick=({"B": 64, "K": 8, "D": 64, "F": 512, "budgets": "all"},),
        providers=("saekern", *CUMSUM),
        inputs=Problem,
        setup=setup,
        goals=(Goal(CUMSUM, faster=5),),
    ),
    Bench(
        op="hierarchical_loss",
        mode="layer, all budgets: loss, forward and backward",
        shapes=({"B": 1024, "K": 32, "D": 512, "F": 16384},),
        quick=({"B": 64, "K": 8, "D": 64, "F": 512},),
        providers=("saekern", "TopKSAE"),
        inputs=layer_inputs,
        setup=setup_layer,
        goals=(Goal(("TopKSAE",), within=1.2, metric="peak_mib"),),
    ),
)
