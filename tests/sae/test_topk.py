"""TopKSAE against its formulas in float64, its memory layout, its seeds, its behaviour on odd input."""

import copy

import pytest
import torch
import torch.nn.functional as F

import saekern
from saekern import ops
from saekern.sae import SparseCodes

D, LATENTS, K = 13, 47, 5


def plain_loss(sae, x, dead):
    """The documented formulas in plain PyTorch; x [B, D]."""
    scores = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    values, indices = scores.topk(sae.k)
    codes = torch.zeros_like(scores).scatter(1, indices, values.relu())
    x_hat = codes @ sae.W_dec + sae.b_dec

    def fvu(target, estimate):
        return (target - estimate).square().sum() / (target - target.mean(0)).square().sum().detach()

    terms = {"fvu": fvu(x, x_hat), "auxk": x.new_zeros(())}
    if dead is not None and dead.any():
        count = min(sae.k_aux, int(dead.sum()))
        values, indices = scores.masked_fill(~dead, -torch.inf).topk(count)
        revived = torch.zeros_like(scores).scatter(1, indices, values.relu())
        terms["auxk"] = sae.aux_coefficient * fvu((x - x_hat).detach(), revived @ sae.W_dec)
    return sum(terms.values()), terms, x_hat


def example(dtype=torch.float64, rows=29, **kwargs):
    sae = saekern.TopKSAE(D, LATENTS, K, init_seed=1, dtype=dtype, **kwargs)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():  # away from the initial state, where b_enc = 0 and W_enc = W_dec.T hide mistakes
        for parameter in sae.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return sae, torch.randn(rows, D, generator=generator, dtype=torch.float64).to(dtype)


def dead_latents(count):
    dead = torch.zeros(LATENTS, dtype=torch.bool)
    dead[torch.randperm(LATENTS, generator=torch.Generator().manual_seed(3))[:count]] = True
    return dead


@pytest.mark.parametrize("count", [None, 0, 1, 3, 20, LATENTS])
def test_loss_and_gradients_are_the_formulas(count):
    """float64, so that only a wrong formula shows. count = dead latents; k_aux = 4, so 1 and 3 leave slots empty.

    Planted: b_dec added to the auxiliary estimate; target not detached; variance about 0 instead of the mean. Each was
    caught.
    """
    sae, x = example(k_aux=4)
    x.requires_grad_()
    dead = None if count is None else dead_latents(count)
    got = sae.loss(x, dead)
    want, terms, x_hat = plain_loss(sae, x, dead)
    torch.testing.assert_close(got.total, want, rtol=1e-12, atol=0)
    torch.testing.assert_close(got.x_hat, x_hat, rtol=1e-11, atol=1e-12)
    assert got.terms.keys() == terms.keys()
    for name in terms:
        torch.testing.assert_close(got.terms[name], terms[name], rtol=1e-12, atol=0)
    names = ["x", *dict(sae.named_parameters())]
    leaves = [x, *sae.parameters()]
    ours, theirs = torch.autograd.grad(got.total, leaves), torch.autograd.grad(want, leaves)
    for name, a, b in zip(names, ours, theirs, strict=True):
        torch.testing.assert_close(
            a, b, rtol=1e-9, atol=1e-12 * float(b.abs().max()), msg=lambda m, n=name: f"{n}: {m}"
        )


