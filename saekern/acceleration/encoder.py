"""What encoders of other libraries need beside our ops: a weight stored the other way round, and values of latents that
somebody else chose."""

from typing import Any

import torch
from torch import Tensor

from saekern.acceleration.lazy import Codes
from saekern.ops import library


def transposed(weight: Tensor) -> Tensor:
    """[D, F] -> a contiguous copy [F, D], one latent a row, as our ops want it. Gradients flow to weight.

    At D=512, F=16384 it takes 6 ms, and 8 for the gradient, of a step of some hundred: less than what a parameter in
    another layout costs its owner (safetensors refuses it, optimizers slow down, strides show in every copy)."""
    return Transposed.apply(weight)


class Transposed(torch.autograd.Function):
    """W -> Wᵀ, both contiguous."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        return transposed_copy(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return transposed_copy(grad)


def transposed_copy(weight: Tensor) -> Tensor:
    shape = (weight.shape[1], weight.shape[0])
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return weight.T.contiguous()
    # Memory of earlier large outputs: fresh pages would take 11 of 18 ms.
    out = library.output(shape)
    assert out is not None
    return out.copy_(weight.T)


def values_at(codes: Codes, x: Tensor, weight: Tensor, bias: Tensor | None, *, relu: bool) -> Tensor:
    """`codes.values`, which are ReLU(x Wᵀ + bias) (without the ReLU: x Wᵀ + bias) at `codes.indices`, with gradients
    to x, weight [F, D] and bias."""
    if not library.differentiable(x, weight, bias):
        return codes.values
    entries, segments = (None, None) if codes.order is None else codes.order
    values = codes.values.detach()
    return ValuesAt.apply(x, weight, bias, values, codes.indices, codes.offsets, entries, segments, relu)


class ValuesAt(torch.autograd.Function):
    """Values that are known already, and the encoder's gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        values: Tensor,
        indices: Tensor,
        offsets: Tensor | None,
        entries: Tensor | None,
        segments: Tensor | None,
        relu: bool,
    ) -> Tensor:
        ctx.relu = relu
        ctx.save_for_backward(x, weight, values, indices, offsets, entries, segments)
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, values, indices, offsets, entries, segments = ctx.saved_tensors
        need = [*ctx.needs_input_grad[:3], False]
        grad, values = grad.to(x.dtype).contiguous(), values.to(x.dtype)
        if offsets is None:
            grads = torch.ops.saekern.topk_encode_backward(
                grad, values, indices, x, weight, None, entries, segments, ctx.relu, need
            )
        else:
            grads = torch.ops.saekern.ragged_encode_backward(
                grad, values, indices, offsets, x, weight, None, entries, segments, ctx.relu, need
            )
        return *(g if wanted else None for g, wanted in zip(grads[:3], need[:3], strict=True)), *[None] * 6
