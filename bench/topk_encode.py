"""The encoder: scores and the K largest of each row, with weights that stay the same from call to call."""

from saekern import ops
from saekern.bench.common import Bench, Goal, Run
from saekern.bench.problems import SAEProblem, check_codes, sae_problem
from saekern.bench.roof import GEMMS, setup_gemm


def setup(problem: SAEProblem, provider: str) -> Run:
    if provider in GEMMS:
        return setup_gemm(problem, provider)
    x, weight, bias, pre_bias, k = problem.x, problem.w_enc, problem.b_enc, problem.b_dec, problem.k
    transposed = weight.T
    call = {
        "saekern": lambda: ops.topk_encode(x, weight, bias, k, pre_bias=pre_bias),
        "torch": lambda: ((x - pre_bias) @ transposed).add_(bias).topk(k),
        "torch addmm": lambda: bias.addmm(x - pre_bias, transposed).topk(k),
    }[provider]
    flops = 2.0 * x.shape[0] * weight.numel()
    return Run(call, lambda result: check_codes(problem, *result), flops=flops)


BENCHES = (
    Bench(
        op="topk_encode",
        mode="forward, weights unchanged",
        shapes=(
            {"B": 1024, "D": 512, "F": 16384, "K": 32},
            {"B": 1024, "D": 768, "F": 16384, "K": 32},
            {"B": 512, "D": 768, "F": 65536, "K": 64},
        ),
        quick=({"B": 64, "D": 64, "F": 1024, "K": 16},),
        providers=("saekern", "torch", "torch addmm", *GEMMS),
        inputs=sae_problem,
        setup=setup,
        goals=(Goal(("torch", "torch addmm"), faster=4, needs_bf16=True), Goal(GEMMS, within=0.65, elsewhere=1.3)),
    ),
)
