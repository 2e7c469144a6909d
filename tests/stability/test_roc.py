"""The area under the ROC curve and the coverage of its interval."""

import pytest
import torch
from scipy.stats import mannwhitneyu, norm

from saekern.stability import auroc


def test_is_the_share_of_pairs_won():
    """Planted: ties counted whole; caught."""
    x, y = torch.randint(0, 6, (40,)).float(), torch.randint(0, 5, (31,)).float()
    won = (x[:, None] > y).double() + (x[:, None] == y).double() / 2
    found = auroc(x, y)
    assert found.value == pytest.approx(won.mean().item(), abs=1e-12)
    assert found.value == pytest.approx(mannwhitneyu(x.numpy(), y.numpy()).statistic / (40 * 31), abs=1e-12)
    assert found.lower < found.value < found.upper
    # DeLong's variance from its definition
    deviation = (won.mean(1).var() / 40 + won.mean(0).var() / 31).sqrt().item()
    slope = found.value * (1 - found.value)
    width = torch.logit(torch.tensor([found.lower, found.upper], dtype=torch.float64)).diff().item()
    assert width == pytest.approx(2 * norm.ppf(0.975) * deviation / slope, rel=1e-9)


def test_ends():
    x = torch.arange(10.0)
    perfect, worst = auroc(x + 20, x), auroc(x, x + 20)
    assert perfect == (1.0, pytest.approx(0.025**0.1), 1.0)
    assert worst == (0.0, 0.0, pytest.approx(1 - 0.025**0.1))
    assert all(value != value for value in auroc(x, x[:0]))
    assert auroc(x[:1], x).value == pytest.approx(0.05)
    assert auroc(x[:1], x).lower != auroc(x[:1], x).lower


@pytest.mark.parametrize("area", [0.5, 0.75, 0.95])
def test_coverage_by_simulation(area):
    """Normal groups of 60 and 40 whose true area is known: 600 intervals at 95 %. The method is asymptotic; 2 % are
    allowed for that and 3 standard errors (0.9 %) for the simulation, on either side. Planted: the variance of one
    group only; caught."""
    shift = norm.ppf(area) * 2**0.5
    covered = 0
    for _ in range(600):
        found = auroc(torch.randn(60).double() + shift, torch.randn(40).double())
        covered += found.lower <= area <= found.upper
    assert 0.95 - 0.02 - 0.027 <= covered / 600 <= 0.95 + 0.02 + 0.027
