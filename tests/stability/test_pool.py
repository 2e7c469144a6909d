"""Feature pools: identical seeds give the seed, the greedy choice by hand, and the experiment on disjoint halves."""

import copy
import json

import pytest
import torch

import saekern
from saekern.activations import synthetic_rows
from saekern.stability import activation_mass, feature_pool, feature_stability, pool_sae, pooling, random_pool
from saekern.stability.pool import _greedy

WIDTH, LATENTS = 24, 32


def trained(seed, rows, steps=150):
    sae = saekern.TopKSAE(WIDTH, LATENTS, 4, init_seed=seed)
    config = saekern.TrainConfig(rows=steps * 256, batch_size=256, lr=5e-3)
    saekern.train(sae, rows, config, progress=False)
    return sae


@pytest.fixture(scope="module")
def rows():
    return synthetic_rows(4096, WIDTH, 24, 3.0, noise=0.05, seed=3).rows


@pytest.fixture(scope="module")
def seeds(rows):
    return [trained(seed, rows) for seed in range(4)]


def test_pool_of_identical_seeds_is_the_seed(rows, seeds):
    """Same numbers, same parameters and the same bits out, but for latents of the seed that are near copies of each
    other: the pool has each once. Planted: latents in the order of their choice; caught."""
    copies = [copy.deepcopy(seeds[0]) for _ in range(3)]
    found = feature_stability(copies)
    masses = [activation_mass(sae, rows)[0] for sae in copies]
    pool = feature_pool(copies, found.probability, masses, LATENTS, threshold=0.999, loose=0.999)
    cosine = torch.nn.functional.normalize(copies[0].dictionary, dim=1)
    cosine = (cosine @ cosine.T).fill_diagonal_(0)
    assert cosine.max() < 0.999
    assert pool.run.tolist() == [0] * LATENTS
    assert pool.latent.tolist() == list(range(LATENTS))
    assert (pool.short, pool.filled, pool.dead, pool.candidates) == (0, 0, 0, 3 * LATENTS)
    made = pool_sae(copies, pool)
    for name, parameter in made.named_parameters():
        assert torch.equal(parameter, dict(seeds[0].named_parameters())[name]), name
    x = rows.take(torch.arange(50))
    assert torch.equal(made(x), seeds[0](x))


def test_greedy_choice_by_hand():
    """p̂ first, mass among equals, near copies once; what is too alike waits for the looser threshold.
    Planted: order by mass alone; caught. Planted: fill by p̂; caught. Planted: dead latents kept; caught."""
    e = torch.eye(4)
    near = 0.8 * e[0] + 0.6 * e[1]  # cosine 0.8 with e0, 0.6 with e1
    other = 0.8 * e[0] - 0.6 * e[1]  # likelier than `near`, lighter
    a = torch.stack([e[0], near, e[2], e[3], other])
    b = torch.stack([3 * e[0], e[1], e[2], 0 * e[3], -e[3]])
    nan = float("nan")
    p = torch.tensor([[1.0, 0.5, 0.2, nan, 0.6], [1.0, 0.4, 0.2, 0.9, nan]], dtype=torch.float64)
    mass = [torch.tensor([1.0, 9.0, 1.0, 5.0, 0.5]), torch.tensor([2.0, 1.0, 3.0, 5.0, 5.0])]
    pool = feature_pool([a, b], p, mass, 3)
    # b0 (heavier than a0, its copy); a4 and a1 have cosine 0.8 with it; b1; b2 (heavier than a2, its copy).
    assert list(zip(pool.run.tolist(), pool.latent.tolist(), strict=True)) == [(1, 0), (1, 1), (1, 2)]
    assert pool.probability.tolist() == [1.0, 0.4, 0.2]
    assert (pool.dead, pool.candidates, pool.filled, pool.short) == (3, 7, 0, 0)
    four = feature_pool([a, b], p, mass, 4)
    assert list(zip(four.run.tolist(), four.latent.tolist(), strict=True)) == [(0, 1), (1, 0), (1, 1), (1, 2)]
    assert (four.filled, four.short) == (1, 0)
    six = feature_pool([a, b], p, mass, 6)
    assert (six.filled, six.short) == (2, 1)
    assert six.to_json()["by_run"] == [2, 3]


def test_blocks_choose_as_one_by_one():
    """5,000 random directions of 3 dimensions, over four blocks. Planted: pairs of a block not compared; caught."""
    rows = torch.nn.functional.normalize(torch.randn(5000, 3, dtype=torch.float64), dim=1)
    order = torch.randperm(5000)
    plain: list[int] = []
    for i in order.tolist():
        if not plain or (rows[plain] @ rows[i]).max() < 0.95:
            plain.append(i)
    assert len(plain) > 50
    assert _greedy(rows, order, [], 1000, 0.95) == plain
    assert _greedy(rows, order, [], 30, 0.95) == plain[:30]
    assert _greedy(rows, order[2000:], plain[:10], 30, 0.95)[:10] == plain[:10]


