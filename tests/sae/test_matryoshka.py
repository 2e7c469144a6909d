"""MatryoshkaSAE against its formula."""

import pytest
import torch
from plain_sae import assert_follows_plain_torch, assert_is_formula, assert_saves_and_loads, fvu, moved, rows

import saekern

D, LATENTS, K = 13, 47, 5
PREFIXES = [3, 11, LATENTS]


def plain_loss(sae, x, dead):
    score = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    z = score.relu()
    least = z.flatten().topk(sae.k * x.shape[0]).values[-1].detach()
    z = torch.where(z >= least, z, 0)
    weights = torch.tensor(sae.prefix_weights or [1.0] * len(sae.prefixes), dtype=x.dtype)
    estimates = [z[:, :p] @ sae.W_dec[:p] + sae.b_dec for p in sae.prefixes]
    nested = sum(w * fvu(x, x_hat) for w, x_hat in zip(weights / weights.sum(), estimates, strict=True))
    auxk = x.new_zeros(())
    if dead is not None and dead.any():
        values, indices = score.masked_fill(~dead, -torch.inf).topk(min(sae.k_aux, int(dead.sum())))
        revived = torch.zeros_like(score).scatter(1, indices, values.relu())
        auxk = sae.aux_coefficient * fvu((x - estimates[-1]).detach(), revived @ sae.W_dec)
    return {"fvu": nested, "auxk": auxk}, estimates[-1]


def example(**kwargs):
    return moved(saekern.MatryoshkaSAE(D, LATENTS, K, init_seed=1, dtype=torch.float64, **kwargs))


@pytest.mark.parametrize("weights", [None, [1.0, 2.5, 0.5]])
@pytest.mark.parametrize("count", [None, 20])
def test_loss_and_gradients_are_the_formula(count, weights):
    """Planted: `right=False` in `_cuts`, a prefix one latent longer; caught."""
    dead = None
    if count is not None:
        dead = torch.zeros(LATENTS, dtype=torch.bool)
        dead[:count] = True
    sae = example(k_aux=4, prefixes=PREFIXES, prefix_weights=weights)
    assert_is_formula(sae, plain_loss, rows(29, D), dead)


def test_follows_plain_torch():
    assert_follows_plain_torch(saekern.MatryoshkaSAE(16, 64, 4, init_seed=2), plain_loss)


def test_one_prefix_is_batch_topk():
    nested = example(prefixes=[LATENTS])
    plain = saekern.BatchTopKSAE(D, LATENTS, K, init_seed=1, dtype=torch.float64)
    plain.load_state_dict(nested.state_dict())
    x = rows(20, D)
    torch.testing.assert_close(nested.loss(x).total, plain.loss(x).total, rtol=1e-12, atol=0)


def test_files(tmp_path):
    sae = saekern.MatryoshkaSAE(D, LATENTS, K, prefixes=PREFIXES, init_seed=3)
    sae.loss(rows(9, D, torch.float32))
    assert_saves_and_loads(sae, tmp_path)


def test_default_prefixes_of_few_latents():
    assert saekern.MatryoshkaSAE(4, 64, 2).prefixes == [4, 8, 16, 32, 64]
    assert saekern.MatryoshkaSAE(4, 3, 2).prefixes == [1, 3]


def test_empty_batch():
    loss = example(prefixes=PREFIXES).loss(rows(0, D))
    assert loss.x_hat.shape == (0, D)
    assert loss.codes.values.numel() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prefixes": [3, 3, 47]}, r"prefixes: expected ascending lengths, the last one d_sae = 47, got \[3, 3, 47\]"),
        ({"prefixes": [0, 47]}, "prefixes: expected ascending"),
        ({"prefixes": [3, 11]}, "prefixes: expected ascending lengths, the last one d_sae = 47"),
        ({"prefixes": []}, "prefixes: expected ascending"),
        ({"prefixes": PREFIXES, "prefix_weights": [1.0]}, "weights: expected 3"),
        ({"prefixes": PREFIXES, "prefix_weights": [1.0, 0.0, 1.0]}, "weights: expected positive"),
    ],
)
def test_messages(arguments, message):
    with pytest.raises(ValueError, match=message):
        example(**arguments)
