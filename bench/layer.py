"""TopKSAE loss, forward and backward, with weights that changed since the last call.

Whatever a provider caches from its weights (a packed or a bf16 copy, norms) is thus rebuilt inside the timing, as in
training. Every provider computes the same reconstruction and, up to a constant factor, the same loss and gradients.
"""

import itertools

from torch import Tensor

from saekern.bench.common import Bench, Goal, Run
from saekern.bench.peers import PEERS, adapter
from saekern.bench.plain import Adapter
from saekern.bench.problems import SAEProblem, check_gradients, check_loss, check_reconstruction, sae_problem
from saekern.bench.roof import GEMMS, setup_gemm


def setup(problem: SAEProblem, provider: str) -> Run:
    if provider in GEMMS:
        return setup_gemm(problem, provider)
    sae = adapter(provider, problem)
    # The first call sees the problem's own weights, to which the answer belongs; then they alternate.
    variants = itertools.cycle([(problem.w_enc, problem.w_dec), (problem.w_enc * 1.01, problem.w_dec)])

    def call() -> tuple[Tensor, Tensor]:
        loss, x_hat = sae.forward(sae.x)
        loss.backward()
        return loss.detach(), x_hat.detach()

    return Run(
        call,
        lambda result: check(problem, sae, result),
        prepare=lambda: sae.set_weights(*next(variants)),
        kept_bytes=sum(parameter.nbytes for parameter in sae.parameters),
        version=sae.version,
    )


def check(problem: SAEProblem, sae: Adapter, result: tuple[Tensor, Tensor]) -> None:
    loss, x_hat = result
    check_reconstruction(problem, x_hat + sae.shift)
    check_loss(problem, sae.scale, float(loss))
    check_gradients(problem, sae.scale, *sae.gradients())


BENCHES = (
    Bench(
        op="layer",
        mode="loss, forward and backward",
        shapes=({"B": 1024, "D": 512, "F": 16384, "K": 32},),
        quick=({"B": 64, "D": 64, "F": 512, "K": 8},),
        providers=("saekern", *PEERS, *GEMMS),
        inputs=sae_problem,
        setup=setup,
        goals=(Goal(PEERS, faster=4), Goal(GEMMS, within=1.2, elsewhere=1.8)),
    ),
)
