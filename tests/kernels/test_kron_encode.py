"""The Triton Kronecker encoder against float64 brute force, and equal to it where integers make every product exact."""

import itertools

import pytest
import torch
from bounds import UNIT, output_rounding
from kron_brute import assert_exact, brute, problem

from saekern import reference
from saekern.kernels import kron_encode, kron_select
from saekern.kernels.kron_encode import plan
from saekern.kernels.streaming_select import LARGEST_K, SUB

ACTIVATIONS = ["mand", "relu", "product"]
SHAPES = [  # B, D, M, N, H, K
    (1, 1, 1, 1, 1, 1),
    (2, 5, 3, 5, 7, 105),
    (3, 37, 3, 5, 7, 16),
    (2, 20, 1, 8, 40, 9),
    (2, 20, 6, 1, 40, 1),
    (1, 9, 40, 37, 1, 12),
    (2, 11, 4, 8, 60, 33),
]
NOT_FINITE = pytest.mark.filterwarnings("ignore:(invalid|overflow|divide by zero):RuntimeWarning")  # NumPy's


@pytest.fixture(autouse=True)
def _chunks_of_256(monkeypatch):
    """Columns of a chunk: several chunks where H (M + N) is more."""
    monkeypatch.setattr(kron_encode, "TILES", {9: 1})


def encode(device, problem, k, activation="mand", eps=0.0, dead=None, k_aux=0, order=False):
    x, wp, wq, bp, bq, pre, dead = (None if t is None else t.to(device) for t in (*problem, dead))
    out = kron_encode.kron_encode(x, wp, wq, bp, bq, k, pre, activation, eps, dead, k_aux, order)
    return tuple(t.cpu() for t in out)


def assert_same(got, want):
    """To the bit but for values, which may have gone through a root and been cut in the interpreter."""
    for i, (g, w) in enumerate(zip(got, want, strict=True)):
        assert torch.equal(g.isnan(), w.isnan())
        g, w = (t.masked_fill(t.isnan(), 7) for t in (g, w.to(g.dtype)))
        if i % 4:
            assert torch.equal(g, w)
        else:
            finite = w.isfinite()
            rounding = 4 * output_rounding(g.dtype) + 2 * UNIT
            assert bool(((g - w).abs() <= rounding * w)[finite].all())
            assert torch.equal(g[~finite], w[~finite])


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_exact(device, shape, activation):
    """Planted: heads beyond the last counted for the first bound; the product of the two smallest left out; of two
    negative factors not 0; a chunk's shift not moved on; u and v left behind when a list is cut; all caught."""
    batch, width, m, n, heads, k = shape
    dtype = torch.bfloat16 if (k + len(activation)) % 2 else torch.float32  # either, for every activation
    made = problem(batch, width, m, n, heads, dtype)
    if m == n or k == 9:
        made = (*made[:3], None, None, None)
    got = encode(device, made, k, activation)
    assert got[0].dtype == dtype
    # In the interpreter half precision is cut, not rounded.
    assert_exact(got[:4], made, activation, storage=1 if dtype == torch.float32 else 2)


@pytest.mark.parametrize(
    ("dtype", "activation"), zip([torch.float32, torch.bfloat16, torch.float16], ACTIVATIONS, strict=True)
)
def test_ties_go_to_the_smaller_latent(device, dtype, activation):
    """Integers: many ties, at the k-th and within, across heads and chunks; the dead as well.

    Planted: the first bound taken for a threshold itself; caught."""
    made = problem(2, 4, 3, 5, 40, dtype, integer=True)
    dead = torch.rand(40 * 15) < 0.3
    for k in (1, 50):
        want = brute(made, k, activation) + brute(made, 20, activation, dead=dead)
        got = encode(device, made, k, activation, 0.0, dead, 20)
        assert_same(got[:8], want)


@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_rows_with_fewer_active_pairs_than_k(device, eps):
    """All negative: nothing is active, the first latents fill up with exactly 0, or with the published leak √eps."""
    made = list(problem(2, 6, 2, 3, 90, integer=True))
    made[0][1] = 0
    made[3][:], made[4][:], made[5] = -3.0, 1.0, None
    made[3][80] = 2.0  # row 1: the six pairs of head 80
    got = encode(device, made, 12, "mand", eps)
    want = brute([t if t is None else t.double() for t in made], 12, "mand", eps)
    assert torch.equal(got[1], want[1])
    assert torch.equal(got[1][1], torch.tensor([*range(480, 486), *range(6)]))
    assert bool(((got[0] - want[0]).abs() <= 2 * UNIT * want[0]).all())
    assert bool((got[0][1, 6:] == torch.tensor(eps).sqrt()).all())
    made[3][:] = -99.0
    got = encode(device, made, 12, "mand", eps)
    assert torch.equal(got[1], torch.arange(12).expand(2, 12))
    assert bool((got[0] == torch.tensor(eps).sqrt()).all())


@NOT_FINITE
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_special_values(device, activation):
    """NaN is largest, whatever the other factor; infinities order as numbers do, and ∞ · 0 is NaN where the score is
    signed, 0 elsewhere.

    Planted: heads with NaN or ∞ held to their bound; NaN times a negative factor 0; caught."""
    made = list(problem(4, 3, 3, 2, 90, integer=True))
    made[0][0, 0] = torch.nan
    made[3][70, 1] = torch.nan
    made[3][60, 0], made[4][30, 1] = torch.inf, -torch.inf
    made[4][60] = torch.tensor([0.0, 2.0]) - (made[0] - made[5])[1] @ made[2][60].T  # v = 0 and 2 in row 1
    for k in (1, 30):
        assert_same(encode(device, made, k, activation)[:4], brute(made, k, activation))


