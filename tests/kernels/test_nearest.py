"""The Triton all-pairs cosines against float64, and the bound that lets most of them be looked at in float16 only."""

import pytest
import torch
from bounds import UNIT, assert_within_bound

from saekern import ops, reference
from saekern.kernels import cosine_screen as screening
from saekern.kernels import nearest as kernel


def one_pair(device):
    return torch.zeros(1, 2, dtype=torch.int32, device=device)


def check(got, a, b):
    """Values within float32's rounding of float64's best; a partner that is clearly best is the one named."""
    table = reference.cosines(a.double(), b.double())
    want = reference.nearest(a.double(), b.double())
    for side, matrix in ((0, table), (2, table.T)):
        cosine, index = got[side].cpu(), got[side + 1].cpu()
        assert cosine.dtype == torch.float32
        assert index.dtype == torch.int64
        assert_within_bound("cosine", cosine, want[side], 2.0, a.shape[1] + 4)  # Σ|products| of unit rows is at most 1
        chosen = matrix.gather(1, index[:, None])[:, 0]
        assert_within_bound("cosine of the index", chosen, want[side], 2.0, a.shape[1] + 4)
        two = matrix.topk(min(2, matrix.shape[1]), dim=1).values
        clear = ~(two[:, 0] - two[:, -1] <= 1e-5)  # NaN too
        assert torch.equal(index[clear], want[side + 1][clear])


def exact(a, b):
    """The float32 cosine of every pair of rows, by the kernel that computes all of them in the same order of sums."""
    from saekern.kernels.nearest_top import nearest_top

    cosine, index, _ = nearest_top(a, b, b.shape[0])
    return torch.empty_like(cosine).scatter(1, index, cosine)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 9, 5), (23, 1, 3), (17, 31, 29), (5, 130, 71), (260, 5, 13)])
