"""The Kronecker encoder beside the product of its pre-latents alone, and KronSAE's loss beside plain PyTorch."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import saekern
from saekern import ops
from saekern.bench.classics import Problem, rows_of, setup_with
from saekern.bench.common import Bench, Goal, Run, Shape, WrongAnswer
from saekern.bench.problems import SAEProblem
from saekern.bench.roof import GEMMS, setup_gemm
from saekern.sae import SAE

SHAPE = {"B": 1024, "D": 512, "F": 16384, "M": 4, "N": 8, "K": 32}
QUICK = {"B": 64, "D": 64, "F": 512, "M": 4, "N": 8, "K": 8}


def inputs(shape: Shape) -> Problem:
    """Weights of unit norm, as after some training: at the published start all factors are near 0."""
    sae = saekern.KronSAE(shape["D"], shape["F"], shape["K"], m=shape["M"], n=shape["N"], init_seed=0)
    with torch.no_grad():
        for weight in (sae.W_p, sae.W_q):
            weight.copy_(F.normalize(weight, dim=1))
    return Problem(sae, rows_of(shape)[0])


def setup_encode(problem: Problem, provider: str) -> Run:
    sae, x = problem.sae, problem.x
    p, q = (weight.detach() for weight in (sae.W_p, sae.W_q))
    if provider in GEMMS:
        return setup_gemm(Product(x, torch.cat([p, q])), provider)
    heads = sae.heads
    parts = p.view(heads, sae.m, -1), q.view(heads, sae.n, -1)

    def plain() -> tuple[Tensor, Tensor]:
        u, v = (x @ p.T).relu_().unflatten(1, (heads, -1, 1)), (x @ q.T).relu_().unflatten(1, (heads, 1, -1))
        return (u * v).flatten(1).sqrt_().topk(sae.k)

    call = {"saekern": lambda: ops.kron_encode(x, *parts, None, None, sae.k), "torch": plain}[provider]
    return Run(call, lambda result: check(problem, *result), flops=2.0 * x.shape[0] * (p.numel() + q.numel()))


@dataclass(frozen=True)
class Product(SAEProblem):
    """What `setup_gemm` reads of a problem."""

    def __init__(self, x: Tensor, weight: Tensor) -> None:
        object.__setattr__(self, "x", x)
        object.__setattr__(self, "w_enc", weight)


def check(problem: Problem, values: Tensor, indices: Tensor) -> None:
    """Each value is that of its latent in float64, and no latent that is clearly larger was left out."""
    sae, x = problem.sae, problem.x.double()
    u = (x @ sae.W_p.detach().double().T).relu().unflatten(1, (sae.heads, -1, 1))
    v = (x @ sae.W_q.detach().double().T).relu().unflatten(1, (sae.heads, 1, -1))
    scores = (u * v).flatten(1).sqrt()
    bound = 1e-4 * float(scores.max())
    if not ((values.double() - scores.gather(1, indices)).abs() <= bound).all():
        raise WrongAnswer("a value is not that of its latent")
    if not (values[:, -1:].double() >= scores.topk(sae.k).values[:, -1:] - bound).all():
        raise WrongAnswer("a larger latent was left out")


def plain_kron(sae: SAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """As the source's appendix has it, without eps."""
    centred = x - sae.b_dec
    u = F.linear(centred, sae.W_p, sae.b_p).relu().unflatten(1, (sae.heads, sae.m, 1))
    v = F.linear(centred, sae.W_q, sae.b_q).relu().unflatten(1, (sae.heads, 1, sae.n))
    scores = (u * v + 1e-30).sqrt().flatten(1)  # the root of 0 has no gradient
    top = scores.topk(sae.k, sorted=False)
    codes = torch.zeros_like(scores).scatter(1, top.indices, top.values)
    x_hat = codes @ sae.W_dec + sae.b_dec
    return (x - x_hat).square().sum() / (x - x.mean(0)).square().sum(), x_hat


BENCHES = (
    Bench(
        op="kron_encode",
        mode="forward",
        shapes=(SHAPE,),
        quick=(QUICK,),
        providers=("saekern", "torch", *GEMMS),
        inputs=inputs,
        setup=setup_encode,
        goals=(Goal(GEMMS, within=1.6),),
    ),
    Bench(
        op="kron_encode",
        mode="KronSAE loss, forward and backward",
        shapes=(SHAPE,),
        quick=(QUICK,),
        providers=("saekern", "torch"),
        inputs=inputs,
        setup=setup_with(plain_kron, ("W_p", "W_q", "W_dec")),
        goals=(Goal(("torch",), faster=3), Goal(("torch",), within=0.2, metric="peak_mib")),
    ),
)
