"""Gradients of topk_encode and topk_encode_aux against autograd of a dense float64 reference with the same choice."""

import pytest
import torch
from bounds import assert_within_bound
from sparse_codes import SHAPES, indices_with_hot_latent

from saekern import ops, reference

NAMES = ("x", "weight", "bias", "pre_bias")
ENCODER_SHAPES = [shape for shape in SHAPES if shape[1]]  # an encoder chooses at least one latent


def problem(batch, width, latents, dtype=torch.float32, shift=0.0):
    """x, weight, bias, pre_bias; `shift` < 0 leaves fewer positive scores."""
    tensors = torch.randn(batch, width), torch.randn(latents, width), torch.randn(latents) + shift, torch.randn(width)
    return tuple(t.to(dtype) for t in tensors)


def dense_gradients(tensors, grad, values, indices, relu):
    """Autograd through the dense scores at the chosen places, and Σ|products| of each gradient, both in float64.

    The mask is read from the values that the op returned: where a value rounds to 0 the op cannot know better."""
    kept = torch.where(values <= 0, 0.0, grad.double()) if relu else grad.double()
    answers = []
    for magnitude in (False, True):
        x, weight, bias, pre_bias = ((t.double().abs() if magnitude else t.double()).requires_grad_() for t in tensors)
        centred = x + pre_bias if magnitude else x - pre_bias
        scores = torch.nn.functional.linear(centred, weight, bias)
        grads = torch.autograd.grad(
            scores.gather(1, indices), (x, weight, bias, pre_bias), kept.abs() if magnitude else kept
        )
        answers.append(grads)
    return answers


def check(tensors, got, grad, values, indices, relu=True):
    want, size = dense_gradients(tensors, grad, values, indices, relu)
    batch, k = indices.shape
    most = int(torch.bincount(indices.flatten(), minlength=1).max()) if indices.numel() else 0
    terms = (k, most + 1, most, batch * k + tensors[1].shape[0])
    for name, g, w, s, count in zip(NAMES, got, want, size, terms, strict=True):
        assert_within_bound(name, g, w, s, count)