def test_pooled_latents_read_what_they_read(rows, seeds):
    """Each latent's pre-activation on rows is that in its own run, though b_dec differ: float32 sums of 24 terms of
    order 1, 1e-5. Planted: the encoder bias without the difference; caught."""
    pool = random_pool(seeds, [torch.ones(LATENTS, dtype=torch.bool)] * 4, 40, seed=1)
    assert len({*zip(pool.run.tolist(), pool.latent.tolist(), strict=True)}) == 40
    with torch.no_grad():
        moved = [copy.deepcopy(sae) for sae in seeds]
        for s, sae in enumerate(moved):
            sae.b_dec += 0.1 * s
    made = pool_sae(moved, pool)
    x = rows.take(torch.arange(64))
    ours = (x - made.b_dec) @ made.W_enc + made.b_enc
    for i, (s, j) in enumerate(zip(pool.run.tolist(), pool.latent.tolist(), strict=True)):
        theirs = (x - moved[s].b_dec) @ moved[s].W_enc[:, j] + moved[s].b_enc[j]
        torch.testing.assert_close(ours[:, i], theirs, atol=1e-5, rtol=1e-5)
    assert made.k == 4
    assert made.d_sae == 40
    assert made.W_enc.T.is_contiguous()


def test_pooling_compares_disjoint_halves(rows, seeds):
    """Every arm is trained, from the parameters it was given; the seeds are not touched. Planted: pre_bias_rows left as
    it is; caught. Planted: the halves share a seed; caught."""
    before = [copy.deepcopy(sae.state_dict()) for sae in seeds]
    config = saekern.TrainConfig(rows=512, batch_size=256, lr=1e-9)
    found = pooling(seeds, rows, rows, config, blocks=8)
    assert sorted(found.halves[0] + found.halves[1]) == [0, 1, 2, 3]
    assert all(torch.equal(a[n], sae.state_dict()[n]) for a, sae in zip(before, seeds, strict=True) for n in a)
    single = found.arms["single"]
    assert single.ev == pytest.approx(single.ev_before, abs=1e-6)
    for half in range(2):
        state = found.saes["single"][half].state_dict()
        torch.testing.assert_close(state["b_dec"], before[found.singles[half]]["b_dec"], atol=1e-6, rtol=0)
    assert found.ev_gain["single"][0] == pytest.approx(sum(found.arms["pool"].ev) / 2 - sum(single.ev) / 2, abs=1e-9)
    assert found.ev_gain["single"][1] < found.ev_gain["single"][0] < found.ev_gain["single"][2]
    assert found.arms["pool"].match_rate_before == pytest.approx(found.arms["pool"].match_rate)
    assert found.arms["pool"].ev[0] > found.arms["random"].ev[0]
    out = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert out["extra_rows"] == 512
    assert 0 <= out["arms"]["pool"]["reappearance"][0] <= 1


def test_known_pairs_give_the_same_pools(rows, seeds):
    """p̂ from all pairs, read for the half, and matched anew for it. Planted: p̂ over all seeds; caught."""
    config = saekern.TrainConfig(rows=256, batch_size=256, lr=1e-9)
    live = [activation_mass(sae, rows)[1] > 20 for sae in seeds]
    assert not all(bool(mask.all()) for mask in live)
    store = saekern.match_all(seeds, "nearest", progress=False, dead=[~mask for mask in live])
    anew, known = (pooling(seeds, rows, rows, config, min_firings=21, blocks=4, pairs=pairs) for pairs in (None, store))
    for a, b in zip(anew.pools, known.pools, strict=True):
        assert a.latent.tolist() == b.latent.tolist()
        torch.testing.assert_close(a.probability, b.probability, rtol=0, atol=0)


def test_pooling_of_identical_seeds_agrees(rows, seeds):
    """Both halves hold the same seed: all latents of both pools have a partner, as have those of the singles."""
    config = saekern.TrainConfig(rows=256, batch_size=256, lr=1e-9)
    found = pooling([seeds[0]] * 4, rows, rows, config, threshold=0.95, loose=0.95, blocks=4)
    for name in ("pool", "single"):
        assert found.arms[name].match_rate == 1
        assert found.arms[name].reappearance == (1, 1)
        assert found.arms[name].mean_cosine == pytest.approx(1, abs=1e-6)
    assert found.ev_gain["single"][0] == pytest.approx(0, abs=1e-7)


def test_errors_say_what_was_expected(rows, seeds):
    ones = torch.ones(4, LATENTS, dtype=torch.float64)
    masses = [torch.ones(LATENTS)] * 4
    with pytest.raises(ValueError, match=r"loose: expected -1 <= threshold <= loose <= 1, got 0\.9 and 0\.7"):
        feature_pool(seeds, ones, masses, 5, threshold=0.9, loose=0.7)
    with pytest.raises(ValueError, match=r"probability: expected one mask for each of 4 runs \(at least 1\), got 3"):
        feature_pool(seeds, ones[:3], masses, 5)
    with pytest.raises(ValueError, match="probability: expected at least one live latent"):
        feature_pool(seeds, ones * float("nan"), masses, 5)
    with pytest.raises(ValueError, match="saes: expected at least 4, two for each half, got 3"):
        pooling(seeds[:3], rows, rows, saekern.TrainConfig())
    with pytest.raises(ValueError, match="pool: expected at least k = 4 latents, got 2"):
        pool_sae(seeds, feature_pool(seeds, ones, masses, 2))
    relu = [saekern.ReLUSAE(WIDTH, LATENTS, init_seed=0)]
    with pytest.raises(TypeError, match="saes: expected TopKSAEs, all of one kind, got ReLUSAE"):
        pool_sae(relu, feature_pool(relu, ones[:1], masses[:1], 8))
