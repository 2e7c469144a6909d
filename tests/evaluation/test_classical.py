"""Classical baselines: their objective never rises, their constraints hold, exact structure is found."""

from itertools import pairwise

import pytest
import torch

from saekern.evaluation import classical


def data(n=120, width=9, k=4, signed=True):
    generator = torch.Generator().manual_seed(2)
    codes = torch.rand(n, k, generator=generator, dtype=torch.float64) ** 4
    dictionary = torch.randn(k, width, generator=generator, dtype=torch.float64)
    return codes @ (dictionary if signed else dictionary.abs())


def descends(objective, x):
    assert all(b <= a * (1 + 1e-9) + 1e-12 for a, b in pairwise(objective)), objective
    assert objective[-1] < objective[0]
    assert objective[-1] < 0.2 * float((x - x.mean(0)).square().sum())


def test_semi_nmf():
    """Planted: numerator and denominator exchanged; caught. The square root left out: not caught, it still descends."""
    x = data()
    found = classical.semi_nmf(x, 4, seed=0)
    descends(found.objective, x)
    assert found.codes.min() >= 0
    assert found.codes.shape == (120, 4)
    assert found.dictionary.shape == (4, 9)
    assert float((x - found.codes @ found.dictionary).square().sum()) == pytest.approx(found.objective[-1])


def test_convex_nmf():
    """Atoms in the convex hull: a distance to it that a linear programme would find is 0, so here W is recovered by
    non-negative least squares with the sum as one more equation."""
    from scipy.optimize import nnls

    x = data()
    x = torch.cat([x, -x[:40]])  # so that the Gram matrix has both signs
    found = classical.convex_nmf(x, 4, seed=0)
    descends(found.objective, x)
    assert found.codes.min() >= 0
    assert float((x - found.codes @ found.dictionary).square().sum()) == pytest.approx(found.objective[-1])
    points = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], 1).T.numpy()
    for atom in found.dictionary:
        target = torch.cat([atom, torch.ones(1, dtype=torch.float64)]).numpy()
        assert nnls(points, target)[1] < 1e-6


def test_k_means():
    x = data()
    found = classical.k_means(x, 6, seed=0)
    assert torch.equal(found.codes.sum(1), torch.ones(120, dtype=torch.float64))
    assert float((x - found.codes @ found.dictionary).square().sum()) == pytest.approx(found.objective[-1])


def test_scikit_learn():
    pytest.importorskip("sklearn")
    x = data(signed=False)
    found = classical.nmf(x, 4, seed=0, iterations=1000, tol=1e-6)
    assert min(found.codes.min(), found.dictionary.min()) >= 0
    assert found.objective[-1] < 0.01 * float(x.square().sum())
    assert float((x - found.codes @ found.dictionary).square().sum()) == pytest.approx(found.objective[-1])
    x = data()
    sparse = classical.sparse_pca(x, 3, seed=0, alpha=0.5)
    assert (sparse.dictionary == 0).any()
    assert sparse.objective[-1] < float((x - x.mean(0)).square().sum())


def test_errors():
    with pytest.raises(ValueError, match="x: expected entries >= 0"):
        classical.nmf(-torch.ones(4, 3), 2, seed=0)
    with pytest.raises(ValueError, match="k: expected 1 <= k <= 4, the number of rows, got 5"):
        classical.semi_nmf(torch.ones(4, 3), 5, seed=0)
    with pytest.raises(ValueError, match="x: expected finite"):
        classical.convex_nmf(torch.full((4, 3), torch.nan), 2, seed=0)
