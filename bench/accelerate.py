"""Another library's own training step, plain and after `saekern.accelerate`: loss, backward, clipping, projection and
optimizer are the library's code in both.

The first step of both is held to the same float64 answer. A library joins by a line in FASTER, with its goal; `owner`
of its adapter in peers.py is what `accelerate` takes.
"""

import saekern
from saekern.bench.common import Bench, Goal, Run
from saekern.bench.peers import adapter
from saekern.bench.problems import SAEProblem, sae_problem
from saekern.bench.train_step import check

FASTER = {
    "dictionary_learning": 3.0,
    "overcomplete": 3.0,
    "SAELens": 2.0,
    "sparsify": 1.5,
}
ACCELERATED = ", accelerated"


def setup(problem: SAEProblem, provider: str) -> Run:
    sae = adapter(provider.removesuffix(ACCELERATED), problem)
    if provider.endswith(ACCELERATED):
        saekern.accelerate(sae.owner)
    state = sum(parameter.nbytes for parameter in sae.parameters)
    return Run(
        lambda: sae.step(sae.x),
        lambda loss: check(problem, sae, loss),
        bytes=8 * state,
        kept_bytes=sae.step_keeps * state,
        version=sae.version,
    )


BENCHES = (
    Bench(
        op="accelerate",
        mode="the library's training step",
        shapes=({"B": 1024, "D": 512, "F": 16384, "K": 32},),
        quick=({"B": 64, "D": 64, "F": 512, "K": 8},),
        providers=tuple(name for library in FASTER for name in (library + ACCELERATED, library)),
        inputs=sae_problem,
        setup=setup,
        goals=tuple(Goal((name,), faster=goal, ours=name + ACCELERATED) for name, goal in FASTER.items()),
    ),
)
