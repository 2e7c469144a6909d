"""KronSAE against its formula, its sizes, its files."""

import pytest
import torch
from plain_sae import assert_follows_plain_torch, assert_is_formula, assert_saves_and_loads, fvu, moved, rows

import saekern

D, HEADS, M, N, K = 13, 6, 2, 4, 5
LATENTS = HEADS * M * N


def plain_loss(sae, x, dead):
    centred = x - sae.b_dec
    u = (centred @ sae.W_p.T + sae.b_p).unflatten(1, (sae.heads, sae.m, 1))
    v = (centred @ sae.W_q.T + sae.b_q).unflatten(1, (sae.heads, 1, sae.n))
    product = (u * v).flatten(1)
    if sae.activation != "product":
        on = ((u > 0) & (v > 0)).flatten(1)
        product = torch.where(on, product, 0)
    indices = product.topk(sae.k).indices
    roots = sae.activation == "mand"
    score = torch.where(on, torch.where(on, product, 1).sqrt(), 0) if roots else product.relu()

    def reconstruct(latents):
        return torch.zeros_like(score).scatter(1, latents, score.gather(1, latents)) @ sae.W_dec

    x_hat = reconstruct(indices) + sae.b_dec
    auxk = x.new_zeros(())
    if dead is not None and dead.any():
        revived = product.masked_fill(~dead, -torch.inf).topk(min(sae.k_aux, int(dead.sum()))).indices
        auxk = sae.aux_coefficient * fvu((x - x_hat).detach(), reconstruct(revived))
    return {"fvu": fvu(x, x_hat), "auxk": auxk}, x_hat


def example(**kwargs):
    return moved(saekern.KronSAE(D, LATENTS, K, m=M, n=N, init_seed=1, dtype=torch.float64, **kwargs))


@pytest.mark.parametrize("activation", ["mand", "relu", "product"])
@pytest.mark.parametrize("count", [None, 20])
def test_loss_and_gradients_are_the_formula(count, activation):
    """Planted: b_dec not subtracted; the auxiliary target not detached; caught."""
    dead = None
    if count is not None:
        dead = torch.zeros(LATENTS, dtype=torch.bool)
        dead[torch.randperm(LATENTS, generator=torch.Generator().manual_seed(3))[:count]] = True
    assert_is_formula(example(k_aux=4, activation=activation), plain_loss, rows(29, D), dead)


def test_follows_plain_torch():
    """From the published start. With five times larger weights rounding grew to 1.2 % by step 198: the gradient to a
    factor is √(v/u) / 2, without a bound."""
    assert_follows_plain_torch(saekern.KronSAE(16, 64, 4, m=2, n=4, init_seed=2), plain_loss)


def test_starts_as_published():
    sae = saekern.KronSAE(64, 512, 8, m=4, n=8, init_seed=0)
    assert (sae.heads, sae.W_p.shape, sae.W_q.shape) == (16, (64, 64), (128, 64))
    spread = torch.cat([sae.W_p, sae.W_q]).std().item()
    assert spread == pytest.approx((2 * 512) ** -0.5, rel=0.02)
    latent = (3 * 4 + 2) * 8 + 5
    want = sae.W_p[3 * 4 + 2] + sae.W_q[3 * 8 + 5]
    torch.testing.assert_close(sae.W_dec[latent], want / want.norm(), rtol=1e-6, atol=1e-7)
    assert not any(bool(bias.any()) for bias in (sae.b_p, sae.b_q, sae.b_dec))


def test_has_no_dense_encoder():
    """Planted: the generic message; caught."""
    sae = example()
    for name in ("W_enc", "b_enc"):
        with pytest.raises(AttributeError, match=f"KronSAE has no {name}: its encoder is factorised, W_p"):
            getattr(sae, name)
    assert sae.dictionary.shape == (LATENTS, D)


def test_decodes_what_it_encodes():
    sae, x = example(), rows(7, D)
    codes = sae.encode_sparse(x)
    torch.testing.assert_close(sae.decode(sae.encode(x)), sae(x), rtol=1e-12, atol=1e-12)
    assert torch.equal(sae.decode(codes), sae(x))
    assert sae.encode(x.reshape(7, 1, D)).shape == (7, 1, LATENTS)


def test_files(tmp_path):
    assert_saves_and_loads(saekern.KronSAE(D, LATENTS, K, m=M, n=N, heads=HEADS, eps=1e-5, init_seed=3), tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"m": 5, "n": 4}, "d_sae: expected heads·m·n = 2·5·4 = 40, got 48"),
        ({"m": 2, "n": 4, "heads": 7}, "d_sae: expected heads·m·n = 7·2·4 = 56, got 48"),
        ({"m": 0, "n": 4}, "m: expected at least 1, got 0"),
        ({"m": 100, "n": 4}, "d_sae: expected heads·m·n = 0·100·4"),
        ({"m": 2, "n": 4, "activation": "or"}, "activation: expected one of mand, relu, product, got 'or'"),
        ({"m": 2, "n": 4, "eps": -1}, "eps: expected a finite number >= 0"),
        ({"m": 2, "n": 4, "k_aux": 49}, "k_aux: expected"),
    ],
)
def test_messages(arguments, message):
    with pytest.raises(ValueError, match=message):
        saekern.KronSAE(D, LATENTS, K, **arguments)
