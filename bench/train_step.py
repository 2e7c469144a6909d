"""The whole training step: loss, backward, projection of the decoder's gradient, Adam, unit decoder norm.

The rate is that of the state which a dense step cannot avoid to move, per weight: the parameter, two moments read and
written, and the gradient written by backward and read by Adam; 8 × 4 bytes. Peers run the step of their own trainer,
which may do less (SAELens and overcomplete leave the decoder's norm alone) or more (gradient clipping).
"""

from torch import Tensor

from saekern.bench.common import Bench, Goal, Run, WrongAnswer
from saekern.bench.peers import PEERS, adapter
from saekern.bench.plain import LR, Adapter
from saekern.bench.problems import SAEProblem, check_loss, sae_problem


def setup(problem: SAEProblem, provider: str) -> Run:
    sae = adapter(provider, problem)
    state = sum(parameter.nbytes for parameter in sae.parameters)
    return Run(
        lambda: sae.step(sae.x),
        lambda loss: check(problem, sae, loss),
        bytes=8 * state,
        kept_bytes=sae.step_keeps * state,
        version=sae.version,
    )


def check(problem: SAEProblem, sae: Adapter, loss: Tensor | float) -> None:
    """The loss of the initial weights, and an encoder that Adam's first step moved: by lr · g / (|g| + eps), whatever
    the size of g. Gradient clipping, which some peers do, only scales g, and eps is far below these gradients."""
    check_loss(problem, sae.scale, float(loss))
    grad_enc, _ = problem.squared_error_gradients
    encoder = sae.encoder.detach().T if sae.encoder_transposed else sae.encoder.detach()
    clear = grad_enc.abs() > 1e-3 * grad_enc.abs().max()  # far above rounding
    grad = sae.scale * grad_enc[clear]
    moved = (encoder.double() - problem.w_enc.double())[clear]
    wrong = ~((moved + LR * grad / (grad.abs() + 1e-8)).abs() <= 0.05 * LR)
    if wrong.any():
        raise WrongAnswer(f"encoder: {int(wrong.sum())} of {wrong.numel()} weights did not make Adam's first step")


BENCHES = (
    Bench(
        op="train_step",
        mode="loss, backward, projection, Adam, norm",
        shapes=({"B": 1024, "D": 512, "F": 16384, "K": 32},),
        quick=({"B": 64, "D": 64, "F": 512, "K": 8},),
        providers=("saekern", *PEERS),
        inputs=sae_problem,
        setup=setup,
        goals=(Goal(PEERS, faster=3),),
    ),
)