@torch.no_grad()
def test_float32_loss_stays_within_rounding_of_float64():
    """Each sum of n products moves by at most 2 (n + 2) 2⁻²⁴ Σ|products|; carried through codes, residual and squares.

    Planted: x̂ rounded to bfloat16; caught.
    """
    sae, x = example(rows=64, k_aux=4)
    single = copy.deepcopy(sae).to(torch.float32)
    sae, x = copy.deepcopy(single).double(), x.float().double()  # the same numbers in both
    dead = dead_latents(20)
    want, got = sae.loss(x, dead), single.loss(x.float(), dead)
    score_size = (x - sae.b_dec).abs() @ sae.W_enc.abs() + sae.b_enc.abs()
    _, _, aux_values, aux_indices = ops.topk_encode_aux(
        x, sae.W_enc.T, sae.b_enc, K, dead, sae.k_aux, pre_bias=sae.b_dec
    )
    rounding = 2 * (D + K + 8) * 2.0**-24

    def shift(indices):
        active = torch.zeros_like(score_size).scatter(1, indices, score_size.gather(1, indices))
        return rounding * (active @ sae.W_dec.abs() + sae.b_dec.abs())  # of each element of an estimate [B, D]

    def relative(error, size):  # of Σ error², given the shift of each element
        return float((2 * error.abs() * size + size**2).sum() / error.square().sum()) + rounding

    residual, size = x - want.x_hat, shift(want.codes.indices) + rounding * x.abs()
    miss = residual - ops.decode(aux_values, aux_indices, sae.W_dec)
    spread = residual - residual.mean(0)
    bound = {
        "fvu": relative(residual, size) + rounding,
        "auxk": relative(miss, size + shift(aux_indices)) + relative(spread, size + size.mean(0)),
    }
    for name, term in want.terms.items():
        error = abs(float(got.terms[name]) - float(term))
        assert not error > bound[name] * float(term), f"{name}: {error} beyond {bound[name] * float(term)}"
        assert bound[name] < 2e-3, f"{name}: the bound {bound[name]} says nothing"


def test_auxk_trains_encoder_and_decoder_of_dead_latents_only():
    sae, x = example(k_aux=4)
    dead = dead_latents(6)
    sae.loss(x, dead).terms["auxk"].backward()
    for name, rows in (("W_enc", sae.W_enc.grad.T), ("W_dec", sae.W_dec.grad), ("b_enc", sae.b_enc.grad[:, None])):
        touched = rows.abs().sum(1) > 0
        assert touched.any(), f"{name}: no gradient reached it"
        assert not touched[~dead].any(), f"{name}: a live latent was touched"


def test_nothing_dead_costs_nothing(monkeypatch):
    sae, x = example()
    calls = []
    monkeypatch.setattr(ops, "decode", lambda *a, decode=ops.decode, **k: calls.append(1) or decode(*a, **k))
    assert sae.loss(x, dead_latents(0)).terms["auxk"] == 0
    assert len(calls) == 1
    assert sae.loss(x, dead_latents(2)).terms["auxk"] > 0
    assert len(calls) == 3


def transposed(sae):
    return sae.W_enc.is_leaf and sae.W_enc.shape == (D, LATENTS) and sae.W_enc.stride() == (1, D)


def test_the_encoder_stays_one_latent_a_row():
    """Planted: `nn.Parameter(tensor.contiguous())` and no hook for assign=True; caught."""
    sae, x = example(torch.float32)
    assert transposed(sae)
    sae.loss(x).total.backward()
    assert sae.W_enc.grad.stride() == (1, D)
    torch.optim.Adam(sae.parameters()).step()
    assert transposed(sae)
    assert transposed(copy.deepcopy(sae))
    assert transposed(copy.deepcopy(sae).to(torch.float64))
    assert transposed(copy.deepcopy(sae).bfloat16())
    assert sae.W_enc.T.data_ptr() == sae.W_enc.data_ptr()
    contiguous = {name: tensor.contiguous().clone() for name, tensor in sae.state_dict().items()}
    assert contiguous["W_enc"].stride() == (LATENTS, 1)
    for assign in (False, True):
        other = saekern.TopKSAE(D, LATENTS, K, init_seed=5)
        other.load_state_dict(contiguous, assign=assign)
        assert transposed(other)
        assert other.W_enc.requires_grad
        assert torch.equal(other(x), sae(x))
    nested = torch.nn.ModuleDict({"layer": saekern.TopKSAE(D, LATENTS, K)})
    nested.load_state_dict({f"layer.{name}": tensor for name, tensor in contiguous.items()}, assign=True)
    assert transposed(nested["layer"])


def test_unit_rows_and_projected_gradient():
    sae, x = example()
    sae.loss(x).total.backward()
    weight, grad = sae.W_dec.detach().clone(), sae.W_dec.grad.clone()
    others = {name: p.grad.clone() for name, p in sae.named_parameters() if name != "W_dec"}
    sae.project_gradient_(fused=True)
    assert torch.equal(sae.W_dec.grad, grad)
    sae.project_gradient_()
    unit = F.normalize(weight, dim=1)
    torch.testing.assert_close(sae.W_dec.grad, grad - (grad * unit).sum(1, keepdim=True) * unit)
    assert all(torch.equal(sae.get_parameter(name).grad, before) for name, before in others.items())
    with torch.no_grad():
        sae.W_dec[3] = 0
    sae.project_parameters_(fused=True)
    assert torch.equal(sae.W_dec[4], weight[4])
    sae.project_parameters_()
    unit[3] = 0
    torch.testing.assert_close(sae.W_dec.detach(), unit, rtol=1e-14, atol=0)