def test_both_directions(device, shape):
    """Rows of very different norms, more than a tile of them. Planted: b's groups taken for a's; caught."""
    fa, fb, width = shape
    a = torch.randn(fa, width) * 10 ** torch.empty(fa, 1).uniform_(-12, 12)
    b = torch.randn(fb, width)
    check(kernel.nearest(a.to(device), b.to(device)), a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_strides(device, dtype):
    a, b = torch.randn(9, 40).to(dtype), torch.randn(11, 40).to(dtype)
    got = kernel.nearest(a.to(device), b.to(device))
    check(got, a, b)
    odd = kernel.nearest(a.to(device).t().contiguous().t(), torch.stack([b, b], 1).to(device)[:, 1])
    assert all(torch.equal(x, y) for x, y in zip(got, odd, strict=True))


def test_preparation(device):
    rows = torch.randn(2, 11, 70) * 10 ** torch.empty(2, 11, 1).uniform_(-30, 30)
    rows[0, 3] = 0
    rows[1, 4, 2], rows[1, 9, 0] = torch.inf, torch.nan
    rows[0, 8] = 1e-44  # its norm is below 2⁻¹²⁶
    p = screening.prepare(rows.to(device))
    norm = rows.double().norm(dim=2)
    norm[0, 3] = norm[0, 8] = torch.inf
    norm[1, 4] = norm[1, 9] = torch.nan
    want = 1 / norm
    assert_within_bound("inverse", p.inverse.cpu(), want, want.nan_to_num(), 1)
    unit = (rows.double() * want[:, :, None]).nan_to_num()
    assert_within_bound("rounded", p.rounded.cpu()[:, :, :70].float(), unit, 2.0**12 * (unit.abs() + 2.0**-14), 0)
    assert not p.rounded[:, :, 70:].any()
    assert not p.rounded[norm.to(device).isnan()].any()
    residual = (p.rounded.cpu()[:, :, :70].double() - unit).norm(dim=2)
    assert_within_bound("residual", p.residual.cpu(), residual, 1.0, 1)
    assert torch.equal(p.worst, p.residual.amax(1))
    assert p.bad.tolist() == [11, 4]


@pytest.mark.parametrize("shape", [(1, 1, 3), (300, 270, 65), (17, 129, 64), (257, 40, 200)])
def test_group_maxima_and_their_bound(device, shape):
    """Every group's maximum is in its place, within the bound of the exact one, on either side of tiles' edges; nothing
    is there for groups without rows. Planted: b's maxima stored by a's groups; the last tile's rows beyond the end not
    masked. Both caught."""
    fa, fb, width = shape
    a, b = torch.randn(fa, width), torch.randn(fb, width)
    a[-1], b[-1] = a[0], a[0]
    if fa > 2:
        a[1], b[1] = 1.0, 1 + 2.0**-11  # rounds down everywhere: nearly as wrong as the bound allows
    pa, pb = (screening.prepare(t[None].to(device)) for t in (a, b))
    tops = screening.screen(pa, pb, one_pair(device), both=True)
    table = reference.cosines(a.double(), b.double())
    slack = (pa.residual[0, :, None] + (1 + pa.residual[0, :, None]) * pb.worst).cpu() * 1.002
    for side, (matrix, tile) in enumerate(((table, screening.TILE_B), (table.T, screening.TILE_A))):
        member = torch.arange(8)
        group = torch.arange(tops[side].shape[2])
        inner = group % (tile // 8)
        base = group // (tile // 8) * tile + inner // 4 * 16 + inner % 4 * 2
        members = base[:, None] + (member >> 2) * (tile // 2) + (member >> 1 & 1) * 8 + (member & 1)
        assert torch.equal(members.flatten().sort().values, torch.arange(members.numel()))
        inside = members < matrix.shape[1]
        picked = matrix[:, members.clamp(max=matrix.shape[1] - 1)].masked_fill(~inside, -4.0).amax(2)
        if side:
            slack = (pb.residual[0, :, None] + (1 + pb.residual[0, :, None]) * pa.worst).cpu() * 1.002
        got = tops[side][0].double().cpu()
        bound = slack + (1.25 * width + 128) * 2.0**-23 + 0.00049 * got.abs()
        assert bool(((got - picked).abs() <= bound).all())
        assert torch.equal(got == -4, ~inside.any(1).expand_as(got))


def test_near_ties_are_settled_in_float32(device):
    """Partners that differ by less than float16 shows, the best one not the first, in the same group and in others: the
    answer is the largest float32 cosine at the smallest index. Planted: the best approximate cosine taken; no group but
    the leading one; ties to the later row. All caught."""
    a = torch.randn(3, 96)
    b = torch.randn(60, 96)
    for row in range(3):
        near = row + 3 * torch.arange(19)
        b[near] = a[row] + 2e-4 * torch.randn(19, 96) * torch.linspace(1, 0.5, 19)[:, None]
    b[57] = a[1]
    b[30] = 2 * a[1]  # exactly the same direction
    table = exact(a.to(device), b.to(device)).cpu()
    cosine, index, b_cosine, b_index = (t.cpu() for t in kernel.nearest(a.to(device), b.to(device)))
    assert torch.equal(cosine, table.amax(1))
    first = (table == table.amax(1, keepdim=True)).to(torch.uint8).argmax(1)
    assert torch.equal(index, first)
    assert torch.equal(b_cosine, table.amax(0))
    assert torch.equal(b_index, (table == table.amax(0)).to(torch.uint8).argmax(0))


def test_rounding_at_its_worst(device):
    """All of a's 64 coordinates are rounded in the direction of the best partner, whose approximate cosine is 0 instead
    of 2.2e-4; another's is 1.2e-4, and right. From either side. Planted: no bound; only the own row's residual in it.
    Both caught."""
    base, toward = torch.ones(64), torch.ones(64)
    base[32:], toward[::2] = -1, -1
    row = base + 2.2e-4 * toward
    other = torch.zeros(64)
    other[:2], other[2:4] = 0.5, torch.tensor([-0.5, -0.5 + 2.0**-10])
    for single, partners in ((row, [toward, -base, other]), (toward, [row, -toward, other])):
        found = kernel.nearest(single[None].to(device), torch.stack(partners).to(device))
        cosine, index = (t.cpu() for t in found[:2])
        assert index.tolist() == [0]
        assert cosine.item() == pytest.approx(2.2e-4, rel=1e-3)


def test_identical_rows_everywhere(device):
    """Every group qualifies: slower, and still the smallest index."""
    a = torch.ones(2, 16, device=device)
    cosine, index, b_cosine, b_index = kernel.nearest(a, torch.ones(40, 16, device=device))
    assert not index.any()
    assert not b_index.any()
    assert_within_bound("cosine", cosine.cpu(), torch.ones(2, dtype=torch.float64), 1.0, 20)
    assert torch.equal(b_cosine, cosine[:1].expand(40))


def test_all_cosines_negative(device):
    """Nothing beyond the last row counts, though zeros would score more. Planted: zeros beyond it; caught."""
    a = torch.rand(19, 24) + 0.5
    b = -torch.rand(21, 24) - 0.5
    got = kernel.nearest(a.to(device), b.to(device))
    assert bool((got[0] < -0.5).all())
    check(got, a, b)


def test_zero_rows_score_zero(device):
    a, b = torch.zeros(4, 3), -torch.ones(5, 3)
    a[1] = 1
    a_cosine, a_index, b_cosine, b_index = (t.cpu() for t in kernel.nearest(a.to(device), b.to(device)))
    assert a_cosine.tolist()[0::2] == [0, 0]
    assert not a_index.any()
    assert a_cosine[1].item() == pytest.approx(-1, abs=1e-6)
    assert not b_cosine.any()  # a zero row of a beats the cosine −1
    assert not b_index.any()


def test_rows_with_nan_are_largest(device):
    """Planted: the first NaN row not looked for; caught."""
    a, b = torch.randn(9, 12), torch.randn(11, 12)
    a[7, 2], b[8, 0], b[3, 5] = torch.nan, torch.inf, -torch.inf
    a[5] = 0
    got = [t.cpu() for t in kernel.nearest(a.to(device), b.to(device))]
    want = reference.nearest(a, b)
    assert torch.equal(got[0].isnan(), want[0].isnan())
    assert torch.equal(got[1], want[1])
    assert torch.equal(got[2].isnan(), want[2].isnan())
    assert torch.equal(got[3], want[3])


def test_pairs_in_one_launch_are_the_pairs_one_by_one(device, monkeypatch):
    """Bit for bit, for unequal sizes, several launches, and again. Planted: a's dictionary read with b's number; the
    second launch's results over the first's. All caught."""
    a, b = torch.randn(3, 5, 20).to(device), torch.randn(2, 7, 20).to(device)
    pairs = torch.tensor([[0, 1], [2, 0], [1, 1], [0, 0], [2, 1]], dtype=torch.int32, device=device)
    pa, pb = screening.prepare(a), screening.prepare(b)
    want = [torch.stack(parts) for parts in zip(*(kernel.nearest(a[i], b[j]) for i, j in pairs), strict=True)]
    for budget in (2**28, 2 * 2 * (5 * 16 + 7 * 32)):  # all at once, two at a time
        monkeypatch.setattr(kernel, "TOPS_BYTES", budget)
        got = kernel.nearest_pairs(pa, pb, pairs)
        assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))
    assert all(t.shape[0] == 0 for t in kernel.nearest_pairs(pa, pb, pairs[:0]))


def test_blocks_of_rows_change_nothing(device, monkeypatch):
    """As for a pair whose maxima exceed the budget: b's best is carried from one block of a's rows to the next; ties,
    and a NaN row in the last block. Planted: each block's answer over the last one's; a's rows numbered from their
    block's first. Both caught."""
    a, b = torch.randn(1, 37, 9).to(device), torch.randn(2, 3, 9).to(device)
    a[0, [10, 35]], a[0, 20] = b[1, 0], 2 * b[1, 1]
    ready, other = screening.prepare(a), screening.prepare(b)
    pairs = torch.tensor([[0, 1]], dtype=torch.int32, device=device)
    want = kernel.nearest_pairs(ready, other, pairs)
    assert want[3][0, :2].tolist() == [10, 20]
    monkeypatch.setattr(kernel, "batch", lambda *sizes: kernel.Batch(1, 16))
    assert all(torch.equal(x, y) for x, y in zip(want, kernel.nearest_pairs(ready, other, pairs), strict=True))
    a[0, 36, 0] = torch.nan
    assert kernel.nearest_pairs(screening.prepare(a), other, pairs)[3].tolist() == [[36] * 3]


def test_offsets_beyond_2_to_the_31(device):
    """The last of 2^25 + 1 dictionaries of one row of 64. Their memory is never touched but there. Planted: a row's
    number in 32 bits; the process died."""
    count = 2**25 + 1
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        rows, rounded = (torch.empty(count, 1, 64, dtype=torch.float16, device=device) for _ in range(2))
        inverse, residual = (torch.empty(count, 1, device=device) for _ in range(2))
        worst, bad = torch.empty(count, device=device), torch.empty(count, dtype=torch.int32, device=device)
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = True
    everything = screening.Prepared(rows, rounded, inverse, residual, worst, bad)
    for run, sign in ((0, 1.0), (count - 1, -1.0)):
        ready = screening.prepare(torch.full((1, 1, 64), sign, dtype=torch.float16, device=device))
        for whole, one in zip(everything, ready, strict=True):
            whole[run] = one[0]
    pairs = torch.tensor([[count - 1, 0], [0, count - 1], [count - 1, count - 1]], dtype=torch.int32, device=device)
    a_cosine, _, b_cosine, _ = kernel.nearest_pairs(everything, everything, pairs)
    assert a_cosine[:, 0].tolist() == [-1, -1, 1]
    assert b_cosine[:, 0].tolist() == [-1, -1, 1]


def test_cosines_are_the_same_from_either_side(device):
    a, b = torch.randn(10, 33).to(device), torch.randn(12, 33).to(device)
    a_cosine, a_index, b_cosine, b_index = kernel.nearest(a, b)
    mutual = b_index[a_index] == torch.arange(10, device=device)
    assert mutual.any()
    assert torch.equal(a_cosine[mutual], b_cosine[a_index[mutual]])
    swapped = kernel.nearest(b, a)
    assert torch.equal(swapped[0], b_cosine)
    assert torch.equal(swapped[1], b_index)


def test_same_answer_as_the_cpu(device):
    """Fixed orders of summation differ between the two, by no more than rounding."""
    a, b = torch.randn(14, 48), torch.randn(25, 48)
    b[7] = 3 * a[4]
    got, want = kernel.nearest(a.to(device), b.to(device)), ops.nearest(a, b)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g.cpu(), w, rtol=0, atol=52 * UNIT)


