"""NormalizedSAE against its formula, and the encoder's choice of subtracting b_dec."""

import pytest
import torch
from plain_sae import assert_is_formula, assert_saves_and_loads, fvu, moved, rows

import saekern
from saekern.evaluation import measure

D, LATENTS, K = 13, 47, 4


def example(**kwargs):
    arguments = {"base": "topk", "base_args": {"k": K}, **kwargs}
    return moved(saekern.NormalizedSAE(D, LATENTS, init_seed=1, dtype=torch.float64, **arguments))


def plain_norm(sae, x):
    if sae.norm == "layer_norm":
        mean = x.sum(-1, keepdim=True) / sae.d_in
        scale = ((x - mean).square().sum(-1, keepdim=True) / (sae.d_in - 1)).sqrt()
        return (x - mean) / (scale + sae.eps), mean, scale
    scale = x.square().mean(-1, keepdim=True).sqrt()
    return x / scale, torch.zeros_like(scale), scale


def plain_loss(sae, x, dead):
    n, mean, scale = plain_norm(sae, x)
    scores = (n - sae.b_dec) @ sae.W_enc + sae.b_enc
    values, indices = scores.topk(K)
    y = torch.zeros_like(scores).scatter(-1, indices, values.relu()) @ sae.W_dec + sae.b_dec
    # As the op has it: the variance of the target has no gradient, the target itself has one.
    return {"fvu": fvu(n, y), "auxk": x.new_zeros(())}, y * scale + mean


@pytest.mark.parametrize("norm", ["layer_norm", "constant_norm"])
def test_forward_is_the_formula(norm):
    """Planted: the biased standard deviation; ε inside the root; ε in n⁻¹ too; the mean not added back. All caught."""
    sae, x = example(norm=norm, eps=0.3), rows(7, D) * 5 + 2
    _, x_hat = plain_loss(sae, x, None)
    torch.testing.assert_close(sae(x), x_hat, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sae.reconstruct(sae.encode_sparse(x), x), x_hat, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sae.reconstruct(sae.encode(x), x), x_hat, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sae(x.reshape(7, 1, D))[:, 0], x_hat, rtol=1e-12, atol=1e-12)


def test_loss_is_the_base_loss_of_normalised_rows():
    sae, x = example(), (rows(29, D) * 5 + 2).requires_grad_()
    got, (want, x_hat) = sae.loss(x), plain_loss(sae, x, None)
    torch.testing.assert_close(got.terms["fvu"], want["fvu"], rtol=1e-11, atol=0)
    torch.testing.assert_close(got.x_hat, x_hat, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(got.total, sae.base.loss(sae.normalize(x)[0]).total)
    parameters = list(sae.parameters())
    ours = torch.autograd.grad(got.total, parameters)
    theirs = torch.autograd.grad(want["fvu"], parameters)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-11)


def test_scale_and_shift_of_a_row_do_not_change_its_codes():
    sae, x = example(eps=0.0), rows(7, D)
    moved_x = 3 * x + 11
    assert torch.equal(sae.encode_sparse(x).indices, sae.encode_sparse(moved_x).indices)
    torch.testing.assert_close(sae(moved_x), 3 * sae(x) + 11, rtol=1e-10, atol=1e-10)


def test_rows_of_zeros_stay_finite():
    for norm in ("layer_norm", "constant_norm"):
        assert bool(example(norm=norm)(torch.zeros(2, D, dtype=torch.float64)).isfinite().all())


def test_evaluation_sees_rows_in_their_own_scale():
    """Planted: `measure` with `decode`; caught."""
    sae, x = example(), rows(50, D) * 5 + 2
    want = 1 - float((x - sae(x).detach()).square().sum() / (x - x.mean(0)).square().sum())
    assert measure(sae, saekern.activations.TensorRows(x)).explained_variance == pytest.approx(
        want, rel=1e-6
    )  # rows are kept in float32


@pytest.mark.parametrize(
    ("base", "arguments"),
    [("topk", {"k": 3, "k_aux": 2}), ("batch_topk", {"k": 3}), ("jumprelu", {}), ("gated", {}), ("relu", {})],
)
def test_saves_and_loads(tmp_path, base, arguments):
    sae = saekern.NormalizedSAE(D, LATENTS, base=base, base_args=arguments, init_seed=4)
    assert_saves_and_loads(sae, tmp_path)
    half = sae.half()
    for name in half.base.wide:
        assert getattr(half.base, name).dtype == torch.float32


