"""HierarchicalTopKSAE against its formulas in float64, at every k, in its files, for 200 steps beside plain torch."""

import copy

import pytest
import torch

import saekern

D, LATENTS, K = 13, 47, 6


def plain_loss(sae, x, dead=None):
    """The documented formulas in plain PyTorch; x [B, D]."""
    scores = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    values, indices = scores.topk(sae.k)
    prefixes = sae.b_dec + (values.relu()[..., None] * sae.W_dec[indices]).cumsum(1)  # [B, K, D]
    budgets = sae.budgets or range(1, sae.k + 1)
    weights = torch.tensor(sae.budget_weights or [1.0] * len(budgets), dtype=x.dtype)

    def fvu(target, estimate):
        return (target - estimate).square().sum() / (target - target.mean(0)).square().sum().detach()

    of_budget = torch.stack([fvu(x, prefixes[:, k - 1]) for k in budgets])
    terms = {"fvu": of_budget @ weights / weights.sum(), "auxk": x.new_zeros(())}
    x_hat = prefixes[:, -1]
    if dead is not None and dead.any():
        count = min(sae.k_aux, int(dead.sum()))
        values, indices = scores.masked_fill(~dead, -torch.inf).topk(count)
        revived = torch.zeros_like(scores).scatter(1, indices, values.relu())
        terms["auxk"] = sae.aux_coefficient * fvu((x - x_hat).detach(), revived @ sae.W_dec)
    return sum(terms.values()), terms, x_hat


def example(dtype=torch.float64, rows=29, **kwargs):
    sae = saekern.HierarchicalTopKSAE(D, LATENTS, K, init_seed=1, dtype=dtype, **kwargs)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return sae, torch.randn(rows, D, generator=generator, dtype=torch.float64).to(dtype)


def dead_latents(count):
    dead = torch.zeros(LATENTS, dtype=torch.bool)
    dead[torch.randperm(LATENTS, generator=torch.Generator().manual_seed(3))[:count]] = True
    return dead


@pytest.mark.parametrize("count", [None, 0, 3, 20])
@pytest.mark.parametrize(("budgets", "weights"), [(None, None), ([2, 6], None), ([1, 3, 5], [4.0, 2.0, 1.0])])
def test_loss_and_gradients_are_the_formulas(count, budgets, weights):
    """float64, so that only a wrong formula shows. Planted: the AuxK target not detached; the factor B left out;
    the variance of x̂ in place of x's. Each was caught."""
    sae, x = example(k_aux=4, budgets=budgets, budget_weights=weights)
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


def test_with_the_one_budget_k_it_is_topk():
    sae, x = example(budgets=[K])
    twin = saekern.TopKSAE(D, LATENTS, K, init_seed=1, dtype=torch.float64)
    twin.load_state_dict(sae.state_dict())
    torch.testing.assert_close(sae.loss(x).total, twin.loss(x).total, rtol=1e-13, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_k_is_the_first_of_k_codes(dtype):
    sae, x = example(dtype)
    whole = sae.encode_sparse(x)
    for k in range(1, K + 1):
        codes = sae.encode_sparse(x, k=k)
        assert torch.equal(codes.values, whole.values[:, :k])
        assert torch.equal(codes.indices, whole.indices[:, :k])
        assert torch.equal(sae.encode(x, k=k), codes.dense(LATENTS))
        assert torch.equal(sae(x, k=k), sae.decode(codes))
    assert torch.equal(sae(x), sae.decode(whole))
    for k in (0, K + 1):
        for call in (sae, sae.encode, sae.encode_sparse):
            with pytest.raises(ValueError, match=f"k: expected 1 <= k <= K = {K}, the most .* got {k}"):
                call(x, k=k)


@pytest.mark.parametrize("leading", [(), (0,), (7,), (2, 0, 3), (2, 3)])
def test_leading_dimensions(leading):
    sae, _ = example()
    x = torch.randn(*leading, D, dtype=torch.float64)
    loss = sae.loss(x, dead_latents(9))
    assert sae(x, k=2).shape == loss.x_hat.shape == x.shape
    assert loss.codes.values.shape == (*leading, K)
    assert torch.isfinite(loss.total)


def test_files_keep_everything(tmp_path):
    for number, kwargs in enumerate(({}, {"budgets": (2, 5), "budget_weights": (1, 3)})):
        sae, x = example(torch.float32, **kwargs)
        saekern.save(sae, tmp_path / str(number))
        loaded = saekern.load(tmp_path / str(number))
        assert type(loaded) is saekern.HierarchicalTopKSAE
        assert loaded.config() == sae.config()
        assert torch.equal(loaded.loss(x).total, sae.loss(x).total)


def test_autocast_and_compile():
    sae, x = example(torch.float32, budgets=[1, 4])
    exact = sae.loss(x, dead_latents(6))
    with torch.autocast("cpu", torch.bfloat16):
        half = sae.loss(x, dead_latents(6))
    assert half.total.dtype == torch.float32
    assert half.x_hat.dtype == torch.bfloat16
    assert 0 < abs(half.terms["fvu"] - exact.terms["fvu"]) < 0.05 * exact.terms["fvu"]
    half.total.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in sae.parameters())
    got = torch.compile(sae.loss, fullgraph=True, backend="aot_eager")(x, dead_latents(6))
    torch.testing.assert_close(got.total, exact.total)


