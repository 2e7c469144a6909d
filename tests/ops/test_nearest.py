"""nearest and nearest_top: both directions, zero rows, ties and duplicates, at every instruction level."""

import pytest
import torch
from bounds import assert_within_bound

from saekern import _C, ops, reference

LEVELS = ("portable", "avx2", "avx512", "avx512bf16")
AVAILABLE = LEVELS[: LEVELS.index(_C.isa()) + 1]
SHAPES = [(1, 1, 1), (5, 7, 3), (65, 63, 1), (200, 333, 64), (129, 4097, 33), (2050, 1025, 100)]


def nearest(a, b, isa="", threads=2):
    out = [torch.empty(n, dtype=t) for n in (len(a), len(b)) for t in (torch.float32, torch.int64)]
    _C.nearest(a.numpy(), b.numpy(), *(t.numpy() for t in out), threads, isa)
    return out


def dictionaries(fa, fb, width):
    """With a planted partner, exact duplicates, zero rows and rows of very different norms."""
    a, b = torch.randn(fa, width) * torch.rand(fa, 1) * 5, torch.randn(fb, width)
    if fa > 64:
        b[20] = 3 * a[17]
        b[30] = b[20]
        a[40] = a[45] = 0.5 * b[33]
        a[3] = b[5] = b[9] = 0
    return a, b


@pytest.mark.parametrize("isa", AVAILABLE)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_both_directions(shape, isa):
    """Planted: the column pass left out its last block of rows; zero rows matched to the first partner; caught."""
    a, b = dictionaries(*shape)
    got = nearest(a, b, isa)
    want = reference.nearest(a.double(), b.double())
    cosine = reference.cosines(a.double(), b.double())
    for side, matrix in ((0, cosine), (2, cosine.T)):
        assert_within_bound("cosine", got[side], want[side], 2.0, shape[2] + 4)  # Σ|products| of unit rows is at most 1
        chosen = matrix.gather(1, got[side + 1][:, None])[:, 0]
        assert_within_bound("cosine of the index", chosen, want[side], 2.0, shape[2] + 4)
        clear = matrix.topk(min(2, matrix.shape[1]), dim=1).values
        certain = clear[:, 0] - clear[:, -1] > 1e-5
        assert torch.equal(got[side + 1][certain], want[side + 1][certain])


def test_ties_go_to_the_smaller_index():
    a, b = dictionaries(100, 100, 16)
    _, a_index, _, b_index = nearest(a, b)
    assert a_index[17] == 20  # 20 and 30 are equal
    assert b_index[33] == 40  # 40 and 45 are equal


def test_identical_rows_everywhere():
    """Every pair ties: time and memory stay bounded, the smallest index wins."""
    a = torch.ones(3000, 8)
    cosine, index, b_cosine, b_index = nearest(a, a[:2000])
    assert not index.any()
    assert not b_index.any()
    assert torch.allclose(cosine, torch.ones(3000))
    assert torch.allclose(b_cosine, torch.ones(2000))


def test_zero_rows_score_zero():
    """Planted: a negative best kept although a zero row would score 0; caught."""
    a, b = torch.zeros(4, 3), -torch.ones(5, 3)
    a[1] = 1  # every cosine with b is −1, except with nobody: b has no zero row
    pair = ops.nearest(a, b)
    assert pair.a_cosine.tolist()[0] == 0
    assert pair.a_index.tolist()[0] == 0
    assert pair.a_cosine[1].item() == pytest.approx(-1, abs=1e-6)
    assert torch.equal(pair.b_cosine, torch.zeros(5))  # a zero row of a beats the cosine −1
    assert torch.equal(pair.b_index, torch.zeros(5, dtype=torch.int64))


@pytest.mark.parametrize("isa", AVAILABLE)
def test_nan_rows_are_largest(isa):
    a, b = torch.randn(70, 12), torch.randn(90, 12)
    a[7, 2] = torch.nan
    b[11, 0] = torch.inf
    got = nearest(a, b, isa)
    want = reference.nearest(a, b)
    assert torch.equal(got[0].isnan(), want[0].isnan())
    assert torch.equal(got[1], want[1])
    assert torch.equal(got[2].isnan(), want[2].isnan())
    assert torch.equal(got[3], want[3])


def test_same_bits_for_any_thread_count_and_level():
    a, b = dictionaries(700, 1300, 48)
    want = nearest(a, b, threads=1)
    for isa in AVAILABLE[1:] or AVAILABLE:
        for threads in (1, 2, 3):
            assert all(torch.equal(x, y) for x, y in zip(want, nearest(a, b, isa, threads), strict=True)), (
                isa,
                threads,
            )


