"""GatedSAE against its formula with the paper's stop-gradients."""

import pytest
import torch
from plain_sae import assert_follows_plain_torch, assert_is_formula, assert_saves_and_loads, fvu, moved, rows, spread

import saekern

D, LATENTS = 13, 47


def plain_loss(sae, x, dead):
    u = (x - sae.b_dec) @ sae.W_enc
    gate = u + sae.b_gate
    z = (gate > 0).to(x.dtype) * (sae.r_mag.exp() * u + sae.b_mag).relu()
    x_hat = z @ sae.W_dec + sae.b_dec
    by_gates = gate.relu() @ sae.W_dec.detach() + sae.b_dec.detach()
    l1 = sae.l1_coefficient * gate.relu().sum(1).mean() / spread(x)
    return {"fvu": fvu(x, x_hat), "l1": l1, "gate": fvu(x, by_gates)}, x_hat


def example(**kwargs):
    return moved(saekern.GatedSAE(D, LATENTS, init_seed=1, dtype=torch.float64, **kwargs))


def test_loss_and_gradients_are_the_formula():
    """Planted: W_dec not detached in the gate's term; b_gate taking gradient from the reconstruction; r_mag without its
    exponential. Each caught."""
    got = assert_is_formula(example(), plain_loss, rows(29, D))
    assert bool((got.codes.values == 0).any()), "no open gate with a magnitude below 0: the test shows little"


def test_the_reconstruction_does_not_move_the_gate():
    sae = example()
    sae.loss(rows(29, D)).terms["fvu"].backward()
    assert sae.b_gate.grad is None or not sae.b_gate.grad.any()


def test_follows_plain_torch():
    assert_follows_plain_torch(saekern.GatedSAE(16, 64, init_seed=2), plain_loss)


def test_encodes_open_gates():
    sae, x = example(), rows(30, D)
    u = (x - sae.b_dec) @ sae.W_enc
    want = torch.where(u + sae.b_gate > 0, (sae.r_mag.exp() * u + sae.b_mag).relu(), 0)
    torch.testing.assert_close(sae.encode(x), want)
    torch.testing.assert_close(sae(x), sae.loss(x).x_hat)
    assert sae.b_enc is sae.b_gate


def test_saves_and_loads(tmp_path):
    sae = saekern.GatedSAE(D, LATENTS, l1_coefficient=0.3, warmup_steps=7, init_seed=4)
    sae.loss(rows(5, D, torch.float32))
    assert_saves_and_loads(sae, tmp_path)


def test_empty_batch_and_autocast():
    sae = saekern.GatedSAE(D, LATENTS, init_seed=0)
    assert sae.loss(torch.empty(0, D)).x_hat.shape == (0, D)
    with torch.autocast("cpu", torch.bfloat16):
        loss = sae.loss(rows(9, D, torch.float32))
    assert all(term.dtype == torch.float32 for term in loss.terms.values())
    loss.total.backward()


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"l1_coefficient: expected at least 0, got -0.5"):
        saekern.GatedSAE(D, LATENTS, l1_coefficient=-0.5)
