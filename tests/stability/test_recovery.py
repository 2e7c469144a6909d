"""Recovery of true features: copies, rotations, a block found as a space only, and a small phase diagram."""

import json
import math

import pytest
import torch
import torch.nn.functional as F

import saekern
from saekern.activations import low_rank_rows
from saekern.stability import feature_recovery, mean_interval, recovery_phases
from saekern.stability.phases import PhaseCell
from saekern.stability.recovery import captured_curve


def true_model(count=1, width=48, **changes):
    settings = {"identifiable": 40, "low_rank": 30, "rank": 4, "active": 3.0, "seed": 3}
    return low_rank_rows(count, width, **{**settings, **changes})


def test_generator():
    """Planted: features not shuffled, so that one group has the frequent places; caught."""
    made = true_model(4000, noise=0.5, decay=0.8)
    block, isolated = made.dictionary[~made.identifiable], made.dictionary[made.identifiable]
    assert (len(isolated), len(block)) == (40, 30)
    assert (made.basis @ made.basis.T - torch.eye(4)).abs().max() < 1e-6
    assert (block @ made.basis.T @ made.basis - block).abs().max() < 1e-6
    assert (torch.linalg.vector_norm(made.dictionary, dim=1) - 1).abs().max() < 1e-6
    assert made.frequency.sum().item() == pytest.approx(3.0)
    assert 10 < made.identifiable[:20].sum() < 17, "both groups have frequent features"
    quiet = true_model(4000, noise=0.0, decay=0.8)
    noise = (made.rows.tensor - quiet.rows.tensor).square().sum(1)
    assert noise.mean().item() == pytest.approx(0.25, rel=0.05), "the same codes, and E‖noise‖² = 0.5²"
    other = true_model(rank=7)
    assert torch.equal(other.dictionary[other.identifiable], isolated), "paired over ranks"
    assert torch.linalg.matrix_rank(other.dictionary[~other.identifiable]) == 7
    only = true_model(5000, low_rank=0, active=2.0)
    gram = only.dictionary @ only.dictionary.T
    p, first = only.frequency, (2 / math.pi) ** 0.5
    expected = 2.0 + first**2 * (torch.outer(p, p) * (gram - torch.eye(40))).sum()
    assert only.rows.tensor.square().sum(1).mean().item() == pytest.approx(float(expected), rel=0.05)
    with pytest.raises(ValueError, match="1 <= rank <= width, got 1, 48, 40, 30, 49"):
        true_model(rank=49)
    with pytest.raises(ValueError, match="expected 0 < active <= 70"):
        true_model(active=71.0)
    with pytest.raises(ValueError, match="asks for a probability of"):
        true_model(active=50.0, decay=1.0)


def test_truth_is_recovered_and_a_rotated_copy_is_not():
    """Planted: the null of the unrotated rows; caught."""
    truth = true_model()
    order = torch.randperm(70)
    found = feature_recovery(truth.dictionary[order] * torch.rand(70, 1), truth)
    assert (found.matched - 1).abs().max() < 1e-6
    assert torch.equal(found.block, ~truth.identifiable[order])
    summary = found.summary
    assert summary["identifiable_recovered"] == summary["low_rank_recovered"] == 1
    assert summary["captured"] == pytest.approx(1, abs=1e-9)
    assert found.excess == pytest.approx(1, abs=1e-6)
    assert found.inside == pytest.approx(1, abs=1e-6)
    for draw in found.rotated:
        assert draw["identifiable_recovered"] == draw["low_rank_recovered"] == 0
        assert draw["identifiable_matched"] < 0.4
        assert draw["captured"] < 0.35, "4 of 48 dimensions are 0.083; latents chosen for being near give more"
    turned = feature_recovery(truth.dictionary.double() @ torch.linalg.qr(torch.randn(48, 48).double())[0], truth)
    assert turned.summary["identifiable_recovered"] == 0
    assert turned.summary["captured"] < 0.35
    assert torch.equal(found.captured.isclose(found.possible), torch.ones(8, dtype=torch.bool))
    assert bool((found.possible[3:] > 1 - 1e-9).all())
    assert found.possible[2] < 0.97, "1 at the block's rank and not before"


