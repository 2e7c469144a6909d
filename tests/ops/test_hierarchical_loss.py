"""hierarchical_loss and its gradients against a cumulative sum in float64, at awkward shapes, in every storage type."""

import pytest
import torch
from bounds import assert_within_bound
from sparse_codes import SHAPES, indices_with_hot_latent, ragged_offsets

from saekern import ops, reference
from saekern.ops import hierarchical_loss

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
NAMES = ("values", "weight", "bias", "target")


def problem(batch, k, width, latents, dtype=torch.float32):
    """indices, then the four differentiable inputs."""
    indices = indices_with_hot_latent(batch, k, latents)
    shapes = ((batch, k), (latents, width), (width,), (batch, width))
    return indices, *(torch.randn(shape).to(dtype) for shape in shapes)


def ragged_cuts(offsets, count):
    """[B, count]: ascending prefix lengths from 0 to the row's own number of codes."""
    lengths = offsets.diff()
    return (torch.rand(lengths.numel(), count) * (lengths[:, None] + 1)).long().sort(1).values


def plain(values, indices, weight, bias, target, budgets=None, weights=None):
    """What one writes in an afternoon."""
    prefixes = bias + (values[..., None] * weight[indices]).cumsum(1)  # [B, K, D]
    budgets = range(1, values.shape[1] + 1) if budgets is None else budgets
    chosen = prefixes[:, [c - 1 for c in budgets]]
    shares = torch.tensor(weights or [1.0] * len(budgets), dtype=torch.float64)
    return (chosen - target[:, None]).square().sum(2).mean(0) @ (shares / shares.sum()).to(chosen)


def plain_rows(values, indices, weight, bias, target, cuts, offsets, weights=None):
    """The same for prefix lengths of each row's own, row by row."""
    shares = torch.tensor(weights or [1.0] * cuts.shape[1], dtype=torch.float64)
    shares = (shares / shares.sum()).to(weight)
    total = weight.new_zeros(())
    for b in range(target.shape[0]):
        own = slice(int(offsets[b]), int(offsets[b + 1]))
        terms = values[own, None] * weight[indices[own]]
        for share, cut in zip(shares, cuts[b].tolist(), strict=True):
            total = total + share * (bias + terms[:cut].sum(0) - target[b]).square().sum()
    return total / target.shape[0]


def gradients(function, *inputs):
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    out = function(*leaves)
    return out.detach(), torch.autograd.grad(out, leaves)


def doubles(*inputs):
    return [t.double() for t in inputs]


def assert_gradients(got, exact, want, most, k):
    """Σ|products| bounds: a residual r of at most k + 2 terms, its sum over prefixes, and the sum that it enters."""
    values, weight, bias, target = exact
    reach = values.abs().max() if values.numel() else 0.0
    prefix = k * reach * weight.abs().max() + bias.abs().max() + (target.abs().max() if target.numel() else 0.0)
    width, batch = weight.shape[1], max(target.shape[0], 1)
    suffix = 2 * prefix / batch  # ≥ every |S|, and Σ|products| of it
    sizes = (suffix * width * weight.abs().max(), suffix * most * reach, suffix * batch, suffix)
    terms = [3 * k + 8 + n for n in (width, most, batch, 0)]
    for name, g, w, size, n in zip(NAMES, got, want, sizes, terms, strict=True):
        assert_within_bound(name, g, w, size, n)


