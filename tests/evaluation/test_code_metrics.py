"""Metrics of codes on cases worked by hand, dense and sparse alike."""

import math
from typing import NamedTuple

import pytest
import torch

from saekern import evaluation


class Codes(NamedTuple):
    values: torch.Tensor
    indices: torch.Tensor
    offsets: torch.Tensor | None = None


DENSE = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 2.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [3.0, 0.0, 0.0, 4.0]])
TOPK = Codes(
    torch.tensor([[1.0, 1.0], [2.0, 0.0], [0.0, 0.0], [4.0, 3.0]]), torch.tensor([[2, 0], [1, 3], [0, 1], [3, 0]])
)
RAGGED = Codes(torch.tensor([1.0, 1.0, 2.0, 4.0, 3.0]), torch.tensor([2, 0, 1, 3, 0]), torch.tensor([0, 2, 3, 3, 5]))
KINDS = pytest.mark.parametrize("codes", [DENSE, TOPK, RAGGED])


@KINDS
def test_hoyer(codes):
    """√4 = 2; rows: (2 − 2/√2)/1, 1, none, (2 − 7/5)/1."""
    assert evaluation.hoyer(codes, 4) == pytest.approx(((2 - math.sqrt(2)) + 1 + 0.6) / 3)
    assert math.isnan(evaluation.hoyer(torch.zeros(3, 4)))
    assert evaluation.hoyer(torch.ones(3, 9)) == pytest.approx(0)


@KINDS
def test_connectivity(codes):
    """Together: 0·2, 0·3, and each with itself: 2 + 2 + 4 of 16."""
    assert evaluation.connectivity(codes, 4) == pytest.approx(1 - 8 / 16)
    assert evaluation.connectivity(torch.tensor([[1.0, 1.0], [1.0, -1.0]])) == 0, "sums that cancel still met"


@KINDS
def test_negative_interference(codes):
    """ZᵀZ: 0·2 → 1, 0·3 → 12. d₀·d₂ = −2, d₀·d₃ = +1, so √(2·2²). Planted: the sign; sorting the given indices
    in place. Both were caught."""
    dictionary = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-2.0, 5.0], [1.0, 1.0]])
    assert evaluation.negative_interference(codes, dictionary) == pytest.approx(math.sqrt(8))
    opposed = dictionary * torch.tensor([[1.0], [1.0], [1.0], [-1.0]])
    assert evaluation.negative_interference(codes, opposed) == pytest.approx(math.sqrt(8 + 2 * 144))
    with pytest.raises(ValueError, match="dictionary"):
        evaluation.negative_interference(DENSE, dictionary[:3])


@KINDS
def test_soft_identifiability(codes):
    """Class 0 is rows 0 and 3: latent 0 above 0, all right. Class 1 is row 0 alone: latent 2. Class 2 is rows 1 and 2:
    z₀ has it upside down; best is latent 1 (row 1; 3 of 4). Class 3 is nobody: λ above all."""
    labels = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0], [1, 0, 0, 0]], dtype=torch.bool)
    mean, accuracy = evaluation.soft_identifiability(codes, labels, 4)
    assert accuracy.tolist() == [1.0, 1.0, 0.75, 1.0]
    assert mean == pytest.approx(0.9375)


def test_soft_identifiability_by_search():
    """Against every threshold of every latent; negative and tied codes too. Planted: cuts inside ties; caught."""
    codes = (3 * torch.randn(31, 6)).round() / 2 * (torch.rand(31, 6) < 0.6)
    labels = torch.rand(31, 5) < 0.4
    levels = torch.cat([torch.linspace(-5, 5, 41) + 0.1, torch.tensor([-100.0, 100.0])])
    predicted = codes[None] > levels[:, None, None]  # [levels, n, F]
    right = (predicted[..., None] == labels[:, None]).double().mean(1)  # [levels, F, c]
    mean, accuracy = evaluation.soft_identifiability(codes, labels)
    torch.testing.assert_close(accuracy, right.amax((0, 1)))
    assert mean == pytest.approx(float(right.amax((0, 1)).mean()))


def test_bad_codes():
    with pytest.raises(ValueError, match="d_sae: expected the number of latents"):
        evaluation.hoyer(TOPK)
    with pytest.raises(ValueError, match="codes: expected finite values"):
        evaluation.hoyer(torch.tensor([[math.nan, 1.0]]))
    with pytest.raises(ValueError, match=r"codes: expected shape \[n, F\]"):
        evaluation.connectivity(torch.ones(3))
    with pytest.raises(ValueError, match=r"labels: expected bool \[4, c\]"):
        evaluation.soft_identifiability(DENSE, torch.zeros(3, 2, dtype=torch.bool))
