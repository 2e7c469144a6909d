"""JumpReLUSAE against its formula with the paper's straight-through estimators, written independently."""

import pytest
import torch
from plain_sae import assert_follows_plain_torch, assert_is_formula, assert_saves_and_loads, fvu, moved, rows

import saekern

D, LATENTS = 13, 47


def kernel(u):
    return ((u > -0.5) & (u < 0.5)).to(u.dtype)


class PlainJumpReLU(torch.autograd.Function):
    """On dense scores, as the paper's pseudo-code."""

    @staticmethod
    def forward(ctx, score, threshold, bandwidth):
        ctx.save_for_backward(score, threshold)
        ctx.bandwidth = bandwidth
        return score * (score > threshold)

    @staticmethod
    def backward(ctx, grad):
        score, threshold = ctx.saved_tensors
        slope = -(threshold / ctx.bandwidth) * kernel((score - threshold) / ctx.bandwidth)
        return grad * (score > threshold), (grad * slope).sum(0), None


class PlainStep(torch.autograd.Function):
    @staticmethod
    def forward(ctx, score, threshold, bandwidth):
        ctx.save_for_backward(score, threshold)
        ctx.bandwidth = bandwidth
        return (score > threshold).to(score.dtype)

    @staticmethod
    def backward(ctx, grad):
        score, threshold = ctx.saved_tensors
        slope = -(1 / ctx.bandwidth) * kernel((score - threshold) / ctx.bandwidth)
        return torch.zeros_like(score), (grad * slope).sum(0), None


def plain_loss(sae, x, dead):
    score = (x - sae.b_dec if sae.subtract_b_dec else x) @ sae.W_enc + sae.b_enc
    x_hat = PlainJumpReLU.apply(score, sae.threshold, sae.bandwidth) @ sae.W_dec + sae.b_dec
    l0 = PlainStep.apply(score, sae.threshold, sae.bandwidth).sum(1).mean()
    penalty = l0 if sae.target_l0 is None else (l0 / sae.target_l0 - 1) ** 2
    return {"fvu": fvu(x, x_hat), "l0": sae.l0_coefficient * penalty}, x_hat


def example(**kwargs):
    arguments = {"bandwidth": 0.4, "initial_threshold": 0.1, "init_seed": 1, "dtype": torch.float64} | kwargs
    sae = moved(saekern.JumpReLUSAE(D, LATENTS, **arguments))
    with torch.no_grad():  # below ε/2 and above it
        sae.threshold.copy_(torch.linspace(0, 2, LATENTS))
    return sae


@pytest.mark.parametrize("arguments", [{}, {"target_l0": 5}, {"subtract_b_dec": False}], ids=str)
def test_loss_and_gradients_are_the_formula(arguments):
    """Planted: only latents above θ encoded; θ missing in ∂z/∂θ. Both caught."""
    got = assert_is_formula(example(**arguments), plain_loss, rows(29, D))
    assert bool((got.codes.values == 0).any()), "no score just below its threshold: the test shows little"


def test_follows_plain_torch():
    sae = saekern.JumpReLUSAE(16, 64, bandwidth=0.2, initial_threshold=0.1, l0_coefficient=1e-2, init_seed=2)
    assert_follows_plain_torch(sae, plain_loss)
    assert float(sae.threshold.detach().std()) > 0.01, "the thresholds did not move"
    assert float(sae.threshold.detach().min()) >= 0


def test_encodes_what_is_above_the_threshold():
    sae, x = example(), rows(30, D)
    score = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    want = torch.where(score > sae.threshold, score, 0)
    torch.testing.assert_close(sae.encode(x), want)
    torch.testing.assert_close(sae(x), sae.loss(x).x_hat)
    assert bool((sae.encode_sparse(x).values != 0).all())


def test_thresholds_stay_float32_and_not_negative():
    """Planted: `wide` empty; caught."""
    sae = saekern.JumpReLUSAE(D, LATENTS, initial_threshold=0.1234567, init_seed=0)
    with torch.no_grad():
        sae.threshold[:3] = -1.0
    sae.project_parameters_(fused=True)
    exact = sae.threshold.detach().clone()
    assert float(exact.min()) == 0.0
    sae.loss(rows(9, D, torch.float32)).total.backward()
    sae.bfloat16()
    assert sae.W_dec.dtype == torch.bfloat16
    assert sae.threshold.dtype == sae.threshold.grad.dtype == torch.float32
    assert torch.equal(sae.threshold, exact)
    sae.zero_grad()
    sae.loss(rows(9, D, torch.bfloat16)).total.backward()
    assert sae.double().threshold.dtype == torch.float64
    assert saekern.JumpReLUSAE(4, 8, dtype=torch.float16).threshold.dtype == torch.float32


def test_autocast_keeps_losses_and_thresholds_float32():
    sae = saekern.JumpReLUSAE(D, LATENTS, bandwidth=0.1, init_seed=0)
    with torch.autocast("cpu", torch.bfloat16):
        loss = sae.loss(rows(9, D, torch.float32))
    assert loss.x_hat.dtype == torch.bfloat16
    assert all(term.dtype == torch.float32 for term in loss.terms.values())
    loss.total.backward()
    assert bool(sae.threshold.grad.any())


def test_saves_and_loads(tmp_path):
    sae = saekern.JumpReLUSAE(D, LATENTS, target_l0=3, warmup_steps=9, subtract_b_dec=False, init_seed=4)
    sae.loss(rows(5, D, torch.float32))
    assert_saves_and_loads(sae, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bandwidth": 0.0}, r"bandwidth: expected more than 0, got 0.0"),
        ({"target_l0": 0}, r"target_l0: expected more than 0, got 0"),
        ({"initial_threshold": -1.0}, r"initial_threshold: expected at least 0, got -1.0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        saekern.JumpReLUSAE(D, LATENTS, **arguments)
