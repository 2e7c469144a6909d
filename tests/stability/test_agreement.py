"""Agreement of pairs of runs, and the overlap of nearest and one-to-one matches."""

import json

import pytest
import torch
from scipy.optimize import linear_sum_assignment as scipy_assignment

from saekern.matching import match_all
from saekern.stability import assignment_iou, pair_agreement, pw_mcc


def stores(runs, **options):
    return tuple(match_all(runs, method, progress=False, **options) for method in ("nearest", "assignment"))


def noisy_copies(count=3, size=80, width=16, noise=0.25):
    base = torch.nn.functional.normalize(torch.randn(size, width), dim=1)
    return [base[torch.randperm(size)] + noise * torch.randn(size, width) for _ in range(count)]


def test_iou_against_sets():
    """Planted: union counted as |A| alone of another run; caught. Planted: partners not compared; caught."""
    runs = noisy_copies()
    nearest, assignment = stores(runs)
    found = assignment_iou(nearest, assignment, threshold=0.7)
    partners_differ = False
    for i in range(3):
        for j in range(3):
            if i == j:
                assert found.features[i, j].isnan()
                continue
            a, b = (torch.nn.functional.normalize(runs[k].double(), dim=1) for k in (i, j))
            cosine = a @ b.T
            row, column = scipy_assignment(cosine.numpy(), maximize=True)
            value, index = cosine.max(1)
            matched = {(n, int(index[n])) for n in range(80) if value[n] >= 0.7}
            assigned = {(int(r), int(c)) for r, c in zip(row, column, strict=True) if cosine[r, c] >= 0.7}
            want_pairs = len(matched & assigned) / len(matched | assigned)
            left, right = {n for n, _ in matched}, {n for n, _ in assigned}
            assert found.features[i, j].item() == pytest.approx(len(left & right) / len(left | right))
            assert found.pairs[i, j].item() == pytest.approx(want_pairs)
            partners_differ |= want_pairs < len(left & right) / len(left | right)
    assert partners_differ
    summary = found.to_json()
    assert summary["undefined"] == 0
    assert 0 < summary["pairs"]["mean"] < summary["features"]["mean"] < 1
    assert summary["features"]["sd"] > 0


def test_iou_is_one_for_copies_and_undefined_without_matches():
    rows = torch.randn(50, 12)
    copies = assignment_iou(*stores([rows, rows.flip(0)]))
    assert (copies.features[0, 1].item(), copies.pairs[1, 0].item()) == (1.0, 1.0)
    nothing = assignment_iou(*stores([torch.eye(8)[:4], torch.eye(8)[4:]])).to_json()
    assert nothing["undefined"] == 2
    assert nothing["features"] == {"mean": None, "sd": None}
    json.dumps(nothing, allow_nan=False)


def test_two_latents_with_one_partner():
    """Both of a's latents are near b's first: nearest matches two, the assignment one. IoU of features is 1/2."""
    a = torch.tensor([[1.0, 0.1, 0.0], [1.0, -0.1, 0.0]])
    b = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    found = assignment_iou(*stores([a, b]))
    assert found.features[0, 1].item() == 0.5
    assert found.features[1, 0].item() == 1.0


def test_pair_agreement_with_dead_latents_and_unequal_sizes():
    """Planted: dead latents left in the denominator; caught."""
    rows = torch.randn(30, 12)
    other = torch.cat([rows[:20], torch.randn(25, 12)])
    dead = [torch.arange(30) >= 25, None]
    nearest, assignment = stores([rows, other], dead=dead)
    agreement = pair_agreement(nearest, threshold=0.99)
    assert agreement.match_rate[0, 1].item() == pytest.approx(20 / 25)
    assert agreement.match_rate[1, 0].item() == pytest.approx(20 / 45)
    one_to_one = pair_agreement(assignment, threshold=0.99)
    assert one_to_one.mean_cosine[0, 1].item() == pytest.approx(one_to_one.mean_cosine[1, 0].item())
    assert one_to_one.pw_mcc == pw_mcc(assignment)
    json.dumps(one_to_one.to_json(), allow_nan=False)
    assert "pw_mcc" not in agreement.to_json()


def test_pw_mcc_is_the_mean_matched_cosine():
    runs = noisy_copies(noise=0.5)
    want = []
    for i, j in ((0, 1), (0, 2), (1, 2)):
        a, b = (torch.nn.functional.normalize(runs[k].double(), dim=1) for k in (i, j))
        row, column = scipy_assignment((a @ b.T).numpy(), maximize=True)
        want.append((a[row] * b[column]).sum(1).mean().item())
    assert pw_mcc(stores(runs)[1]) == pytest.approx(sum(want) / 3, abs=1e-6)


def test_errors():
    nearest, assignment = stores([torch.randn(4, 3), torch.randn(5, 3)])
    with pytest.raises(ValueError, match=r"nearest: expected a store with method 'nearest', got 'assignment'"):
        assignment_iou(assignment, nearest)
    with pytest.raises(ValueError, match=r"assignment: expected the dictionaries and masks of nearest"):
        assignment_iou(nearest, stores([torch.randn(4, 3), torch.randn(5, 3)])[1])
    with pytest.raises(
        ValueError, match=r"pw_mcc: expected one-to-one matchings \(method 'assignment'\), got 'nearest'"
    ):
        pw_mcc(nearest)
