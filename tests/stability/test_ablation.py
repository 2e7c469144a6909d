"""Arms, their beginnings, the notebooks' preset, and the table of an ablation."""

import json
from itertools import combinations

import pytest
import torch

import saekern
import saekern.stability.ablation as ablation_module
from saekern.activations import TensorRows
from saekern.activations.synthetic import synthetic_rows
from saekern.stability import (
    Arm,
    arm,
    beside_published,
    initialisation_ablation,
    initialisation_grid,
    notebook_arms,
    notebook_config,
)
from saekern.stability.ablation import moments
from saekern.stability.arms import STARTS
from saekern.stability.notebooks import NotebookTopK

D, F, K = 16, 32, 3
SHARED = "shared initialisation: D(0) = 0, agreement is not stabilisation"


@pytest.fixture(scope="module")
def rows():
    made = synthetic_rows(1500, D, 24, 3, noise=0.05).rows
    return TensorRows(made.tensor + 0.5)


def config(**settings):
    return saekern.TrainConfig(**{"rows": 128 * 8, "batch_size": 128, "lr": 3e-3, "snapshots": (2,)} | settings)


def ablation(arms, rows, seeds=(5, 6, 7), settings=None, **options):
    return initialisation_ablation(arms, seeds, rows, settings or config(), **options)


def test_shared_starts_are_found_and_said(rows):
    """One k-means for all runs, with the constraint and without: D(0) = 0, no index, a note. Own k-means, data points
    and random directions begin apart. Planted: the pool's key without the seed; caught."""
    kinds = [{"start": "kmeans-shared"}, {"start": "kmeans-shared", "constraint": True, "normalisation": "identity"}]
    kinds += [{"start": start} for start in ("random", "kmeans-own", "kmeans-half", "data")]
    found = ablation([arm(F, K, tied=False, **kind) for kind in kinds], rows)
    assert found.steps == [0, 2, 8]
    assert found.notes == [
        f"kmeans-shared, l2, untied: {SHARED}",
        f"kmeans-shared, constraint, untied: {SHARED}",
    ]
    table = found.to_json()["arms"]
    for line in table:
        shared = line["start"] == "kmeans-shared"
        assert line["shared_init"] is shared
        for geometry in ("raw", "centered", "whitened"):
            assert (line[geometry]["initial_all"]["mean"] == 0) is shared
            assert (line[geometry]["stabilisation_index"] is None) is shared
            assert line[geometry]["final"]["mean"] > 0
            assert line[geometry]["null"] > 0
    json.dumps(found.to_json(), allow_nan=False)


def test_same_start_and_order_is_one_run(rows):
    """Tied encoder, shared points, one order of the rows: nothing varies.
    Planted: the order varied all the same; caught."""
    found = ablation([arm(F, K, start="kmeans-shared")], rows, vary_data=False)
    assert found.notes[0].endswith(SHARED + "; the runs are identical at every step")
    assert not ablation([arm(F, K, start="kmeans-shared")], rows).notes[0].endswith("every step")
    assert ablation([arm(F, K)], rows).data_seeds == [0, 1, 2]


