"""θ and ε sweeps: the same as feature stability at every cell, and a planted mixture recovered."""

import json

import pytest
import torch

from saekern.matching import match_all
from saekern.stability import feature_stability, stability_sweep


def mixture(runs, share, size=60, width=48):
    """Each run has each of `size` features with its own probability `share` [size], in its own order, and noise atoms
    in the place of the rest: dictionaries and, for each, which feature every latent is (−1: noise)."""
    features = torch.randn(size, width)
    dictionaries, names = [], []
    for _ in range(runs):
        there = torch.rand(size) < share
        order = torch.randperm(size)
        dictionaries.append(torch.where(there[:, None], features, torch.randn(size, width))[order])
        names.append(torch.where(there, torch.arange(size), -1)[order])
    return dictionaries, names


def test_every_cell_is_feature_stability():
    """Planted: one direction alone; caught. Planted: the first θ for all; caught."""
    dictionaries, _ = mixture(6, torch.full((60,), 0.7))
    dictionaries[2] = dictionaries[2][:50]
    live = [torch.rand(len(d)) < 0.9 for d in dictionaries]
    live[3] = None
    sweep = stability_sweep(dictionaries, (-1.0, 0.3, 0.7, 0.95), (0.0, 0.2, 0.4), live)
    for t, threshold in enumerate(sweep.thresholds):
        for e, epsilon in enumerate(sweep.epsilons):
            want = feature_stability(dictionaries, threshold, epsilon, live)
            assert torch.equal(sweep.hits[t].long(), want.hits)
            count = want.live.sum(1)
            torch.testing.assert_close(sweep.stable[t, e], want.stable.sum(1).double() / count)
            torch.testing.assert_close(sweep.unstable[t, e], want.unstable.sum(1).double() / count)
            assert sweep.vacuous[e] == want.vacuous
            torch.testing.assert_close(sweep.mean_probability[t], want.probability.nanmean(1))
    summary = sweep.to_json()
    assert len(summary["lines"]) == 12
    assert summary["lines"][0]["stable"] == 1.0  # every latent has a partner at θ = −1
    json.dumps(summary, allow_nan=False)


def test_stores_and_empty_runs():
    dictionaries, _ = mixture(3, torch.full((60,), 0.5))
    a, b = stability_sweep(dictionaries), stability_sweep(match_all(dictionaries, progress=False))
    assert torch.equal(a.hits, b.hits)
    nothing = stability_sweep([torch.zeros(3, 4), torch.zeros(3, 4)]).to_json()
    assert nothing["lines"][0]["stable"] is None
    json.dumps(nothing, allow_nan=False)


def test_planted_mixture_is_recovered_within_its_interval():
    """Features that appear in a run with probability p: p̂ of those that do is Bin(N, p)/N, and the Clopper–Pearson
    interval holds p in at least 95 % of them. The latents of one anchor are independent. Of
    n ≈ 140 intervals the share of misses may be 5 % and 3 standard errors. Planted: intervals
    at 60 %; caught."""
    share = torch.tensor([0.1, 0.5, 0.9]).repeat_interleave(80)
    dictionaries, names = mixture(24, share, size=240, width=96)
    found = feature_stability(dictionaries)
    name = names[0]
    there = name >= 0
    p = share[name[there]].double()
    inside = (found.lower[0][there] <= p) & (p <= found.upper[0][there])
    count = int(there.sum())
    assert inside.double().mean() >= 0.95 - 3 * (0.05 * 0.95 / count) ** 0.5
    assert bool((found.hits[0][~there] == 0).all())
    for value in (0.1, 0.5, 0.9):
        group = found.probability[0][there][p == torch.tensor(value).double()]
        error = (value * (1 - value) / 23 / len(group)) ** 0.5
        assert group.mean().item() == pytest.approx(value, abs=4 * error)


@pytest.mark.parametrize("p", [0.02, 0.3, 0.5, 0.95])
def test_coverage_by_simulation(p):
    """Clopper–Pearson covers at least 95 % at every p: 20,000 binomial draws, standard error 0.15 %."""
    from saekern.stability.interval import binomial_interval

    lower, upper = binomial_interval(23, 0.95)
    hits = torch.distributions.Binomial(23, torch.tensor(p)).sample((20_000,)).long()
    covered = ((lower[hits] <= p) & (p <= upper[hits])).double().mean().item()
    assert covered >= 0.95 - 3 * 0.0015


def test_errors():
    runs = [torch.randn(3, 4), torch.randn(3, 4)]
    with pytest.raises(ValueError, match=r"thresholds: expected ascending values in -1\.\.1, got \[0\.7, 0\.5\]"):
        stability_sweep(runs, (0.7, 0.5))
    with pytest.raises(ValueError, match=r"epsilons: expected ascending values in 0\.\.0\.5, got \[0\.5\]"):
        stability_sweep(runs, epsilons=(0.5,))
    with pytest.raises(ValueError, match=r"thresholds: expected ascending values in -1\.\.1, got \[\]"):
        stability_sweep(runs, ())
