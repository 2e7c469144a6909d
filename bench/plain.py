"""A TopK SAE in plain PyTorch, eager and compiled, and the form in which every SAE is timed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from saekern.bench.common import Absent, WrongAnswer
from saekern.bench.problems import SAEProblem

LR = 1e-4


@dataclass(frozen=True)
class Adapter:
    """One SAE, whoever wrote it, holding a problem's weights."""

    forward: Callable[[Tensor], tuple[Tensor, Tensor]]
    """x -> (loss, x̂)"""
    step: Callable[[Tensor], Tensor | float]
    """The whole training step: loss, backward, projection, optimiser, norm, whichever of these its author does. Returns
    the loss."""
    parameters: list[Tensor]
    encoder: Tensor
    decoder: Tensor
    """The two weight matrices, leaves, [F, D] unless transposed."""
    scale: float
    """Its loss is scale · Σ (x − x̂)², so that loss and gradients can be held to one float64 answer."""
    x: Tensor
    """The rows to feed."""
    shift: Tensor | float = 0.0
    """To add to x̂ before it is compared."""
    encoder_transposed: bool = False
    decoder_transposed: bool = False
    version: str = ""
    step_keeps: int = 3
    """Copies of the parameters that the first step leaves: the gradient, and two moments where they are made late."""
    owner: Any = None
    """The library's object that `saekern.accelerate` takes."""

    def set_weights(self, w_enc: Tensor, w_dec: Tensor) -> None:
        """In place, from [F, D] each; gradients become None."""
        fill(self.encoder, w_enc.T if self.encoder_transposed else w_enc)
        fill(self.decoder, w_dec.T if self.decoder_transposed else w_dec)
        for parameter in self.parameters:
            parameter.grad = None

    def gradients(self) -> tuple[Tensor, Tensor]:
        """Of the two weight matrices, [F, D] each."""
        grad_enc, grad_dec = self.encoder.grad, self.decoder.grad
        if grad_enc is None or grad_dec is None:
            raise WrongAnswer("a weight matrix got no gradient")
        return grad_enc.T if self.encoder_transposed else grad_enc, grad_dec.T if self.decoder_transposed else grad_dec


def fill(parameter: Tensor, values: Tensor) -> None:
    with torch.no_grad():
        parameter.copy_(values)


def parameters_of(problem: SAEProblem) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """w_enc, b_enc, w_dec, b_dec as fresh leaves."""
    made = (problem.w_enc, problem.b_enc, problem.w_dec, problem.b_dec)
    return tuple(tensor.clone().requires_grad_() for tensor in made)


def total_variance(x: Tensor) -> Tensor:
    return (x - x.mean(0)).square().sum()


def plain_loss(x: Tensor, w_enc: Tensor, b_enc: Tensor, w_dec: Tensor, b_dec: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """What one writes in an afternoon."""
    top = F.linear(x - b_dec, w_enc, b_enc).topk(k, sorted=False)
    codes = top.values.new_zeros(x.shape[0], w_enc.shape[0]).scatter(1, top.indices, top.values.relu())
    x_hat = codes @ w_dec + b_dec
    return (x - x_hat).square().sum() / total_variance(x), x_hat


def plain_torch(problem: SAEProblem, loss_function: Callable = plain_loss) -> Adapter:
    w_enc, b_enc, w_dec, b_dec = parameters_of(problem)
    optimizer = torch.optim.Adam([w_enc, b_enc, w_dec, b_dec], lr=LR)

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        return loss_function(x, w_enc, b_enc, w_dec, b_dec, problem.k)

    def step(x: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss, _ = forward(x)
        loss.backward()
        with torch.no_grad():
            w_dec.grad.sub_((w_dec.grad * w_dec).sum(1, keepdim=True) * w_dec)
            optimizer.step()
            w_dec.div_(w_dec.norm(dim=1, keepdim=True))
        return loss.detach()

    scale = 1 / problem.total_variance()
    return Adapter(forward, step, [w_enc, b_enc, w_dec, b_dec], w_enc, w_dec, scale, problem.x)


def compiled_torch(problem: SAEProblem) -> Adapter:
    """`torch.compile` of the same lines; the first call takes half a minute."""
    made = plain_torch(problem, torch.compile(plain_loss))
    try:
        made.forward(problem.x)[0].backward()
    except Exception as error:  # a missing or broken compiler shows in many ways
        raise Absent(f"torch.compile failed: {str(error).splitlines()[0]}") from error
    made.set_weights(problem.w_enc, problem.w_dec)
    return made
