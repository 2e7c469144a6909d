"""ReLUSAE against its formula."""

import pytest
import torch
from plain_sae import assert_follows_plain_torch, assert_is_formula, assert_saves_and_loads, fvu, moved, rows, spread

import saekern

D, LATENTS = 13, 47


def plain_loss(sae, x, dead):
    z = ((x - sae.b_dec) @ sae.W_enc + sae.b_enc).relu()
    x_hat = z @ sae.W_dec + sae.b_dec
    factor = min(1.0, (int(sae.warmup.count) + 1) / max(1, sae.warmup_steps))
    l1 = (z * sae.W_dec.norm(dim=1)).sum(1).mean() / spread(x)
    return {"fvu": fvu(x, x_hat), "l1": sae.l1_coefficient * factor * l1}, x_hat


def example(**kwargs):
    return moved(saekern.ReLUSAE(D, LATENTS, init_seed=1, dtype=torch.float64, **kwargs))


def test_loss_and_gradients_are_the_formula():
    """Planted: norms without gradient; L1 not divided by σ. Both caught."""
    got = assert_is_formula(example(), plain_loss, rows(29, D))
    assert bool((got.codes.values > 0).all())


def test_gradcheck():
    sae, x = example(), rows(6, D)
    torch.autograd.gradcheck(lambda *_: sae.loss(x).total, tuple(sae.parameters()))


def test_follows_plain_torch():
    assert_follows_plain_torch(saekern.ReLUSAE(16, 64, init_seed=2, warmup_steps=50), training_loss)


def training_loss(sae, x, dead):
    terms = plain_loss(sae, x, dead)
    sae.warmup.count += 1
    return terms


def test_warmup_counts_training_losses_only():
    """Planted: counting in evaluation mode too; caught."""
    sae, x = example(warmup_steps=4), rows(5, D)
    full = float(example().loss(x).terms["l1"].detach())
    with torch.no_grad():
        sae.loss(x)
    sae.eval().loss(x)
    sae.train()
    shares = [float(sae.loss(x).terms["l1"].detach()) / full for _ in range(6)]
    assert shares == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])


def test_scale_of_the_rows_does_not_matter():
    sae, x = example(), rows(29, D)
    want = sae.loss(x).total
    with torch.no_grad():
        sae.b_enc.mul_(100)
        sae.b_dec.mul_(100)
    torch.testing.assert_close(sae.loss(100 * x).total, want)


def test_encodes_the_positive_scores():
    sae, x = example(), rows(30, D)
    want = ((x - sae.b_dec) @ sae.W_enc + sae.b_enc).relu()
    torch.testing.assert_close(sae.encode(x.reshape(5, 6, D)), want.reshape(5, 6, LATENTS))
    torch.testing.assert_close(sae(x.reshape(5, 6, D)), (want @ sae.W_dec + sae.b_dec).reshape(5, 6, D))


def test_saves_and_loads(tmp_path):
    sae = saekern.ReLUSAE(D, LATENTS, l1_coefficient=0.3, warmup_steps=3, init_seed=4)
    sae.loss(rows(5, D, torch.float32))
    assert_saves_and_loads(sae, tmp_path)


def test_an_empty_batch_and_autocast():
    sae = saekern.ReLUSAE(D, LATENTS, init_seed=0)
    assert sae.loss(torch.empty(0, D)).x_hat.shape == (0, D)
    with torch.autocast("cpu", torch.bfloat16):
        loss = sae.loss(rows(9, D, torch.float32))
    assert loss.x_hat.dtype == torch.bfloat16
    assert all(term.dtype == torch.float32 for term in loss.terms.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"l1_coefficient": -1.0}, r"l1_coefficient: expected at least 0, got -1.0"),
        ({"warmup_steps": -1}, r"warmup_steps: expected at least 0, got -1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        saekern.ReLUSAE(D, LATENTS, **arguments)
