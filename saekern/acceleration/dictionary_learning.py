"""dictionary_learning 0.1.0: encode and decode of its dictionaries on sparse codes, and what its trainers ask of them.

The trainers' own `update` and, but for JumpReLU and Matryoshka, their own `loss` go on running: optimizer, schedule,
projections, counters and thresholds are the library's lines.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from saekern import ops
from saekern.acceleration.dictionary_learning_losses import jumprelu_loss, matryoshka_loss
from saekern.acceleration.handle import Patch, replaces
from saekern.acceleration.layout import Layout, by_latents
from saekern.acceleration.lazy import Codes, LazyTensor
from saekern.acceleration.theirs import codes_in, fits, hooked, lazily, sparse_enough, theirs
from saekern.ops import library
from saekern.ops.topk_encode import encode

REFUSED = {
    "GatedAutoEncoder": "its gate and its magnitude each read dense pre-activations",
    "GatedSAETrainer": "it trains a GatedAutoEncoder, whose gate and magnitude each read dense pre-activations",
    "GatedAnnealTrainer": "it trains a GatedAutoEncoder, whose gate and magnitude each read dense pre-activations",
    "PAnnealTrainer": "its penalty is a power of every code, and its quantiles are taken of dense codes",
    "IdentityDict": "it has no weights",
}


def patches(obj: Any) -> list[Patch | Layout]:
    """What `accelerate` changes on a dictionary or a trainer.

    Raises:
        ValueError: it is neither, or one that is not supported.
    """
    name = own_class(obj)
    if name in DICTIONARIES:
        return DICTIONARIES[name](obj)
    if name in TRAINERS:
        if own_class(obj.ae) not in DICTIONARIES:
            raise ValueError(refusal(own_class(obj.ae)))
        return [*DICTIONARIES[own_class(obj.ae)](obj.ae), *TRAINERS[name](obj), *layouts(obj)]
    raise ValueError(refusal(name))


def refusal(name: str) -> str:
    reason = REFUSED.get(name, f"expected one of {', '.join((*DICTIONARIES, *TRAINERS))}")
    return f"accelerate: dictionary_learning's {name} is not supported: {reason}"


def own_class(obj: Any) -> str:
    """The library's class that obj is of, or descends from."""
    return next(k.__name__ for k in type(obj).__mro__ if k.__module__.partition(".")[0] == "dictionary_learning")


def post_relu(sae: Any, x: Tensor, like: Tensor, make: Callable[[], Tensor]) -> LazyTensor:
    """ReLU(pre-activations), for a trainer's auxiliary loss, which finds the rows in `source`."""
    needs_grad = library.differentiable(x, *sae.parameters())
    lazy = LazyTensor(make, tuple(like.shape), like.dtype, like.device, needs_grad)
    lazy.source = x.reshape(-1, x.shape[-1])
    return lazy