def test_block_found_as_a_space_only():
    """Latents thrown into the block at random: its space is found, its features are not. Planted: excess over rotated
    copies; caught. Planted: captured from all latents; caught."""
    truth = true_model(rank=6, low_rank=30)
    dictionary = truth.dictionary.clone()
    dictionary[~truth.identifiable] = F.normalize(torch.randn(30, 6), dim=1) @ truth.basis
    found = feature_recovery(dictionary, truth, draws=20)
    summary = found.summary
    assert summary["identifiable_matched"] == pytest.approx(1, abs=1e-6)
    assert summary["low_rank_recovered"] < 0.3
    assert summary["low_rank_matched"] < 0.8
    assert abs(found.excess) < 0.2
    assert summary["captured"] == pytest.approx(1, abs=1e-6)
    assert found.captured[4] < 0.99
    nothing = feature_recovery(dictionary[truth.identifiable], truth)
    assert nothing.summary["low_rank_matched"] < 0.15, "30 of 70 features are left over and count as 0"
    assert nothing.to_json()["left_over"] == 30
    for result in (found, nothing, feature_recovery(torch.zeros(3, 48), truth)):
        json.dumps(result.to_json(), allow_nan=False)


def test_dead_latents_are_set_aside():
    """Planted: dead latents left among the block's; caught."""
    truth = true_model()
    dictionary = torch.cat([truth.dictionary, truth.dictionary])
    live = torch.arange(140) < 70
    live[:70] &= truth.identifiable
    live[139] = False
    dictionary[0] = 0
    found = feature_recovery(dictionary, truth, live=live)
    assert int(found.live.sum()) == int(live[1:].sum())
    assert not bool((found.block & ~found.live).any())
    assert found.summary["low_rank_recovered"] == 0
    counted = found.to_json()["latents"]
    assert counted["dead"] + counted["live"] == 140


def test_captured_curve_by_hand():
    """Features e1, e1, e2; rows 2 e1 and e3: the first vector captures 2/3, the second none; a third does not exist."""
    eye = torch.eye(4, dtype=torch.float64)
    features, rows = eye[[0, 0, 1]], torch.stack([2 * eye[0], eye[2]])
    assert captured_curve(features, rows, 3).tolist() == pytest.approx([2 / 3, 2 / 3, 2 / 3])
    assert captured_curve(features, rows[:0], 2).tolist() == [0, 0]
    assert captured_curve(features[:0], rows[:0], 1).isnan().all()
    copies = eye[[0, 0]]  # of rank 1: the second singular vector would be arbitrary
    assert captured_curve(features, copies, 2).tolist() == pytest.approx([2 / 3, 2 / 3])


def test_sae_that_starts_at_the_truth_stays_there():
    """Noiseless identifiable features, fewer at a time than K: training leaves an SAE at the truth where it is."""
    truth = true_model(20_000, width=64, identifiable=32, low_rank=0, active=1.0)
    sae = saekern.TopKSAE(64, 32, 4, init_seed=0)
    sae.tie_(truth.dictionary.clone())
    config = saekern.TrainConfig(rows=20_000, batch_size=200, lr=1e-4, pre_bias_rows=0, dead_after=20_000)
    saekern.train(sae, truth.rows, config, progress=False)
    matched = feature_recovery(sae, truth).matched
    assert 0.99 < matched.min() < 1 - 1e-5, "it moved, but stayed"


