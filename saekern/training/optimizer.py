"""Adam over an SAE's parameters through the fused op, with state in the memory layout of the parameters."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from saekern import ops
from saekern.sae import SAE


class Copy(NamedTuple):
    """A bfloat16 copy of a parameter, and what tells whether it still is one."""

    weight: nn.Parameter
    source: Tensor  # the parameter's memory, held so that no other tensor gets its address
    version: int  # of the parameter when they were equal

    def of(self, parameter: Tensor) -> bool:
        same = self.source.data_ptr() == parameter.data_ptr()  # not after .to(), nor for another parameter
        return same and self.version == parameter._version


class Adam:
    """`torch.optim.Adam` with the gradient projection and normalisation of `sae.unit_norm_rows` in the same pass.

    Dense semantics: a latent that did not fire still decays its moments and moves.
    """

    def __init__(self, sae: SAE, betas: tuple[float, float], eps: float) -> None:
        self.sae, self.betas, self.eps, self.steps = sae, betas, eps, 0
        self.parameters: dict[str, nn.Parameter] = dict(sae.named_parameters())
        self.copies: dict[str, Copy] = {}
        self.unit_norm = frozenset(sae.unit_norm_rows)
        self.exp_avg = {name: torch.zeros_like(rows(p.detach())) for name, p in self.parameters.items()}
        self.exp_avg_sq = {name: torch.zeros_like(moment) for name, moment in self.exp_avg.items()}

    @contextmanager
    def half_weights(self, enabled: bool) -> Iterator[None]:
        """Inside, from the loss to the projection of its gradient, bfloat16 copies stand for `sae.half_weights` and
        get the gradients, in bfloat16. `step` reads these and leaves the copies of the next step in the same pass.
        Autocast alone rounds the weights and widens the gradients in every step: 3.6 of 17 GB on a GPU at F = 65,536
        and D = 2304.

        A copy is made anew when its parameter was changed in place, moved, loaded or replaced since. Changes through
        `.data`, which autograd does not see either, must not happen between two steps.
        """
        held = {name: getattr(self.sae, name) for name in self.sae.half_weights} if enabled else {}
        try:
            for name, parameter in held.items():
                copy = self.copies.get(name)
                if copy is None or not copy.of(parameter):
                    weight = nn.Parameter(parameter.detach().to(torch.bfloat16), parameter.requires_grad)
                    self.copies[name] = copy = Copy(weight, parameter.detach(), parameter._version)
                setattr(self.sae, name, copy.weight)
            yield
        finally:
            for name, parameter in held.items():
                setattr(self.sae, name, parameter)

    @torch.no_grad()
    def step(self, lr: float) -> None:
        self.steps += 1
        for name, parameter in self.parameters.items():
            grad, copy = self._gradient(name), self.copies.get(name)
            if grad is None:
                continue
            ops.adam_step(
                rows(parameter.detach()),
                grad,
                self.exp_avg[name],
                self.exp_avg_sq[name],
                self.steps,
                lr=lr,
                beta1=self.betas[0],
                beta2=self.betas[1],
                eps=self.eps,
                project=name in self.unit_norm,
                normalize=name in self.unit_norm,
                rounded=None if copy is None else rows(copy.weight.detach()),
            )
            if copy is not None:
                self.copies[name] = Copy(copy.weight, parameter.detach(), parameter._version)

    def zero_grad(self) -> None:
        for leaf in (*self.parameters.values(), *(copy.weight for copy in self.copies.values())):
            leaf.grad = None

    def _gradient(self, name: str) -> Tensor | None:
        """In the orientation of `rows`; a copy's where the loss used one. In-place changes reach it if its layout is
        the same."""
        parameter, copy = self.parameters[name], self.copies.get(name)
        grad = parameter.grad if copy is None or copy.weight.grad is None else copy.weight.grad
        return grad if grad is None or parameter.is_contiguous() or grad.dim() != 2 else grad.T

    @torch.no_grad()
    def clip(self, largest: float) -> Tensor:
        """Scales all gradients down to a joint norm of `largest`; returns the norm before, a scalar on their device.
        bfloat16 gradients round a second time."""
        grads = [grad for name in self.parameters if (grad := self._gradient(name)) is not None]
        wide = [torch.promote_types(grad.dtype, torch.float32) for grad in grads]
        # Row norms, then float64: the order in which threads add does not reach the scale's float32 value.
        norms = [torch.linalg.vector_norm(g, dim=-1, dtype=dtype) for g, dtype in zip(grads, wide, strict=True)]
        norm = torch.stack([n.to(torch.float64).square().sum() for n in norms]).sum().sqrt()
        scale = (largest / norm.clamp_min(1e-300)).clamp_max(1).reshape(1)  # one dimension: it is not rounded to bf16
        for grad, dtype in zip(grads, wide, strict=True):
            grad.mul_(scale.to(dtype))
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
