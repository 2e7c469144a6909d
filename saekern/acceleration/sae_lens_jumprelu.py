"""SAELens' JumpReLU in training: pseudo-derivatives from the scores near their thresholds alone."""

import sys
from typing import Any

import torch
from torch import Tensor

from saekern import ops
from saekern.acceleration.lazy import Codes
from saekern.acceleration.sae_lens_codes import Scores, lazily, many_active, scores_of
from saekern.ops import library


def jumprelu_training(sae: Any, sae_in: Tensor) -> tuple[Tensor, Tensor]:
    """Codes above their thresholds and, where gradients are wanted, those that the pseudo-derivative reaches, as 0."""
    wanted = library.differentiable(sae_in, sae.W_enc, sae.b_enc, sae.threshold)
    # A hair more than half a bandwidth, so that rounding loses none; `rectangle` has the last word.
    reach = 0.50001 * sae.bandwidth + 1e-6 if wanted else 0.0
    if many_active(sae, sae_in, sae.threshold - reach):
        hidden_pre = sae_in @ sae.W_enc + sae.b_enc
        theirs = sys.modules["sae_lens.saes.jumprelu_sae"].JumpReLU
        threshold = sae.threshold.to(hidden_pre.dtype)
        return theirs.apply(hidden_pre, threshold, sae.bandwidth, sae.cfg.jumprelu_ste_to_input), hidden_pre
    scores = scores_of(sae, sae_in)
    near = ops.threshold_encode(scores.x, scores.weight, scores.bias, sae.threshold.detach() - reach)
    near = near._replace(values=near.values.to(scores.dtype))
    threshold = ops.latent_gather(sae.threshold.to(scores.dtype), near)
    values = JumpReLU.apply(near.values, threshold, sae.bandwidth, sae.cfg.jumprelu_ste_to_input)
    codes = Codes(values, near.indices, scores.latents, near.offsets, near.order)
    return lazily(scores._replace(near=near), codes)


def jumprelu_loss(sae: Any, step_input: Any, codes: Codes, scores: Scores) -> dict[str, Tensor]:
    """The sparsity loss in its three forms, and the pre-activation loss of dead latents."""
    cfg, near = sae.cfg, scores.near
    assert near is not None
    if cfg.jumprelu_sparsity_loss_mode == "tanh":
        norms = ops.latent_gather(sae.W_dec.norm(dim=1), near)
        l0 = codes.row_sums(torch.tanh(cfg.jumprelu_tanh_scale * codes.values * norms))
    else:
        threshold = ops.latent_gather(sae.threshold.to(near.values.dtype), near)
        l0 = codes.row_sums(Step.apply(near.values, threshold, sae.bandwidth, cfg.jumprelu_ste_to_input))
        if cfg.jumprelu_sparsity_loss_mode == "quadratic":
            l0 = 2 / cfg.target_l0 * (l0 - cfg.target_l0) ** 2
    losses = {"l0_loss": (step_input.coefficients["l0"] * l0).mean()}
    if cfg.pre_act_loss_coefficient is not None:
        losses["pre_act_loss"] = pre_act_loss(sae, scores, step_input.dead_neuron_mask)
    return losses


def pre_act_loss(sae: Any, scores: Scores, dead: Tensor | None) -> Tensor:
    """Of the dead latents, whose pre-activations are made densely; no others."""
    if dead is None or not dead.any():
        return scores.x.new_zeros((), dtype=scores.dtype)
    latents = dead.nonzero()[:, 0]
    hidden_pre = scores.x @ scores.weight.index_select(0, latents).T + scores.bias[latents]
    below = (sae.threshold.to(scores.dtype)[latents] - hidden_pre).relu() * sae.W_dec[latents].norm(dim=1)
    return sae.cfg.pre_act_loss_coefficient * below.sum(dim=-1).mean()


class JumpReLU(torch.autograd.Function):
    """s · 1[s > θ], element by element, with SAELens' pseudo-derivatives to θ and, if asked for, to s."""

    @staticmethod
    def forward(ctx: Any, score: Tensor, threshold: Tensor, bandwidth: float, ste_to_input: bool) -> Tensor:
        ctx.save_for_backward(score, threshold)
        ctx.bandwidth, ctx.ste_to_input = bandwidth, ste_to_input
        return score * (score > threshold)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        score, threshold = ctx.saved_tensors
        slope = threshold / ctx.bandwidth * rectangle(score, threshold, ctx.bandwidth) * grad
        through = (score > threshold) * grad
        return through + slope if ctx.ste_to_input else through, -slope, None, None


class Step(torch.autograd.Function):
    """1[s > θ] in the same way."""

    @staticmethod
    def forward(ctx: Any, score: Tensor, threshold: Tensor, bandwidth: float, ste_to_input: bool) -> Tensor:
        ctx.save_for_backward(score, threshold)
        ctx.bandwidth, ctx.ste_to_input = bandwidth, ste_to_input
        return (score > threshold).to(score)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        score, threshold = ctx.saved_tensors
        slope = rectangle(score, threshold, ctx.bandwidth) * grad / ctx.bandwidth
        return slope if ctx.ste_to_input else None, -slope, None, None


def rectangle(score: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    distance = (score - threshold) / bandwidth
    return (distance > -0.5) & (distance < 0.5)
