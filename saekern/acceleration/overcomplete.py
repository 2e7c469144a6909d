"""overcomplete 0.3.0: encode and decode of its SAEs on sparse codes, inside `train_sae` or a loop of one's own.

`forward` stays theirs: it returns pre-codes, codes and reconstruction, the first two as dense tensors that are made
when a criterion reads them. So does the dictionary layer: normalisation, multiplier and `eval()`'s fused copy.
"""

from typing import Any

import torch
from torch import Tensor, nn

from saekern import ops
from saekern.acceleration.handle import Patch, replaces
from saekern.acceleration.lazy import Codes, LazyTensor
from saekern.acceleration.theirs import codes_in, fits, hooked, lazily, sparse_enough, theirs
from saekern.ops import RaggedCodes, library
from saekern.ops.topk_encode import encode

REFUSED = {
    "QSAE": "its codes are quantized, and none of them is 0",
    "MpSAE": "matching pursuit chooses latents one after the other",
    "OMPSAE": "orthogonal matching pursuit chooses latents one after the other",
}


def patches(sae: Any) -> list[Patch]:
    """What `accelerate` changes on an SAE. overcomplete has no trainer objects: `train_sae` is a function.

    Raises:
        ValueError: it is none, or one that is not supported.
    """
    name = own_class(sae)
    if name not in ENCODERS:
        reason = REFUSED.get(name, f"expected one of {', '.join(ENCODERS)}; train_sae takes the SAE")
        raise ValueError(f"accelerate: overcomplete's {name} is not supported: {reason}")
    encoder_of(sae)
    if name in JUMPS and getattr(sae.kernel_fn, "__name__", "") not in REACH:
        kernel = getattr(sae.kernel_fn, "__name__", repr(sae.kernel_fn))
        reason = "it never gets so small that scores far from their thresholds may be left out"
        raise ValueError(f"accelerate: overcomplete's {name} with {kernel} is not supported: {reason}")
    note = f"{name}: pre-codes and codes are sparse until something reads [B, F]; see docs/accelerate.md"
    return [Patch(sae, ENCODERS[name], note), Patch(sae, decode, note)]


def own_class(sae: Any) -> str:
    return next(k.__name__ for k in type(sae).__mro__ if k.__module__.partition(".")[0] == "overcomplete")


def encoder_of(sae: Any) -> tuple[Any, Any]:
    """The encoder, and its last linear layer (None: a TieableEncoder).

    Raises:
        ValueError: it is not a linear layer followed by ReLU.
    """
    encoder = sae.encoder
    name = type(encoder).__name__
    if name == "TieableEncoder":
        return encoder, None
    if name != "MLPEncoder":
        raise ValueError(f"accelerate: {type(sae).__name__}.encoder: expected MLPEncoder or TieableEncoder, got {name}")
    linear, norm = encoder.final_block
    if type(norm) is not nn.Identity:
        reason = "it needs all pre-codes of a row or a batch"
        where = f"{type(sae).__name__}.encoder"
        raise ValueError(f"accelerate: {where}: its last layer has a {type(norm).__name__}: {reason}")
    if type(encoder.final_activation) is not nn.ReLU:
        activation = type(encoder.final_activation).__name__
        raise ValueError(f"accelerate: {type(sae).__name__}.encoder: expected ReLU at its end, got {activation}")
    return encoder, linear


