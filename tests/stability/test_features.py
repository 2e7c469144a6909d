"""Feature stability: planted features, copies, dead latents, intervals, ECDF, few seeds."""

import json

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from saekern.matching import center, match_all
from saekern.stability import CosineHistogram, FeatureStability, feature_stability, stability_by_geometry
from saekern.stability.interval import binomial_interval


def planted(runs=5, shared=40, own=25, width=64, noise=0.02):
    """Runs that share `shared` features, each in its own order and with noise, beside `own` ones: (dictionaries, masks
    of the shared ones)."""
    features = torch.nn.functional.normalize(torch.randn(shared, width), dim=1)
    dictionaries, masks = [], []
    for run in range(runs):
        count = own + 3 * run  # unequal F
        rows = torch.cat([features + noise * torch.randn(shared, width), torch.randn(count, width)])
        order = torch.randperm(shared + count)
        dictionaries.append(rows[order])
        masks.append(order < shared)
    return dictionaries, masks


def test_planted_half_shared_features_from_every_anchor():
    """Planted: only the forward direction counted; caught."""
    dictionaries, masks = planted()
    result = feature_stability(dictionaries)
    assert result.probability.shape == (5, 40 + 25 + 12)
    for run, mask in enumerate(masks):
        assert torch.equal(result.probability[run, : len(mask)], mask.double())
        assert result.probability[run, len(mask) :].isnan().all()
        assert torch.equal(result.stable[run, : len(mask)], mask)
        assert torch.equal(result.unstable[run, : len(mask)], ~mask)
    assert not result.stable[:, 77:].any()
    assert not result.undecided.any()


def test_feature_present_in_some_runs():
    """A latent found in 3 of 4 other runs has p̂ = 3/4 and is undecided."""
    dictionaries, _ = planted(noise=0.0)
    feature = torch.randn(64)
    for run in range(4):
        dictionaries[run][7] = feature
    result = feature_stability(dictionaries)
    assert result.probability[:4, 7].tolist() == [0.75] * 4
    assert bool(result.undecided[:4, 7].all())
    assert result.hits[:4, 7].tolist() == [3] * 4


def test_permuted_copies_reappear_everywhere():
    a = torch.randn(127, 16)
    result = feature_stability([a[torch.randperm(127)] for _ in range(3)], threshold=0.999)
    assert bool((result.probability == 1).all())
    assert bool((result.lower < 1).all())
    assert result.to_json()["live"]["stable"] == 1.0


def test_stores_and_dictionaries_give_the_same(tmp_path):
    dictionaries, _ = planted()
    store = match_all(dictionaries, store=tmp_path, progress=False, seeds=range(100, 105))
    a, b = feature_stability(dictionaries), feature_stability(store)
    for name, tensor in a.arrays().items():
        assert torch.equal(tensor.nan_to_num(7.0), b.arrays()[name].nan_to_num(7.0))
    assert b.seeds == [100, 101, 102, 103, 104]
    one_to_one = feature_stability(match_all(dictionaries, "assignment", progress=False))
    assert torch.equal(one_to_one.stable, a.stable)
    assert one_to_one.method == "assignment"


def test_dead_latents_are_excluded_counted_and_nobodys_partner():
    """Planted: dead latents left in the denominator of "live"; caught."""
    start = torch.randn(20, 32)
    runs = [start.clone() for _ in range(3)]
    live = torch.ones(3, 20, dtype=torch.bool)
    live[:, 10:] = False  # never left the shared start
    for rows in runs:
        rows[:10] = torch.randn(10, 32)
    runs[2][4] = 0
    naive, result = feature_stability(runs), feature_stability(runs, live=live)
    assert naive.to_json()["live"]["stable"] == pytest.approx((10 / 20 + 10 / 20 + 10 / 19) / 3)
    assert not result.stable.any()
    assert bool(result.probability[:, 10:].isnan().all())
    assert result.probability[2, 4].isnan()
    summary = result.to_json()
    assert summary["dead"] == [10, 10, 11]
    assert (summary["live"]["latents"], summary["all"]["latents"]) == (29, 60)
    assert (summary["live"]["unstable"], summary["all"]["unstable"]) == (1.0, 1.0)


