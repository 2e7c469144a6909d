"""Row-stochastic W of an archetypal SAE: how it starts, and the product D = (W C + Λ) · exp(m) with its gradient."""

from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saekern import ops

INITS = ("dirichlet", "points", "eye")
ROWS = 256  # of W at a time while it is drawn in float64


def initial(
    kind: str, count: int, points: int, seed: int, concentration: float, device: torch.device | str | None
) -> Tensor:
    """W [F, n'] by name (see ArchetypalSAE), float32, from a generator of its own on the CPU."""
    if kind not in INITS:
        raise ValueError(f"init: expected a tensor [F, n'] or one of {', '.join(INITS)}, got {kind!r}")
    if not 0 < concentration < float("inf"):
        raise ValueError(f"concentration: expected a positive number, got {concentration}")
    if torch.device(device or torch.get_default_device()).type == "meta":
        return torch.empty(count, points, device="meta")
    if kind == "eye":
        return torch.eye(count, points, device="cpu", dtype=torch.float32)
    if kind == "points":
        generator = torch.Generator().manual_seed(seed)
        rounds = [torch.randperm(points, generator=generator, device="cpu") for _ in range(-(-count // points))]
        chosen = torch.cat(rounds)[:count, None]
        return torch.zeros(count, points, device="cpu", dtype=torch.float32).scatter_(1, chosen, 1)
    return _dirichlet(count, points, seed, concentration / points)


def _dirichlet(count: int, points: int, seed: int, shape: float) -> Tensor:
    """Symmetric Dirichlet rows: gamma variates divided by their sum, in logarithms, since most of those of a small
    shape are below the smallest float64. G(a) = G(a + 1) · exp(−E/a), E exponential."""
    gamma, exponential = (np.random.default_rng([seed, stream]) for stream in (1, 2))
    weights = torch.empty(count, points, dtype=torch.float32, device="cpu")
    for rows in weights.split(ROWS):
        size = tuple(rows.shape)
        logs = np.log(gamma.standard_gamma(shape + 1, size)) - exponential.standard_exponential(size) / shape
        rows.copy_(torch.from_numpy(logs).softmax(1))
    return weights


def check_stochastic(weights: Tensor) -> None:
    """Refuses a W whose rows are not on the simplex, zero rows aside."""
    if weights.is_meta:
        return
    total, least = weights.double().sum(1), float(weights.min())
    off = ((total - 1).abs() > 1e-3) & (weights != 0).any(1)
    if least < 0 or off.any():
        worst = float(total[off][0]) if off.any() else 1.0
        raise ValueError(f"init: expected rows >= 0 that sum to 1, got an entry {least:g} or a sum {worst:g}")


def atoms(weights: Tensor, points: Tensor, offset: Tensor | None, multiplier: Tensor | None) -> Tensor:
    """(W C + Λ) · exp(m) [F, D]; float32 even under autocast and for half-precision parameters, rounded once."""
    wide = torch.promote_types(weights.dtype, torch.float32)
    with torch.autocast(weights.device.type, enabled=False), _threads(weights):
        out = weights.to(wide) @ points.to(wide)
    if offset is not None:
        out = out + offset
    if multiplier is not None:
        out = out * multiplier.to(wide).exp()
    return out.to(weights.dtype)


class Atoms(torch.autograd.Function):
    """`atoms` where its value is known already: dW = g Cᵀ · exp(m), dΛ = g · exp(m), dm = Σ g ⊙ D."""

    @staticmethod
    def forward(ctx: Any, weights, points, offset, multiplier, value):
        ctx.save_for_backward(points, multiplier, value if multiplier is not None else None)
        return value.detach()

    @staticmethod
    def backward(ctx: Any, grad):
        points, multiplier, value = ctx.saved_tensors
        needs = ctx.needs_input_grad
        dtype, wide = grad.dtype, torch.promote_types(grad.dtype, torch.float32)
        with torch.autocast(grad.device.type, enabled=False):
            scaled = grad.to(wide) if multiplier is None else grad.to(wide) * multiplier.to(wide).exp()
            grad_weights = grad_multiplier = None
            if needs[0]:
                with _threads(grad):
                    grad_weights = (scaled @ points.to(wide).T).to(dtype)
            if needs[3]:
                grad_multiplier = (grad.to(wide) * value.to(wide)).sum().reshape(1).to(dtype)
        return grad_weights, None, scaled.to(dtype) if needs[2] else None, grad_multiplier, None


def _threads(tensor: Tensor) -> Any:
    compiling = torch.compiler.is_compiling()
    return ops.torch_on_all_threads() if tensor.device.type == "cpu" and not compiling else nullcontext()