def test_bad_arguments():
    for kwargs, message in (
        ({"budgets": [3, 2]}, r"budgets: expected ascending prefix lengths, got \[3, 2\]"),
        ({"budgets": [2, 7]}, r"budgets: expected 1 <= budget <= K = 6, got \[2, 7\]"),
        ({"budget_weights": [1, 2]}, "weights: expected 6, one for each budget, got 2"),
        ({"budgets": [2, 4], "budget_weights": [1, -1]}, "weights: expected positive numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            saekern.HierarchicalTopKSAE(D, LATENTS, K, **kwargs)


def synthetic_rows(count):
    generator = torch.Generator().manual_seed(2)
    directions = torch.nn.functional.normalize(torch.randn(64, 16, generator=generator), dim=1)
    codes = torch.rand(count, 64, generator=generator) * (torch.rand(count, 64, generator=generator) < 0.06)
    return codes @ directions + 0.01 * torch.randn(count, 16, generator=generator)


def train(sae, rows, loss):
    """200 steps; the loss of each, and the parameters."""
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-3)
    history, last_active = [], torch.zeros(sae.d_sae)
    for step in range(200):
        x = rows[step * 64 : (step + 1) * 64]
        with torch.no_grad():
            last_active += 1
            last_active[sae.encode_sparse(x).indices.flatten().unique()] = 0
        total = loss(sae, x, last_active > 20)
        optimizer.zero_grad()
        total.backward()
        sae.project_gradient_()
        optimizer.step()
        sae.project_parameters_()
        history.append(float(total.detach()))
    return history, [p.detach().clone() for p in sae.parameters()]


def test_two_hundred_steps_beside_plain_torch():
    """Planted: the last budget counted twice in ours; caught."""
    rows = synthetic_rows(200 * 64)
    sae = saekern.HierarchicalTopKSAE(16, 96, 6, init_seed=0, k_aux=8)
    ours, end = train(copy.deepcopy(sae), rows, lambda s, x, dead: s.loss(x, dead).total)
    again, same_end = train(copy.deepcopy(sae), rows, lambda s, x, dead: s.loss(x, dead).total)
    assert ours == again
    assert all(torch.equal(a, b) for a, b in zip(end, same_end, strict=True))
    theirs, _ = train(copy.deepcopy(sae), rows, lambda s, x, dead: plain_loss(s, x, dead)[0])
    worst = max(abs(a - b) / b for a, b in zip(ours, theirs, strict=True))
    assert worst < 0.01, f"{worst:.2%} apart"
    assert ours[-1] < 0.7 * ours[0]