def test_trains_with_unit_rows():
    """Planted: the base's projection left out; caught."""
    sae = saekern.NormalizedSAE(16, 64, base_args={"k": 4}, init_seed=0)
    x = rows(512, 16, torch.float32)
    settings = saekern.TrainConfig(rows=2048, batch_size=64, lr=3e-3, log_every=1)
    log = saekern.train(sae, saekern.activations.TensorRows(x), settings, progress=False).log
    assert log[-1]["loss"] < log[0]["loss"]
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(64), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": "batch_norm"}, "norm: expected one of layer_norm, constant_norm, got 'batch_norm'"),
        ({"eps": -1.0}, r"eps: expected a finite number >= 0, got -1\.0"),
        ({"base": "normalized"}, "base: expected one of batch_topk, gated, .*, got 'normalized'"),
        ({"base": "archetypal"}, "base: expected one of .*, got 'archetypal'"),
        ({"base_args": {"k": 99}}, "k: expected 1 <= k <= d_sae = 47, got 99"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        example(**arguments)
    with pytest.raises(ValueError, match=r"x: expected shape \[\.\.\., 13\], got \[2, 12\]"):
        example()(torch.zeros(2, 12))


MAKERS = {
    "topk": lambda **kw: saekern.TopKSAE(D, LATENTS, K, **kw),
    "hierarchical": lambda **kw: saekern.HierarchicalTopKSAE(D, LATENTS, K, **kw),
    "batch_topk": lambda **kw: saekern.BatchTopKSAE(D, LATENTS, K, **kw),
    "matryoshka": lambda **kw: saekern.MatryoshkaSAE(D, LATENTS, K, **kw),
    "relu": lambda **kw: saekern.ReLUSAE(D, LATENTS, **kw),
    "jumprelu": lambda **kw: saekern.JumpReLUSAE(D, LATENTS, **kw),
    "gated": lambda **kw: saekern.GatedSAE(D, LATENTS, **kw),
}


@pytest.mark.parametrize("name", MAKERS)
def test_the_encoder_may_read_x_itself(tmp_path, name):
    """The same as moving b_enc by −b_dec W_enc. Planted: −b_dec kept in `loss`, in `encode_batch`; both caught."""
    direct = moved(MAKERS[name](subtract_b_dec=False, init_seed=1, dtype=torch.float64))
    usual = MAKERS[name](init_seed=1, dtype=torch.float64)
    usual.load_state_dict(direct.state_dict())
    with torch.no_grad():
        shift = direct.b_dec @ direct.W_enc
        usual.b_enc.add_(shift)
        if name == "gated":
            usual.b_mag.add_(direct.r_mag.exp() * shift)
    x = rows(9, D)
    torch.testing.assert_close(direct(x), usual(x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(direct.loss(x).total, usual.loss(x).total, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(direct(x), MAKERS[name](init_seed=1, dtype=torch.float64)(x))
    assert_saves_and_loads(direct.float(), tmp_path)
    assert direct.config()["subtract_b_dec"] is False


def test_the_loss_of_an_encoder_that_reads_x_is_its_formula():
    def plain(sae, x, dead):
        z = (x @ sae.W_enc + sae.b_enc).relu()
        x_hat = z @ sae.W_dec + sae.b_dec
        spread = (x - x.mean(0)).square().sum(1).mean().sqrt().detach()
        return {"fvu": fvu(x, x_hat), "l1": 0.1 * (z * sae.W_dec.norm(dim=1)).sum(1).mean() / spread}, x_hat

    sae = saekern.ReLUSAE(16, 64, subtract_b_dec=False, init_seed=2, dtype=torch.float64)
    assert_is_formula(moved(sae), plain, rows(29, 16))


def test_provenance_is_saved(tmp_path):
    sae = MAKERS["topk"](init_seed=1)
    sae.provenance = {"hook": "blocks.1.hook_resid_post", "saelens": {"metadata": {"l0": 4.0}}}
    saekern.save(sae, tmp_path, provenance={"model": "tiny"})
    loaded = saekern.load(tmp_path)
    assert loaded.provenance["saelens"] == {"metadata": {"l0": 4.0}}
    assert (loaded.provenance["hook"], loaded.provenance["model"]) == ("blocks.1.hook_resid_post", "tiny")
    assert "model" not in sae.provenance
