"""The geometric median by its optimality condition, which needs no second implementation."""

import pytest
import torch

from saekern.sae.geometric_median import geometric_median


def test_unit_vectors_balance():
    """At the minimum Σ (x_i − y)/‖x_i − y‖ = 0. Planted: weights 1/d², 3 iterations only; both caught."""
    rows = torch.randn(1001, 17) * torch.logspace(-2, 2, 17) + torch.arange(17)
    median = geometric_median(rows)
    assert median.dtype == torch.float64
    away = rows.double() - median
    pull = (away / away.norm(dim=1, keepdim=True)).sum(0).norm()
    assert not pull > 1e-6 * len(rows)


@pytest.mark.parametrize("centre", [0, 1, 2])
def test_at_a_row(centre):
    """A row with more than half of the weight is the median, wherever the iteration starts or passes."""
    points = torch.randn(3, 5).double()
    rows = points[[0, 1, 2] + 3 * [centre]]
    torch.testing.assert_close(geometric_median(rows), points[centre], rtol=0, atol=1e-7)


def test_a_median_that_is_hit_exactly_is_kept():
    """The mean, where the iteration starts, is the median here, five rows lie on it and the others pull to one side.
    The plain iteration divides by 0; leaving those rows out moves away. Planted: their resistance ignored; caught."""
    rows = torch.tensor([0.0, 0, 0, 0, 0, -2, 1, 1])[:, None]
    assert geometric_median(rows).item() == 0


def test_outliers_do_not_move_it():
    rows = torch.randn(200, 4)
    rows[:20] += 1e6
    assert geometric_median(rows).norm() < 1
    assert rows.mean(0).norm() > 1e4


def test_one_row_and_equal_rows():
    row = torch.randn(1, 6)
    torch.testing.assert_close(geometric_median(row), row[0].double(), rtol=0, atol=0)
    torch.testing.assert_close(geometric_median(row.expand(9, 6)), row[0].double(), rtol=0, atol=1e-15)


def test_bad_rows():
    with pytest.raises(ValueError, match=r"rows: expected shape \[n, D\] with n >= 1, got \[0, 4\]"):
        geometric_median(torch.empty(0, 4))
    with pytest.raises(ValueError, match="expected finite values"):
        geometric_median(torch.tensor([[1.0], [torch.inf]]))