def test_seeds_mean_something():
    state = torch.get_rng_state()
    a, b, c = (saekern.TopKSAE(D, LATENTS, K, init_seed=seed) for seed in (4, 4, 5))
    assert torch.equal(torch.get_rng_state(), state), "the global generator was used"
    assert torch.equal(a.W_enc, b.W_enc)
    assert torch.equal(a.W_dec, b.W_dec)
    assert not torch.isclose(a.W_dec, c.W_dec).any(1).all()
    assert torch.equal(a.W_enc.T, a.W_dec), "tied"
    assert a.W_enc.data_ptr() != a.W_dec.data_ptr(), "tied in value, not in memory"
    torch.testing.assert_close(a.W_dec.norm(dim=1), torch.ones(LATENTS))
    drawn = saekern.TopKSAE(D, LATENTS, K)
    assert torch.equal(saekern.TopKSAE(D, LATENTS, K, init_seed=drawn.init_seed).W_dec, drawn.W_dec)


@pytest.mark.parametrize("leading", [(), (1,), (0,), (7,), (2, 3), (2, 0, 3)])
def test_leading_dimensions(leading):
    sae, _ = example()
    x = torch.randn(*leading, D, dtype=torch.float64)
    x_hat, codes, dense = sae(x), sae.encode_sparse(x), sae.encode(x)
    assert x_hat.shape == x.shape
    assert codes.values.shape == codes.indices.shape == (*leading, K)
    assert dense.shape == (*leading, LATENTS)
    for same in (sae.decode(codes), sae.decode(dense), sae.loss(x).x_hat):
        torch.testing.assert_close(same, x_hat)
    assert sae.loss(x).codes.values.shape == (*leading, K)
    assert torch.isfinite(sae.loss(x, dead_latents(9)).total)


def test_ragged_codes_decode():
    sae, _ = example()
    codes = SparseCodes(
        torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), torch.tensor([4, 9, 4]), torch.tensor([0, 2, 2, 3])
    )
    want = torch.stack([sae.W_dec[4] + 2 * sae.W_dec[9], 0 * sae.W_dec[0], 3 * sae.W_dec[4]]) + sae.b_dec
    torch.testing.assert_close(sae.decode(codes), want)
    torch.testing.assert_close(sae.decode(codes.dense(LATENTS)), want)


def test_every_latent_active():
    sae = saekern.TopKSAE(4, 6, 6, init_seed=0, dtype=torch.float64)
    x = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(sae.encode(x), (x @ sae.W_enc).relu())


def test_a_row_of_nan_harms_no_other_row():
    sae, x = example(torch.float32)
    clean = sae(x)
    x[3, 2] = torch.nan
    codes, x_hat = sae.encode_sparse(x), sae(x)
    assert codes.indices[3].tolist() == list(range(K)), "NaN counts as largest, ties to the smaller index"
    assert x_hat[3].isnan().all()
    others = torch.arange(x.shape[0]) != 3
    assert torch.equal(x_hat[others], clean[others])
    assert sae.loss(x).total.isnan()


def test_autocast_and_half_precision():
    sae, x = example(torch.float32)
    exact = sae.loss(x)
    with torch.autocast("cpu", torch.bfloat16):
        half = sae.loss(x, dead_latents(6))
    assert half.total.dtype == torch.float32
    assert half.x_hat.dtype == torch.bfloat16
    assert 0 < abs(half.terms["fvu"] - exact.terms["fvu"]) < 0.05 * exact.terms["fvu"]
    half.total.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in sae.parameters())
    low = copy.deepcopy(sae).bfloat16()
    assert low(x.bfloat16()).dtype == torch.bfloat16
    assert abs(low.loss(x.bfloat16()).total - exact.total) < 0.05 * exact.total


