"""Shuffled rows: what stays and what goes."""

import pytest
import torch

from saekern.activations import TensorRows
from saekern.stability import shuffled_rows


def correlated(count=4000):
    common = torch.randn(count, 1)
    return torch.cat([common + 0.1 * torch.randn(count, 2), common.abs() + 3, torch.rand(count, 1)], 1)


def test_marginals_stay_and_correlation_goes():
    """Planted: one permutation for all columns; caught."""
    data = correlated()
    before = data.clone()
    found = shuffled_rows(TensorRows(data), batch=999).tensor
    assert torch.equal(data, before)
    assert torch.equal(found.sort(0).values, data.sort(0).values)
    assert torch.corrcoef(data.T)[0, 1] > 0.95
    assert torch.corrcoef(found.T).fill_diagonal_(0).abs().max() < 5 / 4000**0.5
    assert torch.equal(found, shuffled_rows(TensorRows(data), batch=4000).tensor)
    assert not torch.equal(found, shuffled_rows(TensorRows(data), seed=1).tensor)


def test_covariance_stays_and_dependence_goes():
    """Column 2 is a function of column 0 that is uncorrelated with it: x and |x|. Kept covariances err by 1/√n."""
    data = correlated()
    found = shuffled_rows(TensorRows(data), keep="covariance", batch=999).tensor
    torch.testing.assert_close(found.mean(0), data.mean(0), atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.cov(found.T), torch.cov(data.T), atol=6 / 4000**0.5, rtol=0)
    assert torch.corrcoef(found.T)[0, 1] > 0.95

    def dependence(x):
        return torch.corrcoef(torch.stack([x[:, 0].abs(), x[:, 2]]))[0, 1].abs().item()

    assert dependence(data) > 0.9
    assert dependence(found) < 0.1


def test_errors():
    with pytest.raises(ValueError, match=r"keep: expected 'marginals' or 'covariance', got 'mean'"):
        shuffled_rows(TensorRows(torch.randn(4, 2)), keep="mean")
    with pytest.raises(ValueError, match=r"rows: expected at least 2, got 1"):
        shuffled_rows(TensorRows(torch.randn(1, 2)))