@pytest.mark.parametrize("budgets", [None, "some"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [s for s in SHAPES if s[1]] + [(9, 33, 300, 20), (300, 4, 131, 11)])
def test_value_and_gradients(shape, dtype, budgets):
    """Planted: the last prefix left out; the code's own prefix left out of S; the scalar tail of a row skipped. All
    caught."""
    batch, k, width, _ = shape
    indices, *inputs = problem(*shape, dtype=dtype)
    chosen = None if budgets is None else sorted({1, (k + 1) // 2, max(1, k - 1)})
    weights = None if budgets is None else [1.0 + j for j in range(len(chosen))]

    def ours(values, weight, bias, target):
        return hierarchical_loss(values, indices, weight, bias, target, chosen, weights).loss

    exact = doubles(*inputs)
    loss, got = gradients(ours, *inputs)
    assert loss.dtype == torch.float32
    for tensor, like in zip(got, inputs, strict=True):
        assert tensor.dtype == dtype
        assert tensor.shape == like.shape
    if batch == 0:
        assert loss == 0
        assert not any(g.any() for g in got)
        return
    want, want_gradients = gradients(lambda v, w, b, t: plain(v, indices, w, b, t, chosen, weights), *exact)
    size = plain(exact[0].abs(), indices, exact[1].abs(), exact[2].abs(), -exact[3].abs(), chosen, weights)
    assert_within_bound("loss", loss, want, size, 4 * k + width + 16)
    most = int(torch.bincount(indices.flatten()).max())
    assert_gradients(got, exact, want_gradients, most, k)
    x_hat = hierarchical_loss(inputs[0], indices, *inputs[1:], chosen, weights).x_hat
    assert x_hat.dtype == dtype
    if dtype == torch.float32:
        assert torch.equal(x_hat, ops.decode(inputs[0], indices, *inputs[1:3]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(17, 6, 37, 9), (2, 3, 16, 4), (40, 9, 140, 200)])
def test_ragged_rows_with_cuts_of_their_own(shape, dtype):
    """Empty rows and prefixes of no code count too: b − t. Planted: cuts of the first row used for all; the empty
    prefix left out of dbias. Both caught."""
    batch, k, width, _ = shape
    indices, values, weight, bias, target = problem(*shape, dtype=dtype)
    offsets = ragged_offsets(batch, k)
    indices, values = (t.flatten()[: offsets[-1]].contiguous() for t in (indices, values))
    cuts, weights = ragged_cuts(offsets, 4), [1.0, 2.0, 0.5, 3.0]
    ours = lambda v, w, b, t: hierarchical_loss(v, indices, w, b, t, weights=weights, offsets=offsets, cuts=cuts).loss  # noqa: E731
    loss, got = gradients(ours, values, weight, bias, target)
    exact = doubles(values, weight, bias, target)
    want, want_gradients = gradients(lambda v, w, b, t: plain_rows(v, indices, w, b, t, cuts, offsets, weights), *exact)
    if dtype == torch.float64:
        torch.testing.assert_close(loss, want, rtol=1e-13, atol=0)
        for a, b in zip(got, want_gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)
        return
    torch.testing.assert_close(loss.double(), want, rtol=(4 * k + width) * 2.0**-23, atol=0)
    assert_gradients(got, exact, want_gradients, batch, k)


def test_budgets_of_ragged_rows_end_with_the_row():
    indices, values, weight, bias, target = problem(12, 5, 20, 9)
    offsets = ragged_offsets(12, 5)
    indices, values = (t.flatten()[: offsets[-1]].contiguous() for t in (indices, values))
    cuts = torch.tensor([1, 4]).minimum(offsets.diff()[:, None])
    a = hierarchical_loss(values, indices, weight, bias, target, [1, 4], offsets=offsets)
    b = hierarchical_loss(values, indices, weight, bias, target, cuts=cuts, offsets=offsets)
    assert torch.equal(a.loss, b.loss)
    want = reference.hierarchical_loss(
        values, indices, weight, bias, target, torch.tensor([1, 4]), torch.tensor([0.5, 0.5]), offsets
    )
    torch.testing.assert_close(a.loss, want[0])


def test_float64_is_the_formula():
    indices, *inputs = doubles_of(problem(19, 7, 23, 12))
    for budgets, weights in ((None, None), ([3], None), ([1, 2, 7], [1, 5, 2])):
        ours = lambda v, w, b, t, c=budgets, s=weights: hierarchical_loss(v, indices, w, b, t, c, s).loss  # noqa: E731
        theirs = lambda v, w, b, t, c=budgets, s=weights: plain(v, indices, w, b, t, c, s)  # noqa: E731
        (loss, got), (want, grads) = gradients(ours, *inputs), gradients(theirs, *inputs)
        assert loss.dtype == torch.float64
        torch.testing.assert_close(loss, want, rtol=1e-13, atol=0)
        for a, b in zip(got, grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


def doubles_of(made):
    return made[0], *doubles(*made[1:])


def test_one_budget_is_the_squared_error():
    indices, values, weight, bias, target = problem(30, 6, 50, 12)
    whole = hierarchical_loss(values, indices, weight, bias, target, [6])
    error = (ops.decode(values, indices, weight, bias) - target).double().square().sum(1).mean()
    torch.testing.assert_close(whole.loss.double(), error, rtol=1e-6, atol=0)
    first = hierarchical_loss(values, indices, weight, None, target, [2]).loss
    short = hierarchical_loss(values[:, :2], indices[:, :2], weight, None, target, [2]).loss
    assert torch.equal(first, short)


@pytest.mark.parametrize("wanted", range(1, 16))
def test_only_the_wanted_gradients(wanted):
    indices, *inputs = problem(12, 4, 23, 17)
    _, full = gradients(lambda v, w, b, t: hierarchical_loss(v, indices, w, b, t).loss, *inputs)
    flags = [bool(wanted >> i & 1) for i in range(4)]
    leaves = [t.clone().requires_grad_(flag) for t, flag in zip(inputs, flags, strict=True)]
    made = hierarchical_loss(leaves[0], indices, *leaves[1:])
    assert not made.x_hat.requires_grad
    made.loss.backward()
    for leaf, flag, grad in zip(leaves, flags, full, strict=True):
        assert torch.equal(leaf.grad, grad) if flag else leaf.grad is None


@pytest.mark.parametrize("ragged", [False, True])
def test_same_bits_for_any_thread_count(ragged):
    """Several chunks of rows and slices of columns. Planted: the scratch of one worker shared by all; caught."""
    indices, values, weight, bias, target = problem(700, 40, 530, 90)
    kwargs = {}
    if ragged:
        offsets = ragged_offsets(700, 40)
        indices, values = (t.flatten()[: offsets[-1]].contiguous() for t in (indices, values))
        kwargs = {"offsets": offsets, "cuts": ragged_cuts(offsets, 5)}
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 3):
            torch.set_num_threads(threads)
            loss, grads = gradients(
                lambda v, w, b, t: hierarchical_loss(v, indices, w, b, t, **kwargs).loss, values, weight, bias, target
            )
            results.append((loss, *grads))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_chunks_of_rows_give_the_gradients_of_values():
    """3000 rows of 100 codes in five slices are two chunks. Planted: the second written over the first; caught."""
    indices, *inputs = problem(3000, 100, 520, 64)
    loss = lambda v, w, b, t: hierarchical_loss(v, indices, w, b, t, [10, 100]).loss  # noqa: E731
    _, (whole, *_) = gradients(loss, *inputs)
    rows = slice(2500, 2510)
    part = lambda v: hierarchical_loss(v, indices[rows], *inputs[1:3], inputs[3][rows], [10, 100]).loss  # noqa: E731
    _, (few,) = gradients(part, inputs[0][rows])
    torch.testing.assert_close(whole[rows] * 300, few)


def test_non_contiguous_inputs():
    indices, values, weight, bias, target = problem(10, 6, 20, 15)
    want = hierarchical_loss(values, indices, weight, bias, target)
    strided = [t.t().contiguous().t() for t in (values, weight, target)]
    got = hierarchical_loss(
        strided[0], torch.stack([indices, indices], -1)[..., 0], strided[1], bias.expand(2, -1)[1], strided[2]
    )
    assert torch.equal(got.loss, want.loss)
    assert torch.equal(got.x_hat, want.x_hat)


def test_nan_and_infinity_stay_in_their_rows():
    indices, *inputs = problem(6, 3, 18, 40)
    indices = torch.arange(18).reshape(6, 3)
    clean = gradients(lambda v, w, b, t: hierarchical_loss(v, indices, w, b, t).loss, *inputs)[1]
    values = inputs[0].clone()
    values[2, 1], values[4, 0] = torch.nan, torch.inf
    loss, (dvalues, dweight, *_) = gradients(
        lambda v, w, b, t: hierarchical_loss(v, indices, w, b, t).loss, values, *inputs[1:]
    )
    assert not loss.isfinite()
    others = [0, 1, 3, 5]
    assert torch.equal(dvalues[others], clean[0][others])
    assert not dvalues[[2, 4]].isfinite().any()
    touched = torch.isin(torch.arange(40), indices[[2, 4]].flatten())
    assert torch.equal(dweight[~touched], clean[1][~touched])
    values[4, 0] = 1.0
    early = hierarchical_loss(values, indices, *inputs[1:], [1])
    assert early.loss.isfinite(), "a NaN behind every budget does not count"
    assert early.x_hat[2].isnan().all()


def test_autocast_takes_its_dtype():
    indices, values, weight, bias, target = problem(5, 3, 9, 8)
    with torch.autocast("cpu", torch.bfloat16):
        got = hierarchical_loss(values, indices, weight, bias, target)
    low = [t.bfloat16() for t in (values, weight, bias)]
    want = hierarchical_loss(low[0], indices, low[1], low[2], target)
    assert got.loss.dtype == torch.float32
    assert got.x_hat.dtype == torch.bfloat16
    assert torch.equal(got.loss, want.loss)


@pytest.mark.parametrize("ragged", [False, True])
def test_opcheck(ragged):
    indices, *inputs = problem(6, 3, 10, 9)
    offsets, cuts = None, torch.tensor([1, 3])
    if ragged:
        offsets = ragged_offsets(6, 3)
        indices, inputs[0] = (t.flatten()[: offsets[-1]].contiguous() for t in (indices, inputs[0]))
        cuts = ragged_cuts(offsets, 2)
    order, shares = reference.latent_order(indices, 9), torch.tensor([0.25, 0.75])
    leaves = [t.clone().requires_grad_() for t in inputs]
    arguments = (leaves[0], indices, *leaves[1:], cuts, shares, offsets, *order)
    torch.library.opcheck(torch.ops.saekern.hierarchical_loss.default, arguments)
    values, weight, bias, target = inputs
    arguments = (torch.ones(()), values, indices, weight, bias, target, torch.zeros(6, 10), cuts, shares, offsets)
    for need in ([True] * 4, [False, True, False, False]):
        torch.library.opcheck(torch.ops.saekern.hierarchical_loss_backward.default, (*arguments, *order, need))


@pytest.mark.parametrize("budgets", [None, [1, 3]])
def test_compiles_as_one_graph(budgets):
    indices, *inputs = problem(6, 3, 10, 9)
    weights = None if budgets is None else [1.0, 2.0]
    compiled = torch.compile(hierarchical_loss, fullgraph=True, backend="aot_eager")
    want = gradients(lambda v, w, b, t: hierarchical_loss(v, indices, w, b, t, budgets, weights).loss, *inputs)
    got = gradients(lambda v, w, b, t: compiled(v, indices, w, b, t, budgets, weights).loss, *inputs)
    assert torch.equal(got[0], want[0])
    assert all(torch.equal(a, b) for a, b in zip(want[1], got[1], strict=True))


def test_a_tensor_of_weights_is_normalised():
    indices, *inputs = problem(6, 3, 10, 9)
    a = hierarchical_loss(inputs[0], indices, *inputs[1:], None, torch.tensor([1.0, 2.0, 5.0])).loss
    torch.testing.assert_close(a, hierarchical_loss(inputs[0], indices, *inputs[1:], None, [1, 2, 5]).loss)


def test_errors_say_what_came():
    indices, values, weight, bias, target = problem(4, 2, 6, 5)

    def call(*args, v=values, i=indices, t=target, b=bias, **kwargs):
        return hierarchical_loss(v, i, weight, b, t, *args, **kwargs)

    offsets, flat = torch.tensor([0, 2, 4, 6, 8]), {"v": values.flatten(), "i": indices.flatten()}
    for message, make in (
        (r"budgets: expected ascending prefix lengths, got \[2, 1\]", lambda: call([2, 1])),
        (r"budgets: expected ascending prefix lengths, got \[1, 1\]", lambda: call([1, 1])),
        (r"budgets: expected 1 <= budget <= K = 2, got \[1, 3\]", lambda: call([1, 3])),
        (r"budgets: expected 1 <= budget <= K = 2, got \[0, 1\]", lambda: call([0, 1])),
        (r"budgets: expected at least one, got \[\]", lambda: call([])),
        (r"budgets: expected at least one prefix, got none", lambda: call(v=values[:, :0], i=indices[:, :0])),
        (r"budgets: expected prefix lengths, or cuts, for ragged", lambda: call(**flat, offsets=offsets)),
        (r"budgets and cuts: expected one of the two", lambda: call([1], cuts=indices)),
        (r"weights: expected 2, one for each budget, got 1", lambda: call(None, [1.0])),
        (r"weights: expected positive numbers, got \[1.0, 0.0\]", lambda: call(None, [1.0, 0.0])),
        (r"weights: expected shape \[2\], got \[3\]", lambda: call(None, torch.ones(3))),
        (r"cuts: expected shape \[4, J\], got \[3, 2\]", lambda: call(cuts=indices[:3])),
        (r"cuts: expected int64, got torch.int32", lambda: call(cuts=indices.int())),
        (r"codes 2 at most, got 3 after 1 at row 1", lambda: call(cuts=torch.tensor([[1, 2], [1, 3], [0, 0], [0, 0]]))),
        (r"got 0 after 1 at row 3", lambda: call(cuts=torch.tensor([[1, 2], [1, 2], [0, 0], [1, 0]]))),
        (r"target: expected shape \[4, 6\], got \[3, 6\]", lambda: call(t=target[:3])),
        (r"target: expected torch.float32 like weight, got torch.float64", lambda: call(t=target.double())),
        (r"values: expected torch.float32 like weight, got torch.float64", lambda: call(v=values.double())),
        (r"bias: expected shape \[6\], got \[5\]", lambda: call(b=bias[:5])),
        (r"indices: expected shape \[4, 2\], got \[4, 1\]", lambda: call(i=indices[:, :1])),
        (r"0 <= index < F = 5, got 9 at position 0", lambda: call(i=torch.full_like(indices, 9))),
    ):
        with pytest.raises(ValueError, match=message):
            make()
