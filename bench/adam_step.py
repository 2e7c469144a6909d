"""Projection, Adam and unit norm of a decoder's rows in one pass, against the same in three."""

from typing import NamedTuple

import torch
from torch import Tensor

from saekern import ops
from saekern.bench.common import Bench, Run, Shape, expect_close, generator

LR = 1e-3


class Problem(NamedTuple):
    param: Tensor  # [F, D], unit rows
    grad: Tensor  # [F, D]


def inputs(shape: Shape) -> Problem:
    size = (int(shape["F"]), int(shape["D"]))
    random = generator(shape)
    param = torch.randn(size, generator=random)
    return Problem(param / param.norm(dim=1, keepdim=True), torch.randn(size, generator=random))


def setup(problem: Problem, provider: str) -> Run:
    param, grad = problem.param.clone(), problem.grad.clone()
    call = ours(param, grad) if provider == "saekern" else unfused(param, grad, fused=provider == "torch fused Adam")
    return Run(
        call,
        lambda _: check(problem, param),
        bytes=7 * param.nbytes,  # parameter and two moments read and written, gradient read
        kept_bytes=0 if provider == "saekern" else 2 * param.nbytes,  # torch makes the moments in its first step
    )


def ours(param: Tensor, grad: Tensor):
    exp_avg, exp_avg_sq, taken = torch.zeros_like(param), torch.zeros_like(param), iter(range(1, 10**9))
    return lambda: ops.adam_step(param, grad, exp_avg, exp_avg_sq, next(taken), lr=LR, project=True, normalize=True)


def unfused(param: Tensor, grad: Tensor, fused: bool):
    """The gradient is projected into a copy: ours leaves it as it is."""
    optimizer = torch.optim.Adam([param], lr=LR, fused=fused)

    def step() -> None:
        along = (grad * param).sum(1, keepdim=True) / param.square().sum(1, keepdim=True)
        param.grad = torch.addcmul(grad, along, param, value=-1)
        optimizer.step()
        param.div_(param.norm(dim=1, keepdim=True))

    return step


def check(problem: Problem, param: Tensor) -> None:
    """After the first step, where m = g and √v = |g| up to the bias correction.

    The update g / (|g| + eps) turns rounding of g into an error of at most lr, and only where |g| is near rounding
    itself: hence a bound of 2⁻¹⁸ beside one of 1 % of lr."""
    weight, grad = problem.param.double(), problem.grad.double()
    grad = grad - (grad * weight).sum(1, keepdim=True) / weight.square().sum(1, keepdim=True) * weight
    moved = weight - LR * grad / (grad.abs() + 1e-8)
    expect_close("param", param, moved / moved.norm(dim=1, keepdim=True), 2.0**-18 + 0.01 * LR)


BENCHES = (
    Bench(
        op="adam_step",
        mode="projection, Adam, norm",
        shapes=({"F": 16384, "D": 512},),
        quick=({"F": 512, "D": 64},),
        providers=("saekern", "torch", "torch fused Adam"),
        inputs=inputs,
        setup=setup,
    ),
)
