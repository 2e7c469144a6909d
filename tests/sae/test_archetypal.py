"""ArchetypalSAE against D = (W C + Λ) exp(m) in plain torch; its constraints, its files."""

import json

import pytest
import torch
from archetypal_example import LATENTS, POINTS, D, K, dead_latents, example

import saekern
from saekern.sae import mixing, simplex


def plain(sae):
    out = sae.W @ sae.points
    if sae.Lambda is not None:
        out = out + sae.Lambda
    return out if sae.multiplier is None else out * sae.multiplier.exp()


class Plain(saekern.TopKSAE):
    """The base with its decoder given."""

    given = None

    @property
    def W_dec(self):
        if self.given is None:
            raise AttributeError  # then the parameter of that name is found, if there is one
        return self.given


def plain_loss(sae, x, dead):
    other = Plain(D, LATENTS, K, k_aux=4, init_seed=0, dtype=x.dtype)
    del other._parameters["W_dec"]
    other.given = plain(sae)
    for name in ("W_enc", "b_enc", "b_dec"):
        other._parameters[name] = sae._parameters[name]
    return other.loss(x, dead)


@pytest.mark.parametrize("multiplier", [False, True])
@pytest.mark.parametrize("relaxation", [0.0, 0.1])
@pytest.mark.parametrize("dead", [None, dead_latents()])
def test_loss_and_gradients_are_the_formula(multiplier, relaxation, dead):
    """float64. The second call has its dictionary from the first.

    Planted: dW without exp(m); dm without the sum over D's columns. Both were caught.
    """
    sae, x = example(multiplier=multiplier, relaxation=relaxation)
    x.requires_grad_()
    leaves = [x, *sae.parameters()]
    names = ["x", *dict(sae.named_parameters())]
    want = plain_loss(sae, x, dead)
    theirs = torch.autograd.grad(want.total, leaves)
    for _ in range(2):
        got = sae.loss(x, dead)
        torch.testing.assert_close(got.total, want.total, rtol=1e-12, atol=0)
        torch.testing.assert_close(got.x_hat, want.x_hat, rtol=1e-11, atol=1e-12)
        for name, a, b in zip(names, torch.autograd.grad(got.total, leaves), theirs, strict=True):
            torch.testing.assert_close(
                a, b, rtol=1e-9, atol=1e-12 * float(b.abs().max()), msg=lambda m, n=name: f"{n}: {m}"
            )


def test_gradcheck_of_the_dictionary():
    sae, _ = example(multiplier=True)
    names = ("W", "Lambda", "multiplier")
    leaves = [sae.get_parameter(name) for name in names]

    def dictionary(weights, offset, multiplier):
        value = mixing.atoms(weights, sae.points, offset, multiplier).detach()
        return mixing.Atoms.apply(weights, sae.points, offset, multiplier, value)

    assert torch.autograd.gradcheck(dictionary, leaves)


@pytest.mark.parametrize("projection", ["simplex", "normalize"])
@pytest.mark.parametrize("relaxation", [0.0, 0.05])
def test_atoms_lie_within_delta_of_the_hull_after_every_step(projection, relaxation):
    """Planted: Λ left alone; W not projected. Both were caught."""
    sae, x = example(torch.float32, projection=projection, relaxation=relaxation)
    sae.project_parameters_()
    optimizer = torch.optim.Adam(sae.parameters(), lr=5e-2)
    for _ in range(30):
        sae.loss(x, dead_latents()).total.backward()
        sae.project_gradient_()
        optimizer.step()
        sae.project_parameters_()
        optimizer.zero_grad()
        rounding = 2.0**-24 * (POINTS + 8)
        assert sae.W.min() >= 0
        assert ((sae.W.double().sum(1) - 1).abs() <= 2 * rounding).all()
        mixtures = sae.W.double() @ sae.points.double()
        apart = (sae.dictionary.double() - mixtures).norm(dim=1)
        slack = rounding * (sae.W.double() @ sae.points.double().abs()).norm(dim=1)
        assert (apart <= relaxation * (1 + 1e-6) + slack).all()
        assert relaxation == 0 or apart.max() > relaxation / 2, "the bound is put to use"
        assert torch.isfinite(sae.dictionary).all()


