"""BatchTopKSAE against its formula, and its inference threshold."""

import pytest
import torch
from plain_sae import assert_follows_plain_torch, assert_is_formula, assert_saves_and_loads, fvu, moved, rows

import saekern

D, LATENTS, K = 13, 47, 5


def plain_loss(sae, x, dead):
    score = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    z = score.relu()
    least = z.flatten().topk(sae.k * x.shape[0]).values[-1].detach()
    x_hat = torch.where(z >= least, z, 0) @ sae.W_dec + sae.b_dec
    auxk = x.new_zeros(())
    if dead is not None and dead.any():
        values, indices = score.masked_fill(~dead, -torch.inf).topk(min(sae.k_aux, int(dead.sum())))
        revived = torch.zeros_like(score).scatter(1, indices, values.relu())
        auxk = sae.aux_coefficient * fvu((x - x_hat).detach(), revived @ sae.W_dec)
    return {"fvu": fvu(x, x_hat), "auxk": auxk}, x_hat


def example(**kwargs):
    return moved(saekern.BatchTopKSAE(D, LATENTS, K, init_seed=1, dtype=torch.float64, **kwargs))


@pytest.mark.parametrize("count", [None, 0, 2, 20])
def test_loss_and_gradients_are_the_formula(count):
    """Planted: the auxiliary target not detached; caught."""
    dead = None
    if count is not None:
        dead = torch.zeros(LATENTS, dtype=torch.bool)
        dead[torch.randperm(LATENTS, generator=torch.Generator().manual_seed(3))[:count]] = True
    got = assert_is_formula(example(k_aux=4), plain_loss, rows(29, D), dead)
    assert got.codes.values.numel() == 29 * K
    assert len(set(got.codes.offsets.diff().tolist())) > 1


def test_gradcheck():
    sae, x = example(), rows(6, D)
    torch.autograd.gradcheck(lambda *_: sae.loss(x).total, tuple(sae.parameters()))


def test_follows_plain_torch():
    assert_follows_plain_torch(saekern.BatchTopKSAE(16, 64, 4, init_seed=2), plain_loss)


def test_the_threshold_is_the_average_of_the_smallest_chosen():
    """Planted: a start at 0 instead of the first batch; moving in evaluation mode. Both caught."""
    sae = example(threshold_decay=0.75)
    want = 0.0
    for step in range(4):
        x = rows(20 + step, D)
        values = sae.loss(x).codes.values.detach()
        least = float(values.detach()[values > 0].min())
        want = least if step == 0 else 0.75 * want + 0.25 * least
        assert float(sae.threshold) == pytest.approx(want, rel=1e-12)
    with torch.no_grad():
        sae.loss(x + 1)
    sae.eval().loss(x + 1)
    assert float(sae.threshold) == pytest.approx(want, rel=1e-12)
    none = -sae.W_enc.detach().T.sum(0, keepdim=True) * 0 + sae.b_dec.detach()
    with torch.no_grad():
        sae.b_enc.fill_(-1.0)
    sae.train().loss(none)  # no positive score: nothing to learn from
    assert float(sae.threshold) == pytest.approx(want, rel=1e-12)


def test_inference_does_not_depend_on_the_batch():
    sae, x = example(), rows(30, D)
    sae.loss(x)
    alone = torch.cat([sae.encode(row[None]) for row in x])
    torch.testing.assert_close(sae.encode(x), alone)
    score = ((x - sae.b_dec) @ sae.W_enc + sae.b_enc).relu()
    torch.testing.assert_close(sae.encode(x), torch.where(score > sae.threshold, score, 0))
    assert float((alone > 0).sum(1).double().mean()) == pytest.approx(K, abs=0.05)
    assert saekern.SparseCodes(*sae.encode_batch(x)[:3]).values.numel() == 30 * K


def test_saves_and_loads_with_its_threshold(tmp_path):
    sae = saekern.BatchTopKSAE(D, LATENTS, K, k_aux=3, threshold_decay=0.5, init_seed=4)
    sae.loss(rows(5, D, torch.float32))
    assert float(sae.threshold) > 0
    assert_saves_and_loads(sae, tmp_path)
    assert saekern.load(tmp_path, dtype=torch.float16).threshold.dtype == torch.float32


def test_empty_batch_and_autocast():
    sae = saekern.BatchTopKSAE(D, LATENTS, K, init_seed=0)
    assert sae.loss(torch.empty(0, D)).x_hat.shape == (0, D)
    with torch.autocast("cpu", torch.bfloat16):
        loss = sae.loss(rows(9, D, torch.float32), torch.ones(LATENTS, dtype=torch.bool))
    assert all(term.dtype == torch.float32 for term in loss.terms.values())
    assert sae.threshold.dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, r"k: expected 1 <= k <= d_sae = 47, got 0"),
        ({"k_aux": 48}, r"k_aux: expected 0 <= k_aux <= d_sae = 47, got 48"),
        ({"threshold_decay": 1.0}, r"threshold_decay: expected 0 <= threshold_decay < 1, got 1.0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        saekern.BatchTopKSAE(D, LATENTS, **{"k": K, **arguments})
