"""The machine's own roof: a float32 matrix product [B, D] × [D, F] alone, by every library torch brings.

Which one is fastest depends on the CPU: on AMD oneDNN runs two to three times MKL. Goals take the fastest that ran.
"""

import torch

from saekern.bench.common import Absent, Run, WrongAnswer
from saekern.bench.problems import SAEProblem

GEMMS = ("gemm oneDNN", "gemm oneDNN packed", "gemm MKL")


def setup_gemm(problem: SAEProblem, provider: str) -> Run:
    """x @ w_encᵀ with both operands in the library's preferred layout before the clock starts."""
    x, weight = problem.x, problem.w_enc
    flops = 2.0 * x.shape[0] * weight.shape[0] * weight.shape[1]
    if provider == "gemm MKL":
        out = torch.empty(x.shape[0], weight.shape[0])
        transposed = weight.T
        return Run(lambda: torch.mm(x, transposed, out=out), lambda got: check(problem, got), flops=flops)
    if not torch.backends.mkldnn.is_available():
        raise Absent("this torch has no oneDNN")
    if provider == "gemm oneDNN":
        inputs, blocked = x.to_mkldnn(), weight.to_mkldnn()
        return Run(
            lambda: torch._C._nn.mkldnn_linear(inputs, blocked), lambda got: check(problem, got.to_dense()), flops=flops
        )
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, x.shape[0])
    return Run(
        lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], ""),
        lambda got: check(problem, got),
        flops=flops,
    )


def check(problem: SAEProblem, got: torch.Tensor) -> None:
    """Some rows, to float32 rounding: a product in a lower precision would not be the same work."""
    rows = slice(0, 16)
    want = problem.x[rows].double() @ problem.w_enc.double().T
    bound = 2.0**-20 * problem.x[rows].double().norm(dim=1, keepdim=True) * problem.w_enc.double().norm(dim=1)
    if not ((got[rows].double() - want).abs() <= bound).all():
        raise WrongAnswer("the product is not float32-exact")
