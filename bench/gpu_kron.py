"""The Kronecker encoder on a GPU: its problem, how an answer is checked against float64, what is timed."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from saekern.bench.common import Run, Shape, WrongAnswer, expect_close
from saekern.bench.gpu_problems import SAMPLE, on, on_device
from saekern.bench.roofline_cases import kernel


class Kron:
    """H heads of M and N pre-latents, in `dtype`."""

    def __init__(self, shape: Shape, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> None:
        self.shape, self.device = shape, device
        batch, width, heads, m, n, self.k = (int(shape[name]) for name in "BDHMNK")
        random = on(device, shape)
        self.x = on_device(device, batch, width, random=random, dtype=dtype)
        self.weight_p = on_device(device, heads, m, width, random=random, dtype=dtype)
        self.weight_q = on_device(device, heads, n, width, random=random, dtype=dtype)
        for weight in (self.weight_p, self.weight_q):
            weight.mul_(width**-0.5)
        self.bias_p = 0.05 * on_device(device, heads, m, random=random, dtype=dtype)
        self.bias_q = 0.05 * on_device(device, heads, n, random=random, dtype=dtype)
        self.pre_bias = 0.2 * on_device(device, width, random=random, dtype=dtype)

    def encode(self, order: bool = False) -> tuple[Tensor, ...]:
        weights = self.weight_p, self.weight_q, self.bias_p, self.bias_q
        return kernel("kron_encode")(self.x, *weights, self.k, self.pre_bias, "mand", 0.0, None, 0, order)

    def factors(self, rows: Tensor) -> list[Tensor]:
        """u and v in float64, [rows, H, M] and [rows, H, N]."""
        x = self.x[rows].double() - self.pre_bias.double()
        pairs = ((self.weight_p, self.bias_p), (self.weight_q, self.bias_q))
        return [(x @ w.double().flatten(0, 1).T).view(-1, *b.shape) + b.double() for w, b in pairs]

    def slopes(self, grad: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """du, dv in float64."""
        g, u, v = grad.double(), u.double(), v.double()
        on, half = (u > 0) & (v > 0), 0.5 * g
        return torch.where(on, half * (v / u).sqrt(), 0), torch.where(on, half * (u / v).sqrt(), 0)


def check_kron_encode(problem: Kron, values: Tensor, indices: Tensor, *, rounded: bool = False) -> None:
    """A sample of rows against float64: nothing clearly better was left out, nothing clearly worse taken in, values are
    the scores. `rounded`: u and v went through the storage type before they were multiplied."""
    rows = torch.arange(0, len(problem.x), max(1, len(problem.x) // SAMPLE), device=problem.device)
    u, v = (t.relu() for t in problem.factors(rows))
    scores = (u[..., :, None] * v[..., None, :]).flatten(1)
    norm = max(float(w.double().norm(dim=-1).max()) for w in (problem.weight_p, problem.weight_q))
    size = (problem.x[rows].double().norm(dim=1) + problem.pre_bias.double().norm())[:, None] * norm + 1
    unit = torch.finfo(problem.x.dtype).eps
    error = (problem.x.shape[1] + 8) * 2.0**-24 * size
    if rounded:
        error = error + unit * (size / problem.x.shape[1] ** 0.5 * 8 + max(float(u.max()), float(v.max())))
    most = torch.maximum(u.flatten(1).amax(1), v.flatten(1).amax(1))[:, None]
    bound = 2 * error * most + error.square() + (unit if rounded else 2.0**-23) * most.square()
    chosen = indices[rows]
    picked = scores.gather(1, chosen)
    kth = scores.topk(problem.k, dim=1).values[:, -1:]
    if (chosen.sort(1).values.diff(dim=1) == 0).any():
        raise WrongAnswer("indices: a latent twice in a row")
    if (picked < kth - 2 * bound).any():
        raise WrongAnswer("indices: a latent that is clearly not among the k largest")
    # |√a − √b| ≤ |a − b| / √b, and never more than √|a − b|.
    slack = torch.minimum(bound / picked.sqrt().clamp_min(1e-30), bound.sqrt().expand_as(picked))
    expect_close("values", values[rows].double(), picked.sqrt(), slack + unit * picked.sqrt())


def kron_setup(problem: Kron, provider: str) -> Run:
    """ "gemm": the product that makes the pre-latents, with its weights side by side already."""
    x, k = problem.x, problem.k
    weight = torch.cat([problem.weight_p, problem.weight_q], 1).flatten(0, 1)
    flops = 2.0 * x.shape[0] * weight.numel()
    if provider == "gemm":
        return Run(lambda: x @ weight.T, lambda out: check_product(x, weight, out), flops=flops)
    if provider == "saekern":
        return Run(problem.encode, lambda out: check_kron_encode(problem, *out[:2]), flops=flops)
    heads, m, _ = problem.weight_p.shape
    bias = torch.cat([problem.bias_p, problem.bias_q], 1).flatten()

    def plain() -> tuple[Tensor, Tensor]:
        factors = F.linear(x - problem.pre_bias, weight, bias).relu().view(len(x), heads, -1)
        u, v = factors[..., :m], factors[..., m:]
        return (u[..., :, None] * v[..., None, :]).sqrt().flatten(1).topk(k, dim=1)

    call = torch.compile(plain) if provider == "torch.compile" else plain
    return Run(call, lambda out: check_kron_encode(problem, *out, rounded=True), flops=flops)


def check_product(x: Tensor, weight: Tensor, out: Tensor) -> None:
    want = x[:16].double() @ weight.double().T
    if not (out[:16].double() - want).abs().max() <= 2.0**-7 * want.abs().max():
        raise WrongAnswer("the product is off")


def backward(problem: Kron) -> Run:
    """All gradients, of the codes that the encoder chose."""
    _, indices, u, v, *_ = problem.encode()
    grad = torch.randn_like(problem.x[:, :1].expand(-1, problem.k))
    weights = problem.weight_p, problem.weight_q

    def run() -> tuple[Tensor, ...]:
        last = problem.pre_bias, "mand", 0.0, [True] * 6
        return kernel("kron_encode_backward")(grad, indices, u, v, problem.x, *weights, *last)

    def check(got: tuple[Any, ...]) -> None:
        m, n = problem.bias_p.shape[1], problem.bias_q.shape[1]
        head, pair = indices // (m * n), indices % (m * n)
        x = problem.x.double() - problem.pre_bias.double()
        to_x, want = torch.zeros_like(x), []
        places = head * m + pair // n, head * n + pair % n
        for slope, weight, place in zip(problem.slopes(grad, u, v), weights, places, strict=True):
            rows = weight.double().flatten(0, 1)
            dense = x.new_zeros(len(x), len(rows)).scatter_add(1, place, slope)
            to_x += dense @ rows
            want += [(dense.T @ x).view(weight.shape), dense.sum(0).view(weight.shape[:2])]
        names = "to x", "to weight_p", "to weight_q", "to bias_p", "to bias_q", "to pre_bias"
        for name, a, b in zip(names, got, (to_x, want[0], want[2], want[1], want[3], -to_x.sum(0)), strict=True):
            off = float((a.double() - b).norm() / b.norm().clamp_min(1e-300))
            if not off <= 8 * torch.finfo(a.dtype).eps:
                raise WrongAnswer(f"{name}: off by {off:.2e} of its norm")

    return Run(run, check)
