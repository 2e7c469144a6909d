"""Convergence of the distribution of p̂ with the number of runs."""

import json

import pytest
import torch

from saekern.stability import ecdf_convergence, feature_stability
from saekern.stability.convergence import _cumulative, _distance, _mixture


def mixture(runs, size=200, width=64):
    features, share = torch.randn(size, width), torch.rand(size)
    return [torch.where((torch.rand(size) < share)[:, None], features, torch.randn(size, width)) for _ in range(runs)]


def test_distance_by_hand():
    """One run: half the latents at 0, half at 1. Two runs: a quarter at 0, half at 1/2, a quarter at 1. Largest gap:
    1/4, on [0, 1/2) and on [1/2, 1). Planted: only the jumps of the first function looked at; caught by the second
    case, three runs against one, whose gap lies at 1/3."""
    one, two = _cumulative(torch.tensor([1, 1])), _cumulative(torch.tensor([1, 2, 1]))
    assert _distance(one, two) == _distance(two, one) == 0.25
    three = _cumulative(torch.tensor([0, 4, 0, 0]))
    assert _distance(_cumulative(torch.tensor([0, 4])), three) == 1.0
    assert _distance(three, three) == 0


def test_mixture_is_binomial():
    """p = 0, 1/2, 1 with shares 1/4, 1/2, 1/4; two draws of them: 3/8, 1/4, 3/8."""
    found = _mixture(_cumulative(torch.tensor([1, 2, 1])), 2)
    torch.testing.assert_close(found, torch.tensor([3 / 8, 5 / 8, 1.0], dtype=torch.float64))


def test_copies_converge_at_once():
    rows = torch.randn(40, 16)
    found = ecdf_convergence([rows[torch.randperm(40)] for _ in range(5)], draws=3)
    assert found.sizes == [1, 2, 4]
    assert found.comparisons == 4
    assert not found.to_full.any()
    assert not found.disjoint[:2].any()
    assert bool(found.disjoint[2].isnan().all())
    assert found.expected.tolist() == pytest.approx([0, 0, 0], abs=1e-15)


def test_distances_fall_and_all_runs_are_all_runs():
    """Planted: p̂_n from one run less; caught."""
    dictionaries = mixture(13)
    found = ecdf_convergence(dictionaries, draws=5)
    assert found.sizes == [1, 2, 4, 8, 12]
    assert found.to_full[-1].tolist() == [0.0] * 5
    mean = found.to_full.mean(1)
    assert bool((mean.diff() < 0).all())
    # Reappearance is independent between runs here, so binomial noise is all there is; the rest is which runs were
    # drawn, without replacement: a share (1 − n/N) of it.
    assert mean[0].item() == pytest.approx(found.expected[0].item(), abs=0.05)
    assert 0 < found.disjoint[1].mean().item() < mean[0].item()
    again = ecdf_convergence(dictionaries, draws=5)
    assert torch.equal(found.to_full, again.to_full)
    assert not torch.equal(found.to_full, ecdf_convergence(dictionaries, draws=5, seed=1).to_full)
    json.dumps(found.to_json(), allow_nan=False)


def test_dead_latents_are_not_counted():
    """All dead ones agree; the live ones agree in half the runs. Planted: dead latents counted; caught."""
    dictionaries = mixture(5, size=40)
    live = torch.ones(5, 80, dtype=torch.bool)
    live[:, 40:] = False
    shared = torch.randn(40, 64)
    wide = [torch.cat([rows, shared]) for rows in dictionaries]
    a, b = ecdf_convergence(wide, live=live, draws=4), ecdf_convergence(dictionaries, draws=4)
    assert torch.equal(a.to_full, b.to_full)
    assert torch.equal(feature_stability(wide, live=live).hits[:, :40], feature_stability(dictionaries).hits)


def test_errors():
    runs = [torch.randn(3, 4)] * 3
    with pytest.raises(ValueError, match=r"sizes: expected ascending numbers of runs in 1\.\.2, got \[1, 3\]"):
        ecdf_convergence(runs, sizes=[1, 3])
    with pytest.raises(ValueError, match=r"draws: expected draws >= 1, got 0"):
        ecdf_convergence(runs, draws=0)
    with pytest.raises(ValueError, match=r"threshold: expected a cosine in -1\.\.1, got 7"):
        ecdf_convergence(runs, 7)
    with pytest.raises(ValueError, match=r"live: expected at least one live latent, got none"):
        ecdf_convergence([torch.zeros(3, 4)] * 3)
