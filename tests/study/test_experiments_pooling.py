"""Feature pools over several divisions of the seeds, as a stage of a study and in its report."""

from types import SimpleNamespace

import pytest
import torch

import saekern
from saekern.activations import synthetic_rows
from saekern.pipeline.experiments.pooling import PoolingSettings, run
from saekern.report.sections import pooling as page
from saekern.stability.pooling import divisions

pytest.importorskip("matplotlib")


def test_divisions_are_halves_with_leaders_of_their_own():
    """Planted: leaders always the smallest numbers; caught. Planted: divisions that come twice; caught."""
    made = divisions(9, 4, seed=3)
    for first, second in made:
        assert (len(first), len(second)) == (4, 5)
        assert sorted(first + second) == list(range(9))
    leaders = [half[0] for pair in made for half in pair]
    assert len(set(leaders)) == 8
    assert made == divisions(9, 4, seed=3)
    assert made != divisions(9, 4, seed=4)
    few = {frozenset(map(frozenset, pair)) for pair in divisions(4, 5)}
    assert len(few) == len(divisions(4, 5)) == 3


def test_pool_of_identical_seeds_is_the_seed(tmp_path):
    """Six copies of one SAE: pool and single seed agree with everything and have one EV, and the words claim nothing.
    The training hardly moves anything, and resumes from its files with the same result. Planted: a pool of half the
    size; caught."""
    rows = synthetic_rows(4096, 24, 24, 3.0, noise=0.05, seed=3).rows
    sae = saekern.TopKSAE(24, 32, 4, init_seed=0)
    train = saekern.TrainConfig(rows=38_400, batch_size=256, lr=5e-3)
    saekern.train(sae, rows, train, progress=False)
    lab = SimpleNamespace(
        seeds=6,
        saes=[sae] * 6,
        rows=rows,
        heldout=rows,
        threshold=0.999,
        pairs=None,
        config=SimpleNamespace(train=train, sae=SimpleNamespace(d_sae=32), stability=SimpleNamespace(min_firings=1)),
        model_with_texts=lambda count: {},
    )
    settings = PoolingSettings(splits=3, rows=256, lr_share=1e-6)
    found = run(lab, settings, tmp_path)
    for arm in ("pool", "single"):
        for metric in ("match_rate", "match_rate_before", "reappearance", "mass_covered"):
            assert found["arms"][arm][metric]["mean"] == pytest.approx(1), (arm, metric)
    assert found["differences"]["pool - single"]["ev"]["mean"] == pytest.approx(0, abs=1e-6)
    assert found["arms"]["random"]["ev"]["mean"] < found["arms"]["pool"]["ev"]["mean"]
    assert [pool["filled"] for one in found["runs"] for pool in one["pools"]] == [0] * 6
    said = page.section(found, None).verdict
    assert "find neither measurably more nor fewer of their latents in each other than single seeds" in said
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("sae.safetensors")}
    assert len(files) == 18
    assert run(lab, settings, tmp_path) == found
    assert {path: path.stat().st_mtime_ns for path in files} == files


def test_page_has_all_of_it(experiment):
    found, text, ran = experiment("pooling", PoolingSettings(splits=3, rows=2048, sequences=4))
    assert ran == ("pooling", "report")
    assert found["divisions"] == 3
    assert found["extra_rows"] == 2048
    pool, runs = found["arms"]["pool"], found["runs"]
    assert pool["ev"]["mean"] == pytest.approx(sum(sum(one["arms"]["pool"]["ev"]) / 2 for one in runs) / 3)
    assert pool["ev"]["low"] < pool["ev"]["mean"] < pool["ev"]["high"]
    paired = [sum(one["arms"]["pool"]["ev"]) / 2 - sum(one["arms"]["random"]["ev"]) / 2 for one in runs]
    given = found["differences"]["pool - random"]["ev"]
    reach = 4.302653 * torch.tensor(paired).std() / 3**0.5  # Student's t with two degrees of freedom
    assert given["high"] - given["mean"] == pytest.approx(float(reach), rel=1e-4)
    span, lost = found["ce_zero"] - found["ce_clean"], found["differences"]["pool - single"]
    assert lost["recovered"]["mean"] == pytest.approx(-lost["ce"]["mean"] / span)
    assert '<section id="pooling">' in text
    for name in ("pooling", "pooling_differences"):
        assert f'id="{name}"' in text
    assert "Pools from disjoint halves" in text


def test_what_cannot_be_pooled_is_said(tmp_path):
    lab = SimpleNamespace(seeds=3)
    assert run(lab, PoolingSettings(), tmp_path) == {"skipped": "3 seeds; two halves need at least 4"}
    lab = SimpleNamespace(seeds=4, saes=[saekern.ReLUSAE(8, 16, init_seed=0)] * 4)
    assert "latents of ReLUSAE cannot be put together" in run(lab, PoolingSettings(), tmp_path)["skipped"]
    with pytest.raises(ValueError, match=r"pooling\.splits: expected at least 1, got 0"):
        PoolingSettings(splits=0)
