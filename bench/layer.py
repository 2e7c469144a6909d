"""TopKSAE loss, forward and backward, with weights that changed since the last call.

Whatever a provider caches from its weights (a packed or a bf16 copy, norms) is thus rebuilt inside the timing, as in
training. Every provider computes the same reconstruction and, up to a constant factor, the same loss and gradients.
"""

import itertools

from torch import Tensor

import saekern
from saekern.bench.common import Bench, Goal, Run, Shape
from saekern.bench.peers import PEERS, adapter
from saekern.bench.plain import LR, Adapter, fill
from saekern.bench.problems import (
    SAEProblem,
    check_gradients,
    check_loss,
    check_reconstruction,
    sae_problem,
)
from saekern.bench.roof import GEMMS, setup_gemm


def setup(problem: SAEProblem, provider: str) -> Run:
    if provider in GEMMS:
        return setup_gemm(problem, provider)
    sae = ours(problem) if provider == "saekern" else adapter(provider, problem)
    # The first call sees the problem's own weights, which the answer belongs to; then they alternate.
    variants = itertools.cycle([(problem.w_enc, problem.w_dec), (problem.w_enc * 1.01, problem.w_dec)])

    def prepare() -> None:
        w_enc, w_dec = next(variants)
        fill(sae.encoder, w_enc)
        fill(sae.decoder, w_dec)
        sae.zero_grad()

    def call() -> tuple[Tensor, Tensor]:
        loss, x_hat = sae.forward(sae.x)
        loss.backward()
        return loss.detach(), x_hat.detach()

    return Run(
        call,
        lambda result: check(problem, sae, result),
        prepare,
        kept_bytes=sum(parameter.nbytes for parameter in sae.parameters),
        version=sae.version,
    )


def ours(problem: SAEProblem) -> Adapter:
    batch, width = problem.x.shape
    sae = saekern.TopKSAE(width, problem.w_enc.shape[0], problem.k, init_seed=0)
    fill(sae.W_enc, problem.w_enc.T)
    fill(sae.b_enc, problem.b_enc)
    fill(sae.W_dec, problem.w_dec)
    fill(sae.b_dec, problem.b_dec)

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        loss = sae.loss(x)
        return loss.total, loss.x_hat

    raise_if_called = None
    return Adapter(
        forward, raise_if_called, list(sae.parameters()), sae.W_enc.T, sae.W_dec, 1 / problem.total_variance(), problem.x
    )


def check(problem: SAEProblem, sae: Adapter, result: tuple[Tensor, Tensor]) -> None:
    loss, x_hat = result
    check_reconstruction(problem, x_hat + sae.shift)
    check_loss(problem, sae.scale, float(loss))
    grad_enc, grad_dec = sae.gradients()
    check_gradients(problem, sae.scale, grad_enc, grad_dec)
