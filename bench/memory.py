"""Peak memory of one training step above inputs, parameters, gradients and optimiser state (method: peak.py)."""

from saekern.bench.common import Bench, Goal
from saekern.bench.problems import sae_problem
from saekern.bench.train_step import setup

BENCHES = (
    Bench(
        op="memory",
        mode="one training step",
        shapes=({"B": 4096, "D": 768, "F": 65536, "K": 64},),
        quick=({"B": 64, "D": 64, "F": 512, "K": 8},),
        providers=("saekern", "torch"),
        inputs=sae_problem,
        setup=setup,
        goals=(Goal(("torch",), within=0.1, metric="peak_mib"),),
        rounds=(1, 1),  # a step of plain torch takes half a minute here; time is what train_step measures
    ),
)
