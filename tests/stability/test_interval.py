"""Intervals over crossed units and over pairs of runs: small cases by hand, and how often they hold the truth."""

import pytest
import torch

from saekern.stability.interval import crossed_interval
from saekern.stability.jackknife import over_ordered_pairs


def test_crossed_interval_by_hand():
    """Rows 1, 1 and 3, 3: means 1 and 3 have variance 2, so 2/2 = 1; the columns do not vary. One degree of freedom:
    t = tan(π 0.45) = 12.706 at 95 %. Over one row it is the interval of 1, 3: the same.
    Planted: the variance of rows not divided by their number; caught."""
    for values in (torch.tensor([[1.0, 1.0], [3.0, 3.0]]), torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0], [3.0]])):
        mean, lower, upper = crossed_interval(values)
        assert float(mean) == 2
        assert [float(lower), float(upper)] == pytest.approx([2 - 12.7062047, 2 + 12.7062047])


def test_crossed_interval_without_spread_or_units():
    mean, lower, upper = crossed_interval(torch.full((3, 2, 4), 5.0))
    assert mean.tolist() == lower.tolist() == upper.tolist() == [5, 5, 5]
    assert crossed_interval(torch.ones(1, 1))[1].isnan()


def test_crossed_interval_covers():
    """2,000 tables of 6 draws by 20 units with effects of both and an interaction. Nominal 95 %, and the interaction
    counted twice can only add: at least 95 % less 3 standard errors (0.5 % each), and no more than 99.5 %.
    Planted: units alone as if they were 120; caught (48 %)."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape):
        return torch.randn(2000, *shape, generator=generator, dtype=torch.float64)

    _, lower, upper = crossed_interval(7 + noise(6, 1) + noise(1, 20) + noise(6, 20))
    covered = float(((lower <= 7) & (upper >= 7)).double().mean())
    assert 0.95 - 3 * 0.005 <= covered <= 0.995


def test_jackknife_covers_where_pairs_share_runs():
    """value(i, j) = a_i + b_j + noise, 8 runs: coverage of 95 % within 3 standard errors of 2,000 trials, upwards free.
    Planted: the spread of the 56 pairs as if they were independent; caught (68 %)."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 2000, 8, generator=generator, dtype=torch.float64)
    noise = torch.randn(8, 8, 2000, generator=generator, dtype=torch.float64)
    values = 3 + a.T[:, None] + b.T[None] + noise
    values[torch.arange(8), torch.arange(8)] = torch.nan  # the diagonal counts for nothing
    _, lower, upper = over_ordered_pairs(values)
    covered = float(((lower <= 3) & (upper >= 3)).double().mean())
    assert covered >= 0.95 - 3 * 0.005


def test_jackknife_of_two_runs_has_no_interval():
    mean, lower, _ = over_ordered_pairs(torch.tensor([[torch.nan, 1.0], [3.0, torch.nan]]))
    assert float(mean) == 2
    assert lower.isnan()
