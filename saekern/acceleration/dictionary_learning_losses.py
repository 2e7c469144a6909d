"""Losses of dictionary_learning that read dense codes line by line, and here sparse ones: JumpReLU and Matryoshka."""

from collections import namedtuple
from typing import Any

import torch
from torch import Tensor

from saekern import ops
from saekern.acceleration.handle import replaces
from saekern.acceleration.layout import by_latents
from saekern.acceleration.lazy import Codes
from saekern.acceleration.theirs import codes_in, fits, lazily, sparse_enough, theirs


@replaces("loss")
def matryoshka_loss(self: Any, x: Tensor, step: Any = None, logging: bool = False) -> Any:
    """The library's, each group decoded from its own codes instead of from a slice of dense ones."""
    f, active, post_relu_acts = self.ae.encode(x, return_active=True, use_threshold=False)
    codes = codes_in(f)
    if codes is None:
        return theirs(self, "loss")(x, step=step, logging=logging)
    if step > self.threshold_start_step:
        self.update_threshold(f)
    decoder = by_latents(self.ae.W_dec)
    x_hat, losses = self.ae.b_dec.expand_as(x), []
    for group in range(self.ae.active_groups):
        first, end = (int(self.ae.group_indices[at]) for at in (group, group + 1))
        part = codes_of_group(codes, first, end)
        x_hat = x_hat + ops.decode(part.values, part.indices, decoder[first:end], offsets=part.offsets)
        losses.append((x - x_hat).pow(2).sum(dim=-1).mean() * self.group_weights[group])
    every = torch.stack(losses)
    self.effective_l0 = self.k
    self.num_tokens_since_fired += x.shape[0]
    self.num_tokens_since_fired[active] = 0
    auxk_loss = self.get_auxiliary_loss((x - x_hat).detach(), post_relu_acts)
    loss = every.mean() + self.auxk_alpha * auxk_loss
    if not logging:
        return loss
    names = ("l2_loss", "auxk_loss", "loss", "min_l2_loss", "max_l2_loss")
    terms = (every.mean(), auxk_loss, loss, every.min(), every.max())
    items = {name: term.item() for name, term in zip(names, terms, strict=True)}
    return loss_log(x=x, x_hat=x_hat, f=f, losses=items)


def codes_of_group(codes: Codes, first: int, end: int) -> Codes:
    """The ragged codes of latents first to end, counted from first."""
    assert codes.offsets is not None
    inside = (codes.indices >= first) & (codes.indices < end)
    counts = torch.zeros(codes.rows + 1, dtype=torch.int64, device=inside.device)
    counts[1:] = inside.cumsum(0)[codes.offsets[1:] - 1].where(codes.offsets[1:] > 0, 0)
    return Codes(codes.values[inside], codes.indices[inside] - first, end - first, counts)


@replaces("loss")
def jumprelu_loss(self: Any, x: Tensor, step: int, logging: bool = False, **_: Any) -> Any:
    """The library's, with pre-activations below θ − ε/2 left out: they are not in any of its sums, but for the codes'
    own step function at 0 (`Step`)."""
    ae = self.ae
    x = x.to(ae.W_enc.dtype)
    weight, bias = by_latents(ae.W_enc, 1), ae.b_enc
    # A little lower than θ − ε/2, as the window is tested below as the library tests it.
    lowest = ae.threshold.detach() - 0.51 * self.bandwidth
    if not fits(x, weight, bias) or x.dim() != 2 or not sparse_enough(x, weight, bias, None, lowest):
        return theirs(self, "loss")(x, step=step, logging=logging)
    scale = self.sparsity_warmup_fn(step)
    found = ops.threshold_encode(x, weight, bias, lowest)
    threshold = ops.latent_gather(ae.threshold, found)
    values = Jump.apply(found.values, threshold, self.bandwidth)
    codes = Codes(values, found.indices, ae.dict_size, found.offsets, found.order)

    self.num_tokens_since_fired += x.shape[0]
    self.num_tokens_since_fired[codes.latent_sums(values.detach()) > 0] = 0
    self.dead_features = (self.num_tokens_since_fired > self.dead_feature_threshold).sum().item()

    f = lazily(codes, (x.shape[0], ae.dict_size))
    recon = ae.decode(f)
    recon_loss = (x - recon).pow(2).sum(-1).mean()
    l0 = Step.apply(ae.threshold, values.detach(), codes, self.bandwidth) / x.shape[0]
    loss = recon_loss + self.sparsity_coefficient * (l0 / self.target_l0 - 1).pow(2) * scale
    if not logging:
        return loss
    items = {"l2_loss": recon_loss.item(), "loss": loss.item()}
    return loss_log(x=x, recon=recon, f=f, losses=items)


def loss_log(**fields: Any) -> Any:
    """What their losses return for a log."""
    log: Any = namedtuple("LossLog", fields)  # type: ignore[misc]
    return log(**fields)


class Jump(torch.autograd.Function):
    """The library's JumpReLUFunction at single codes: s · 1[s > θ], and the pseudo-derivative to θ."""

    @staticmethod
    def forward(ctx: Any, score: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(score, threshold)
        ctx.bandwidth = bandwidth
        return score * (score > threshold)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        score, threshold = ctx.saved_tensors
        near = ((score - threshold) / ctx.bandwidth).abs() < 0.5
        return (score > threshold) * grad, -(threshold / ctx.bandwidth) * near * grad, None


class Step(torch.autograd.Function):
    """Σ 1[f > θ] over all rows and latents, as the library's StepFunction has it: of the codes f after the jump, not of
    pre-activations. So a code of 0 counts where θ < 0, and pulls at θ where |θ| < ε/2."""

    @staticmethod
    def forward(ctx: Any, threshold: Tensor, values: Tensor, codes: Codes, bandwidth: float) -> Tensor:
        ctx.save_for_backward(threshold, values)
        ctx.codes, ctx.bandwidth = codes, bandwidth
        active = (values > threshold[codes.indices]).to(threshold.dtype)
        zeros = codes.rows - codes.latent_sums(torch.ones_like(values))
        return active.sum() + zeros[threshold < 0].sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        threshold, values = ctx.saved_tensors
        near = ((values - threshold[ctx.codes.indices]) / ctx.bandwidth).abs() < 0.5
        zeros = ctx.codes.rows - ctx.codes.latent_sums(torch.ones_like(values))
        zeros = torch.where((threshold / ctx.bandwidth).abs() < 0.5, zeros, 0)
        count = ctx.codes.latent_sums(near.to(threshold.dtype)) + zeros
        return -(grad / ctx.bandwidth) * count, None, None, None