@pytest.mark.parametrize("signs", [(-50, 50), (50, -50)])
def test_all_products_negative(device, signs):
    """The largest of a head is then the largest factor of one side times the smallest of the other.

    Planted: these two products left out; caught."""
    made = list(problem(2, 4, 3, 2, 90, integer=True))
    for at, sign in zip((3, 4), signs, strict=True):
        made[at] += sign
    assert_same(encode(device, made, 20, "product")[:4], brute(made, 20, "product"))


@NOT_FINITE
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_infinite_factor_without_a_partner(device, activation):
    """Head 20 has u = ∞ and no v > 0: it scores 0, or −∞, and bounds nobody.

    Planted: its bound, NaN, counted for the first one; caught."""
    made = list(problem(1, 4, 3, 2, 90, integer=True))
    made[3][20], made[4][20] = torch.inf, -99.0
    assert_same(encode(device, made, 1, activation)[:4], brute(made, 1, activation))


@pytest.mark.parametrize("dead_share", [0.0, 0.01, 0.4, 1.0])
def test_aux_is_the_top_of_the_dead(device, dead_share):
    """Planted: live latents of a dead one's head let in; values in the padding; caught."""
    made = problem(2, 17, 4, 3, 50)
    dead = torch.rand(600) < dead_share
    activation, eps = ("product", 0.0) if dead_share == 0.4 else ("mand", 0.1)
    got = encode(device, made, 9, activation, eps, dead, 57)
    assert_exact(got[:4], made, activation, eps)
    aux = got[4:8]
    count = min(57, int(dead.sum()))
    if count:
        assert_exact(aux, made, activation, eps, dead)
    assert bool(dead[aux[1][:, :count]].all())
    assert not any(t[:, count:].any() for t in (aux[0], aux[2], aux[3]))
    live = (~dead).nonzero().flatten()[: 57 - count]
    assert torch.equal(aux[1][:, count:], live.expand(2, -1))


def test_k_beyond_the_lists(device, monkeypatch):
    monkeypatch.setattr(kron_encode, "DENSE_SCORES", 1300)  # two rows at a time
    made = problem(3, 7, 4, 3, 50, integer=True)
    dead = torch.rand(600) < 0.2
    for activation, k, k_aux in itertools.product(ACTIVATIONS, (LARGEST_K + 1, 600), (0, 200)):
        want = brute(made, k, activation), brute(made, k_aux, activation, dead=dead)
        got = encode(device, made, k, activation, 0.0, dead, k_aux)
        assert_same(got[:8], (*want[0], *want[1]))


def test_several_row_blocks(device, monkeypatch):
    """The second block's rows must not see the first one's lists, and the last one has fewer."""
    monkeypatch.setattr(kron_encode, "ROWS", 2)
    monkeypatch.setattr(kron_encode, "TILE", (2, 128))
    made = problem(5, 4, 3, 5, 40)
    p = plan(5, 40, 3, 5, 3, 0)
    assert (p.rows, p.row_blocks, p.whole) == (2, 3, False)
    assert_exact(encode(device, made, 3)[:4], made, "mand")


def test_same_bits_again_and_for_other_strides(device):
    made = problem(2, 30, 3, 5, 40)
    want = encode(device, made, 8, order=True)
    strided = [t.new_zeros(*t.shape, 2) for t in made]
    for wide, t in zip(strided, made, strict=True):
        wide[..., 0] = t
    for inputs in [made] * (1 if device == "cpu" else 10) + [[t[..., 0] for t in strided]]:
        got = encode(device, inputs, 8, order=True)
        assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))
    entries, segments = reference.latent_order(want[1], 600)
    assert torch.equal(want[8], entries)
    assert torch.equal(want[9], segments)


def test_nothing_to_do(device):
    made = problem(0, 5, 2, 3, 4)
    got = encode(device, made, 3, dead=torch.ones(24, dtype=torch.bool), k_aux=2, order=True)
    assert [tuple(t.shape) for t in got] == [(0, 3)] * 4 + [(0, 2)] * 4 + [(0,), (25,)]
    made = problem(2, 0, 2, 3, 4)
    assert_exact(encode(device, made, 3)[:4], made, "mand")


def test_plan(monkeypatch):
    """Everything covered; a list has room for SUB more after a cut; at the goal's shape whole waves nearly, within
    100 MB; every stride a multiple of 16."""
    monkeypatch.setattr(kron_encode, "TILES", {9: 256})
    for batch in (1, 100, 8192, 20000):
        for heads, m, n in ((2048, 4, 8), (8192, 2, 4), (1024, 8, 8), (1, 256, 256), (7, 3, 5), (3, 1, 100_000)):
            for k, k_aux in ((1, 0), (64, 0), (128, 512), (512, 0), (512, 512)):
                p = plan(batch, heads, m, n, k, k_aux)
                assert p.rows * p.row_blocks >= batch > p.rows * (p.row_blocks - 1)
                assert p.heads * p.chunks >= heads > p.heads * (p.chunks - 1)
                assert p.q_at % 16 == p.columns % 16 == 0
                assert p.q_at >= p.heads * m
                assert p.columns >= p.q_at + p.heads * n
                slots = sum(kron_select.capacity(size) for size in (k, k_aux) if size)
                assert p.heads == 1 or 4 * p.rows * (p.columns + 4 * slots) <= 70e6
    p = plan(8192, 2048, 4, 8, 64, 0)
    assert (p.rows, p.heads, p.columns) == (8192, 84, 1008)


def test_lists_have_room_for_what_a_block_brings():
    for k in range(1, LARGEST_K + 1):
        assert kron_select.capacity(k) in kron_select.SIZES
        assert kron_select.capacity(k) >= k + SUB
