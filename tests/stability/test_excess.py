"""Agreement beyond chance."""

import json

import pytest
import torch
from scipy.stats import false_discovery_control

from saekern.stability import feature_stability, null_excess, random_null, rotated_copies
from saekern.stability.excess import benjamini_hochberg


def test_random_dictionaries_have_no_excess():
    """At θ = 0.7 in 7 dimensions chance matches many; observed and null are draws of the same kind. 1,500 comparisons
    of rate q: standard error √(q (1 − q)/1500), three times that for their dependence. Planted: chance not taken off;
    caught."""
    runs = [torch.randn(50, 7) for _ in range(6)]
    control = random_null([(50, 7)] * 6, draws=3)
    found = null_excess(feature_stability(runs), control)
    assert 0.3 < found.chance < 0.95
    assert abs(found.excess) < 9 / 1500**0.5
    assert found.to_json()["beyond_chance"] < 0.1
    assert found.kind == "random"
    json.dumps(found.to_json(), allow_nan=False)


def test_planted_features_stand_out_of_a_narrow_space():
    """20 shared features among 50 in 12 dimensions. Others that lie near a shared one by chance (20 caps of cosine 0.7
    hold 20 · 0.5 % of the sphere) reappear with it in every run, and rightly count."""
    shared = torch.randn(20, 12)
    runs = [torch.cat([shared, torch.randn(30, 12)]) for _ in range(12)]
    control = random_null([(50, 12)] * 12, draws=2)
    found = null_excess(feature_stability(runs), control)
    assert 0.05 < found.chance < 0.8
    assert bool(found.beyond_chance[:, :20].all())
    assert found.beyond_chance[:, 20:].double().mean() < 0.2
    assert found.excess == pytest.approx(0.4, abs=0.06)
    quantile = found.calibrated_threshold
    again = null_excess(feature_stability(runs, quantile), random_null([(50, 12)] * 12, draws=2, threshold=quantile))
    assert again.chance == pytest.approx(0.05, abs=0.005)


def test_a_null_without_matches_still_bounds_chance():
    rows = torch.randn(100, 64)
    control = rotated_copies(rows, copies=3)
    found = null_excess(feature_stability([rows, rows, rows]), control)
    assert (found.chance, found.observed, found.excess) == (0.0, 1.0, 1.0)
    assert found.chance_upper == pytest.approx(1 - 0.05 ** (1 / 600))  # the rule of three
    assert bool(found.beyond_chance.all())


def test_benjamini_hochberg_against_scipy():
    """Planted: the first failing rank ends the search, in place of the last passing one; caught."""
    p = torch.rand(200, dtype=torch.float64) ** 2
    p[:30] *= 0.01
    for level in (0.01, 0.1, 0.5):
        want = torch.from_numpy(false_discovery_control(p.numpy())) <= level
        assert torch.equal(benjamini_hochberg(p, level), want)
    with_gaps = torch.cat([p, torch.full((50,), torch.nan, dtype=torch.float64)])
    assert torch.equal(benjamini_hochberg(with_gaps, 0.1)[:200], benjamini_hochberg(p, 0.1))
    assert benjamini_hochberg(torch.tensor([0.04, 0.03, 0.9]).double(), 0.06).tolist() == [True, True, False]


def test_errors():
    runs = [torch.randn(5, 4), torch.randn(5, 4)]
    control = random_null([(5, 4)] * 2, draws=1)
    with pytest.raises(ValueError, match=r"control: expected the threshold 0\.5, got 0\.7"):
        null_excess(feature_stability(runs, 0.5), control)
    with pytest.raises(ValueError, match=r"level: expected 0 < level < 1, got 5"):
        null_excess(feature_stability(runs), control, level=5)
    with pytest.raises(ValueError, match=r"control: expected live latents in both, got none"):
        null_excess(feature_stability([torch.zeros(3, 4)] * 2), control)
