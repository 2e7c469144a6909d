"""decode and its gradients on CPU against float64, at awkward shapes, in every storage type."""

import pytest
import torch
from bounds import assert_within_bound
from sparse_codes import SHAPES, indices_with_hot_latent, lazy_zeros, ragged_offsets

from saekern import _C, ops, reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def problem(batch, k, width, latents, dtype=torch.float32, ragged=False):
    """values, indices, weight, bias, offsets, upstream gradient."""
    offsets = None
    indices = indices_with_hot_latent(batch, k, latents)
    if ragged:
        offsets = ragged_offsets(batch, k)
        indices = indices.flatten()[: offsets[-1]].contiguous()
    values = torch.randn(indices.shape).to(dtype)
    weight = torch.randn(latents, width).to(dtype)
    return values, indices, weight, torch.randn(width).to(dtype), offsets, torch.randn(batch, width).to(dtype)


def gradients(function, values, weight, bias, upstream):
    leaves = [t.detach().clone().requires_grad_() for t in (values, weight, bias)]
    out = function(*leaves)
    out.backward(upstream)
    return out.detach(), *(leaf.grad for leaf in leaves)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_value_and_gradients(shape, dtype, ragged):
    """Planted: the scalar tail of `accumulate` dropped the last column; the tail of `walk` left out of the dot; the
    gradient's last code skipped; bias partials from the second chunk on left out. All caught."""
    values, indices, weight, bias, offsets, upstream = problem(*shape, dtype=dtype, ragged=ragged)
    batch, k, width, _ = shape

    got = gradients(lambda v, w, b: ops.decode(v, indices, w, b, offsets), values, weight, bias, upstream)

    exact = [t.double() for t in (values, weight, bias, upstream)]
    want = gradients(lambda v, w, b: reference.decode(v, indices, w, b, offsets), *exact)
    size = gradients(lambda v, w, b: reference.decode(v, indices, w, b, offsets), *(t.abs() for t in exact))
    most = int(torch.bincount(indices.flatten(), minlength=1).max()) if indices.numel() else 0
    for name, g, w, s, terms in zip(
        ("out", "values", "weight", "bias"), got, want, size, (k + 1, width, most, batch), strict=True
    ):
        assert g.dtype == dtype
        assert_within_bound(name, g, w, s, terms)


def test_a_latent_in_every_row_is_summed_in_chunks():
    """2100 codes are nine chunks; some latents stay empty and get zero rows. Planted: the partial sums of the third
    chunk on dropped; caught."""
    values, indices, weight, bias, _, upstream = problem(2100, 3, 19, 6000)
    got = gradients(lambda v, w, b: ops.decode(v, indices, w, b), values, weight, bias, upstream)
    exact = [t.double() for t in (values, weight, bias, upstream)]
    want = gradients(lambda v, w, b: reference.decode(v, indices, w, b), *exact)
    size = gradients(lambda v, w, b: reference.decode(v, indices, w, b), *(t.abs() for t in exact))
    assert_within_bound("weight", got[2], want[2], size[2], 2110)
    empty = torch.bincount(indices.flatten(), minlength=6000) == 0
    assert empty.any()
    assert not got[2][empty].any()


def test_integers_are_exact():
    values, indices, weight, bias, _, _ = problem(9, 6, 37, 11)
    values, weight, bias = ((t * 4).round() for t in (values, weight, bias))
    torch.testing.assert_close(
        ops.decode(values, indices, weight, bias), reference.decode(values, indices, weight, bias), rtol=0, atol=0
    )


@pytest.mark.parametrize("wanted", range(8))
def test_only_the_wanted_gradients(wanted):
    values, indices, weight, bias, _, upstream = problem(12, 4, 23, 17)
    full = gradients(lambda v, w, b: ops.decode(v, indices, w, b), values, weight, bias, upstream)[1:]
    flags = [bool(wanted >> i & 1) for i in range(3)]
    leaves = [t.clone().requires_grad_(flag) for t, flag in zip((values, weight, bias), flags, strict=True)]
    if any(flags):
        ops.decode(leaves[0], indices, leaves[1], leaves[2]).backward(upstream)
    for leaf, flag, grad in zip(leaves, flags, full, strict=True):
        assert torch.equal(leaf.grad, grad) if flag else leaf.grad is None


