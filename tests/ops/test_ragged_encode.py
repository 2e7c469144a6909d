"""Gradients of the ragged encoders and of latent_gather against autograd of dense float64 scores, the choice given."""

import importlib

import pytest
import torch
from bounds import assert_within_bound

from saekern import ops, reference
from saekern.ops import library
from saekern.ops.ragged_encode import RaggedCodes
from saekern.reference.decode import rows_of

NAMES = ("x", "weight", "bias", "pre_bias")
SHAPES = [(1, 1, 1), (5, 31, 13), (16, 64, 64), (33, 127, 257), (65, 33, 40), (0, 8, 5)]  # B, D, F


def problem(batch, width, latents, dtype=torch.float32):
    tensors = torch.randn(batch, width), torch.randn(latents, width), torch.randn(latents), torch.randn(width)
    return tuple(t.to(dtype) for t in tensors)


def encode(name, tensors):
    x, weight, bias, pre_bias = tensors
    if name == "threshold":  # every latent has its own; the last is active in every row (several chunks of codes)
        threshold = torch.linspace(3, -1e3, weight.shape[0])
        return ops.threshold_encode(x, weight, bias, threshold, pre_bias=pre_bias)
    total = x.shape[0] * weight.shape[0] * 3 // 4  # about a third of them zeros, which carry no gradient
    return ops.batch_topk_encode(x, weight, bias, total, pre_bias=pre_bias)


def check(name, tensors, got, codes, upstream):
    """Against the dense answer; Σ|products| of each gradient from absolute values."""
    kept = torch.where(codes.values <= 0, 0.0, upstream.double()) if name == "batch" else upstream.double()
    answers = []
    for magnitude in (False, True):
        leaves = [(t.double().abs() if magnitude else t.double()).requires_grad_() for t in tensors]
        x, weight, bias, pre_bias = leaves
        scores = torch.nn.functional.linear(x + pre_bias if magnitude else x - pre_bias, weight, bias)
        places = rows_of(codes.values, codes.offsets), codes.indices
        answers.append(torch.autograd.grad(scores[places], leaves, kept.abs() if magnitude else kept))
    per_row = int(codes.offsets.diff().max()) if codes.offsets.numel() > 1 else 0
    per_latent = int(torch.bincount(codes.indices, minlength=1).max())
    terms = (per_row, per_latent + 1, per_latent, codes.indices.numel() + tensors[1].shape[0])
    for label, g, want, size, count in zip(NAMES, got, *answers, terms, strict=True):
        assert_within_bound(label, g, want, size, count)


@pytest.mark.parametrize("name", ["threshold", "batch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients(shape, dtype, name):
    """Planted: the mask of zeros missing in batch_topk_encode; caught."""
    tensors = problem(*shape, dtype)
    leaves = [t.clone().requires_grad_() for t in tensors]
    codes = encode(name, leaves)
    upstream = torch.randn(codes.values.shape).to(dtype)
    codes.values.backward(upstream)
    check(name, tensors, [leaf.grad for leaf in leaves], codes, upstream)


@pytest.mark.parametrize("name", ["threshold", "batch"])
def test_gradcheck(name):
    tensors = [t.requires_grad_() for t in problem(4, 5, 9, torch.float64)]
    torch.autograd.gradcheck(lambda *tensors: encode(name, tensors).values, tensors)


@pytest.mark.parametrize("name", ["threshold_encode", "batch_topk_encode"])
def test_opcheck(name):
    x, weight, bias, pre_bias = (t.requires_grad_() for t in problem(9, 7, 60))
    choice = torch.rand(60) if name == "threshold_encode" else 81
    torch.library.opcheck(getattr(torch.ops.saekern, name), (x, weight, bias, choice, pre_bias, True))


def test_batch_topk_compiles_whole():
    x, weight, bias, pre_bias = problem(12, 6, 80)

    def run(x):
        codes = ops.batch_topk_encode(x, weight, bias, 40, pre_bias=pre_bias)
        return codes.values * 2, codes.indices, codes.offsets

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert all(torch.equal(a, b) for a, b in zip(run(x), compiled(x), strict=True))


def test_only_wanted_gradients_and_the_order():
    x, weight, bias, pre_bias = problem(30, 8, 50)
    codes = encode("threshold", (x, weight.requires_grad_(), bias, pre_bias))
    want = reference.latent_order(codes.indices, 50)
    assert torch.equal(codes.order.entries, want[0])
    assert torch.equal(codes.order.segments, want[1])
    codes.values.sum().backward()
    assert weight.grad is not None
    with torch.no_grad():
        assert encode("batch", (x, weight, bias, pre_bias)).order is None


@pytest.mark.parametrize("ordered", [True, False])
def test_latent_gather(ordered):
    """The last latent has more codes than one chunk."""
    batch, latents = 400, 37
    counts = torch.randint(0, 5, (batch,))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    indices = torch.randint(latents, (int(offsets[-1]),))
    indices[::2] = latents - 1
    order = ops.LatentOrder(*reference.latent_order(indices, latents)) if ordered else None
    codes = RaggedCodes(torch.empty(indices.shape), indices, offsets, order)
    vector = torch.randn(latents, requires_grad=True)
    upstream = torch.randn(indices.shape)
    got = ops.latent_gather(vector, codes)
    got.backward(upstream)
    assert torch.equal(got, vector.detach()[indices])
    want = torch.zeros(latents, dtype=torch.float64).index_add_(0, indices, upstream.double())
    size = torch.zeros(latents, dtype=torch.float64).index_add_(0, indices, upstream.double().abs())
    assert_within_bound("vector", vector.grad, want, size, int(torch.bincount(indices).max()))
    double = vector.detach().double().requires_grad_()
    torch.autograd.gradcheck(lambda v: ops.latent_gather(v, codes), double)
    torch.library.opcheck(torch.ops.saekern.latent_gather, (vector, indices, offsets, *(order or (None, None))))


def test_errors():
    codes = ops.threshold_encode(torch.zeros(3, 5), torch.zeros(9, 5), None, 0.0)
    with pytest.raises(ValueError, match=r"vector: expected shape \[F\], got \[9, 1\]"):
        ops.latent_gather(torch.zeros(9, 1), codes)


@pytest.mark.parametrize("op", ["threshold_encode", "batch_topk_encode"])
def test_scores_on_cuda_are_never_of_tf32(op, monkeypatch):
    """What the dispatcher calls there is called here. Planted: no guard; not restored after an error. Both caught."""
    matmul = torch.backends.cuda.matmul
    where = {
        "threshold_encode": "saekern.reference.ragged_encode",
        "batch_topk_encode": "saekern.ops.batch_topk_encode",
    }
    module, seen = importlib.import_module(where[op]), []
    inner = module.scores

    def watched(*arguments, **keywords):
        seen.append(matmul.fp32_precision)
        return inner(*arguments, **keywords)

    monkeypatch.setattr(module, "scores", watched)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        x, weight = torch.randn(5, 3), torch.randn(7, 3)
        choice = torch.zeros(7) if op == "threshold_encode" else 6
        library.CUDA[op](x, weight, None, choice, None, False)
        with pytest.raises(RuntimeError):
            library.CUDA[op](x, weight[:, :2], None, choice, None, False)
        assert seen == ["ieee", "ieee"]
        assert matmul.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision(before)