def test_eye_keeps_zero_atoms_without_nan():
    """As the released notebooks start: atoms beyond the points are zero, and only a gradient moves them."""
    sae, x = example(torch.float32, init="eye", relaxation=0.0)
    assert torch.equal(sae.dictionary[:POINTS], sae.points)
    assert int(sae.zero_atoms.sum()) == LATENTS - POINTS
    for projection in simplex.euclidean_, simplex.normalize_:
        weights = sae.W.detach().clone()
        projection(weights)
        assert torch.equal(weights, sae.W), "neither the points nor the zero atoms move"
    loss = sae.loss(x, dead_latents())
    loss.total.backward()
    assert all(torch.isfinite(p.grad).all() for p in sae.parameters())
    torch.optim.Adam(sae.parameters(), lr=1e-3).step()
    used = loss.codes.indices[loss.codes.values > 0].unique()
    sae.project_parameters_()
    moved = ~sae.zero_atoms
    assert torch.isfinite(sae.dictionary).all()
    assert set(used[used >= POINTS].tolist()) <= set(moved.nonzero()[:, 0].tolist())
    assert int(sae.zero_atoms.sum()) > 0
    matching = saekern.match(sae.dictionary, sae.dictionary)
    assert torch.equal(matching.index == -1, sae.zero_atoms), "excluded from cosines"


@pytest.mark.parametrize("init", ["dirichlet", "points", "given"])
def test_other_starts_have_no_zero_atom(init):
    weights = torch.rand(LATENTS, POINTS, dtype=torch.float64)
    weights /= weights.sum(1, keepdim=True)
    sae, _ = example(init=weights if init == "given" else init, relaxation=0.0)
    assert not sae.zero_atoms.any()
    torch.testing.assert_close(sae.W.sum(1), torch.ones(LATENTS, dtype=torch.float64), rtol=1e-6, atol=0)
    if init == "given":
        assert torch.equal(sae.W, weights)
    if init == "points":
        counts = sae.W.sum(0)
        assert ((sae.W == 0) | (sae.W == 1)).all()
        assert set(counts.tolist()) == {2.0, 3.0}, "every point is used before one is used again"


def test_dirichlet_rows():
    """Mean 1/n' and variance (1/n')(1 − 1/n')/(α + 1) of the symmetric Dirichlet distribution with sum α; within five
    standard errors. A tiny shape underflows nowhere."""
    for alpha in (0.5, 1.0, 8.0):
        weights = mixing.initial("dirichlet", 4000, 8, 3, alpha, "cpu").double()
        variance = (1 / 8) * (7 / 8) / (alpha + 1)
        assert ((weights.mean(0) - 1 / 8).abs() < 5 * (variance / 4000) ** 0.5).all()
        assert ((weights.var(0) / variance - 1).abs() < 0.2).all()
    weights = mixing.initial("dirichlet", 7, 30_000, 3, 1e-2, "cpu")
    assert torch.isfinite(weights).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(7))


def test_seeds_mean_something():
    state = torch.get_rng_state()
    a, b, c = (example(init_seed=seed)[0] for seed in (4, 4, 5))
    assert torch.equal(torch.get_rng_state(), state), "the global generator was used"
    assert torch.equal(a.W, b.W)
    assert torch.equal(a.W_enc, b.W_enc)
    assert not torch.isclose(a.W, c.W).all(1).any()
    assert torch.equal(a.points, c.points)


def test_files_and_what_they_say(tmp_path):
    sae, x = example(torch.float32, multiplier=True)
    with torch.no_grad():
        sae.multiplier.fill_(0.3)
    saekern.save(sae, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"] == "archetypal"
    assert config["sae"]["base"] == "topk"
    assert config["sae"]["base_args"]["k"] == K
    again = saekern.load(tmp_path)
    assert type(again) is type(sae)
    assert isinstance(again, saekern.ArchetypalSAE)
    assert isinstance(again, saekern.TopKSAE)
    assert again.config() == sae.config()
    assert torch.equal(again.points, sae.points)
    assert not again.points.requires_grad
    assert again.W_enc.stride() == (1, D)
    assert torch.equal(again(x), sae(x))
    low = saekern.load(tmp_path, dtype=torch.bfloat16)
    assert low(x.bfloat16()).dtype == torch.bfloat16
    assert torch.equal(saekern.formats.read_dictionary(tmp_path), sae.dictionary)


def test_autocast_keeps_the_dictionary_in_float32():
    """Planted: the product inside autocast; caught."""
    sae, x = example(torch.float32)
    want = sae.dictionary.clone()
    exact = sae.loss(x, dead_latents())
    sae._forget()
    with torch.autocast("cpu", torch.bfloat16):
        half = sae.loss(x, dead_latents())
        assert torch.equal(sae.dictionary, want)
        half.total.backward()
    assert half.x_hat.dtype == torch.bfloat16
    assert abs(half.total - exact.total) < 0.05 * exact.total
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in sae.parameters())
    assert sae.half_weights == ("W_enc",)
    assert sae.unit_norm_rows == ()


