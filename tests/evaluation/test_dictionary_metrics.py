"""Metrics of dictionaries and R² on cases worked by hand."""

import math

import pytest
import torch

from saekern import evaluation, stability

S = math.sqrt(0.5)


def tensor(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def test_ranks():
    """σ = 3, 4 and σ = 1, 1, 1; a rank-one matrix has rank 1. Planted: p of σ² in the effective rank; caught."""
    a = tensor([3, 0, 0], [0, 4, 0])
    assert evaluation.stable_rank(a) == pytest.approx(25 / 16)
    p, q = 3 / 7, 4 / 7
    assert evaluation.effective_rank(a) == pytest.approx(math.exp(-p * math.log(p) - q * math.log(q)))
    assert evaluation.stable_rank(torch.eye(3)) == pytest.approx(3)
    assert evaluation.effective_rank(torch.eye(3)) == pytest.approx(3)
    line = torch.arange(1.0, 6)[:, None] * torch.ones(5, 7)
    assert evaluation.stable_rank(line) == pytest.approx(1)
    assert evaluation.effective_rank(line) == pytest.approx(1)
    with_zeros = torch.cat([a, torch.zeros(5, 3, dtype=torch.float64)])
    assert evaluation.stable_rank(with_zeros) == pytest.approx(25 / 16)
    assert math.isnan(evaluation.stable_rank(torch.zeros(2, 3)))


def test_coherence():
    """Planted: the diagonal left in; only signed cosines. Both were caught."""
    assert evaluation.coherence(torch.eye(4)) == pytest.approx(0, abs=1e-6)
    assert evaluation.coherence(tensor([2, 0], [S, S], [0, 0])) == pytest.approx(S, abs=1e-6)
    assert evaluation.coherence(tensor([2, 0], [-3, 0.1], [0, 1])) == pytest.approx(3 / math.hypot(3, 0.1), abs=1e-6)
    assert evaluation.coherence(tensor([1, 2], [1, 2], [0, 1])) == pytest.approx(1, abs=1e-6)
    assert math.isnan(evaluation.coherence(tensor([1, 2], [0, 0])))
    rows = torch.randn(50, 20, dtype=torch.float64)
    unit = rows / rows.norm(dim=1, keepdim=True)
    want = float((unit @ unit.T).abs().fill_diagonal_(0).max())
    assert evaluation.coherence(rows) == pytest.approx(want, abs=1e-12)
    assert evaluation.coherence(rows.float()) == pytest.approx(want, abs=1e-5)


def test_ood_score_and_plausibility(monkeypatch):
    """Atoms at 45° and on a data row: 1 − (S + 1)/2. In blocks of two rows as in one."""
    atoms, data = tensor([1, 1], [0, 5], [0, 0]), tensor([3, 0], [0, 0], [0, 1], [-1, -1], [2, 0])
    want = 1 - (S + 1) / 2
    assert evaluation.ood_score(atoms, data) == pytest.approx(want, abs=1e-6)
    with pytest.raises(ValueError, match=r"rows: expected shape \[n, 2\], got \[3, 4\]"):
        evaluation.ood_score(atoms, torch.ones(3, 4))
    monkeypatch.setattr("saekern.evaluation.dictionary_metrics.BLOCK", 2)
    assert evaluation.ood_score(atoms, data) == pytest.approx(want, abs=1e-6)
    classes = tensor([2, 0], [0, -1], [0, 0])
    assert evaluation.plausibility(atoms, classes) == pytest.approx((S - S) / 2, abs=1e-6)
    assert evaluation.plausibility(tensor([-1, 0], [0, 0]), tensor([1, 0])) == pytest.approx(-1), (
        "not the zero atom's 0"
    )
    assert evaluation.zero_atoms(atoms) == 1
    with pytest.raises(ValueError, match="rows: expected at least one row that is not zero"):
        evaluation.ood_score(atoms, torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"dictionary: expected finite entries"):
        evaluation.stable_rank(tensor([1, math.nan]))


def test_r2():
    """x = (0, 10), (2, 10); x̂ = (1, 10), (2, 11). Errors −1, 0, 0, −1.
    x̄ = (1, 10): Σ = 2. All numbers' mean 5.5: 4·5.5² − … = 30.25 + 20.25 + 12.25 + 20.25 = 83."""
    x, x_hat = tensor([0, 10], [2, 10]), tensor([1, 10], [2, 11])
    assert evaluation.r2(x, x_hat) == pytest.approx(1 - 2 / 2)
    assert evaluation.r2(x, x_hat, "scalar") == pytest.approx(1 - 2 / 83)
    assert evaluation.r2(x, x_hat, "dimensions") == pytest.approx(1 - 1 / 2), "the constant dimension is left out"
    assert evaluation.r2(x, x_hat, "rows") == pytest.approx((0 + 0) / 2)
    assert evaluation.r2(x, x_hat, "residual") == pytest.approx(1 - 1 / 2), "errors about (−1/2, −1/2)"
    for about in ("mean", "scalar", "dimensions", "rows", "residual"):
        assert evaluation.r2(x, x, about) == 1
    with pytest.raises(ValueError, match="about: expected"):
        evaluation.r2(x, x, "median")
    with pytest.raises(ValueError, match="x_hat: expected the shape of x"):
        evaluation.r2(x, x[:1])


def test_stability_of_dictionaries():
    """Three dictionaries; pairs (a, b) and (a, c), (b, c) by hand."""
    a = tensor([1, 0], [0, 2], [0, 0])
    b = tensor([0, 1], [3, 0])
    c = tensor([-1, 0], [0, 1])
    assert stability.dictionary_stability([a, b]) == pytest.approx(1, abs=1e-6)
    assert stability.dictionary_stability([a, c]) == pytest.approx(0, abs=1e-6), "(−1 + 1)/2, or crosswise (0 + 0)/2"
    assert stability.dictionary_stability([a, c], absolute=True) == pytest.approx(1)
    assert stability.dictionary_stability([a, b, c]) == pytest.approx(1 / 3, abs=1e-6)
    rows = torch.randn(40, 12)
    assert stability.dictionary_stability([rows, -rows[torch.randperm(40)]], absolute=True) == pytest.approx(
        1, abs=1e-6
    )
    signed = stability.dictionary_stability([rows, torch.randn(40, 12)])
    assert 0.3 < signed < 0.7, "chance is far from 0"
    with pytest.raises(ValueError, match="dictionaries: expected at least 2, got 1"):
        stability.dictionary_stability([rows])
