"""Two dictionaries: partners, assignments, latents set aside, and errors."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment as scipy_assignment

from saekern.matching import center, match, whiten

UNIT = 2.0**-24  # unit roundoff of float32


def cosines64(a, b):
    a, b = a.double(), b.double()
    return (a / a.norm(dim=1, keepdim=True)) @ (b / b.norm(dim=1, keepdim=True)).T


def cosine_bound(width):
    # Two normalisations and a sum of `width` products of unit vectors, whose magnitudes sum to at most 1.
    return 2 * (2 * width + 8) * UNIT


@pytest.mark.parametrize(("fa", "fb", "width"), [(1, 1, 1), (1, 7, 3), (13, 1, 2), (31, 64, 17), (129, 127, 16)])
@pytest.mark.parametrize("method", ["nearest", "assignment"])
def test_cosines_against_float64(fa, fb, width, method):
    """Planted: the partner's cosine read from a neighbouring column of the matrix; caught."""
    a, b = torch.randn(fa, width), torch.randn(fb, width)
    want = cosines64(a, b)
    got = match(a, b, method)
    found = got.index >= 0
    assert int(found.sum()) == (fa if method == "nearest" else min(fa, fb))
    rows = torch.arange(fa)[found]
    error = (got.cosine[found].double() - want[rows, got.index[found]]).abs()
    assert bool((error <= cosine_bound(width)).all())
    if method == "nearest":
        assert bool((want.max(1).values - want[rows, got.index] <= 2 * cosine_bound(width)).all())
    else:
        row, column = scipy_assignment(want.numpy(), maximize=True)
        assert len(set(got.index[found].tolist())) == min(fa, fb)
        best = want.numpy()[row, column].sum()
        assert abs(want[rows, got.index[found]].sum().item() - best) <= min(fa, fb) * 2 * cosine_bound(width)


def test_margin_is_distance_to_the_runner_up():
    a, b = torch.randn(29, 11), torch.randn(37, 11)
    got = match(a, b, "nearest")
    top = cosines64(a, b).topk(2, dim=1).values
    assert bool(((top[:, 0] - top[:, 1] - got.margin).abs() <= 2 * cosine_bound(11)).all())
    assert match(a, b[:1], "nearest").margin.isnan().all()
    assert bool((match(a, b, "assignment").margin >= 0).all())


def test_permuted_copy_is_found_by_both_methods():
    a = torch.randn(257, 16)
    order = torch.randperm(257)
    for method in ("nearest", "assignment"):
        got = match(a[order], a, method)
        assert torch.equal(got.index, order)
        assert bool(((got.cosine - 1).abs() <= cosine_bound(16)).all())


@pytest.mark.parametrize("method", ["nearest", "assignment"])
def test_dead_and_zero_latents_are_nobodys_partner(method):
    """Planted: partners numbered among live latents only; caught. Planted: mask of b ignored; caught."""
    a, b = torch.randn(40, 8), torch.randn(50, 8)
    b[:20] = a[20:]  # perfect partners, of which some are dead
    a[3], b[7] = 0, 0
    dead_a, dead_b = torch.zeros(40, dtype=torch.bool), torch.zeros(50, dtype=torch.bool)
    dead_a[[0, 25]], dead_b[[1, 49]] = True, True
    got = match(a, b, method, dead=(dead_a, dead_b))
    aside = torch.tensor([0, 3, 25])
    assert torch.equal((got.index == -1).nonzero()[:, 0], aside)
    assert torch.equal(got.cosine.isnan().nonzero()[:, 0], aside)
    assert not set(got.index.tolist()) & {1, 7, 49}
    for latent in range(20, 40):
        if latent not in (21, 25, 27):
            assert got.index[latent] == latent - 20
    assert got.cosine[21] < 0.999  # its copy, b's latent 1, is dead


def test_nothing_live_on_one_side():
    a, b = torch.randn(5, 4), torch.zeros(6, 4)
    for method in ("nearest", "assignment"):
        got = match(a, b, method)
        assert bool((got.index == -1).all())
        assert bool(got.cosine.isnan().all())