def test_compiles_in_one_graph():
    sae, x = example(torch.float32, multiplier=True)
    want = sae.loss(x, dead_latents())
    grads = torch.autograd.grad(want.total, list(sae.parameters()))
    got = torch.compile(sae.loss, fullgraph=True, backend="aot_eager")(x, dead_latents())
    torch.testing.assert_close(got.total, want.total)
    for a, b in zip(torch.autograd.grad(got.total, list(sae.parameters())), grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_products_do_not_depend_on_threads():
    weights, shared = torch.rand(300, 500), torch.randn(500, 64)
    threads = torch.get_num_threads()
    try:
        got = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            got.append(mixing.atoms(weights, shared, None, None))
        assert torch.equal(got[0], got[1])
        assert torch.equal(got[0], got[2])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"relaxation": -0.1}, "relaxation: expected a finite number >= 0, got -0.1"),
        ({"relaxation": float("nan")}, "relaxation: expected a finite number >= 0, got nan"),
        ({"points": torch.zeros(4, D + 1)}, r"points: expected .*\[n', 13\].*, got torch.float32 \[4, 14\]"),
        ({"points": torch.zeros(0, D)}, r"points: expected .* not empty, got torch.float32 \[0, 13\]"),
        ({"points": torch.zeros(4, D, dtype=torch.int64)}, r"points: expected a floating-point tensor"),
        ({"points": torch.full((4, D), torch.inf)}, "points: expected finite entries"),
        ({"points": {"shape": [4, D]}}, r"points: expected a tensor \[n', 13\], got dict"),
        ({"init": "zeros"}, "init: expected a tensor .* or one of dirichlet, points, eye, got 'zeros'"),
        ({"init": torch.ones(LATENTS, POINTS + 1)}, r"init: expected .*\[47, 20\]"),
        ({"init": torch.ones(LATENTS, POINTS)}, "init: expected rows >= 0 that sum to 1"),
        ({"concentration": 0.0}, "concentration: expected a positive number"),
        ({"projection": "softmax"}, "projection: expected one of simplex, normalize, got 'softmax'"),
        ({"base": "archetypal"}, "base: expected an SAE class or one of .*topk.*, got 'archetypal'"),
        ({"base": saekern.ArchetypalSAE}, "base: expected the class of an SAE other than ArchetypalSAE"),
        ({"base": torch.nn.Linear}, "base: expected the class of an SAE"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        example(**change)


def test_the_base_may_be_a_class():
    sae, _ = example(base=saekern.TopKSAE)
    assert type(sae) is type(example()[0])
    assert sae.k == K
    with pytest.raises((KeyError, AttributeError)):
        sae.W_dec = torch.nn.Parameter(torch.zeros(LATENTS, D))


@pytest.mark.parametrize(
    ("base", "arguments"),
    [
        ("relu", {}),
        ("jumprelu", {}),
        ("gated", {}),
        ("batch_topk", {"k": 4}),
        ("hierarchical_topk", {"k": 4}),
        ("matryoshka", {"k": 4}),
        ("kron", {"k": 4, "m": 2, "n": 4}),
    ],
)
def test_over_every_base(base, arguments, tmp_path):
    """Learns under its constraint, and its file gives the same SAE."""
    generator = torch.Generator().manual_seed(0)
    x, points = torch.randn(64, 16, generator=generator), torch.randn(20, 16, generator=generator)
    sae = saekern.ArchetypalSAE(16, 48, points=points, relaxation=0.1, base=base, base_args=arguments, init_seed=0)
    optimizer, losses = torch.optim.Adam(sae.parameters(), 1e-2), []
    for _ in range(20):
        loss = sae.loss(x).total
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        sae.project_gradient_()
        optimizer.step()
        sae.project_parameters_()
    assert losses[-1] < losses[0]
    assert bool((sae.W >= 0).all())
    torch.testing.assert_close(sae.W.sum(1), torch.ones(48), rtol=1e-5, atol=1e-5)
    assert float(sae.Lambda.detach().norm(dim=1).max()) <= 0.1 * (1 + 1e-6)
    saekern.save(sae, tmp_path)
    again = saekern.load(tmp_path)
    assert type(again) is type(sae)
    assert torch.equal(again(x), sae(x))