def linear_part(sae: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """Rows, weight [F, D] and bias of the last linear layer; None where our ops cannot take them or a module in between
    has hooks."""
    encoder, linear = encoder_of(sae)
    if x.dim() != 2 or hooked(*encoder.modules()):
        return None
    if linear is None:
        # The tied dictionary is asked for as often as the library asks for it: it normalises its weights then.
        weight = encoder.weight if encoder.tied_to is None else encoder.tied_to.get_dictionary()
        bias = encoder.bias
    else:
        for position, block in enumerate(encoder.mlp_blocks):
            out = block(x)
            x = out + x if encoder.residual and (position or encoder.hidden_dim == encoder.input_size) else out
        weight, bias = linear.weight, linear.bias
    return (x, weight, bias) if fits(x, weight, bias) else None


def pre_codes(rows: Tensor, weight: Tensor, bias: Tensor | None, scores: Codes) -> LazyTensor:
    """Multiplied when they are read. The scores of the codes are then written into them, so that
    relu(pre_codes) - codes is 0 at them and not a rounding error, which top_k_auxiliary_loss would sort."""

    def make() -> Tensor:
        dense = nn.functional.linear(rows, weight, bias)
        positive = scores.values.detach().flatten()
        flat = scores.row_index() * scores.latents + scores.indices.flatten()
        there = torch.where(positive > 0, positive, dense.data.view(-1)[flat])
        dense.data.view(-1).scatter_(0, flat, there)
        return dense

    needs_grad = library.differentiable(rows, weight, bias)
    return LazyTensor(make, (scores.rows, scores.latents), rows.dtype, rows.device, needs_grad)


def both(part: tuple[Tensor, Tensor, Tensor | None], scores: Codes, values: Tensor) -> tuple[Tensor, Tensor]:
    """pre_codes and codes of these values."""
    return pre_codes(*part, scores), lazily(scores._replace(values=values), (scores.rows, scores.latents))


def scores_of(codes: RaggedCodes, latents: int) -> Codes:
    return Codes(codes.values, codes.indices, latents, codes.offsets, codes.order)


@replaces("decode")
def decode(self: Any, z: Tensor) -> Tensor:
    codes = codes_in(z)
    if codes is None or hooked(self.dictionary):
        return theirs(self, "decode")(z)
    dictionary = self.dictionary.get_dictionary()
    return ops.decode(codes.values, codes.indices, dictionary, offsets=codes.offsets, order=codes.order)


@replaces("encode")
def topk_encode(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Their top k is of codes after ReLU; the values are the same, and a latent at 0 is none of the codes."""
    part = linear_part(self, x)
    if part is None or not 1 <= self.top_k <= self.nb_concepts:
        return theirs(self, "encode")(x)
    rows, weight, bias = part
    values, indices, _, _, order = encode(rows, weight, bias, self.top_k)
    return both(part, Codes(values, indices, weight.shape[0], None, order), values)


@replaces("encode")
def batch_topk_encode(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """`top_k` is the number of codes of the whole batch, and those equal to the last one are codes too."""
    part = linear_part(self, x)
    if part is None:
        return theirs(self, "encode")(x)
    rows, weight, bias = part
    if not self.training:
        if self.running_threshold is None:
            return theirs(self, "encode")(x)  # which says what is missing
        return at_least(self, x, part, self.running_threshold)
    scores = rows.shape[0] * weight.shape[0]
    if not 1 <= self.top_k < scores:
        return theirs(self, "encode")(x)
    codes = ops.batch_topk_encode(rows, weight, bias, self.top_k + 1)
    following, threshold = codes.values.detach().topk(2, largest=False).values
    if following == threshold and threshold > 0:
        return theirs(self, "encode")(x)
    momentum, before = self.threshold_momentum, self.running_threshold
    self.running_threshold = threshold if before is None else momentum * before + (1 - momentum) * threshold
    values = codes.values * (codes.values.detach() >= threshold)
    return both(part, scores_of(codes, weight.shape[0]), values)


def at_least(sae: Any, x: Tensor, part: tuple[Tensor, Tensor, Tensor | None], threshold: Tensor) -> Any:
    """ReLU(pre-codes) that are not below the threshold."""
    below = torch.nextafter(threshold, threshold.new_tensor(-torch.inf)).clamp_min(0)
    rows, weight, bias = part
    if not sparse_enough(rows, weight, bias, None, below):
        return theirs(sae, "encode")(x)
    codes = ops.threshold_encode(rows, weight, bias, below)
    return both(part, scores_of(codes, weight.shape[0]), codes.values)


@replaces("encode")
def relu_encode(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    part = linear_part(self, x)
    return theirs(self, "encode")(x) if part is None else at_least(self, x, part, part[0].new_zeros(()))


@replaces("encode")
def jump_encode(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes reach below their thresholds as far as the kernel does. A kernel that reaches 0 would meet all the scores
    that ReLU put there: then their dense code runs."""
    part = linear_part(self, x)
    if part is None:
        return theirs(self, "encode")(x)
    rows, weight, bias = part
    thresholds = torch.exp(self.thresholds)
    if not library.differentiable(thresholds):
        return at_least(self, x, part, thresholds)
    below = thresholds.detach() - REACH[self.kernel_fn.__name__] * self.bandwidth
    if not (below > 0).all() or not sparse_enough(rows, weight, bias, None, below):
        return theirs(self, "encode")(x)
    codes = ops.threshold_encode(rows, weight, bias, below)
    values = Jump.apply(codes.values, ops.latent_gather(thresholds, codes), self.kernel_fn, self.bandwidth)
    return both(part, scores_of(codes, weight.shape[0]), values)


class Jump(torch.autograd.Function):
    """Their JumpReLU at single codes, with their kernel, which divides by the bandwidth, and their second division."""

    @staticmethod
    def forward(ctx: Any, score: Tensor, threshold: Tensor, kernel: Any, bandwidth: Tensor) -> Tensor:
        ctx.save_for_backward(score, threshold)
        ctx.kernel, ctx.bandwidth = kernel, bandwidth
        return torch.where(score < threshold, 0, score)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        score, threshold = ctx.saved_tensors
        slope = (threshold / ctx.bandwidth) * ctx.kernel(score - threshold, ctx.bandwidth)
        return torch.where(score < threshold, 0, grad), -slope * grad, None, None


# Kernel -> how many bandwidths it reaches. The two without an end are cut where they are 2^-40 of their height: a
# thousand such terms together are below the rounding of one at its top.
REACH = {
    "rectangle_kernel": 0.51,
    "triangular_kernel": 0.51,
    "cosine_kernel": 1.01,
    "epanechnikov_kernel": 0.51,
    "quartic_kernel": 0.51,
    "gaussian_kernel": 3.8,
    "silverman_kernel": 20.0,
}
JUMPS = ("JumpSAE", "RAJumpSAE")
ENCODERS = {
    "SAE": relu_encode,
    "TopKSAE": topk_encode,
    "RATopKSAE": topk_encode,
    "BatchTopKSAE": batch_topk_encode,
    "JumpSAE": jump_encode,
    "RAJumpSAE": jump_encode,
}