@pytest.mark.parametrize("m", [1, 6, 90])
def test_nearest_top(m):
    a, b = dictionaries(120, 90, 24)
    cosine, index, rest = ops.nearest_top(a, b, m)
    want = reference.nearest_top(a.double(), b.double(), m)
    assert_within_bound("cosine", cosine, want[0], 2.0, 28)
    assert_within_bound("rest", rest, want[2], 2.0, 28)
    assert torch.equal(cosine[:, :1], ops.nearest(a, b).a_cosine[:, None])
    outside = torch.ones(120, 90, dtype=torch.bool).scatter(1, index, False)
    all_cosines = reference.cosines(a.double(), b.double())
    assert bool((all_cosines[outside] <= rest.double().repeat_interleave(90 - m) + 1e-5).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pairs_are_nearest_one_by_one(dtype):
    a, b = torch.randn(3, 20, 9, dtype=dtype), torch.randn(2, 31, 9, dtype=dtype)
    ready_a, ready_b = ops.nearest_prepare(a.transpose(0, 1).contiguous().transpose(0, 1)), ops.nearest_prepare(b)
    pairs = torch.tensor([[2, 0], [0, 1], [2, 1]])
    got = ops.nearest_pairs(ready_a, ready_b, pairs)
    for row, (i, j) in enumerate(pairs.tolist()):
        for stacked, single in zip(got, ops.nearest(a[i], b[j]), strict=True):
            assert torch.equal(stacked[row], single)
    none = ops.nearest_pairs(ready_a, ready_b, pairs[:0])
    assert [(tuple(t.shape), t.dtype) for t in none] == [((0, t.shape[1]), t.dtype) for t in got]
    one = ops.nearest_pairs(ops.nearest_prepare(a[0]), ready_b, pairs[:0].new_zeros(1, 2))
    assert torch.equal(one.a_index[0], ops.nearest(a[0], b[0]).a_index)


def test_dtypes():
    a, b = dictionaries(80, 70, 10)
    assert ops.nearest(a.double(), b.double()).a_cosine.dtype == torch.float64
    low = ops.nearest(a.bfloat16(), b.bfloat16())
    assert low.a_cosine.dtype == torch.float32
    assert torch.equal(low.a_index, ops.nearest(a.bfloat16().float(), b.bfloat16().float()).a_index)


def test_opcheck():
    a, b = dictionaries(70, 80, 6)
    torch.library.opcheck(torch.ops.saekern.nearest, (a, b))
    torch.library.opcheck(torch.ops.saekern.nearest_top, (a, b, 3))
    torch.library.opcheck(torch.ops.saekern.nearest_prepare, (a[None],))
    torch.library.opcheck(torch.ops.saekern.nearest_pairs, (a[None], [], b[None], [], torch.zeros(2, 2).long()))


def test_shapes_on_cuda_without_one():
    """What torch.compile is told of the preparation, against the launcher's own outputs."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from saekern.kernels.cosine_screen import prepare

    with FakeTensorMode():
        faked = torch.ops.saekern.nearest_prepare(torch.empty(2, 5, 70, device="cuda"))
        assert torch.ops.saekern.nearest_prepare(torch.empty(2, 5, 70, device="cuda", dtype=torch.float64)) == []
    real = prepare(torch.randn(2, 5, 70))[1:]
    assert [(t.shape, t.dtype) for t in faked] == [(t.shape, t.dtype) for t in real]


def test_errors():
    with pytest.raises(ValueError, match=r"b: expected shape \[Fb, 4\], got \[3, 5\]"):
        ops.nearest(torch.zeros(2, 4), torch.zeros(3, 5))
    with pytest.raises(ValueError, match=r"expected non-empty dictionaries, got \[0, 4\] and \[3, 4\]"):
        ops.nearest(torch.zeros(0, 4), torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"m: expected 1 <= m <= Fb = 3, got 4"):
        ops.nearest_top(torch.zeros(2, 4), torch.zeros(3, 4), 4)
    with pytest.raises(ValueError, match=r"rows: expected shape \[S, F, D\], got \[4\]"):
        ops.nearest_prepare(torch.zeros(4))
    with pytest.raises(ValueError, match=r"rows: expected shape \[S, F, D\] with S, F, D >= 1, got \[2, 0, 4\]"):
        ops.nearest_prepare(torch.zeros(2, 0, 4))
    ready = ops.nearest_prepare(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match=r"b.rows: expected shape \[S, Fb, 4\], got \[2, 3, 5\]"):
        ops.nearest_pairs(ready, ops.nearest_prepare(torch.zeros(2, 3, 5)), torch.zeros(1, 2).long())
    with pytest.raises(ValueError, match=r"pairs: expected shape \[P, 2\], got \[2\]"):
        ops.nearest_pairs(ready, ready, torch.zeros(2).long())