def test_trainings_in_a_folder_have_the_same_bits(rows, tmp_path, monkeypatch):
    """With `out` the same table, after a kill in the middle too; a finished folder is only read. All kinds of arms:
    with the constraint, whose dictionary is computed, and with free norms.
    Planted: snapshots loaded in descending order, so that EV is of the start; caught."""
    arms = [arm(F, K), arm(F, K, start="kmeans-own", normalisation="identity")]
    arms += [arm(F, K, start="data", constraint=True, normalisation="identity"), *notebook_arms(F, K, points=8)]
    alone = ablation(arms, rows).to_json()
    saved = {"settings": config(checkpoint_every=3), "out": tmp_path}
    real, calls = ablation_module.train, []

    def killed(*args, **options):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(ablation_module, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        ablation(arms, rows, **saved)
    monkeypatch.setattr(ablation_module, "train", real)
    assert ablation(arms, rows, **saved).to_json() == alone
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert len(before) == len(arms) * 3 * 5  # the SAE, its state, three snapshots
    assert ablation(arms, rows, **saved).to_json() == alone
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == before


def test_differences_are_paired_by_seed(rows):
    """An arm against itself differs by 0 with an interval of 0; against another, by what their tables say."""
    arms = [arm(F, K), arm(F, K, name="again"), arm(F, K, start="data")]
    found = ablation(arms, rows)
    again, data = (found.differences()[name] for name in ("again", "data, l2, tied"))
    assert (float(again.mean), float(again.low), float(again.high)) == (0, 0, 0)
    ends = [one.trajectories.geometries["raw"].between.mean[-1] for one in found.arms]
    assert float(data.mean) == pytest.approx(float(ends[2] - ends[0]))
    assert data.low < data.mean < data.high
    alone = ablation([arms[0], arms[2]], rows).differences()["data, l2, tied"]
    assert alone.high < data.high  # Bonferroni over two comparisons
    assert found.to_json()["comparisons"] == 2


def test_snapshots_and_seeds_are_those_of_training(rows, tmp_path):
    """The dictionaries compared are those that a run in a folder keeps. Planted: no copy of the dictionary; caught."""
    recipe = arm(F, K, tied=False)
    found = ablation([recipe], rows, seeds=(5, 6)).arms[0].trajectories.geometries["raw"]
    kept = []
    for s, seed in enumerate((5, 6)):
        folder = tmp_path / str(s)
        settings = config(data_seed=s, snapshots=(0, 2, 8))
        saekern.train(recipe.make(seed, rows), rows, settings, out=folder, progress=False)
        files = [f"snapshots/{step:08d}.safetensors" for step in (0, 2, 8)]
        kept.append([saekern.sae.load(folder, weights=file) for file in files])
    again = saekern.stability.trajectories(kept, (0, 2, 8)).geometries["raw"]
    assert torch.equal(found.distance_all, again.distance_all)
    assert torch.equal(found.movement[0], again.movement[0])


def test_dead_latents_are_counted_and_set_aside(rows):
    """With as many firings asked for as there are rows, nearly all are dead; all-latent distances do not change."""
    some, all_alive = (ablation([arm(F, K)], rows, min_firings=n).arms[0] for n in (60, 0))
    assert bool((all_alive.dead == 0).all())
    assert bool((some.dead > 0).all())
    raw, every = some.trajectories.geometries["raw"], all_alive.trajectories.geometries["raw"]
    assert ((1 - some.dead) * F).tolist() == raw.live.sum(1).tolist()
    assert torch.equal(raw.distance_all, every.distance_all)
    assert not torch.equal(raw.distance, every.distance)
    assert bool((some.explained_variance > 0).all())
    assert some.l0.tolist() == pytest.approx([K] * 3, abs=0.5)


@pytest.mark.parametrize("start", STARTS)
def test_recipes(start, rows):
    """Where each start puts its atoms; l2 rows stay of norm 1 in training and identity ones do not."""
    for made in (arm(F, K, start=start), arm(F, K, start=start, normalisation="identity")):
        a, b = made.make(1, rows), made.make(2, rows)
        same = torch.equal(a.dictionary, b.dictionary)
        assert same is (start == "kmeans-shared")
        assert torch.equal(a.dictionary, made.make(1, rows).dictionary)
        aligned = torch.nn.functional.cosine_similarity(a.W_enc.T, a.W_dec)
        assert aligned.min() > 0.999
        norms = a.W_dec.norm(dim=1)
        assert torch.allclose(norms, torch.ones(F), atol=1e-5) is (
            start == "random" or made.factors["normalisation"] == "l2"
        )
        saekern.train(a, rows, config(), progress=False)
        free = made.factors["normalisation"] == "identity"
        assert torch.allclose(a.W_dec.norm(dim=1), torch.ones(F), atol=1e-5) is not free
    loose = arm(F, K, start=start, tied=False)
    a, b = loose.make(1, rows), loose.make(2, rows)
    assert torch.nn.functional.cosine_similarity(a.W_enc.T, a.W_dec).abs().mean() < 0.5
    assert not torch.equal(a.W_enc, b.W_enc)
    constrained = arm(F, K, start=start, constraint=True, normalisation="identity").make(1, rows)
    assert isinstance(constrained, saekern.ArchetypalSAE)
    if start == "data":
        centre = saekern.TopKSAE(D, F, K)
        centre.init_pre_bias_(rows.tensor)
        apart = (
            torch.cdist((constrained.dictionary + centre.b_dec.detach()).double(), rows.tensor.double()).min(1).values
        )
        assert apart.max() < 1e-4


def test_grid(rows):
    """Planted: the key of the arms' common pool without the start; caught."""
    grid = initialisation_grid(F, K)
    names = [one.name for one in grid]
    assert len(set(names)) == len(names) == 30
    assert names[0] == "random, l2, tied"
    begun = [one.make(1, rows).dictionary for one in grid if one.name.endswith("l2, tied")]
    assert not any(torch.allclose(a, b) for a, b in combinations(begun, 2))


def test_notebook_arms(rows):
    """Names, beginnings and settings of the release: half of the atoms zero, three arms of four at one place."""
    four = notebook_arms()
    assert [one.name for one in four] == [
        "TopK, random start",
        "RA-SAE",
        "RA-SAE, projection off",
        "TopK, k-means start",
    ]
    made = [one.make(3, rows) for one in four]
    assert [int((sae.dictionary == 0).all(1).sum()) for sae in made] == [0, 100, 100, 100]
    assert all(torch.equal(made[1].dictionary, sae.dictionary) for sae in made[2:])
    assert torch.equal(made[1].W_enc, made[2].W_enc)
    assert not torch.equal(made[2].W_enc, made[3].W_enc)  # the same model, another draw
    assert made[1].relaxation == 0.1
    assert (made[0].d_sae, made[0].k) == (200, 3)
    assert float(made[0].W_enc.detach().abs().max()) <= D**-0.5
    settings = notebook_config(76_800)
    assert (settings.steps, settings.lr_at(1, 200), settings.lr_at(1500, 200), settings.clip) == (1500, 5e-3, 5e-3, 1.0)
    small = notebook_arms(24, K, points=12, more=True)
    found = ablation(small, rows, seeds=(0, 1), settings=notebook_config(1500, epochs=2))
    shared = [one.name for one in found.arms if one.trajectories.shared]
    assert shared == ["RA-SAE", "RA-SAE, projection off", "TopK, k-means start", "TopK, k-means start, l2"]
    json.dumps(found.to_json(), allow_nan=False)


def test_beside_published(rows):
    """Arms whose end is planted: the shared ones at one place, the first apart; theirs are all nearer than the first.
    Planted: the sign of the difference turned; caught."""
    names = [one.name for one in notebook_arms()]
    settings = config(rows=128, lr=1e-6, snapshots=())
    apart, together = arm(F, K, tied=False), arm(F, K, start="kmeans-shared", tied=False)
    arms = [Arm(names[0], apart.make), *(Arm(name, together.make) for name in names[1:])]
    lines = beside_published(ablation(arms, rows, settings=settings), centred=True)
    assert [line["published"] for line in lines] == [0.4187, 0.2447, 0.0812, 0.0724]
    assert "sign" not in lines[0]
    assert [line["sign"] for line in lines[1:]] == ["agrees"] * 3
    arms = [Arm(names[0], together.make), Arm(names[1], apart.make), Arm(names[2], together.make)]
    lines = beside_published(ablation(arms, rows, settings=settings), centred=False)
    assert [line["published"] for line in lines] == [0.2834, 0.0870, 0.0887]
    assert [line["sign"] for line in lines[1:]] == ["disagrees", "undecided"]


def test_notebook_loss_is_theirs():
    """Against the formula over the whole matrix of pre-activations; and b_dec does not move.
    Planted: dead latents taken from the pre-activations instead of the codes; caught."""
    sae = NotebookTopK(D, F, K, init_seed=0)
    with torch.no_grad():
        sae.b_enc.uniform_(-1, 1)
    x = torch.randn(8, D)  # at most 24 of 32 latents fire
    loss = sae.loss(x)
    pre = x @ sae.W_enc + sae.b_enc
    codes = sae.encode(x)
    dead = (codes > 0).sum(0) == 0
    assert 0 < int(dead.sum()) < F
    expected = (x - codes @ sae.W_dec).square().mean() - 1e-3 * (pre * dead).mean()
    assert float(loss.total.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    grads = [torch.autograd.grad(value, (sae.W_enc, sae.b_enc)) for value in (loss.total, expected)]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*grads, strict=True))
    trained = saekern.train(sae, TensorRows(torch.randn(2048, D)), notebook_config(2048, epochs=1), progress=False).sae
    assert not trained.b_dec.any()


