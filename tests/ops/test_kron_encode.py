"""kron_encode on CPU: every instruction level against all [B, F] products in float64."""

import pytest
import torch
from bounds import UNIT, assert_within_bound
from kron_brute import assert_exact, brute, factors, problem, products, value

from saekern import _C, ops, reference
from saekern.ops.kron_encode import encode as encode_in_order

LEVELS = ("portable", "avx2", "avx512", "avx512bf16")
AVAILABLE = LEVELS[: LEVELS.index(_C.isa()) + 1]
ACTIVATIONS = ["mand", "relu", "product"]
SHAPES = [  # B, D, M, N, H, K
    (1, 1, 1, 1, 1, 1),
    (2, 5, 3, 5, 7, 105),
    (31, 37, 3, 5, 70, 16),
    (9, 20, 1, 8, 40, 9),
    (9, 20, 6, 1, 40, 1),
    (5, 9, 40, 37, 1, 12),
    (7, 11, 4, 8, 150, 33),
    (230, 65, 2, 4, 200, 20),
]


def encode(made, k, activation="mand", eps=0.0, dead=None, k_aux=0, order=False, threads=2, isa=""):
    """The op itself, with its pre-latents."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with ops.instruction_level(isa):
            x, wp, wq, bp, bq, pre = made
            return torch.ops.saekern.kron_encode(x, wp, wq, bp, bq, k, pre, activation, eps, dead, k_aux, order)
    finally:
        torch.set_num_threads(before)


def assert_same(got, want):
    """To the bit, but for a root's and the storage type's rounding."""
    for i, (g, w) in enumerate(zip(got, want, strict=True)):
        assert torch.equal(g.isnan(), w.isnan())
        g, w = (t.masked_fill(t.isnan(), 7) for t in (g, w.to(g.dtype)))
        if i % 4:
            assert torch.equal(g, w)
        else:
            finite = w.isfinite()
            assert bool(((g - w).abs() <= 2 * UNIT * w)[finite].all())
            assert torch.equal(g[~finite], w[~finite])


@pytest.mark.parametrize("isa", AVAILABLE)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_exact(shape, activation, isa):
    """Planted: two negative factors multiplied; v's bias forgotten; caught."""
    batch, width, m, n, heads, k = shape
    made = problem(batch, width, m, n, heads)
    if k in (9, 12):
        made[3:] = None, None, None
    assert_exact(encode(made, k, activation, isa=isa)[:4], made, activation)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_ties_go_to_the_smaller_latent(activation):
    """Integers: many ties, at the k-th and within, across heads; the dead as well.

    Planted: heads and pairs that tie with the threshold dropped; it crashed. The threshold of all heads for the dead;
    caught."""
    made = problem(20, 4, 3, 5, 40, integer=True)
    dead = torch.rand(600) < 0.3
    for k in (1, 50, 600):
        want = brute(made, k, activation) + brute(made, 20, activation, dead=dead)
        assert_same(encode(made, k, activation, 0.0, dead, 20)[:8], want)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients(activation):
    made = [t.requires_grad_() for t in problem(11, 7, 3, 4, 6, torch.float64)]
    x, wp, wq, bp, bq, pre = made
    grad = torch.randn(11, 5, dtype=torch.float64)
    for eps in (0.0, 0.3) if activation == "mand" else (0.0,):
        values, indices = ops.kron_encode(x, wp, wq, bp, bq, 5, pre_bias=pre, activation=activation, eps=eps)
        want = value(products(*factors(*made), activation).gather(1, indices), activation, eps)
        torch.testing.assert_close(values, want)
        ours = torch.autograd.grad(values, made, grad)
        theirs = torch.autograd.grad(want, made, grad)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b)


NOT_FINITE = pytest.mark.filterwarnings("ignore:(invalid|overflow|divide by zero):RuntimeWarning")  # NumPy's


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_within_rounding(activation, dtype):
    """In the op's own u, v: 2 k entries of size |g ∂z/∂u| and what they multiply.

    Planted: the gradient to x through p alone; caught."""
    made = problem(37, 19, 3, 4, 6, dtype)
    x, wp, wq, _, _, pre = made
    _, indices, u, v, *_ = encode(made, 7, activation)
    grad = torch.randn(37, 7).to(dtype)
    args = (grad, indices, u, v, x, wp, wq, pre, activation, 0.0)
    wide = [t.double() if isinstance(t, torch.Tensor) and t.is_floating_point() else t for t in args]
    got = torch.ops.saekern.kron_encode_backward(*args, [True] * 6)
    want = reference.kron_encode_backward(*wide)
    sizes = [t.abs() if isinstance(t, torch.Tensor) and t.is_floating_point() else t for t in wide]
    if activation != "product":  # a factor that is not positive stays so
        sizes[2], sizes[3] = wide[2], wide[3]
    sizes[7] = -sizes[7]
    magnitudes = reference.kron_encode_backward(*sizes)
    names = ["x", "weight_p", "weight_q", "bias_p", "bias_q", "pre_bias"]
    for name, a, b, size in zip(names, got, want, magnitudes, strict=True):
        assert_within_bound(name, a, b, size.abs(), 37 * 14 + 8)
    for wanted in range(6):
        need = [i == wanted for i in range(6)]
        some = torch.ops.saekern.kron_encode_backward(*args, need)
        assert torch.equal(some[wanted], got[wanted])
        assert sum(t.numel() for t in some) == got[wanted].numel()


