"""Intervals of stable and unstable shares: the same means as feature_stability, and coverage."""

import pytest
import torch

from saekern.stability import feature_stability, share_intervals
from saekern.stability.share_intervals import of_found


def test_means_are_those_of_feature_stability():
    """Unequal F, dead latents. Planted: padding counted as unstable; caught."""
    random = torch.Generator().manual_seed(0)
    common = torch.randn(10, 16, generator=random)
    sizes = (20, 26, 20, 23)
    runs = [torch.cat([common, torch.randn(size - 10, 16, generator=random)]) for size in sizes]
    live = [torch.rand(size, generator=random) < 0.8 for size in sizes]
    found, want = share_intervals(runs, live=live), feature_stability(runs, live=live).to_json()["live"]
    for name in ("stable", "unstable", "mean_probability"):
        estimate = getattr(found, name)
        assert float(estimate.mean) == pytest.approx(want[name])
        assert estimate.low < estimate.mean < estimate.high


def test_by_hand():
    """Three runs of two latents; latent 1 of run 2 is found nowhere, everything else everywhere. Without run 2 all is
    stable; without run 0 or 1, half of run 2 is not: stable 1, 3/4, 3/4, around their mean 5/6.
    SE² = 2/3 · (1/36 + 2/144) = 1/36; t of 2 degrees of freedom is 4.3027."""
    found = torch.ones(3, 3, 2, dtype=torch.bool)
    found[torch.arange(3), torch.arange(3)] = False
    found[2, :, 1] = False
    estimate = of_found(found, torch.ones(3, 2, dtype=torch.bool), 0.05).stable
    assert float(estimate.mean) == pytest.approx(5 / 6)
    assert float(estimate.high - estimate.mean) == pytest.approx(4.302653 / 6, rel=1e-6)


def test_two_runs_have_no_interval():
    found = share_intervals([torch.eye(4), torch.eye(4)])
    assert found.to_json()["stable"] == {"mean": 1.0, "low": None, "high": None}


@pytest.mark.parametrize("seed", [0, 1])
def test_coverage(seed):
    """Runs differ in how much of a common pool they find; 400 studies of 6 runs. The means over all studies are within
    the 95 % interval in at least 93 % of them (Σ of 400 at 95 %: sd 1.1 %), and the interval does not cover all.

    Planted: the latents taken for the sample (SE of a proportion over them); covered 41 %; caught."""
    random = torch.Generator().manual_seed(seed)
    names = ("stable", "unstable", "mean_probability")
    estimates: dict[str, list] = {name: [] for name in names}
    for _ in range(400):
        rate = 0.5 + 0.4 * torch.rand(6, 1, generator=random)  # of each run
        ease = torch.rand(200, generator=random)  # of each latent
        has = torch.rand(6, 200, generator=random) < (rate * ease).sqrt()
        found = has[:, None] & has[None]
        found[torch.arange(6), torch.arange(6)] = False
        one = of_found(found, has, 0.05)
        for name in names:
            estimates[name].append(getattr(one, name))
    for name, lines in estimates.items():
        low, mean, high = (torch.stack([getattr(line, end) for line in lines]) for end in ("low", "mean", "high"))
        covered = float(((low <= mean.mean()) & (mean.mean() <= high)).double().mean())
        assert covered >= 0.93, name
        assert float((high - low).mean()) < 12 * float(mean.std()), name
