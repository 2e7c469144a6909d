"""The classic SAEs' losses, forward and backward, against the same loss in plain PyTorch."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import saekern
from saekern.bench.common import Bench, Goal, Run, Shape, WrongAnswer, generator
from saekern.bench.plain import total_variance
from saekern.sae import SAE

BANDWIDTH = 0.02


@dataclass(frozen=True)
class Problem:
    sae: SAE
    x: Tensor  # [B, D], rows of variance 1


def rows_of(shape: Shape) -> tuple[Tensor, torch.Generator]:
    random = generator(shape)
    x = torch.randn(shape["B"], shape["D"], generator=random) / shape["D"] ** 0.5
    return x, random


def batch_topk(shape: Shape) -> Problem:
    return Problem(saekern.BatchTopKSAE(shape["D"], shape["F"], shape["K"], init_seed=0), rows_of(shape)[0])


def jumprelu(shape: Shape) -> Problem:
    """Thresholds at which K latents a row are active."""
    x, _ = rows_of(shape)
    sae = saekern.JumpReLUSAE(shape["D"], shape["F"], bandwidth=BANDWIDTH, init_seed=0)
    with torch.no_grad():
        sample = (x[:64] @ sae.W_enc).flatten()
        sae.threshold.fill_(float(sample.topk(shape["K"] * min(64, len(x))).values[-1]))
    return Problem(sae, x)


class Jump(torch.autograd.Function):
    """z = s · 1[s > θ] and 1[s > θ] for dense scores, with the paper's pseudo-derivatives."""

    @staticmethod
    def forward(ctx, score, threshold):
        ctx.save_for_backward(score, threshold)
        active = score > threshold
        return score * active, active.to(score.dtype)

    @staticmethod
    def backward(ctx, grad_value, grad_active):
        score, threshold = ctx.saved_tensors
        near = ((score - threshold).abs() < BANDWIDTH / 2).to(score.dtype) / BANDWIDTH
        return grad_value * (score > threshold), -(near * (threshold * grad_value + grad_active)).sum(0)


def plain_batch_topk(sae: SAE, x: Tensor) -> tuple[Tensor, Tensor]:
    scores = F.linear(x - sae.b_dec, sae.W_enc.T, sae.b_enc).relu().flatten()
    top = scores.topk(sae.k * len(x), sorted=False)
    codes = torch.zeros_like(scores).scatter(0, top.indices, top.values).reshape(len(x), -1)
    x_hat = codes @ sae.W_dec + sae.b_dec
    return (x - x_hat).square().sum() / total_variance(x), x_hat


def plain_jumprelu(sae: SAE, x: Tensor) -> tuple[Tensor, Tensor]:
    values, active = Jump.apply(F.linear(x - sae.b_dec, sae.W_enc.T, sae.b_enc), sae.threshold)
    x_hat = values @ sae.W_dec + sae.b_dec
    return (x - x_hat).square().sum() / total_variance(x) + sae.l0_coefficient * active.sum() / len(x), x_hat


def ours(sae: SAE, x: Tensor) -> tuple[Tensor, Tensor]:
    loss = sae.loss(x)
    return loss.total, loss.x_hat


def setup_with(plain: Callable, names: tuple[str, ...] = ("W_enc", "W_dec")) -> Callable[[Problem, str], Run]:
    """A loss of ours against `plain`(sae, x), with the gradients of the parameters `names`."""

    def setup(problem: Problem, provider: str) -> Run:
        sae, x = problem.sae, problem.x
        forward = ours if provider == "saekern" else plain

        def call() -> tuple[Tensor, Tensor]:
            loss, x_hat = forward(sae, x)
            loss.backward()
            return loss.detach(), x_hat.detach()

        def check(result: tuple[Tensor, Tensor]) -> None:
            """Against the plain loss in float64. Scores that tie within float32 may fall either way: one code more or
            less of 32,768 moves a gradient by 0.8 % of its norm."""
            grads = {name: getattr(sae, name).grad for name in names}
            sae.zero_grad()
            double = sae.double()
            want, _ = plain(double, x.double())
            leaves = {name: getattr(double, name) for name in names}
            wanted = dict(zip(leaves, torch.autograd.grad(want, list(leaves.values())), strict=True))
            want = want.detach()
            sae.float()
            if not abs(float(result[0]) - float(want)) <= 1e-4 * abs(float(want)):
                raise WrongAnswer(f"loss {float(result[0])}, expected {float(want)}")
            for name in leaves:
                error = (grads[name].double() - wanted[name]).norm() / wanted[name].norm()
                if not error <= 1e-2:
                    raise WrongAnswer(f"gradient of {name}: {float(error):.2g} from the float64 one")

        return Run(call, check, prepare=lambda: sae.zero_grad(), kept_bytes=sum(p.nbytes for p in sae.parameters()))

    return setup


BENCHES = tuple(
    Bench(
        op="classics",
        mode=f"{name} loss, forward and backward",
        shapes=({"B": 1024, "D": 512, "F": 16384, "K": 32},),
        quick=({"B": 64, "D": 64, "F": 512, "K": 8},),
        providers=("saekern", "torch"),
        inputs=inputs,
        setup=setup_with(plain),
        goals=(Goal(("torch",), faster=3),),
    )
    for name, inputs, plain in (("BatchTopK", batch_topk, plain_batch_topk), ("JumpReLU", jumprelu, plain_jumprelu))
)
