"""Controls with a known answer, and the histogram that carries their cosines."""

import json

import pytest
import torch

from saekern.matching import match_all
from saekern.stability import (
    CosineHistogram,
    feature_stability,
    permuted_control,
    pw_mcc,
    random_null,
    random_rotation,
    rotated_null,
)


def test_random_null_is_the_published_table():
    """F = 2048, D = 512: median of the best cosine 0.150, 99th percentile 0.195 (three printed digits). The standard
    error of a quantile q is √(q(1−q)/n) over the density there: 4e-4 and 1.6e-3 with n = 4096, so 5 of them and the
    rounding of the table. Planted: one dictionary used on both sides; caught. Planted: |cosine|; caught (0.157)."""
    null = random_null([(2048, 512)] * 2, draws=1)
    assert null.cosines.total == 4096
    assert null.cosines.quantile(0.5) == pytest.approx(0.150, abs=5 * 4e-4 + 5e-4)
    assert null.cosines.quantile(0.99) == pytest.approx(0.195, abs=5 * 1.6e-3 + 5e-4)
    assert null.match_rate.tolist() == [0.0]


def test_random_null_draws_are_seeded_and_independent():
    first, again, other = (random_null([(50, 8), (40, 8), (50, 8)], draws=2, seed=seed) for seed in (3, 3, 4))
    for a, b in zip(first.draws, again.draws, strict=True):
        assert torch.equal(a.cosines.counts, b.cosines.counts)
    assert not torch.equal(first.draws[0].cosines.counts, first.draws[1].cosines.counts)
    assert not torch.equal(first.cosines.counts, other.cosines.counts)
    assert first.draws[0].sizes == [50, 40, 50]


def test_rotated_copies_do_not_match():
    """The same dictionary everywhere, each turned its own way: nothing reappears, and clusters stay clusters.
    Planted: one rotation for all runs; caught."""
    rows = torch.randn(300, 64)
    rows[150:] = rows[:150] + 0.01 * torch.randn(150, 64)
    assert feature_stability([rows, rows]).to_json()["live"]["stable"] == 1.0
    null = rotated_null([rows, rows, rows], draws=2)
    assert null.match_rate.tolist() == [0.0, 0.0]
    summary = null.to_json()
    assert summary["stable"] == {"mean": 0.0, "min": 0.0, "max": 0.0}
    assert null.ecdf()[1].tolist() == [1.0, 1.0, 1.0]


def test_rotation_is_orthogonal_and_keeps_angles():
    rotation = random_rotation(33, torch.Generator().manual_seed(1))
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(33, dtype=torch.float64), atol=1e-13, rtol=0)


def test_permuted_control_and_pw_mcc_are_one():
    rows = torch.randn(200, 32)
    control = permuted_control(rows, copies=3, draws=2)
    assert control.match_rate.tolist() == [1.0, 1.0]
    assert control.to_json()["stable"]["min"] == 1.0
    copies = [rows[torch.randperm(200)] for _ in range(3)]
    assert pw_mcc(match_all(copies, "assignment", progress=False)) == pytest.approx(1.0, abs=32 * 2.0**-23)


def test_masks_reach_the_rotated_null():
    rows = torch.randn(30, 8)
    live = torch.ones(2, 30, dtype=torch.bool)
    live[:, :12] = False
    assert rotated_null([rows, rows], live=live).to_json()["draws"] == 1
    assert rotated_null([rows, rows], live=live).cosines.total == 2 * 18


def test_summary_is_json():
    json.dumps(random_null([(9, 4)] * 2).to_json(), allow_nan=False)


def test_histogram_quantiles_against_torch():
    """Planted: quantiles at the lower edge of the next bin; caught."""
    values = torch.rand(5000) * 1.6 - 0.8
    histogram = CosineHistogram()
    histogram.add(values[:2000])
    histogram.add(torch.cat([values[2000:], torch.full((7,), torch.nan)]))
    assert histogram.total == 5000
    for q in (0.0, 0.01, 0.5, 0.99, 1.0):
        assert histogram.quantile(q) == pytest.approx(values.quantile(q).item(), abs=1e-3)
    counts, edges = histogram.coarse(20)
    assert torch.equal(counts, torch.histc(values, 20, -1, 1).long())
    assert edges[[0, 10, 20]].tolist() == pytest.approx([-1, 0, 1], abs=1e-15)


def test_histogram_ends():
    histogram = CosineHistogram()
    assert histogram.quantile(0.5) != histogram.quantile(0.5)  # NaN
    histogram.add(torch.tensor([-1.0, 1.0, 1.0000001, -1.0000001]))
    assert (int(histogram.counts[0]), int(histogram.counts[-1])) == (2, 2)


def test_errors():
    with pytest.raises(ValueError, match=r"shapes: expected at least two \(F, D\), got \[\(3, 4\)\]"):
        random_null([(3, 4)])
    with pytest.raises(ValueError, match=r"draws: expected draws >= 1, got 0"):
        random_null([(3, 4)] * 2, draws=0)
    with pytest.raises(ValueError, match=r"q: expected 0 <= q <= 1, got 99"):
        CosineHistogram().quantile(99)
    with pytest.raises(ValueError, match=r"bins: expected a divisor of 20000, got 30"):
        CosineHistogram().coarse(30)