def test_no_gradient_from_what_is_not_active():
    """Rows with fewer active pairs than k, and padding of the dead: 0, neither NaN nor infinite.

    Planted: u = 0 counted as active; caught."""
    made = problem(12, 6, 2, 3, 9, torch.float32)
    made[3] -= 4.0
    dead = torch.arange(54) < 2
    x, wp, wq, bp, bq, pre = (t.requires_grad_() for t in made)
    for eps in (0.0, 0.1):
        values, _, aux, *_ = encode_in_order(x, wp, wq, bp, bq, 20, pre_bias=pre, eps=eps, dead=dead, k_aux=5)
        assert bool((values[:, -1] == torch.tensor(eps).sqrt()).all())
        grads = torch.autograd.grad(values.sum() + aux.sum(), made)
        assert all(g.isfinite().all() for g in grads)
    values, *_ = encode_in_order(x.detach() * 0, wp, wq, bp - 99, bq, 20)
    assert not any(g.any() for g in torch.autograd.grad(values.sum(), (wp, wq, bp, bq)))


@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_rows_with_fewer_active_pairs_than_k(eps):
    """Nothing is active: the first latents fill up with exactly 0, or with the published leak √eps.

    Planted: a threshold above 0 once k zeros were seen; caught."""
    made = problem(3, 6, 2, 3, 90, integer=True)
    made[0][1] = 0
    made[3][:], made[4][:], made[5] = -3.0, 1.0, None
    made[3][80] = 0.5  # row 1: the six pairs of head 80
    got = encode(made, 12, "mand", eps)
    assert_same(got[:4], brute(made, 12, "mand", eps))
    assert torch.equal(got[1][1], torch.tensor([*range(480, 486), *range(6)]))
    assert bool((got[0][1, 6:] == torch.tensor(eps).sqrt()).all())
    made[3][:] = -99.0
    got = encode(made, 12, "mand", eps)
    assert torch.equal(got[1], torch.arange(12).expand(3, 12))
    assert bool((got[0] == torch.tensor(eps).sqrt()).all())


@NOT_FINITE
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_special_values(activation):
    """NaN is largest, whatever the other factor; infinities order as numbers do, and ∞ · 0 is NaN where the score is
    signed, 0 elsewhere.

    Planted: NaN times what is not positive 0; an ordered comparison in the extremes; caught."""
    made = problem(4, 3, 3, 2, 90, integer=True)
    made[0][0, 0] = torch.nan
    made[3][70, 1] = torch.nan
    made[3][60, 0], made[4][30, 1] = torch.inf, -torch.inf
    made[4][60] = torch.tensor([0.0, 2.0]) - (made[0] - made[5])[1] @ made[2][60].T  # v = 0 and 2 in row 1
    made[3][20], made[4][20] = torch.inf, -99.0  # no partner
    for k in (1, 30, 540):
        assert_same(encode(made, k, activation)[:4], brute(made, k, activation))


@pytest.mark.parametrize("signs", [(-50, 50), (50, -50), (-50, -50)])
def test_all_products_of_one_sign(signs):
    """The largest of a head is then that of the largest factor of one side and the smallest of the other, or of both
    smallest.

    Planted: the two mixed products left out, and that of the smallest; caught."""
    made = problem(9, 4, 3, 2, 90, integer=True)
    for at, sign in zip((3, 4), signs, strict=True):
        made[at] += sign
    assert_same(encode(made, 20, "product")[:4], brute(made, 20, "product"))


@pytest.mark.parametrize("dead_share", [0.0, 0.01, 0.4, 1.0])
def test_aux_is_the_top_of_the_dead(dead_share):
    made = problem(20, 17, 4, 3, 50)
    dead = torch.rand(600) < dead_share
    activation, eps = ("product", 0.0) if dead_share == 0.4 else ("mand", 0.1)
    got = encode(made, 9, activation, eps, dead, 57)
    assert_exact(got[:4], made, activation, eps)
    aux, count = got[4:8], min(57, int(dead.sum()))
    if count:
        assert_exact(aux, made, activation, eps, dead)
    assert bool(dead[aux[1][:, :count]].all())
    assert not any(t[:, count:].any() for t in (aux[0], aux[2], aux[3]))
    live = (~dead).nonzero().flatten()[: 57 - count]
    assert torch.equal(aux[1][:, count:], live.expand(20, -1))


