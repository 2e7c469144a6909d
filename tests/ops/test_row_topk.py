"""row_topk: exact against a stable sort, at every instruction level."""

import pytest
import torch

from saekern import _C, ops, reference

LEVELS = ("portable", "avx512")
AVAILABLE = [level for level in LEVELS if level == "portable" or _C.isa().startswith("avx512")]


def select(scores, k, isa, threads=2):
    values, indices = torch.empty(scores.shape[0], k), torch.empty(scores.shape[0], k, dtype=torch.int64)
    _C.row_topk(scores.numpy(), values.numpy(), indices.numpy(), threads, isa)
    return values, indices


def inputs(n):
    """Ten patterns: random, sorted both ways, constant, few values, one peak, NaN, infinities, zeros of both signs."""
    yield torch.randn(19, n)
    yield torch.arange(n).float().repeat(3, 1)
    yield -torch.arange(n).float().repeat(3, 1)
    yield torch.full((3, n), -1.5)
    yield torch.randint(0, 3, (5, n)).float()
    peak = torch.zeros(2, n)
    peak[:, n // 2] = 1
    yield peak
    nan = torch.randn(4, n)
    nan[nan > 1] = torch.nan
    yield nan
    infinite = torch.randn(4, n)
    infinite[infinite > 1] = torch.inf
    infinite[infinite < -1] = -torch.inf
    yield infinite
    yield torch.where(torch.rand(4, n) < 0.5, -0.0, 0.0)
    yield torch.full((2, n), torch.nan)


@pytest.mark.parametrize("isa", AVAILABLE)
@pytest.mark.parametrize(
    ("n", "k"), [(1, 1), (15, 4), (16, 16), (17, 1), (1000, 7), (1023, 300), (5003, 64), (16384, 32)]
)
def test_equals_a_stable_sort(n, k, isa):
    """Planted: the tail of the row left out of the group maxima; `>` for `>=` at the threshold; both caught."""
    for scores in inputs(n):
        values, indices = select(scores, k, isa)
        want = reference.row_topk(scores, k)
        assert torch.equal(indices, want[1])
        assert torch.equal(values.nan_to_num(7.0), want[0].nan_to_num(7.0))


def test_same_bits_for_any_thread_count():
    scores = torch.randn(50, 777)
    want = select(scores, 20, "", threads=1)
    for threads in (2, 3):
        assert all(torch.equal(a, b) for a, b in zip(want, select(scores, 20, "", threads), strict=True))


def test_gradient_is_a_scatter():
    scores = torch.randn(6, 40, requires_grad=True)
    values, indices = ops.row_topk(scores, 5)
    weight = torch.randn(6, 5)
    (values * weight).sum().backward()
    assert torch.equal(scores.grad, torch.zeros(6, 40).scatter(1, indices, weight))


def test_opcheck():
    torch.library.opcheck(torch.ops.saekern.row_topk, (torch.randn(4, 30, requires_grad=True), 3))


def test_errors():
    with pytest.raises(ValueError, match=r"scores: expected shape \[B, N\], got \[4\]"):
        ops.row_topk(torch.zeros(4), 1)
    with pytest.raises(ValueError, match=r"k: expected 1 <= k <= N = 4, got 5"):
        ops.row_topk(torch.zeros(2, 4), 5)
