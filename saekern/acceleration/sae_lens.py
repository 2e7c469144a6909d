"""SAELens: encode, decode and auxiliary losses on sparse codes; everything around them stays SAELens' own code.

Its own methods run wherever something could see the difference: with a hook on the pre-activations or the codes, and,
for JumpReLU and ReLU, while so many latents are active that dense products are faster.
"""

from typing import Any

import torch
from torch import Tensor, nn

from saekern import ops
from saekern.acceleration.handle import Patch, replaces
from saekern.acceleration.lazy import Codes, LazyTensor
from saekern.acceleration.sae_lens_codes import DENSE_ABOVE, Scores, batch_topk, jumprelu, relu, topk
from saekern.acceleration.sae_lens_jumprelu import jumprelu_loss, jumprelu_training
from saekern.ops import RaggedCodes

# Class -> its encoder here, and what its activation_fn must be.
ENCODERS = {
    "TopKSAE": (topk, "TopK"),
    "TopKTrainingSAE": (topk, "TopK"),
    "BatchTopKTrainingSAE": (batch_topk, "BatchTopK"),
    "StandardSAE": (relu, "ReLU"),
    "StandardTrainingSAE": (relu, "ReLU"),
    "JumpReLUSAE": (jumprelu, "ReLU"),
    "JumpReLUTrainingSAE": (jumprelu_training, "ReLU"),
}


def patches(obj: Any) -> list[Patch]:
    """Of an SAE, or of the SAE of a trainer, whose own code needs no change."""
    names = [kind.__name__ for kind in type(obj).__mro__ if kind.__module__.partition(".")[0] == "sae_lens"]
    if "SAETrainer" in names:
        return patches(obj.sae)
    name = names[0]
    if name not in ENCODERS:
        known = ", ".join(ENCODERS)
        raise ValueError(f"accelerate: SAELens' {name} is not supported; {known} are, and SAETrainer with one of them")
    activation = type(obj.activation_fn).__name__
    if activation != ENCODERS[name][1]:
        raise ValueError(f"accelerate: {name}.activation_fn: expected {ENCODERS[name][1]}, got {activation}")
    if "training_forward_pass" in vars(obj) or getattr(obj, "_compiled_call_impl", None) is not None:
        raise ValueError(f"accelerate: this {name} is compiled (compile_sae); sparse codes cannot be compiled with it")
    note = f"{name}: encoder, decoder and losses run on sparse codes; dense ones are made when somebody reads them"
    if activation == "ReLU":
        note += f"; while more than {DENSE_ABOVE:.0%} of the latents are active, SAELens' dense products are used"
    if getattr(obj.cfg, "use_sparse_activations", False):
        note += "; use_sparse_activations has no effect: feature_acts is strided and not COO"
    functions = [encode, decode, forward]
    if "Training" in name:
        functions.append(encode_with_hidden_pre)
        functions.append(calculate_topk_aux_loss if "TopK" in name else calculate_aux_loss)
    if name == "BatchTopKTrainingSAE":
        functions.append(update_topk_threshold)
    return [Patch(obj, function, note) for function in functions]


def library_class(sae: Any) -> str:
    return next(kind.__name__ for kind in type(sae).__mro__ if kind.__name__ in ENCODERS)


def hooked(sae: Any, *names: str) -> bool:
    """Does anybody listen there?"""
    everywhere = nn.modules.module
    if everywhere._global_forward_hooks or everywhere._global_forward_pre_hooks or everywhere._global_backward_hooks:
        return True
    points = [getattr(sae, f"hook_sae_{name}") for name in names]
    return any(
        point._forward_hooks or point._forward_pre_hooks or point._backward_hooks or point._backward_pre_hooks
        for point in points
    )


