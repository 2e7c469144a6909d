"""Projections onto the simplex against hand-worked cases, a brute-force search over supports, and each other."""

from itertools import combinations

import pytest
import torch

from saekern.sae import simplex


def nearest_by_search(row):
    """The nearest point of the simplex: the best over every support of the equality-constrained solution."""
    best, answer = float("inf"), None
    for size in range(1, len(row) + 1):
        for support in combinations(range(len(row)), size):
            chosen = row[list(support)]
            point = torch.zeros_like(row)
            point[list(support)] = chosen - (chosen.sum() - 1) / size
            distance = float((point - row).square().sum())
            if point.min() >= 0 and distance < best:
                best, answer = distance, point
    return answer


def by_sorting(weights):
    weights.copy_(simplex._above(weights, simplex.threshold_by_sorting))


BOTH = pytest.mark.parametrize("project", [simplex.euclidean_, by_sorting])


@BOTH
def test_nearest_point_by_brute_force(project):
    """Planted: τ over one rank too many; the first Newton step only. Both were caught."""
    rows = torch.randn(200, 6, dtype=torch.float64) * torch.logspace(-2, 2, 200, dtype=torch.float64)[:, None]
    rows[7, :] = 3.0
    rows[8, :4] = rows[8, 0]
    got = rows.clone()
    project(got)
    want = torch.stack([nearest_by_search(row) for row in rows])
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@BOTH
@pytest.mark.parametrize(
    ("row", "want"),
    [
        ([0.2, 0.3, 0.5], [0.2, 0.3, 0.5]),
        ([1.0, 0.0, 0.0], [1.0, 0.0, 0.0]),
        ([2.0, 0.0, 0.0], [1.0, 0.0, 0.0]),
        ([1.0, 1.0, 0.0], [0.5, 0.5, 0.0]),
        ([0.5, 0.5, 0.5], [1 / 3, 1 / 3, 1 / 3]),
        ([-1.0, -2.0, -1.0], [0.5, 0.0, 0.5]),
        ([1e8, 1e8, 0.0], [0.5, 0.5, 0.0]),
        ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0]),
        ([-3e-9, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3]),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hand_cases(project, row, want, dtype):
    rows = torch.tensor([row], dtype=dtype)
    project(rows)
    torch.testing.assert_close(
        rows, torch.tensor([want], dtype=dtype), rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-8
    )


@BOTH
@pytest.mark.parametrize("width", [1, 2, 31, 1000, 5000])
def test_properties_at_any_size(project, width):
    """On the simplex, idempotent within rounding, order kept, and no point of the simplex is nearer (its inequality:
    ⟨v − p, q − p⟩ ≤ 0 for every vertex q)."""
    rows = torch.randn(23, width) / width
    rows[3] = torch.rand(width) ** 30  # tiny weights: entries that rounding moves across τ, where τ must not go down
    rows[3] /= rows[3].sum()
    got = rows.clone()
    project(got)
    rounding = 2.0**-23 * (width + 8)
    assert got.min() >= 0
    assert ((got.double().sum(1) - 1).abs() <= rounding).all()
    gap = rows.double() - got.double()
    assert (gap.amax(1) - (gap * got.double()).sum(1) <= rounding).all()
    again = got.clone()
    project(again)
    assert (again - got).abs().max() <= rounding
    assert (got.gather(1, rows.argsort(1)).diff(dim=1) >= 0).all()


@pytest.mark.parametrize("project", [simplex.euclidean_, by_sorting, simplex.normalize_])
def test_odd_rows(project):
    rows = torch.tensor([[0.2, 0.8], [torch.nan, 1.0], [0.0, 0.0], [0.5, 0.6]])
    clean = rows[[0, 2, 3]].clone()
    project(rows)
    project(clean)
    assert rows[1].isnan().all()
    assert torch.equal(rows[[0, 2, 3]], clean), "no other row is touched"
    half = torch.tensor([[0.25, 0.5], [0.7, 0.7]], dtype=torch.bfloat16)
    project(half)
    assert half.dtype == torch.bfloat16
    assert ((half.double().sum(1) - 1).abs() <= 2.0**-7).all()


def test_normalize():
    """Planted: rows without a positive entry left at zero; caught."""
    rows = torch.tensor([[1.0, 3.0, -2.0], [-2.0, -1.0, -1.0], [0.0, 0.0, 0.0], [0.0, -1.0, 0.0], [5e-39, 0.0, 0.0]])
    simplex.normalize_(rows)
    want = [[0.25, 0.75, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]
    torch.testing.assert_close(rows, torch.tensor(want))


def test_threads_and_versions():
    rows, threads, got = torch.randn(400, 700), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            copy = rows.clone()
            version = copy._version
            simplex.euclidean_(copy)
            assert copy._version > version, "autograd and the kept dictionary see the change"
            assert torch.get_num_threads() == count
            got.append(copy)
        assert torch.equal(got[0], got[1])
        assert torch.equal(got[0], got[2])
    finally:
        torch.set_num_threads(threads)
