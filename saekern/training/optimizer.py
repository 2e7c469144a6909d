"""Adam over an SAE's parameters through the fused op, with state in the memory layout of the parameters."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from saekern import ops
from saekern.sae import SAE


class Adam:
    """`torch.optim.Adam` with the gradient projection and normalisation of `sae.unit_norm_rows` in the same pass.

    Dense semantics: a latent that did not fire still decays its moments and moves.
    """

    def __init__(self, sae: SAE, betas: tuple[float, float], eps: float) -> None:
        self.betas, self.eps, self.steps = betas, eps, 0
        self.parameters: dict[str, nn.Parameter] = dict(sae.named_parameters())
        self.unit_norm = frozenset(sae.unit_norm_rows)
        self.exp_avg = {name: torch.zeros_like(rows(p.detach())) for name, p in self.parameters.items()}
        self.exp_avg_sq = {name: torch.zeros_like(moment) for name, moment in self.exp_avg.items()}

    @torch.no_grad()
    def step(self, lr: float) -> None:
        self.steps += 1
        for name, parameter in self.parameters.items():
            if parameter.grad is None:
                continue
            ops.adam_step(
                rows(parameter.detach()),
                like(parameter.grad, parameter),
                self.exp_avg[name],
                self.exp_avg_sq[name],
                self.steps,
                lr=lr,
                beta1=self.betas[0],
                beta2=self.betas[1],
                eps=self.eps,
                project=name in self.unit_norm,
                normalize=name in self.unit_norm,
            )

    def zero_grad(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None

    @torch.no_grad()
    def clip(self, largest: float) -> Tensor:
        """Scales all gradients down to a joint norm of `largest`; returns the norm before, a scalar on their device."""
        grads = [like(p.grad, p) for p in self.parameters.values() if p.grad is not None]
        # Row norms, then float64: the order in which threads add does not reach the scale's float32 value.
        squares = [torch.linalg.vector_norm(g, dim=-1).to(torch.float64).square().sum() for g in grads]
        norm = torch.stack(squares).sum().sqrt()
        scale = (largest / norm.clamp_min(1e-300)).clamp_max(1)
        for grad in grads:
            grad.mul_(scale.to(grad.dtype))
        return norm

    def state(self) -> dict[str, Tensor]:
        first = {f"exp_avg.{name}": moment for name, moment in self.exp_avg.items()}
        return first | {f"exp_avg_sq.{name}": moment for name, moment in self.exp_avg_sq.items()}

    def load(self, state: Mapping[str, Tensor], steps: int) -> None:
        self.steps = steps
        for key, moment in self.state().items():
            moment.copy_(state[key])


def rows(parameter: Tensor) -> Tensor:
    """The view with contiguous memory: W_enc [D, F] as its rows [F, D], everything else as it is."""
    return parameter.T if parameter.dim() == 2 and not parameter.is_contiguous() else parameter


def like(grad: Tensor, parameter: Tensor) -> Tensor:
    """The gradient in the orientation of `rows(parameter)`; in-place changes reach it if its layout is the same."""
    return grad if parameter.is_contiguous() or grad.dim() != 2 else grad.T