def test_compiles_in_one_graph():
    sae, x = example(torch.float32)
    for dead in (None, dead_latents(9)):
        want = sae.loss(x, dead)
        grads = torch.autograd.grad(want.total, list(sae.parameters()))
        got = torch.compile(sae.loss, fullgraph=True, backend="aot_eager")(x, dead)
        torch.testing.assert_close(got.total, want.total)
        for a, b in zip(torch.autograd.grad(got.total, list(sae.parameters())), grads, strict=True):
            torch.testing.assert_close(a, b)
    assert torch.equal(torch.compile(sae, fullgraph=True, backend="aot_eager")(x), sae(x))
    nothing_dead = torch.compile(sae.loss, fullgraph=True, backend="aot_eager")(x, dead_latents(0))
    assert nothing_dead.terms["auxk"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 8, 2), "d_in: expected at least 1, got 0"),
        ((4, 0, 2), "d_sae: expected at least 1, got 0"),
        ((4, 8, 0), "k: expected 1 <= k <= d_sae = 8, got 0"),
        ((4, 8, 9), "k: expected 1 <= k <= d_sae = 8, got 9"),
    ],
)
def test_bad_sizes(arguments, message):
    with pytest.raises(ValueError, match=message):
        saekern.TopKSAE(*arguments)


def test_bad_input():
    with pytest.raises(ValueError, match="k_aux: expected 0 <= k_aux <= d_sae = 8, got 9"):
        saekern.TopKSAE(4, 8, 2, k_aux=9)
    sae, x = example(torch.float32)
    for call in (sae, sae.loss, sae.encode):
        with pytest.raises(ValueError, match=r"x: expected shape \[\.\.\., 13\], got \[29, 12\]"):
            call(x[:, :-1])
        with pytest.raises(ValueError, match="float64"):
            call(x.double())
    with pytest.raises(ValueError, match=r"rows: expected finite values"):
        sae.init_pre_bias_(torch.full((3, D), torch.nan))


def test_default_k_aux_is_the_power_of_two_below_half_the_width():
    assert [saekern.TopKSAE(d, 512, 1).k_aux for d in (1, 2, 3, 128, 768)] == [1, 1, 1, 64, 256]
    assert saekern.TopKSAE(128, 10, 1).k_aux == 10


def test_k_falls_while_training(tmp_path):
    """20, 15, 10, then 5; looking does not count; a saved SAE goes on where it was. Planted: counted in evaluation too;
    the count not saved. Both caught."""
    sae = saekern.TopKSAE(D, LATENTS, K, k_start=20, k_steps=3, init_seed=0)
    x = torch.randn(6, D, generator=torch.Generator().manual_seed(0))
    assert sae.loss(x).codes.indices.shape == (6, 20)
    assert sae.loss(x).codes.indices.shape == (6, 15)
    with torch.no_grad():
        assert sae.loss(x).codes.indices.shape == (6, K)
    assert sae.encode_sparse(x).indices.shape == (6, K)
    saekern.save(sae, tmp_path)
    again = saekern.load(tmp_path)
    assert [again.loss(x).codes.indices.shape[1] for _ in range(3)] == [10, 5, 5]
    for arguments in ({"k_start": 4, "k_steps": 3}, {"k_start": 20}, {"k_start": 48, "k_steps": 3}):
        with pytest.raises(ValueError, match=r"k_start: expected k = 5 <= k_start <= d_sae = 47 and k_steps >= 1"):
            saekern.TopKSAE(D, LATENTS, K, **arguments)


def test_multi_topk_is_two_budgets():
    """TopK(k) + TopK(4k)/8 of Gao et al. 2024 is the hierarchical loss with two weights: docs/architectures.md."""
    sae, x = example()
    nested = saekern.HierarchicalTopKSAE(
        D, LATENTS, 4 * K, budgets=[K, 4 * K], budget_weights=[8, 1], dtype=torch.float64, init_seed=1
    )
    nested.load_state_dict(sae.state_dict())
    wide = saekern.TopKSAE(D, LATENTS, 4 * K, dtype=torch.float64, init_seed=1)
    wide.load_state_dict(sae.state_dict())
    want = sae.loss(x).total + wide.loss(x).total / 8
    torch.testing.assert_close(nested.loss(x).total * 9 / 8, want, rtol=1e-12, atol=0)