@pytest.mark.parametrize("ragged", [False, True])
def test_row_gradients_are_the_dense_gradient(ragged):
    values, indices, weight, bias, offsets, upstream = problem(300, 4, 21, 90, ragged=ragged)
    indices[indices == 5] = 6
    _, dvalues, dweight, _ = gradients(
        lambda v, w, b: ops.decode(v, indices, w, b, offsets), values, weight, bias, upstream
    )
    rows = ops.decode_row_gradients(upstream, values, indices, weight, offsets)
    assert torch.equal(rows.latents, indices.unique())
    assert torch.equal(rows.rows, dweight[rows.latents])
    assert torch.equal(rows.values, dvalues)
    assert not dweight[5].any()


def test_a_given_order_gives_the_same_bits():
    values, indices, weight, bias, _, upstream = problem(50, 6, 40, 30)
    order = ops.LatentOrder(*reference.latent_order(indices, 30))
    own = gradients(lambda v, w, b: ops.decode(v, indices, w, b), values, weight, bias, upstream)
    given = gradients(lambda v, w, b: ops.decode(v, indices, w, b, order=order), values, weight, bias, upstream)
    assert all(torch.equal(a, b) for a, b in zip(own, given, strict=True))
    rows = ops.decode_row_gradients(upstream, values, indices, weight, order=order)
    assert torch.equal(rows.rows, own[2][rows.latents])


@pytest.mark.parametrize(("count", "latents"), [(0, 3), (1, 1), (1000, 7), (100_000, 999), (70_000, 33_000)])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_latent_order(count, latents, threads):
    """Also where several threads count (100,000 codes). Planted: the later chunks not counted; caught."""
    indices = torch.randint(latents, (count,))
    entries, segments = torch.empty(count, dtype=torch.int32), torch.empty(latents + 1, dtype=torch.int32)
    _C.latent_order(indices.numpy(), latents, threads, entries.numpy(), segments.numpy())
    want = reference.latent_order(indices, latents)
    assert torch.equal(entries, want[0])
    assert torch.equal(segments, want[1])


@pytest.mark.parametrize("ragged", [False, True])
def test_same_bits_for_any_thread_count(ragged):
    """Planted: two partial sums exchanged when the number of threads is odd; caught."""
    values, indices, weight, bias, offsets, upstream = problem(1500, 7, 67, 700, ragged=ragged)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(
                gradients(lambda v, w, b: ops.decode(v, indices, w, b, offsets), values, weight, bias, upstream)
            )
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_non_contiguous_inputs():
    values, indices, weight, bias, _, upstream = problem(10, 6, 20, 15)
    want = gradients(lambda v, w, b: ops.decode(v, indices, w, b), values, weight, bias, upstream)
    strided = [t.t().contiguous().t() for t in (values, weight)]
    spread = torch.stack([indices, indices], -1)[..., 0]
    got = gradients(
        lambda v, w, b: ops.decode(v.t().contiguous().t(), spread, w, b.expand(2, -1)[1]),
        *strided,
        bias,
        upstream.clone(),
    )
    assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))
    ones = gradients(lambda v, w, b: ops.decode(v, indices, w, b), values, weight, bias, torch.ones(10, 20))
    expanded = gradients(lambda v, w, b: ops.decode(v, indices, w, b).sum(), values, weight, bias, torch.ones(()))
    assert all(torch.equal(a, b) for a, b in zip(ones[1:], expanded[1:], strict=True))


def test_nan_and_infinity_stay_in_their_rows():
    values, indices, weight, bias, _, _ = problem(6, 3, 18, 40)
    clean = ops.decode(values, indices, weight, bias)
    values[2, 1] = torch.nan
    values[4, 0] = torch.inf
    out = ops.decode(values, indices, weight, bias)
    assert out[2].isnan().all()
    assert (~out[4].isfinite()).all()
    assert torch.equal(out[[0, 1, 3, 5]], clean[[0, 1, 3, 5]])


def test_addresses_beyond_32_bits():
    """Row 1,048,600 of 2,050 floats begins beyond 2³¹ elements. Planted: `int` row offsets; crashed."""
    latents, width = 1_048_600, 2_050
    try:
        weight = lazy_zeros(latents, width)
    except MemoryError:
        pytest.skip("the system does not promise 8.6 GB of untouched memory")
    weight[-1] = torch.arange(width)
    indices = torch.tensor([[0, latents - 1]])
    values = torch.tensor([[5.0, 2.0]])
    assert torch.equal(ops.decode(values, indices, weight), 2 * weight[-1:])
    rows = ops.decode_row_gradients(torch.ones(1, width), values, indices, weight)
    assert torch.equal(rows.values, torch.tensor([[0.0, width * (width - 1) / 2]]))