def encode_gradients(tensors, k, upstream, relu=True):
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    x, weight, bias, pre_bias = leaves
    values, indices = ops.topk_encode(x, weight, bias, k, pre_bias=pre_bias, relu=relu)
    values.backward(upstream)
    return values.detach(), indices, [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", ENCODER_SHAPES)
def test_gradients(shape, dtype, relu):
    """Planted: the pre-bias not subtracted; its gradient without the minus; ReLU mask `< 0`; mask missing in dx. All
    caught."""
    batch, k, width, latents = shape
    tensors = problem(batch, width, latents, dtype, shift=-1.0)
    upstream = torch.randn(batch, min(k, latents)).to(dtype)
    values, indices, got = encode_gradients(tensors, min(k, latents), upstream, relu)
    check(tensors, got, upstream, values, indices, relu)


def test_blocked_where_fewer_than_k_are_positive():
    """Every score of row 0 is negative: it gives no gradient; the others lose the slots beyond their positive ones."""
    tensors = problem(6, 8, 20, shift=-2.0)
    tensors[0][0] = tensors[3]  # x − pre_bias = 0
    tensors[2].clamp_(max=-1e-3)
    values, indices, got = encode_gradients(tensors, 15, torch.ones(6, 15))
    assert not values[0].any()
    assert (values > 0).any()
    assert (values == 0).any(1).all()
    assert not got[0][0].any()
    check(tensors, got, torch.ones(6, 15), values, indices)


def test_nan_passes_the_mask():
    tensors = problem(3, 8, 9)
    tensors[0][1, 2] = torch.nan
    values, _, (dx, dweight, dbias, _) = encode_gradients(tensors, 2, torch.ones(3, 2))
    assert values[1].isnan().all()
    assert dx[1].isfinite().all()  # the gradient to x is made of weights alone
    assert dx[1].any()
    assert dweight[:, 2].isnan().any()
    assert not dweight[:, [0, 1, 3]].isnan().any()
    assert dbias.isfinite().all()


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("k_aux", [1, 7, 31])
@pytest.mark.parametrize("dead_count", [0, 5, 30])
def test_aux_gradients_reach_the_encoder(k_aux, dead_count, relu):
    """Slots beyond the number of dead latents carry none. Planted: the padding not masked; caught."""
    tensors = problem(17, 13, 37)
    dead = torch.zeros(37, dtype=torch.bool)
    dead[torch.randperm(37)[:dead_count]] = True
    leaves = [t.clone().requires_grad_() for t in tensors]
    x, weight, bias, pre_bias = leaves
    values, indices, aux_values, aux_indices = ops.topk_encode_aux(
        x, weight, bias, 4, dead, k_aux, pre_bias=pre_bias, relu=relu
    )
    upstream, aux_upstream = torch.randn(17, 4), torch.randn(17, k_aux)
    torch.autograd.backward([values, aux_values], [upstream, aux_upstream])
    every = torch.cat([values, aux_values], 1).detach()
    grad = torch.cat([upstream, torch.where(dead[aux_indices], aux_upstream, 0)], 1)
    check(tensors, [leaf.grad for leaf in leaves], grad, every, torch.cat([indices, aux_indices], 1), relu)


def backward(tensors, grad, values, indices, order=(None, None), relu=True, need=(True,) * 4):
    x, weight, _, pre_bias = tensors
    return torch.ops.saekern.topk_encode_backward(grad, values, indices, x, weight, pre_bias, *order, relu, list(need))


def test_hot_latent_and_duplicates():
    """One latent in each of 1500 rows (six chunks), some twice. Planted: chunks beyond the second lost; caught."""
    tensors = problem(1500, 11, 3000)
    indices = indices_with_hot_latent(1500, 3, 3000)
    indices[::5, 0] = 2999
    grad, values = torch.randn(1500, 3), torch.randn(1500, 3)
    check(tensors, backward(tensors, grad, values, indices), grad, values, indices)


@pytest.mark.parametrize("wanted", range(16))
def test_only_the_wanted_gradients(wanted):
    tensors = problem(9, 10, 14)
    indices = indices_with_hot_latent(9, 4, 14)
    grad, values = torch.randn(9, 4), torch.randn(9, 4)
    full = backward(tensors, grad, values, indices)
    need = [bool(wanted >> i & 1) for i in range(4)]
    for name, flag, got, want in zip(
        NAMES, need, backward(tensors, grad, values, indices, need=need), full, strict=True
    ):
        assert torch.equal(got, want) if flag else got.numel() == 0, name


def test_without_biases():
    x, weight, _, _ = problem(8, 12, 10)
    leaves = x.clone().requires_grad_(), weight.clone().requires_grad_()
    values, indices = ops.topk_encode(*leaves, None, 3)
    values.sum().backward()
    zero = torch.zeros(10), torch.zeros(12)
    want = backward((x, weight, *zero), torch.ones(8, 3), values.detach(), indices)
    assert torch.equal(leaves[0].grad, want[0])
    assert torch.equal(leaves[1].grad, want[1])


def test_same_bits_for_any_thread_count_and_a_given_order():
    tensors = problem(1300, 35, 500)
    indices = indices_with_hot_latent(1300, 6, 500)
    grad, values = torch.randn(1300, 6), torch.randn(1300, 6)
    results = [backward(tensors, grad, values, indices, reference.latent_order(indices, 500))]
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(backward(tensors, grad, values, indices))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_opcheck():
    tensors = problem(6, 10, 9)
    indices = indices_with_hot_latent(6, 3, 9)
    x, weight, _, pre_bias = tensors
    arguments = (torch.randn(6, 3), torch.randn(6, 3), indices, x, weight, pre_bias)
    for order in ((None, None), reference.latent_order(indices, 9)):
        torch.library.opcheck(
            torch.ops.saekern.topk_encode_backward.default, (*arguments, *order, True, [True, False, True, True])
        )


def test_compiles_as_one_graph():
    def loss(x, weight, bias, pre_bias):
        dead = torch.arange(20) % 2 == 0
        values, _, aux, _ = ops.topk_encode_aux(x, weight, bias, 3, dead, 5, pre_bias=pre_bias)
        return values.square().sum() + aux.sum()

    tensors = problem(6, 10, 20)
    grads = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaves = [t.clone().requires_grad_() for t in tensors]
        function(*leaves).backward()
        grads.append([leaf.grad for leaf in leaves])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_an_index_out_of_range_is_named():
    tensors = problem(4, 5, 6)
    indices = torch.full((4, 2), 6)
    with pytest.raises(ValueError, match=r"0 <= index < F = 6, got 6 at position 0 of 8"):
        backward(tensors, torch.ones(4, 2), torch.ones(4, 2), indices)