def test_left_over_latents_of_the_larger_side():
    got = match(torch.randn(9, 4), torch.randn(5, 4))
    assert int((got.index >= 0).sum()) == 5
    assert torch.equal(got.index < 0, got.cosine.isnan())


def test_takes_saes_half_precision_and_views():
    class Sae:
        dictionary = torch.nn.Parameter(torch.randn(24, 12, dtype=torch.float64))

    rows = Sae.dictionary.detach()
    assert match(Sae(), rows).cosine.dtype == torch.float64
    strided = rows.float().T.contiguous().T
    for method in ("nearest", "assignment"):
        assert torch.equal(
            match(strided, rows.float(), method).cosine, match(rows.float(), rows.float(), method).cosine
        )
        assert match(rows.half(), rows.bfloat16(), method).cosine.dtype == torch.float32


@pytest.mark.parametrize("method", ["nearest", "assignment"])
def test_same_bits_for_any_thread_count(method):
    a, b = torch.randn(301, 33), torch.randn(283, 33)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(match(a, b, method))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert torch.equal(results[0].index, other.index)
        assert np.array_equal(results[0].cosine.numpy(), other.cosine.numpy(), equal_nan=True)


def test_center_removes_what_an_offset_adds():
    """Independent random atoms around a mean four times their norm: matched cosine 0.949 (methods: 200 atoms, 384).
    Planted: the mean added instead of subtracted; caught."""
    mean = torch.randn(384)
    mean *= 4 / mean.norm()
    a, b = (torch.nn.functional.normalize(torch.randn(200, 384), dim=1) + mean for _ in range(2))
    assert match(a, b).cosine.mean().item() == pytest.approx(0.949, abs=0.005)
    centered = match(center(a, mean), center(b, mean)).cosine.mean().item()
    assert centered == pytest.approx(0.132, abs=0.01)


def test_center_leaves_zero_atoms_zero():
    a = torch.randn(4, 3)
    a[2] = 0
    assert torch.equal(center(a, torch.ones(3))[2], torch.zeros(3))


def test_whiten_gives_data_unit_covariance():
    mixing = torch.randn(6, 6, dtype=torch.float64)
    rows = torch.randn(4000, 6, dtype=torch.float64) @ mixing
    covariance = rows.T @ rows / len(rows)
    white = whiten(rows, covariance, floor=1e-12)
    torch.testing.assert_close(white.T @ white / len(rows), torch.eye(6, dtype=torch.float64))


def test_errors():
    a = torch.randn(4, 3)
    with pytest.raises(ValueError, match=r"method: expected one of assignment, nearest, got 'hungarian'"):
        match(a, a, "hungarian")
    with pytest.raises(ValueError, match=r"b: expected shape \[Fb, 3\] like a's width, got \[4, 5\]"):
        match(a, torch.randn(4, 5))
    with pytest.raises(TypeError, match=r"a: expected a tensor \[F, D\] or an SAE with \.dictionary, got list"):
        match([1.0], a)
    with pytest.raises(ValueError, match=r"b: expected shape \[F, D\] with F, D >= 1, got \[0, 3\]"):
        match(a, a[:0])
    with pytest.raises(ValueError, match=r"a: expected a floating-point tensor, got torch.int64"):
        match(a.long(), a)
    broken = a.clone()
    broken[2, 1] = torch.nan
    with pytest.raises(ValueError, match=r"a: expected finite entries, got NaN or Inf in 1 rows, first row 2"):
        match(broken, a)
    with pytest.raises(ValueError, match=r"dead mask of b: expected bool \[4\], got torch.bool \[3\]"):
        match(a, a, dead=(None, torch.zeros(3, dtype=torch.bool)))
    with pytest.raises(ValueError, match=r"mean: expected finite entries, shape \[3\], got shape \[4\]"):
        center(a, torch.zeros(4))
    with pytest.raises(ValueError, match=r"covariance: expected finite entries, shape \[3, 3\], got shape \[2, 2\]"):
        whiten(a, torch.eye(2))
    with pytest.raises(ValueError, match=r"covariance: expected a positive eigenvalue"):
        whiten(a, torch.zeros(3, 3))
    with pytest.raises(ValueError, match=r"floor: expected 0 < floor <= 1, got 0"):
        whiten(a, torch.eye(3), floor=0)