def test_float64_runs_the_reference():
    values, indices, weight, bias, _, upstream = (
        t.double() if t is not None and t.is_floating_point() else t for t in problem(5, 3, 9, 8)
    )
    out = ops.decode(values, indices, weight, bias)
    assert out.dtype == torch.float64
    assert torch.equal(out, reference.decode(values, indices, weight, bias))
    assert ops.decode_row_gradients(upstream, values, indices, weight).rows.dtype == torch.float64


def test_autocast_takes_its_dtype():
    values, indices, weight, bias, _, _ = problem(5, 3, 9, 8)
    with torch.autocast("cpu", torch.bfloat16):
        out = ops.decode(values, indices, weight, bias)
    low = [t.bfloat16() for t in (values, weight, bias)]
    assert torch.equal(out, ops.decode(low[0], indices, low[1], low[2]))


@pytest.mark.parametrize("ragged", [False, True])
def test_opcheck(ragged):
    values, indices, weight, bias, offsets, upstream = problem(6, 3, 10, 9, ragged=ragged)
    leaves = [t.clone().requires_grad_() for t in (values, weight, bias)]
    torch.library.opcheck(
        torch.ops.saekern.decode.default, (leaves[0], indices, leaves[1], leaves[2], offsets, None, None)
    )
    order = reference.latent_order(indices, 9)
    arguments = (upstream, values, indices, weight, offsets, *order)
    torch.library.opcheck(torch.ops.saekern.decode_backward.default, (*arguments, [True, True, True]))
    torch.library.opcheck(torch.ops.saekern.decode_row_gradients.default, arguments)


def test_compiles_as_one_graph():
    values, indices, weight, bias, _, upstream = problem(6, 3, 10, 9)
    compiled = torch.compile(ops.decode, fullgraph=True, backend="aot_eager")
    want = gradients(lambda v, w, b: ops.decode(v, indices, w, b), values, weight, bias, upstream)
    got = gradients(lambda v, w, b: compiled(v, indices, w, b), values, weight, bias, upstream)
    assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))


def test_errors_say_what_came():
    values, indices, weight, bias, _, upstream = problem(4, 2, 6, 5)
    with pytest.raises(ValueError, match=r"0 <= index < F = 5, got 9 at position 3 of 8"):
        ops.decode(values, indices.flatten().index_fill(0, torch.tensor([3, 5]), 9).view(4, 2), weight)
    with pytest.raises(ValueError, match=r"got -1 at position 7 of 8"):
        ops.decode_row_gradients(
            upstream, values, indices.flatten().index_fill(0, torch.tensor([7]), -1).view(4, 2), weight
        )
    with pytest.raises(ValueError, match=r"indices: expected shape \[4, 2\], got \[4, 1\]"):
        ops.decode(values, indices[:, :1], weight)
    with pytest.raises(ValueError, match=r"indices: expected int64, got torch.int32"):
        ops.decode(values, indices.int(), weight)
    with pytest.raises(ValueError, match=r"values: expected torch.float32 like weight, got torch.float64"):
        ops.decode(values.double(), indices, weight)
    with pytest.raises(ValueError, match=r"bias: expected shape \[6\], got \[5\]"):
        ops.decode(values, indices, weight, bias[:5])
    with pytest.raises(ValueError, match=r"grad: expected shape \[4, 6\], got \[3, 6\]"):
        ops.decode_row_gradients(upstream[:3], values, indices, weight)
    flat = values.flatten(), indices.flatten(), weight, None
    for offsets, message in (
        ([1, 8], r"offsets\[0\] = 0, got 1"),
        ([0, 7], r"the last to be nnz = 8, got 7"),
        ([0, 5, 3, 8], r"ascending, got 5 before 3 at row 1"),
    ):
        with pytest.raises(ValueError, match=message):
            ops.decode(*flat, torch.tensor(offsets))
    entries, segments = reference.latent_order(indices, 5)
    for order in ((entries + 1, segments), (entries, segments + 1), (entries, segments.flip(0))):
        with pytest.raises(ValueError, match="order: its entries or segments do not belong to these codes"):
            ops.decode_row_gradients(upstream, values, indices, weight, order=ops.LatentOrder(*order))
    with pytest.raises(ValueError, match=r"order.entries: expected shape \[8\], got \[3\]"):
        ops.decode(values, indices, weight, order=ops.LatentOrder(entries[:3], segments))
    with pytest.raises(ValueError, match=r"order.segments: expected int32, got torch.int64"):
        ops.decode(values, indices, weight, order=ops.LatentOrder(entries, segments.long()))