def test_plan_fits_the_device():
    """Four stages on a GPU of 227 KB, three on an A100, two where there are 99 KB; two pairs of 16,384 at a time."""
    assert [screening.plan(1, 1, kb).num_stages for kb in (232_448, 166_912, 101_376)] == [4, 3, 2]
    shape = screening.plan(16_384, 16_385, 232_448)
    assert (shape.tiles, shape.a_groups, shape.b_groups) == (64 * 129, 2048, 129 * 16)
    assert kernel.batch(16_384, 16_384, 232_448) == (2, 16_384)
    assert kernel.batch(131_072, 131_072, 232_448) == (1, 4096)
    assert kernel.batch(8, 8, 232_448) == (kernel.MOST_PAIRS, 8)


def test_launchers_need_no_look_at_the_data(monkeypatch):
    """On tensors without data: nothing is read back, and no [Fa, Fb] buffer is made."""
    from saekern.kernels import nearest_top as top

    class Launch:
        def __getitem__(self, grid):
            assert all(0 < size < 2**31 for size in grid)
            return lambda *arguments, **options: None

    for module, name in (
        (screening, "prepare_kernel"), (screening, "screen_kernel"), (kernel, "pick_kernel"), (top, "top_kernel"),
        (top, "table_kernel"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, Launch())
    dictionaries = torch.empty(4, 16_384, 768, device="meta")
    ready = screening.prepare(dictionaries)
    found = kernel.nearest_pairs(ready, ready, torch.empty(6, 2, dtype=torch.int32, device="meta"))
    assert [tuple(t.shape) for t in found] == [(6, 16_384)] * 4
    for m in (64, 65):
        assert [tuple(t.shape) for t in top.nearest_top(*dictionaries[:2], m)] == [(16_384, m), (16_384, m), (16_384,)]