def test_phase_diagram_of_trained_saes():
    """Isolated features are found one by one and the block as a space, by every seed. Planted: runs with one
    init_seed; caught. Planted: cross against the run's own vectors; caught."""
    config = saekern.TrainConfig(rows=40_000, batch_size=200, lr=1e-2, dead_after=8_000)
    said = []
    found = recovery_phases(
        ranks=(4,),
        noises=(0.0, 0.2),
        ks=(3,),
        seeds=2,
        width=32,
        identifiable=24,
        low_rank=24,
        config=config,
        held_out=2048,
        progress=said.append,
    )
    assert said == ["rank 4, noise 0, K 3", "rank 4, noise 0.2, K 3"]
    json.dumps(found.to_json(), allow_nan=False)
    for line, cell in zip(found.table(), found.cells, strict=True):
        assert line["identifiable_matched"] > 0.9
        assert line["identifiable_matched_rotated"] < 0.5
        assert line["captured"] > 0.95 > 0.6 > line["captured_rotated"]
        assert line["low_rank_excess"] < 0.5
        assert line["phase"] == "subspace"
        assert line["cross"] > 0.85
        assert line["captured_random"] == 4 / 32
        assert line["probability_identifiable"] > 0.9
        assert line["explained_variance"] > 0.8
        assert line["captured_lower"] <= line["captured"] <= line["captured_upper"]
        first, second = (run.matched for run in cell.recoveries)
        assert (first - second).abs().nan_to_num(0).max() > 1e-4, "two seeds"
        assert len({round(float(x), 9) for x in cell.cross.flatten()}) == 4


def test_phase_words():
    """Planted: "latents" judged by the matched cosine itself, which a block of rank 2 gives away; caught."""
    words = []
    for rank, copies in ((2, False), (2, True), (6, False)):
        truth = true_model(rank=rank)
        dictionary = truth.dictionary.clone()
        if not copies:
            dictionary[~truth.identifiable] = F.normalize(torch.randn(30, rank), dim=1) @ truth.basis
        run = feature_recovery(dictionary, truth, draws=10)
        words.append(PhaseCell(rank, 0.0, 3, [run], [1.0], None, torch.ones(1, 1), 1.0, 1.0, 1.0).phase)
    truth = true_model()
    run = feature_recovery(torch.randn(70, 48), truth)
    words.append(PhaseCell(4, 0.0, 3, [run], [1.0], None, torch.ones(1, 1), 1.0, 1.0, 1.0).phase)
    assert words == ["subspace", "latents", "subspace", "none"]


def test_mean_interval():
    """3, 5, 7: mean 5, s = 2, t(2) = 4.303 at 95 %. Coverage by simulation."""
    found = mean_interval([3, 5, 7, float("nan")])
    assert found.units == 3
    assert found.mean == 5
    assert found.upper - 5 == pytest.approx(4.302653 * 2 / 3**0.5)
    assert 5 - found.lower == pytest.approx(found.upper - 5)
    assert mean_interval([2.0]) == (2.0, None, None, 1)
    assert mean_interval([float("nan")]) == (None, None, None, 0)
    draws = torch.randn(2000, 4).tolist()
    inside = sum(i.lower <= 0 <= i.upper for i in (mean_interval(draw, 0.9) for draw in draws)) / 2000
    assert inside == pytest.approx(0.9, abs=4 * (0.9 * 0.1 / 2000) ** 0.5)


def test_errors():
    truth = true_model()
    with pytest.raises(ValueError, match=r"dictionary: expected the true features' width 48, got \[5, 3\]"):
        feature_recovery(torch.randn(5, 3), truth)
    with pytest.raises(ValueError, match=r"threshold: expected a cosine in -1\.\.1, got 9"):
        feature_recovery(truth.dictionary, truth, threshold=9)
    with pytest.raises(ValueError, match=r"live: expected bool \[70\], got torch.float32 \[70\]"):
        feature_recovery(truth.dictionary, truth, live=torch.ones(70))
    with pytest.raises(ValueError, match="draws: expected draws >= 0, got -1"):
        feature_recovery(truth.dictionary, truth, draws=-1)
    with pytest.raises(ValueError, match="ks: expected at least one value, got none"):
        recovery_phases(ks=())
    with pytest.raises(ValueError, match="expected seeds >= 2 and held_out >= 1, got 1 and 8192"):
        recovery_phases(seeds=1)