def sparsely(sae: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """feature_acts and hidden_pre where nobody listens at their hooks."""
    encoder, _ = ENCODERS[library_class(sae)]
    return encoder(sae, sae.process_sae_in(x))


def codes_in(acts: Tensor) -> Codes | None:
    """What is in feature_acts, if we made it and nobody has written into it."""
    return acts.source if isinstance(acts, LazyTensor) and acts.current_codes() is not None else None


@replaces("encode")
def encode(self: Any, x: Tensor) -> Tensor:
    if hooked(self, "acts_pre", "acts_post"):
        return type(self).encode(self, x)
    acts, _ = sparsely(self, x)
    return acts.dense() if isinstance(acts, LazyTensor) else acts  # whoever calls it asked for the dense codes


@replaces("encode_with_hidden_pre")
def encode_with_hidden_pre(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    if hooked(self, "acts_pre", "acts_post"):
        return type(self).encode_with_hidden_pre(self, x)
    return sparsely(self, x)


@replaces("decode")
def decode(self: Any, feature_acts: Tensor) -> Tensor:
    codes = codes_in(feature_acts)
    if codes is None:
        return type(self).decode(self, feature_acts)
    rows = ops.decode(codes.values, codes.indices, self.W_dec, offsets=codes.offsets, order=codes.order)
    out = self.hook_sae_recons(rows.view(*feature_acts.shape[:-1], rows.shape[1]) + self.b_dec)
    return self.reshape_fn_out(self.run_time_activation_norm_fn_out(out), self.d_head)


@replaces("forward")
def forward(self: Any, x: Tensor) -> Tensor:
    if hooked(self, "acts_pre", "acts_post", *(("input", "recons") if self.use_error_term else ())):
        return type(self).forward(self, x)
    out = self.decode(sparsely(self, x)[0])
    if self.use_error_term:
        # SAELens computes the reconstruction a second time without hooks; where there are none it is this one.
        with torch.no_grad():
            error = self.hook_sae_error(x - out)
        out = out + error
    return self.hook_sae_output(out)


@replaces("calculate_topk_aux_loss")
def calculate_topk_aux_loss(
    self: Any, sae_in: Tensor, sae_out: Tensor, hidden_pre: Tensor, dead_neuron_mask: Tensor | None
) -> Tensor:
    scores = hidden_pre.source if isinstance(hidden_pre, LazyTensor) else None
    count = 0 if dead_neuron_mask is None else int(dead_neuron_mask.sum())
    if scores is None or count == 0 or self.cfg.normalize_activations in ("constant_norm_rescale", "layer_norm"):
        return type(self).calculate_topk_aux_loss(self, sae_in, sae_out, hidden_pre, dead_neuron_mask)
    assert dead_neuron_mask is not None
    return auxiliary_loss(self, sae_in, sae_out, scores, dead_neuron_mask.nonzero()[:, 0])


def auxiliary_loss(sae: Any, sae_in: Tensor, sae_out: Tensor, scores: Scores, dead: Tensor) -> Tensor:
    """The best scores of dead latents in each row, decoded, against the residual: mean_b Σ_d of the squared error. Only
    the dead latents' rows of the encoder are multiplied with."""
    residual = (sae_in - sae_out).detach()
    k_aux, count = sae_in.shape[-1] // 2, dead.numel()
    part = scores._replace(
        weight=scores.weight.index_select(0, dead),
        bias=scores.bias.index_select(0, dead),
        norm=None if scores.norm is None else scores.norm.index_select(0, dead),
    )
    with torch.no_grad():
        values, indices, *_ = torch.ops.saekern.topk_encode(
            *part.compared(), min(k_aux, count), None, False, None, 0, False
        )
    codes = part.chosen(Codes(values, indices, count), relu=False)
    estimate = ops.decode(codes.values, dead[codes.indices], sae.W_dec)
    estimate = sae.reshape_fn_out(estimate.view(*scores.lead, estimate.shape[1]), sae.d_head)
    loss = (estimate - residual).pow(2).sum(dim=-1).mean()
    return sae.cfg.aux_loss_coefficient * min(count / k_aux, 1.0) * loss


@replaces("calculate_aux_loss")
def calculate_aux_loss(
    self: Any, step_input: Any, feature_acts: Tensor, hidden_pre: Tensor, sae_out: Tensor
) -> dict[str, Tensor]:
    codes = codes_in(feature_acts)
    if codes is not None and library_class(self) == "JumpReLUTrainingSAE":
        return jumprelu_loss(self, step_input, codes, hidden_pre.source)  # type: ignore[attr-defined]
    if codes is None or codes.offsets is None or self.cfg.lp_norm != 1:
        return type(self).calculate_aux_loss(self, step_input, feature_acts, hidden_pre, sae_out)
    norms = ops.latent_gather(
        self.W_dec.norm(dim=1), RaggedCodes(codes.values, codes.indices, codes.offsets, codes.order)
    )
    return {"l1_loss": step_input.coefficients["l1"] * (codes.values * norms).sum() / codes.rows}


@replaces("update_topk_threshold")
def update_topk_threshold(self: Any, acts_topk: Tensor) -> None:
    """An average over batches of the smallest positive code, in float64 as SAELens keeps it."""
    codes = acts_topk.codes if codes_in(acts_topk) is not None else None  # type: ignore[attr-defined]
    if codes is None:
        return type(self).update_topk_threshold(self, acts_topk)
    with torch.no_grad(), torch.autocast(self.topk_threshold.device.type, enabled=False):
        positive = codes.values[codes.values > 0]
        if positive.numel():
            rate, least = self.cfg.topk_threshold_lr, positive.min().to(self.topk_threshold.dtype)
            self.topk_threshold = (1 - rate) * self.topk_threshold + rate * least
    return None