def test_moments(rows):
    mean, covariance = moments(rows, batch=700)
    assert torch.allclose(mean, rows.tensor.double().mean(0))
    assert torch.allclose(covariance, torch.cov(rows.tensor.double().T, correction=0))


def test_centred_cosine_puts_no_offset_in(rows):
    """Rows far from the origin, b_dec at their median: atoms share nothing of that, and independent runs stay apart in
    centred cosine. Planted: the mean of the rows taken away; caught."""
    far = TensorRows(rows.tensor + 100)
    found = ablation([arm(F, K)], far, seeds=(0, 1)).arms[0].trajectories.geometries
    raw, centred = (float(found[name].between.mean[-1]) for name in ("raw", "centered"))
    assert centred == pytest.approx(raw, rel=0.25)


def test_errors(rows):
    with pytest.raises(ValueError, match=r"arms: expected at least one, with different names, got \['a', 'a'\]"):
        ablation([Arm("a", arm(F, K).make)] * 2, rows)
    with pytest.raises(ValueError, match=r"init_seeds: expected at least two, all different, got \[1, 1\]"):
        ablation([arm(F, K)], rows, seeds=(1, 1))
    with pytest.raises(ValueError, match=r"start: expected one of random, .*, got 'kmeans'"):
        arm(F, K, start="kmeans")
    with pytest.raises(ValueError, match=r"normalisation: expected one of l2, identity, got 'l1'"):
        arm(F, K, normalisation="l1")
    with pytest.raises(ValueError, match=r"normalisation: expected 'identity' with the constraint"):
        arm(F, K, constraint=True)
