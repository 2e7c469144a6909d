"""The Triton list of the best partners against float64, and the bound on what is not in it."""

import pytest
import torch
from bounds import assert_within_bound

from saekern import reference
from saekern.kernels import nearest_top as kernel
from saekern.kernels.nearest import nearest


def top(a, b, m, device):
    return [t.cpu() for t in kernel.nearest_top(a.to(device), b.to(device), m)]


def check(got, a, b, m):
    """Values within float32's rounding of float64's, their partners too, descending, and none outside above `rest`."""
    cosine, index, rest = got
    table = reference.cosines(a.double(), b.double())
    want = reference.nearest_top(a.double(), b.double(), m)
    terms = a.shape[1] + 4
    assert_within_bound("cosine", cosine, want[0], 2.0, terms)
    assert_within_bound("rest", rest, want[2], 2.0, terms)
    assert_within_bound("cosine of the index", table.gather(1, index), want[0], 2.0, terms)
    assert torch.equal(cosine, cosine.sort(dim=1, descending=True).values)
    assert all(len(set(row)) == m for row in index.tolist())
    assert index.dtype == torch.int64


SHAPES = [(1, 1, 1, 1), (3, 1, 5, 1), (5, 7, 3, 7), (9, 90, 24, 1), (4, 90, 29, 13), (3, 141, 20, 64), (2, 141, 70, 65)]


@pytest.mark.parametrize("shape", SHAPES)
def test_lists(device, shape):
    """m = 1, m = F, a list of 65, whole rows sorted. Planted: the threshold from one group too few; the list's
    least place not the one replaced; the rest one place early. All caught."""
    fa, fb, width, m = shape
    a, b = torch.randn(fa, width) * torch.rand(fa, 1) * 5, torch.randn(fb, width)
    check(top(a, b, m, device), a, b, m)


def test_first_partner_is_the_nearest_bit_for_bit(device):
    a, b = torch.randn(6, 40).to(device), torch.randn(50, 40).to(device)
    cosine, index, _ = kernel.nearest_top(a, b, 3)
    best = nearest(a, b)
    assert torch.equal(cosine[:, 0], best[0])
    assert torch.equal(index[:, 0], best[1])


def tied(rows, count, width):
    """b of few directions, each many times; a of the same."""
    b = torch.randn(3, width)[torch.arange(count) % 3] * 2.0 ** torch.randint(-3, 3, (count, 1))
    return b[:rows].clone(), b


@pytest.mark.parametrize("m", [4, 20, 30])
def test_lists_are_the_sorted_rows_cut_off(device, m, monkeypatch):
    """Ties without end, and both ways of making the list: same values, smaller indices first. Planted: ties to the
    larger index; caught."""
    a, b = tied(4, 30, 10)
    listed = top(a, b, m, device)
    monkeypatch.setattr(kernel, "WIDEST", 0)
    whole = top(a, b, m, device)
    for x, y in zip(listed, whole, strict=True):
        assert torch.equal(x, y)
    table = torch.empty(4, 30).scatter(1, *reversed(top(a, b, 30, device)[:2]))
    values, order = table.sort(dim=1, descending=True, stable=True)
    assert torch.equal(listed[0], values[:, :m])
    assert torch.equal(listed[1], order[:, :m])


def test_near_ties_are_settled_in_float32(device, monkeypatch):
    """Cosines 1e-6 apart around the cut, where float16 sees none. Planted: a threshold without the bound; caught."""
    a = torch.randn(3, 64)
    b = a[torch.arange(70) % 3] + 1e-3 * torch.randn(70, 64)
    listed = top(a, b, 9, device)
    check(listed, a, b, 9)
    monkeypatch.setattr(kernel, "WIDEST", 0)
    assert all(torch.equal(x, y) for x, y in zip(listed, top(a, b, 9, device), strict=True))


@pytest.mark.parametrize("widest", [64, 0])
def test_rest_bounds_everything_outside(device, widest, monkeypatch):
    monkeypatch.setattr(kernel, "WIDEST", widest)
    a, b = torch.randn(5, 16), torch.randn(40, 16)
    _, index, rest = top(a, b, 6, device)
    cosine, everything, none = top(a, b, 40, device)
    table = torch.empty_like(cosine).scatter(1, everything, cosine)
    assert torch.equal(table.scatter(1, index, -2.0).amax(1), rest)
    assert bool((none == -torch.inf).all())


@pytest.mark.parametrize("widest", [64, 0])
def test_zero_and_nan_rows(device, widest, monkeypatch):
    """Zero rows score 0, in a and in b; rows with NaN come first. Planted: NaN rows screened as zero rows; caught."""
    monkeypatch.setattr(kernel, "WIDEST", widest)
    a, b = torch.randn(5, 12), torch.randn(20, 12)
    a[1] = 0
    a[3] = -a[3].abs()
    b[[2, 11]] = 0
    b[15] = b[15].abs()
    got, want = top(a, b, 9, device), reference.nearest_top(a, b, 9)
    check(got, a, b, 9)
    assert torch.equal(got[1], want[1])
    assert got[0][1].tolist() == [0.0] * 9
    a[2, 4], b[7, 1], b[18, 0] = torch.nan, torch.inf, torch.nan
    got, want = top(a, b, 9, device), reference.nearest_top(a, b, 9)
    assert torch.equal(got[1], want[1])
    assert torch.equal(got[0].isnan(), want[0].isnan())
    assert torch.equal(got[2].isnan(), want[2].isnan())


def test_blocks_of_rows_change_nothing(device, monkeypatch):
    a, b = torch.randn(19, 10), torch.randn(9, 10)
    want = top(a, b, 2, device)
    monkeypatch.setattr(kernel, "TOPS_BYTES", 2 * 16 * 16)
    assert kernel.rows_at_once(9) == 16
    assert all(torch.equal(x, y) for x, y in zip(want, top(a, b, 2, device), strict=True))
    monkeypatch.setattr(kernel, "WIDEST", 0)
    monkeypatch.setattr(kernel, "TABLE", 9 * 10)
    assert all(torch.equal(x, y) for x, y in zip(want, top(a, b, 2, device), strict=True))


def test_strides_and_half_precision(device):
    a, b = torch.randn(4, 30).bfloat16(), torch.randn(12, 30).bfloat16()
    got = top(a, b, 5, device)
    check(got, a, b, 5)
    odd = top(a.t().contiguous().t(), torch.stack([b, b], 1)[:, 1], 5, device)
    assert all(torch.equal(x, y) for x, y in zip(got, odd, strict=True))


@pytest.mark.parametrize("m", [64, 65])
def test_five_million_partners_fit_the_grid(m):
    """A second or third axis ends at 65,535 programs. Planted: strips along the second; caught."""
    from saekern.bench.recorder import recorded

    a, b = (torch.empty(rows, 8, device="meta") for rows in (3, 5_000_000))
    launches = [step for step in recorded(lambda: kernel.nearest_top(a, b, m)).steps if step.kernel]
    assert launches[-1].name == ("top_kernel" if m <= kernel.WIDEST else "table_kernel")
    for step in launches:
        assert all(size <= 65_535 for size in step.grid[1:]), step.name
        assert step.grid[0] < 2**31
