"""sparsify: SparseCoder's encode, decode and forward on our kernels; its trainer's loop, optimizers and files stay.

The forward pass is ours line by line, because sparsify's own asks its dense pre-activations for AuxK and Multi-TopK.
"""

import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from saekern import ops
from saekern.acceleration.handle import Patch, replaces
from saekern.acceleration.lazy import LazyTensor
from saekern.ops import LatentOrder
from saekern.ops.topk_encode import encode as encode_topk


def patches(obj: Any) -> list[Patch]:
    """Of a SparseCoder, or of all those of a Trainer, whose own code needs no change."""
    names = [kind.__name__ for kind in type(obj).__mro__ if kind.__module__.partition(".")[0] == "sparsify"]
    if "Trainer" in names:
        return [patch for coder in obj.saes.values() for patch in patches(coder)]
    if "SparseCoder" not in names:
        raise ValueError(f"accelerate: sparsify's {names[0]} is not supported; SparseCoder and Trainer are")
    cfg = obj.cfg
    if cfg.transcode:
        raise ValueError("accelerate: sparsify's transcoders are not supported (cfg.transcode)")
    if cfg.activation != "topk":
        raise ValueError(f"accelerate: sparsify's activation {cfg.activation!r} is not supported, 'topk' is")
    if obj.W_dec is None:
        raise ValueError("accelerate: this SparseCoder was loaded without its decoder")
    notes = [
        "SparseCoder: encoder and decoder run on sparse codes; pre_acts is made when somebody reads it",
        "AuxK and Multi-TopK have gradients to the encoder, which sparsify 1.3.3 loses; a code that its ReLU made 0 has"
        " none, where sparsify's is not masked",
        "codes are in descending order; where fewer than k latents of a row are positive, the others are the largest"
        " ones below 0, and not any",
    ]
    return [Patch(obj, function, note) for function, note in zip((forward, encode, decode), notes, strict=True)]


def class_of(name: str, module: str) -> Any:
    """A class of sparsify, which is imported already."""
    return getattr(sys.modules[f"sparsify.{module}"], name)


def codes_of(self: Any, x: Tensor, k: int, among: Tensor | None = None) -> tuple[Tensor, Tensor, LatentOrder | None]:
    """values descending, indices [B, k] of rows x [B, D], chosen from all latents or among the given ones."""
    x = x.to(torch.promote_types(x.dtype, self.b_dec.dtype))  # as `x - self.b_dec` has it
    weight, bias = self.encoder.weight, self.encoder.bias
    if among is None:
        values, indices, *_, order = encode_topk(x, weight, bias, k, pre_bias=self.b_dec)
        return values, indices, order
    weight, bias = weight.index_select(0, among), bias.index_select(0, among)
    values, indices, *_ = encode_topk(x, weight, bias, k, pre_bias=self.b_dec)
    return values, among[indices], None


@replaces("encode")
def encode(self: Any, x: Tensor) -> Any:
    values, indices, _ = codes_of(self, x.reshape(-1, x.shape[-1]), self.cfg.k)
    shape = (*x.shape[:-1], self.cfg.k)
    return class_of("EncoderOutput", "fused_encoder")(values.view(shape), indices.view(shape), lazy_pre_acts(self, x))


def lazy_pre_acts(self: Any, x: Tensor) -> LazyTensor:
    weight, bias, b_dec = parameters = (self.encoder.weight, self.encoder.bias, self.b_dec)
    versions = [parameter._version for parameter in parameters]

    def make() -> Tensor:
        if [parameter._version for parameter in parameters] != versions:
            raise RuntimeError("pre_acts was not read before the parameters changed; read it earlier, or restore()")
        return F.relu(F.linear(x - b_dec, weight, bias))

    dtype = torch.promote_types(x.dtype, weight.dtype)
    needs_grad = torch.is_grad_enabled() and any(part.requires_grad for part in (x, *parameters))
    return LazyTensor(make, (*x.shape[:-1], weight.shape[0]), dtype, x.device, needs_grad)


@replaces("decode")
def decode(self: Any, top_acts: Tensor, top_indices: Tensor) -> Tensor:
    return ops.decode(top_acts.to(self.dtype), top_indices, self.W_dec) + self.b_dec


@replaces("forward")
def forward(
    self: Any,
    x: Tensor,
    y: Tensor | None = None,
    *,
    dead_mask: Tensor | None = None,
    total_variance: Tensor | None = None,
) -> Any:
    on_gpu = x.device.type == "cuda"
    with torch.autocast("cuda", torch.bfloat16, enabled=on_gpu and torch.cuda.is_bf16_supported()):
        return losses(self, x, x if y is None else y, dead_mask, total_variance)


def losses(self: Any, x: Tensor, y: Tensor, dead_mask: Tensor | None, total_variance: Tensor | None) -> Any:
    k = self.cfg.k
    many_acts, many_indices, order = codes_of(self, x, 4 * k if self.cfg.multi_topk else k)
    # The k largest are the first of the 4 k largest.
    top_acts, top_indices = (
        (many_acts[:, :k], many_indices[:, :k]) if self.cfg.multi_topk else (many_acts, many_indices)
    )

    def decoded(acts: Tensor, indices: Tensor, order: LatentOrder | None) -> Tensor:
        out = ops.decode(acts.to(self.dtype), indices, self.W_dec, order=order) + self.b_dec
        return out if self.W_skip is None else out + x.to(self.dtype) @ self.W_skip.mT

    sae_out = decoded(top_acts, top_indices, None if self.cfg.multi_topk else order)
    error = y - sae_out
    if total_variance is None:
        total_variance = (y - y.mean(0)).pow(2).sum()
    fvu = error.pow(2).sum() / total_variance

    auxk_loss = multi_topk_fvu = sae_out.new_zeros(())
    if dead_mask is not None and (count := int(dead_mask.sum())) > 0:
        k_aux = y.shape[-1] // 2
        dead = dead_mask.nonzero()[:, 0]
        acts, indices, _ = codes_of(self, x, min(k_aux, count), dead)
        estimate = ops.decode(acts.to(self.dtype), indices, self.W_dec)
        auxk_loss = min(count / k_aux, 1.0) * (estimate - error.detach()).pow(2).sum() / total_variance
    if self.cfg.multi_topk:
        many_out = ops.decode(many_acts.to(self.dtype), many_indices, self.W_dec, order=order) + self.b_dec
        multi_topk_fvu = (many_out - y).pow(2).sum() / total_variance
        top_acts, top_indices, sae_out = many_acts, many_indices, many_out  # as sparsify returns them then
    outputs = class_of("ForwardOutput", "sparse_coder")
    return outputs(sae_out, top_acts, top_indices, fvu, auxk_loss, multi_topk_fvu)
