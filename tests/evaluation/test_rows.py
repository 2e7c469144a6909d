"""Explained variance, density and top activations against the dense formulas in float64."""

import math

import pytest
import torch

from saekern.activations import TensorRows
from saekern.evaluation import density, explained_variance, l0, measure, pca_explained_variance, top_activations
from saekern.sae import TopKSAE


@pytest.mark.parametrize("batch", [1, 7, 4096])
@pytest.mark.parametrize("n", [1, 2, 101])
def test_measure(sae, n, batch):
    """Planted: the variance about 0 instead of the mean; caught. Planted: every slot counted as active; caught."""
    x = torch.randn(n, 6) * 0.7 + 0.5
    codes = sae.dense(x)
    x_hat = codes.double() @ sae.dictionary.double() + sae.bias.double()
    residual = (x.double() - x_hat).square().sum()
    variance = (x.double() - x.double().mean(0)).square().sum()
    got = measure(sae, TensorRows(x), batch)
    assert got.rows == n
    assert torch.equal(got.counts, (codes != 0).sum(0))
    assert got.l0 == pytest.approx((codes != 0).sum().item() / n, rel=1e-15)
    assert torch.equal(got.dead, (codes == 0).all(0))
    if n == 1:
        assert math.isnan(got.explained_variance)
        return
    # x̂ is float32: K + 1 terms, each below 2⁻²⁴ of the sum of magnitudes
    magnitude = (codes.double() @ sae.dictionary.double().abs() + sae.bias.double().abs()).square().sum()
    slack = 2 * 8 * 2**-24 * (residual * magnitude).sqrt() / variance
    assert abs(got.explained_variance - (1 - residual / variance)) <= slack + 1e-12
    assert explained_variance(sae, TensorRows(x), batch) == got.explained_variance
    assert torch.equal(density(sae, TensorRows(x), batch), got.counts)
    assert l0(sae, TensorRows(x), batch) == got.l0


def test_slots_that_hold_zero_do_not_count(make_sae):
    sae = make_sae(k=11)  # as many slots as latents: ReLU leaves about half of them 0
    x = torch.randn(50, 6)
    assert l0(sae, TensorRows(x)) == (sae.dense(x) != 0).sum().item() / 50 < 10


def test_a_large_common_mean_cancels_no_digits(make_sae):
    """Planted: Σ‖x‖² − n‖x̄‖² about 0 instead of the first row; caught."""
    sae = make_sae()
    x = torch.randn(300, 6).mul(64).round() / 64 + 8192.0  # exact in float32
    sae.bias = torch.full((6,), 8192.0)
    sae.dictionary = torch.zeros_like(sae.dictionary)
    want = 1 - (x.double() - 8192).square().sum() / (x.double() - x.double().mean(0)).square().sum()
    assert explained_variance(sae, TensorRows(x), 7) == pytest.approx(want.item(), abs=1e-10)


def test_equal_rows_have_no_variance(make_sae):
    rows = TensorRows(torch.full((5, 6), 0.1))
    assert math.isnan(explained_variance(make_sae(), rows))
    assert math.isnan(pca_explained_variance(rows, 2))


def test_bad_rows(make_sae):
    with pytest.raises(ValueError, match="expected at least one row"):
        measure(make_sae(), TensorRows(torch.empty(0, 6)))
    with pytest.raises(ValueError, match="expected the SAE's width 6, got 5"):
        density(make_sae(), TensorRows(torch.ones(2, 5)))


@pytest.mark.parametrize("batch", [3, 1000])
def test_pca_against_the_svd(batch):
    """Planted: eigenvalues of the uncentred second moment; caught."""
    x = torch.randn(83, 9) @ torch.randn(9, 9) + 5
    squares = torch.linalg.svdvals(x.double() - x.double().mean(0)).square()
    for k in range(10):
        want = (squares[:k].sum() / squares.sum()).item()
        assert pca_explained_variance(TensorRows(x), k, batch) == pytest.approx(want, abs=1e-11)
    with pytest.raises(ValueError, match=r"k: expected 0 to 9 \(the rows' width\), got 10"):
        pca_explained_variance(TensorRows(x), 10)


@pytest.mark.parametrize("batch", [1, 7, 4096])
@pytest.mark.parametrize("n", [1, 4, 60])
def test_top_activations(sae, n, batch):
    """Against a stable sort of the dense codes. Planted: the batch's first row not added; caught for batch 1 and 7.
    Planted: equal codes in descending row order; caught by the repeated rows."""
    x = torch.randn(40, 6).mul(8).round().div(8).repeat(2, 1)  # every code occurs twice
    latents = torch.tensor([7, 0, 3, 10])
    rows, values = top_activations(sae, TensorRows(x), latents, n, batch)
    codes = sae.dense(x)[:, latents].T  # [L, N]
    assert rows.shape == values.shape == (4, n)
    for code, row, value in zip(codes, rows, values, strict=True):
        order = code.argsort(descending=True, stable=True)[:n]
        order = order[code[order] > 0]
        assert row.tolist() == order.tolist() + [-1] * (n - len(order))
        assert torch.equal(value[: len(order)], code[order])
        assert not value[len(order) :].any()


def test_top_activations_arguments(make_sae):
    rows = TensorRows(torch.randn(3, 6))
    assert top_activations(make_sae(), rows, torch.empty(0, dtype=torch.int64), 2)[0].shape == (0, 2)
    with pytest.raises(ValueError, match=r"latents: expected 0 to 10, got 0 to 11"):
        top_activations(make_sae(), rows, torch.tensor([0, 11]), 2)
    with pytest.raises(ValueError, match=r"latents: expected distinct int64 \[L\]"):
        top_activations(make_sae(), rows, torch.tensor([1, 1]), 2)
    with pytest.raises(ValueError, match="n: expected at least 1, got 0"):
        top_activations(make_sae(), rows, torch.tensor([1]), 0)


@torch.no_grad()
def test_a_real_sae():
    sae = TopKSAE(6, 16, 3, init_seed=0)
    x = torch.randn(64, 6)
    codes = sae.encode(x)
    got = measure(sae, TensorRows(x), 10)
    assert torch.equal(got.counts, (codes != 0).sum(0))
    residual, total = (x - sae(x)).double().square().sum(), (x.double() - x.double().mean(0)).square().sum()
    assert got.explained_variance == pytest.approx(float(1 - residual / total), abs=1e-6)
    rows, values = top_activations(sae, TensorRows(x), torch.arange(16), 1, 10)
    assert torch.equal(values[:, 0], codes.max(0).values)  # the same bits for any batch
    assert torch.equal(rows[:, 0][got.counts > 0], codes.argmax(0)[got.counts > 0])
