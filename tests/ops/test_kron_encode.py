"""kron_encode against all its scores in float64: values, choice, gradients, ties, NaN, the same bits on all threads."""

import pytest
import torch
from bounds import UNIT, assert_within_bound

from saekern import ops, reference
from saekern.ops.kron_encode import ACTIVATIONS, encode

SHAPES = [  # B, D, H, M, N, K
    (1, 1, 1, 1, 1, 1),
    (3, 37, 7, 3, 5, 16),
    (5, 20, 40, 1, 8, 9),
    (5, 20, 40, 6, 1, 1),
    (4, 9, 1, 40, 37, 12),
    (70, 33, 60, 4, 8, 33),
    (2, 5, 3, 2, 2, 12),
]
EXACT = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def problem(batch, width, heads, m, n, dtype=torch.float32, seed=0):
    """x, weight_p, weight_q, bias_p, bias_q, pre_bias."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (batch, width), (heads, m, width), (heads, n, width), (heads, m), (heads, n), (width,)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def call(given, k, **options):
    x, wp, wq, bp, bq, pre = given
    return ops.kron_encode(x, wp, wq, bp, bq, k, pre_bias=pre, **options)


def double(given):
    return [t.double() for t in given]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("storage", EXACT)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_chooses_and_computes_as_float64(shape, storage, activation):
    """Factors within their rounding ε; a latent whose float64 product is better than the k-th by twice what ε allows is
    in, one worse by as much is out. Planted: heads bounded by their least factor; the bias of q left out; the second
    factor of a latent taken from the next head. Each was caught."""
    batch, width, heads, m, n, k = shape
    given = problem(batch, width, heads, m, n, EXACT[storage])
    values, indices = call(given, k, activation=activation)
    dtype = given[0].dtype
    assert values.dtype == dtype
    u, v = reference.kron_factors(*double(given))
    size = [t.double().abs() for t in given]
    magnitude_u, magnitude_v = reference.kron_factors(*size[:5], -size[5])
    product = reference.kron_products(u, v, activation)
    eu, ev = ((2 * (width + 4) * UNIT * size).flatten(2) for size in (magnitude_u, magnitude_v))
    spread = (
        eu[..., :, None] * (v.abs() + ev)[..., None, :] + (u.abs() + eu)[..., :, None] * ev[..., None, :]
    ).flatten(1) + 2 * UNIT * product.abs()
    assert all(len(set(row.tolist())) == k for row in indices)
    kth = product.topk(k).values[:, -1:]
    chosen, room = product.gather(1, indices), spread.gather(1, indices)
    worst = spread.amax(1, keepdim=True)
    assert bool((chosen >= kth - room - worst).all())
    assert torch.equal((product > kth + 2 * worst).sum(1), (chosen > kth + 2 * worst).sum(1))
    low, high = ((chosen + sign * room).clamp(min=0) for sign in (-1, 1))
    if activation == "mand":
        low, high = low.sqrt(), high.sqrt()
    rounding = torch.finfo(dtype).eps * high + torch.finfo(dtype).tiny
    assert bool((values.double() >= low - rounding).all())
    assert bool((values.double() <= high + rounding).all())


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_integers_are_exact(activation):
    """Products without rounding: the same choice, ties to the smaller latent, the same values."""
    generator = torch.Generator().manual_seed(2)
    shapes = (40, 6), (9, 3, 6), (9, 4, 6), (9, 3), (9, 4), (6,)
    given = [torch.randint(-2, 3, shape, generator=generator).float() for shape in shapes]
    for k in (1, 7, 108):
        values, indices = call(given, k, activation=activation)
        want_values, want = call(double(given), k, activation=activation)
        assert torch.equal(indices, want)
        torch.testing.assert_close(values.double(), want_values, rtol=2.0**-23, atol=0)


@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_inactive_latents_are_zero_or_leak(eps):
    """Fewer than k positive pairs: the smallest latents fill up, with 0, or with √eps as the published code has it."""
    x = torch.ones(2, 1)
    weight_p, weight_q = torch.full((3, 2, 1), -1.0), torch.full((3, 2, 1), 1.0)
    weight_p[1, 0] = 4.0
    values, indices = ops.kron_encode(x, weight_p, weight_q, None, None, 5, eps=eps)
    assert indices[0].tolist() == [4, 5, 0, 1, 2]
    want = torch.tensor([4.0, 4.0, 0.0, 0.0, 0.0]).add(eps).sqrt()
    torch.testing.assert_close(values[0], want, rtol=1e-6, atol=0)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("count", [0, 1, 3, 40])
def test_dead_latents(activation, count):
    given = problem(6, 11, 5, 3, 4)
    dead = torch.zeros(60, dtype=torch.bool)
    dead[torch.randperm(60, generator=torch.Generator().manual_seed(1))[:count]] = True
    x, wp, wq, bp, bq, pre = given
    got = encode(x, wp, wq, bp, bq, 4, pre_bias=pre, activation=activation, dead=dead, k_aux=7)
    x, wp, wq, bp, bq, pre = double(given)
    want = encode(x, wp, wq, bp, bq, 4, pre_bias=pre, activation=activation, dead=dead, k_aux=7)
    assert torch.equal(got[3], want[3])
    torch.testing.assert_close(got[2].double(), want[2], rtol=1e-4, atol=1e-5)
    assert bool((got[2][:, count:] == 0).all())
    assert torch.equal(got[1], call(given, 4, activation=activation)[1])


def test_nan_and_infinity():
    """NaN is the largest. A factor that is not positive beside an infinite one gives 0. Planted: products written as
    relu(u) · relu(v); caught."""
    x = torch.tensor([[1.0], [float("nan")], [float("inf")]])
    weight_p, weight_q = torch.tensor([[[1.0], [-1.0]], [[2.0], [0.5]]]), torch.tensor([[[1.0]], [[-3.0]]])
    values, indices = ops.kron_encode(x, weight_p, weight_q, None, None, 4, activation="relu")
    assert indices[0].tolist() == [0, 1, 2, 3]
    assert values[0].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert bool(values[1].isnan().all())
    assert indices[1].tolist() == [0, 1, 2, 3]
    assert values[2].tolist() == [float("inf"), 0.0, 0.0, 0.0]


@pytest.mark.parametrize("eps", [0.0, 1e-3])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_are_those_of_the_scores(activation, eps):
    """In float64 against autograd of the dense formula, with pairs of which one factor or both are 0 or negative.

    Planted: the gradient to q from the entries of p; the aux part dropped; caught."""
    if eps and activation != "mand":
        pytest.skip("eps belongs to mand")
    given = double(problem(9, 8, 5, 2, 3))
    given[1][0, 0] = 0  # u = 0 with its bias
    given[3][0, 0] = 0
    leaves = [t.requires_grad_() for t in given]
    x, wp, wq, bp, bq, pre = leaves
    dead = torch.zeros(30, dtype=torch.bool)
    dead[3:12] = True
    values, indices, aux, aux_indices, _ = encode(
        x, wp, wq, bp, bq, 7, pre_bias=pre, activation=activation, eps=eps, dead=dead, k_aux=12
    )
    u = torch.einsum("bd,hmd->bhm", x - pre, wp) + bp
    v = torch.einsum("bd,hnd->bhn", x - pre, wq) + bq
    product = u[..., None] * v[..., None, :]
    on = (u > 0)[..., None] & (v > 0)[..., None, :]
    if activation == "product":
        score = product.relu().flatten(1)
    elif activation == "relu":
        score = torch.where(on, product, 0).flatten(1)
    else:
        root = (torch.where(on, product, 1) + eps).sqrt()  # 1: a root at 0 has no gradient that autograd could mask
        score = torch.where(on, root, eps**0.5).flatten(1)
    weights = torch.arange(1.0, 8.0, dtype=torch.float64)
    want = (score.gather(1, indices) * weights).sum() + (score.gather(1, aux_indices) * dead[aux_indices]).cos().sum()
    got = (values * weights).sum() + torch.where(dead[aux_indices], aux, 0).cos().sum()
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)
    for name, a, b in zip(
        ["x", "p", "q", "bp", "bq", "pre"],
        torch.autograd.grad(got, leaves),
        torch.autograd.grad(want, leaves),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_float32_gradients_are_within_rounding(activation):
    given = problem(40, 30, 20, 4, 5)
    upstream = torch.randn(40, 9, generator=torch.Generator().manual_seed(4))
    x, wp, wq, bp, bq, pre = given
    *_, u, v = torch.ops.saekern.kron_encode(x, wp, wq, bp, bq, 9, pre, activation, 0.0, None, 0, False)[:4]
    indices = call(given, 9, activation=activation)[1]
    need = [True] * 6
    got = torch.ops.saekern.kron_encode_backward(upstream, indices, u, v, x, wp, wq, pre, activation, 0.0, need)
    wide = (upstream.double(), indices, u.double(), v.double(), x.double(), wp.double(), wq.double(), pre.double())
    want = torch.ops.saekern.kron_encode_backward(*wide, activation, 0.0, need)
    slopes = (t.abs() for t in reference.kron_slopes(upstream.double(), u.double(), v.double(), activation, 0.0))
    at = (indices // 5, indices // 20 * 5 + indices % 5)
    sizes = [
        reference.topk_encode_backward(
            s, s, i, x.double().abs(), w.double().abs().flatten(0, 1), -pre.double().abs(), False
        )
        for s, i, w in zip(slopes, at, (wp, wq), strict=True)
    ]
    magnitudes = [sizes[0][0] + sizes[1][0], sizes[0][1], sizes[1][1], sizes[0][2], sizes[1][2]]
    for name, g, w, size in zip(["x", "p", "q", "bp", "bq"], got, want, magnitudes, strict=False):
        assert_within_bound(name, g, w, size.reshape(w.shape), 40 * 18 + 8)


def test_bits_do_not_depend_on_threads():
    given = problem(600, 50, 90, 4, 8)
    leaves = [t.requires_grad_() for t in given]

    def run(threads):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            values, indices = call(leaves, 20)
            return (values, indices, *torch.autograd.grad(values.square().sum(), leaves))
        finally:
            torch.set_num_threads(before)

    first = run(1)
    for threads in (2, 3):
        assert all(torch.equal(a, b) for a, b in zip(first, run(threads), strict=True))


@pytest.mark.parametrize("level", ["avx512", "avx2"])
def test_bits_do_not_depend_on_the_processor(level):
    given = problem(60, 50, 90, 4, 8)
    want = call(given, 20)
    try:
        with ops.instruction_level(level):
            got = call(given, 20)
    except ValueError as missing:
        pytest.skip(str(missing))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_not_contiguous_and_empty():
    given = problem(6, 9, 4, 3, 5)
    strided = [
        t.flip(-1).flip(-1) if t.dim() == 1 else t.transpose(-1, -2).contiguous().transpose(-1, -2) for t in given
    ]
    assert all(torch.equal(a, b) for a, b in zip(call(strided, 6), call(given, 6), strict=True))
    values, indices = call([given[0][:0], *given[1:]], 6)
    assert values.shape == indices.shape == (0, 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck_and_compile(dtype):
    given = problem(5, 7, 4, 2, 3, dtype)
    x, wp, wq, bp, bq, pre = [t.requires_grad_() for t in given]
    dead = torch.ones(24, dtype=torch.bool)
    torch.library.opcheck(
        torch.ops.saekern.kron_encode.default, (x, wp, wq, bp, bq, 4, pre, "mand", 0.0, dead, 3, True)
    )
    compiled = torch.compile(lambda *t: call(t, 4), fullgraph=True, backend="aot_eager")
    assert all(torch.equal(a, b) for a, b in zip(compiled(x, wp, wq, bp, bq, pre), call(given, 4), strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 25}, r"k: expected .*24"),
        ({"k": 0}, "k: expected"),
        ({"weight_q": torch.zeros(3, 3, 7)}, r"weight_q: expected shape \[4, N, 7\], got \[3, 3, 7\]"),
        ({"weight_p": torch.zeros(8, 7)}, "weight_p: expected shape"),
        ({"bias_p": torch.zeros(8)}, r"bias_p: expected shape \[4, 2\], got \[8\]"),
        ({"activation": "and"}, "activation: expected one of mand, relu, product, got 'and'"),
        ({"eps": -1.0}, "eps: expected a finite number >= 0"),
        ({"eps": 1.0, "activation": "relu"}, "eps: expected .* and 0 but for 'mand'"),
        ({"bias_q": torch.zeros(4, 3, dtype=torch.float64)}, "bias_q: expected"),
    ],
)
def test_messages(change, message):
    names = ("x", "weight_p", "weight_q", "bias_p", "bias_q", "pre_bias")
    arguments = dict(zip(names, problem(5, 7, 4, 2, 3), strict=True)) | {"k": 3} | change
    with pytest.raises(ValueError, match=message):
        ops.kron_encode(**arguments)