def test_live_latent_is_not_matched_by_a_corpse():
    """Planted: masks applied to the anchor only; caught."""
    start = torch.randn(20, 32)
    live = torch.ones(2, 20, dtype=torch.bool)
    live[1, :10] = False
    result = feature_stability([start, start], live=live)
    assert bool((result.probability[0, :10] == 0).all())
    assert bool((result.probability[:, 10:] == 1).all())
    summary = result.to_json()
    assert summary["live"]["stable"] == pytest.approx((10 / 20 + 10 / 10) / 2)
    assert summary["all"]["stable"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("comparisons", "needed", "allowed", "vacuous"),
    [(1, 1, 0, True), (7, 7, 0, True), (19, 19, 0, True), (20, 19, 1, False), (95, 91, 4, False)],
)
def test_endpoints_and_vacuous_epsilon(comparisons, needed, allowed, vacuous):
    """ε = 0.05: with 95 comparisons stable means at least 91 and unstable at most 4; under 20 it is vacuous.
    Planted: ε N rounded to nearest; caught."""
    hits = torch.arange(comparisons + 1).repeat(comparisons + 1, 1)
    probability = hits.double() / comparisons
    live = torch.ones_like(probability, dtype=torch.bool)
    runs = [comparisons + 1] * (comparisons + 1)
    result = FeatureStability(
        probability, probability, probability, live, runs, runs, 0.7, 0.05, 0.95, "nearest", CosineHistogram()
    )
    assert torch.equal(result.hits, hits)
    assert torch.equal(result.stable[0], result.hits[0] >= needed)
    assert torch.equal(result.unstable[0], result.hits[0] <= allowed)
    assert result.vacuous is vacuous
    assert ("vacuous" in result.note) is vacuous
    assert ("vacuous" in result.to_json()["note"]) is vacuous


def test_interval_is_clopper_pearson():
    """Against scipy's binomtest. Planted: lower end computed with count + 1; caught."""
    for trials in (1, 2, 7, 95):
        lower, upper = binomial_interval(trials, 0.9)
        for count in range(trials + 1):
            want = binomtest(count, trials).proportion_ci(0.9, method="exact")
            assert lower[count].item() == pytest.approx(want.low, abs=1e-12)
            assert upper[count].item() == pytest.approx(want.high, abs=1e-12)


def test_ecdf_counts_live_latents():
    dictionaries, masks = planted()
    result = feature_stability(dictionaries)
    grid, share = result.ecdf()
    assert grid.tolist() == [0, 0.25, 0.5, 0.75, 1]
    own = sum(int((~mask).sum()) for mask in masks) / sum(map(len, masks))
    assert share.tolist() == pytest.approx([own, own, own, own, 1])
    assert result.ecdf(run=0)[1].tolist() == pytest.approx([25 / 65] * 4 + [1])


def test_threshold_moves_the_boundary():
    dictionaries, masks = planted(noise=0.05)  # copies of a feature then have cosine 1 / (1 + 64 · 0.05²) = 0.86
    shared = sum(int(mask.sum()) / len(mask) for mask in masks) / len(masks)
    shares = [feature_stability(dictionaries, threshold).to_json()["live"]["stable"] for threshold in (-1, 0.7, 0.99)]
    assert shares == pytest.approx([1.0, shared, 0.0])


def test_summary_is_json_without_nan():
    nothing = feature_stability([torch.zeros(3, 4), torch.zeros(3, 4)])
    for result in (nothing, feature_stability(planted()[0])):
        json.dumps(result.to_json(), allow_nan=False)
    assert nothing.to_json()["live"]["stable"] is None
    assert nothing.to_json()["dead"] == [3, 3]


def test_geometries_separate_an_offset_from_agreement():
    """Random atoms far from the origin agree in raw cosine only. Planted: raw dictionaries used throughout; caught."""
    mean = torch.zeros(48)
    mean[0] = 3.0
    runs = [torch.nn.functional.normalize(torch.randn(60, 48), dim=1) + mean for _ in range(3)]
    found = stability_by_geometry(runs, mean, covariance=torch.eye(48), threshold=0.8)
    assert set(found) == {"raw", "centered", "whitened"}
    assert found["raw"].to_json()["live"]["stable"] == 1.0
    assert found["centered"].to_json()["live"]["stable"] == 0.0
    want = feature_stability([center(rows, mean) for rows in runs], threshold=0.8)
    assert torch.equal(found["centered"].cosines.counts, want.cosines.counts)


def test_same_bits_for_any_thread_count():
    dictionaries, _ = planted(noise=0.08)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(feature_stability(dictionaries).arrays())
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for name, tensor in results[0].items():
            assert np.array_equal(tensor.numpy(), other[name].numpy(), equal_nan=tensor.is_floating_point())


def test_errors():
    runs = [torch.randn(3, 4), torch.randn(3, 4)]
    store = match_all(runs, progress=False)
    with pytest.raises(ValueError, match=r"threshold: expected a cosine in -1\.\.1, got 70"):
        feature_stability(runs, threshold=70)
    with pytest.raises(ValueError, match=r"epsilon: expected 0 <= epsilon < 0\.5, got 0\.5"):
        feature_stability(runs, epsilon=0.5)
    with pytest.raises(ValueError, match=r"confidence: expected 0 < confidence < 1, got 95"):
        feature_stability(runs, confidence=95)
    with pytest.raises(ValueError, match=r"live: expected None with a PairStore"):
        feature_stability(store, live=torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"live: expected bool masks, got torch.float32"):
        feature_stability(runs, live=torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"dead: expected 2 masks, one a dictionary, got 3"):
        feature_stability(runs, live=torch.ones(3, 3, dtype=torch.bool))