def test_same_bits_for_any_thread_count_batch_and_level():
    """Only levels without fused multiply-add may round otherwise.

    Planted: later blocks of rows written over the first; caught by the single rows."""
    made = problem(700, 96, 4, 8, 60)
    dead = torch.rand(1920) < 0.3
    want = encode(made, 33, dead=dead, k_aux=40, order=True, threads=1)
    for isa in AVAILABLE[1:] or AVAILABLE:
        for threads in (1, 2, 3):
            got = encode(made, 33, dead=dead, k_aux=40, order=True, threads=threads, isa=isa)
            assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True)), (isa, threads)
    for row in (0, 300, 699):
        got = encode([made[0][row : row + 1], *made[1:]], 33, dead=dead, k_aux=40)
        assert all(torch.equal(a[row : row + 1], b) for a, b in zip(want[:8], got[:8], strict=True))
    entries, segments = reference.latent_order(want[1], 1920)
    assert torch.equal(want[8], entries)
    assert torch.equal(want[9], segments)


def test_inputs_of_any_stride():
    made = problem(30, 40, 3, 5, 40)
    want = encode(made, 8)
    wide = [t.new_zeros(*t.shape, 2) for t in made]
    for w, t in zip(wide, made, strict=True):
        w[..., 0] = t
    got = encode([w[..., 0] for w in wide], 8)
    assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_rounds_once(dtype):
    made = problem(20, 48, 3, 4, 30, dtype)
    got, wide = encode(made, 7), encode([t.float() for t in made], 7)
    assert got[0].dtype == dtype
    assert torch.equal(got[0], wide[0].to(dtype))
    assert all(torch.equal(a, b) for a, b in zip(got[1:4], wide[1:4], strict=True))


def test_double_runs_in_double():
    made = problem(9, 20, 3, 4, 10, torch.float64)
    got = encode(made, 6)
    assert got[0].dtype == got[2].dtype == torch.float64
    assert torch.equal(got[1], brute(made, 6, "mand")[1])


def test_nothing_to_do():
    got = encode(problem(0, 5, 2, 3, 4), 3, dead=torch.ones(24, dtype=torch.bool), k_aux=2, order=True)
    assert [tuple(t.shape) for t in got] == [(0, 3)] * 4 + [(0, 2)] * 4 + [(0,), (25,)]
    made = [t.requires_grad_() for t in problem(0, 5, 2, 3, 4)]
    ops.kron_encode(*made[:5], 3)[0].sum().backward()
    assert not made[1].grad.any()
    made = problem(2, 0, 2, 3, 4)
    assert_exact(encode(made, 3)[:4], made, "mand")


def test_autocast_takes_the_autocast_dtype():
    made = problem(5, 8, 2, 3, 9)
    with torch.autocast("cpu", torch.bfloat16):
        values, _ = ops.kron_encode(*made[:5], 3, pre_bias=made[5])
    assert values.dtype == torch.bfloat16


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_opcheck(activation):
    made = [t.requires_grad_() for t in problem(9, 7, 2, 3, 10)]
    dead = torch.rand(60) < 0.5
    eps = 0.1 if activation == "mand" else 0.0
    for aux in ((None, 0), (dead, 11)):
        args = (*made[:5], 5, made[5], activation, eps, *aux, True)
        torch.library.opcheck(torch.ops.saekern.kron_encode, args)


def test_compiles_whole():
    made = problem(12, 6, 2, 3, 9)

    def run(x):
        values, indices = ops.kron_encode(x, *made[1:5], 4, pre_bias=made[5])
        return values.sum(1), indices

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert all(torch.equal(a, b) for a, b in zip(run(made[0]), compiled(made[0]), strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3)}, r"x: expected shape \[B, D\], got \[3\]"),
        ({"x": torch.zeros(3, 5, dtype=torch.int64)}, r"x: expected a floating-point tensor, got torch.int64"),
        ({"weight_p": torch.zeros(4, 2, 6)}, r"weight_p: expected shape \[H, M, 5\], got \[4, 2, 6\]"),
        ({"weight_q": torch.zeros(3, 3, 5)}, r"weight_q: expected shape \[4, N, 5\], got \[3, 3, 5\]"),
        ({"weight_q": torch.zeros(4, 3, 5).double()}, r"weight_q: expected torch.float32 like x, got torch.float64"),
        ({"bias_p": torch.zeros(4, 3)}, r"bias_p: expected shape \[4, 2\], got \[4, 3\]"),
        ({"bias_q": torch.zeros(12)}, r"bias_q: expected shape \[4, 3\], got \[12\]"),
        ({"pre_bias": torch.zeros(9)}, r"pre_bias: expected shape \[5\], got \[9\]"),
        ({"k": 0}, r"k: expected 1 <= k <= H·M·N = 24, got 0"),
        ({"k": 25}, r"k: expected 1 <= k <= H·M·N = 24, got 25"),
        ({"activation": "or"}, r"activation: expected one of mand, relu, product, got 'or'"),
        ({"eps": float("nan")}, "eps: expected a finite number >= 0, .*, got nan"),
        ({"eps": 0.1, "activation": "product"}, "eps: expected .* 0 but for 'mand', got 0.1"),
    ],
)
def test_errors(change, message):
    arguments = {
        "x": torch.zeros(3, 5),
        "weight_p": torch.zeros(4, 2, 5),
        "weight_q": torch.zeros(4, 3, 5),
        "bias_p": None,
        "bias_q": None,
        "k": 2,
    }
    with pytest.raises(ValueError, match=message):
        ops.kron_encode(**(arguments | change))
