"""The nearest rows, against all cosines in float64."""

import pytest
import torch

from saekern.features import in_other, in_same


def cosines(a, b):
    a, b = a.double(), b.double()
    return (a / a.norm(dim=1, keepdim=True)) @ (b / b.norm(dim=1, keepdim=True)).T


def test_in_other():
    """Planted: mutual always true; caught."""
    a, b = torch.randn(40, 5), torch.randn(60, 5)
    latents = torch.tensor([7, 3, 39, 0])
    found = in_other(a, b, latents, 3)
    all_of_them = cosines(a, b)
    want, index = all_of_them[latents].topk(3)
    assert torch.equal(found.index, index)
    torch.testing.assert_close(found.cosine.double(), want, atol=1e-6, rtol=0)
    back = all_of_them.argmax(0)
    assert found.mutual.tolist() == [bool(back[index[i, 0]] == latent) for i, latent in enumerate(latents)]
    assert 0 < sum(in_other(a, b, torch.arange(40)).mutual) < 40


def test_in_same():
    a = torch.randn(30, 4)
    found = in_same(a, torch.arange(30), 4)
    others = cosines(a, a).fill_diagonal_(-2)
    want, index = others.topk(4)
    assert torch.equal(found.index, index)
    torch.testing.assert_close(found.cosine.double(), want, atol=1e-6, rtol=0)
    assert found.mutual.tolist() == [bool(index[index[i, 0], 0] == i) for i in range(30)]


def test_copies():
    """More copies than places: the latent itself may stand outside the list. Planted: the first dropped; caught."""
    a = torch.ones(9, 3)
    found = in_same(a, torch.tensor([0, 4, 8]), 2)
    assert found.index.tolist() == [[1, 2], [0, 1], [0, 1]]
    assert found.cosine.min() == pytest.approx(1, abs=1e-6)
    assert found.mutual.tolist() == [True, False, False]


def test_rows_of_norm_zero_and_few_rows():
    a = torch.eye(3)
    a[1] = 0
    found = in_same(a, torch.tensor([0, 1]), 5)
    assert found.index.tolist() == [[2, -1, -1, -1, -1], [-1] * 5]
    assert found.cosine[0, 0] == 0
    assert found.cosine[1].isnan().all()
    assert found.mutual.tolist() == [True, False]
    other = in_other(a, torch.zeros(4, 3), torch.tensor([0, 1]))
    assert other.index.tolist() == [[-1, -1]] * 2
    assert not other.mutual.any()
    assert in_same(torch.ones(1, 3), torch.tensor([0]), 2).index.tolist() == [[-1, -1]]


def test_other_types_and_widths():
    a, b = torch.randn(8, 4), torch.randn(9, 4)
    for dtype in (torch.float64, torch.bfloat16):
        found = in_other(a, b.to(dtype), torch.arange(8))
        assert torch.equal(found.index[:, 0], cosines(a, b.to(dtype)).argmax(1))
    with pytest.raises(ValueError, match="expected rows as wide as this SAE's, 4, got 5"):
        in_other(a, torch.randn(3, 5), torch.tensor([0]))
