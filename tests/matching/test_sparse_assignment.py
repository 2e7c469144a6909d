"""Sparse costs: scipy.sparse.csgraph, the dense answer, and all permutations decide."""

import itertools

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

import saekern

INF = np.inf


def random_sparse(random, shape, density, kind):
    mask = random.random(shape) < density
    mask[np.arange(min(shape)), random.permutation(max(shape))[: min(shape)] if shape[0] <= shape[1] else 0] = True
    values = random.integers(1, 5, shape) if kind == "ties" else random.random(shape) + 0.5
    return scipy.sparse.csr_array(np.where(mask, values, 0).astype((np.float64, np.float32)[kind == "float32"]))


@pytest.mark.parametrize("kind", ["ties", "float32", "float64"])
@pytest.mark.parametrize("shape", [(40, 40), (30, 70), (70, 30), (200, 230)])
def test_same_total_as_csgraph(shape, kind):
    random = np.random.default_rng(shape[0])
    for density, maximize in itertools.product((0.05, 0.3, 1.0), (False, True)):
        cost = random_sparse(random, shape, density, kind)
        try:
            rows, columns = min_weight_full_bipartite_matching(cost, maximize)
        except ValueError:
            with pytest.raises(ValueError, match="cost matrix is infeasible"):
                saekern.linear_sum_assignment(cost, maximize)
            continue
        got = saekern.linear_sum_assignment(cost, maximize)
        assert len(set(got[1].tolist())) == len(got[1]) == min(shape)
        dense = cost.toarray().astype(np.float64)
        assert (dense[got] > 0).all(), "a pair that is not stored"
        assert dense[got].sum() == pytest.approx(dense[rows, columns].sum(), rel=1e-13)


@pytest.mark.parametrize("form", ["csr_array", "csc_array", "coo_array", "csr_matrix", "lil_array", "dok_array"])
def test_every_format(form):
    cost = random_sparse(np.random.default_rng(1), (20, 25), 0.5, "float64")
    want = saekern.linear_sum_assignment(cost)
    got = saekern.linear_sum_assignment(getattr(scipy.sparse, form)(cost))
    assert np.array_equal(want, got)
    assert saekern.linear_sum_assignment(cost.astype(np.int32))[0].dtype == np.int64


def test_stored_zeros_are_costs_and_duplicates_are_sums():
    zero = scipy.sparse.csr_array((np.array([0.0, 1, 1, 0]), np.array([0, 1, 0, 1]), np.array([0, 2, 4])), shape=(2, 2))
    assert saekern.linear_sum_assignment(zero)[1].tolist() == [0, 1]
    twice = scipy.sparse.coo_array((np.array([2.0, 2, 3, 3, 3]), ([0, 0, 0, 1, 1], [0, 0, 1, 0, 1])), shape=(2, 2))
    assert saekern.linear_sum_assignment(twice)[1].tolist() == [1, 0]  # 4 + 3 against 3 + 3


def test_int64_indices_and_what_lies_outside():
    """Planted: indices narrowed to 32 bits unchecked; caught."""
    data, indices, offsets = np.ones(2), np.array([1, 0]), np.array([0, 1, 2])
    for dtype in (np.int32, np.int64):
        cost = scipy.sparse.csr_array((data, indices.astype(dtype), offsets.astype(dtype)), shape=(2, 2))
        assert saekern.linear_sum_assignment(cost)[1].tolist() == [1, 0]
    for wrong in (2, -1, 2**32 + 1):
        for form in (scipy.sparse.csr_array, scipy.sparse.csc_array):
            cost = form((data, indices.astype(np.int64), offsets.astype(np.int64)), shape=(2, 2))
            cost.indices = np.array([wrong, 0])
            with pytest.raises(ValueError, match=r"ind(ex|ices)"):
                saekern.linear_sum_assignment(cost)


def test_refusals():
    with pytest.raises(ValueError, match=r"expected a matrix \(2-D array\), got a 1 array"):
        saekern.linear_sum_assignment(scipy.sparse.coo_array(np.ones(3)))
    cost = scipy.sparse.csr_array(np.array([[1.0, 0, 0], [2.0, 0, 0], [1.0, 1, 1]]))
    message = r"cost matrix is infeasible: {}s 0, 1 \(2 of them\) have finite costs in 1 {} only: 0"
    with pytest.raises(ValueError, match=message.format("row", "column")):
        saekern.linear_sum_assignment(cost)
    tall = scipy.sparse.csr_array(np.array([[1.0, 2, 1], [0, 0, 1], [0, 0, 1], [0, 0, 1]]))
    with pytest.raises(ValueError, match=message.format("column", "row")):
        saekern.linear_sum_assignment(tall)
    with pytest.raises(ValueError, match=r"row 1 has no finite cost"):
        saekern.linear_sum_assignment(scipy.sparse.csr_array(np.array([[1.0, 1], [0, 0]])))
    for bad, maximize in ((np.nan, False), (-INF, False), (INF, True)):
        with pytest.raises(ValueError, match=r"inf or NaN at \[1, 0\]"):
            saekern.linear_sum_assignment(scipy.sparse.csr_array(np.array([[1.0, 2], [bad, 1]])), maximize)


def test_empty():
    for shape in ((0, 0), (0, 3), (3, 0)):
        rows, columns = saekern.linear_sum_assignment(scipy.sparse.csr_array(shape))
        assert len(rows) == len(columns) == 0


def best_of_all(cost):
    """Every one-to-one map, tried. None if all cross a forbidden pair."""
    cost = cost if cost.shape[0] <= cost.shape[1] else cost.T
    totals = [
        sum(cost[i, j] for i, j in enumerate(columns))
        for columns in itertools.permutations(range(cost.shape[1]), cost.shape[0])
    ]
    return None if min(totals) == INF else min(totals)


def test_all_permutations():
    """Integers with ties and forbidden pairs, dense and sparse, against the minimum over all maps."""
    random = np.random.default_rng(2)
    refused = 0
    for _ in range(600):
        shape = tuple(random.integers(1, (6, 5)[random.random() < 0.8] + 1, 2))
        cost = random.integers(-3, 4, shape).astype((np.float32, np.float64)[random.integers(2)])
        cost[random.random(shape) < random.choice([0, 0.3, 0.6])] = INF
        stored = np.nonzero(np.isfinite(cost))
        sparse = scipy.sparse.coo_array((cost[stored], stored), shape=shape)
        want = best_of_all(cost)
        refused += want is None
        for given in (cost, sparse):
            if want is None:
                with pytest.raises(ValueError, match="infeasible"):
                    saekern.linear_sum_assignment(given)
            else:
                assert cost[saekern.linear_sum_assignment(given)].sum() == want
    assert 50 < refused < 400


def test_ten_thousand_small_problems():
    random = np.random.default_rng(3)
    for _ in range(10_000):
        shape = tuple(random.integers(1, 14, 2))
        cost = random.integers(-9, 10, shape) / 4.0 if random.random() < 0.5 else random.standard_normal(shape)
        cost = (cost * 10.0 ** random.integers(-12, 13)).astype((np.float32, np.float64)[random.integers(2)])
        maximize = bool(random.integers(2))
        want = cost[scipy.optimize.linear_sum_assignment(cost, maximize)].astype(np.float64).sum()
        got = cost[saekern.linear_sum_assignment(cost, maximize)].astype(np.float64).sum()
        assert abs(got - want) <= 1e-13 * np.abs(cost).max() * max(shape)