def encoder_of(sae: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """weight [F, D], bias [F], and what is subtracted from rows, [D]."""
    if hasattr(sae, "W_enc"):
        subtracted = getattr(sae, "apply_b_dec_to_input", True)
        return by_latents(sae.W_enc, 1), sae.b_enc, sae.b_dec if subtracted else None
    return by_latents(sae.encoder.weight), sae.encoder.bias, sae.bias if hasattr(sae, "bias") else sae.b_dec


def can(sae: Any, x: Tensor) -> bool:
    """Do our ops take x, and does nobody listen to the linear layers they replace?"""
    weight = sae.W_enc if hasattr(sae, "W_enc") else sae.encoder.weight
    return fits(x, weight) and not (hasattr(sae, "encoder") and hooked(sae.encoder))


def ragged(sae: Any, x: Tensor, codes: ops.RaggedCodes) -> LazyTensor:
    found = Codes(codes.values, codes.indices, sae.dict_size, codes.offsets, codes.order)
    return lazily(found, (*x.shape[:-1], sae.dict_size))


def above(sae: Any, x: Tensor, threshold: Tensor | float) -> LazyTensor | None:
    """The pre-activations above a threshold; None where there are so many that a dense product is faster."""
    weight, bias, pre_bias = encoder_of(sae)
    rows = x.reshape(-1, x.shape[-1])
    if not sparse_enough(rows, weight, bias, pre_bias, threshold):
        return None
    return ragged(sae, x, ops.threshold_encode(rows, weight, bias, threshold, pre_bias=pre_bias))


@replaces("decode")
def decode(self: Any, f: Tensor) -> Tensor:
    return decoded(self, f)


@replaces("decode")
def decode_x(self: Any, x: Tensor) -> Tensor:
    """The same under the name that the TopK dictionaries give to codes."""
    return decoded(self, x)


def decoded(sae: Any, f: Tensor) -> Tensor:
    codes = codes_in(f)
    if codes is None or (hasattr(sae, "decoder") and hooked(sae.decoder)):
        return theirs(sae, "decode")(f)
    weight = by_latents(sae.W_dec) if hasattr(sae, "W_dec") else by_latents(sae.decoder.weight, 1)
    bias = sae.bias if hasattr(sae, "bias") else sae.b_dec
    mixed = torch.is_autocast_enabled(bias.device.type)  # theirs adds the bias after the product, in its own dtype
    out = ops.decode(codes.values, codes.indices, weight, None if mixed else bias, codes.offsets, order=codes.order)
    return (out + bias if mixed else out).view(*f.shape[:-1], out.shape[-1])


# TopK


@replaces("encode")
def topk_encode(self: Any, x: Tensor, return_topk: bool = False, use_threshold: bool = False) -> Any:
    k = int(self.k)
    if not can(self, x) or not 1 <= k <= self.dict_size or (use_threshold and return_topk):
        return theirs(self, "encode")(x, return_topk, use_threshold)
    if use_threshold:
        found = above(self, x, self.threshold) if self.threshold >= 0 else None
        return theirs(self, "encode")(x, return_topk, use_threshold) if found is None else found
    weight, bias, pre_bias = encoder_of(self)
    rows = x.reshape(-1, x.shape[-1])
    values, indices, _, _, order = encode(rows, weight, bias, k, pre_bias=pre_bias)
    f = lazily(Codes(values, indices, self.dict_size, None, order), (*x.shape[:-1], self.dict_size))
    if not return_topk:
        return f
    values, indices = as_chosen_after_relu(rows, weight, bias, pre_bias, values, indices)
    top = (*x.shape[:-1], k)
    dense = post_relu(self, x, f, lambda: self.encoder(x - self.b_dec).relu())
    return f, values.view(top), indices.view(top), dense


def as_chosen_after_relu(
    rows: Tensor, weight: Tensor, bias: Tensor, pre_bias: Tensor | None, values: Tensor, indices: Tensor
) -> tuple[Tensor, Tensor]:
    """The library takes the top k of scores after ReLU: in a row with fewer than k positive ones, latents at 0 count as
    chosen, and so as fired. Which ones is up to torch.topk: it is asked about these rows."""
    short = values[:, -1] <= 0
    if not short.any():
        return values, indices
    few = rows[short] if pre_bias is None else rows[short] - pre_bias
    top = torch.nn.functional.linear(few, weight, bias).relu().topk(values.shape[1], sorted=False)
    return values.index_put((short,), top.values.to(values.dtype)), indices.index_put((short,), top.indices)


@replaces("get_auxiliary_loss")
def auxiliary_loss(self: Any, residual_BD: Tensor, post_relu_acts_BF: Tensor) -> Tensor:
    """TopK, BatchTopK and Matryoshka: the same loss from sparse codes of the dead latents."""
    rows = post_relu_acts_BF.source if isinstance(post_relu_acts_BF, LazyTensor) else None
    dead = self.num_tokens_since_fired >= self.dead_feature_threshold
    count = int(dead.sum())
    if count == 0 or rows is None or (hasattr(self.ae, "decoder") and hooked(self.ae.decoder)):
        return theirs(self, "get_auxiliary_loss")(residual_BD, post_relu_acts_BF)
    self.dead_features = count
    weight, bias, pre_bias = encoder_of(self.ae)
    k_aux = min(self.top_k_aux, count)
    _, _, values, indices = ops.topk_encode_aux(rows, weight, bias, 1, dead, k_aux, pre_bias=pre_bias)
    ae = self.ae
    decoder = by_latents(ae.W_dec) if hasattr(ae, "W_dec") else by_latents(ae.decoder.weight, 1)
    missed = residual_BD.float() - ops.decode(values, indices, decoder).float()
    self.pre_norm_auxk_loss = missed.pow(2).sum(-1).mean()
    spread = (residual_BD.float() - residual_BD.mean(0).float()).pow(2).sum(-1).mean()
    return (self.pre_norm_auxk_loss / spread).nan_to_num(0.0)


# BatchTopK and Matryoshka


@replaces("encode")
def batch_topk_encode(self: Any, x: Tensor, return_active: bool = False, use_threshold: bool = True) -> Any:
    whole = own_class(self) == "BatchTopKSAE" or self.active_groups == len(self.group_sizes)
    total = int(self.k) * x.shape[0]
    if not can(self, x) or not whole or total > x[..., 0].numel() * self.dict_size or (return_active and x.dim() != 2):
        return theirs(self, "encode")(x, return_active, use_threshold)
    if use_threshold:
        f = above(self, x, self.threshold) if self.threshold >= 0 else None
        if f is None:
            return theirs(self, "encode")(x, return_active, use_threshold)
    else:
        weight, bias, pre_bias = encoder_of(self)
        rows = x.reshape(-1, x.shape[-1])
        f = ragged(self, x, ops.batch_topk_encode(rows, weight, bias, total, pre_bias=pre_bias))
    if not return_active:
        return f
    weight, bias = (self.W_enc.T, self.b_enc) if hasattr(self, "W_enc") else (self.encoder.weight, self.encoder.bias)
    dense = post_relu(self, x, f, lambda: torch.nn.functional.linear(x - self.b_dec, weight, bias).relu())
    return f, f.sum(0) > 0, dense


@replaces("update_threshold")
def update_threshold(self: Any, f: Tensor) -> None:
    """Only f[f > 0] is read, whatever its shape."""
    codes = codes_in(f)
    theirs(self, "update_threshold")(f if codes is None else codes.values.detach())


# ReLU


@replaces("encode")
def relu_encode(self: Any, x: Tensor) -> Tensor:
    found = above(self, x, 0.0) if can(self, x) else None
    return theirs(self, "encode")(x) if found is None else found


# JumpReLU


@replaces("encode")
def jumprelu_encode(self: Any, x: Tensor, output_pre_jump: bool = False) -> Any:
    found = above(self, x, self.threshold.clamp_min(0)) if can(self, x) else None
    if found is None:
        return theirs(self, "encode")(x, output_pre_jump)
    if not output_pre_jump:
        return found

    def pre_jump() -> Tensor:
        return (x - self.b_dec if self.apply_b_dec_to_input else x) @ self.W_enc + self.b_enc

    return found, LazyTensor(pre_jump, tuple(found.shape), found.dtype, found.device, found.requires_grad)


def dictionary(*functions: Callable[..., Any], note: str) -> Callable[[Any], list[Patch | Layout]]:
    return lambda sae: [Patch(sae, function, note) for function in functions]


SPARSE = "codes are sparse until something reads [B, F]; with hooks on encoder or decoder the library's own code runs"
FEW = f"{SPARSE}, and while more than 1 in 16 latents is active"
DICTIONARIES: dict[str, Callable[[Any], list[Patch | Layout]]] = {
    "AutoEncoder": dictionary(relu_encode, decode, note=FEW),
    "AutoEncoderTopK": dictionary(topk_encode, decode_x, note=SPARSE),
    "BatchTopKSAE": dictionary(batch_topk_encode, decode_x, note=SPARSE),
    "MatryoshkaBatchTopKSAE": dictionary(batch_topk_encode, decode_x, note=SPARSE),
    "JumpReluAutoEncoder": dictionary(jumprelu_encode, decode, note=FEW),
}

AUXILIARY = "the auxiliary loss encodes the dead latents sparsely, only when there are some"
TRAINERS: dict[str, Callable[[Any], list[Patch | Layout]]] = {
    "StandardTrainer": lambda trainer: [],
    "StandardTrainerAprilUpdate": lambda trainer: [],
    "TopKTrainer": lambda trainer: [Patch(trainer, auxiliary_loss, AUXILIARY)],
    "BatchTopKTrainer": lambda trainer: [
        Patch(trainer, auxiliary_loss, AUXILIARY),
        Patch(trainer, update_threshold, SPARSE),
    ],
    "MatryoshkaBatchTopKTrainer": lambda trainer: [
        Patch(trainer, auxiliary_loss, AUXILIARY),
        Patch(trainer, update_threshold, SPARSE),
        Patch(trainer, matryoshka_loss, "the loss decodes each group from its own codes"),
    ],
    "JumpReluTrainer": lambda trainer: [
        Patch(trainer, jumprelu_loss, "the loss leaves out pre-activations far below their thresholds")
    ],
}


def layouts(trainer: Any) -> list[Patch | Layout]:
    """Both weight matrices by latents, whatever their shape: see `Layout`."""
    ae, optimizer = trainer.ae, trainer.optimizer
    note = "weights of a trainer lie in memory by latents: to save them by safetensors restore first, or .contiguous()"
    if hasattr(ae, "W_enc"):
        return [Layout(ae, "W_enc", 1, optimizer, note), Layout(ae, "W_dec", 0, optimizer, note)]
    return [Layout(ae.encoder, "weight", 0, optimizer, note), Layout(ae.decoder, "weight", 1, optimizer, note)]
