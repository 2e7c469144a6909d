"""batch_topk_encode on CPU: every instruction level against float64."""

import importlib

import pytest
import torch
from bounds import UNIT
from exact_topk import problem

from saekern import _C, ops, reference
from saekern.ops import library

LEVELS = ("portable", "avx2", "avx512", "avx512bf16")
AVAILABLE = LEVELS[: LEVELS.index(_C.isa()) + 1]
SHAPES = [  # B, D, F, total
    (1, 1, 1, 1),
    (5, 3, 64, 64),
    (7, 13, 129, 5),
    (31, 33, 1023, 1),
    (97, 64, 2049, 97 * 17),
    (3, 127, 5003, 900),
    (130, 512, 1025, 130 * 32),
]


def assert_exact(codes, total, x, weight, bias, pre_bias):
    """With ε the largest rounding bound of a score, one that exceeds the `total`-th of the batch by more than 2ε in
    float64 is in, one below by more than 2ε is out, values are within their ε, and rows ascend by latent."""
    score = ((x.double() - pre_bias.double()) @ weight.double().T + bias.double()).relu()
    size = (x.abs().double() + pre_bias.abs().double()) @ weight.double().abs().T + bias.abs().double()
    eps = (x.shape[1] + 4) * UNIT * size
    rows = torch.arange(x.shape[0]).repeat_interleave(codes.offsets.diff())
    chosen = torch.zeros(score.shape, dtype=torch.bool)
    chosen[rows, codes.indices] = True
    assert int(chosen.sum()) == total == codes.values.numel()
    assert bool((codes.indices.diff()[rows.diff() == 0] > 0).all())
    last, slack = score.flatten().topk(total).values[-1], 2 * eps.max()
    assert bool(chosen[score > last + slack].all())
    assert not chosen[score < last - slack].any()
    assert bool(((codes.values.double() - score[rows, codes.indices]).abs() <= eps[rows, codes.indices]).all())


@pytest.mark.parametrize("isa", AVAILABLE)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_exact(shape, isa):
    batch, width, latents, total = shape
    x, weight, bias, pre_bias = problem(batch, width, latents)
    with ops.instruction_level(isa):
        codes = ops.batch_topk_encode(x, weight, bias, total, pre_bias=pre_bias)
    assert_exact(codes, total, x, weight, bias, pre_bias)


@pytest.mark.parametrize("isa", AVAILABLE)
@pytest.mark.parametrize("total", [0, 1, 40, 6000, 60000, 120000, 180000])
def test_integers_match_exactly(total, isa):
    """Small integers are exact in bfloat16 and in every sum, so ties are real and reach across rows; from 90,000 on
    there are not enough positive scores, 180,000 is B·F."""
    x = torch.randint(-2, 3, (60, 24)).float()
    weight = torch.randint(-2, 3, (3000, 24)).float()
    bias = torch.randint(-1, 2, (3000,)).float()
    want = reference.batch_topk_encode(x, weight, bias, total)
    with ops.instruction_level(isa):
        got = ops.batch_topk_encode(x, weight, bias, total)
    assert all(torch.equal(a, b) for a, b in zip(want, got[:3], strict=True))


@pytest.mark.parametrize("isa", AVAILABLE)
def test_one_row_may_take_all(isa):
    x, weight = torch.randn(200, 16), torch.randn(500, 16)
    x[150] *= 1e4
    with ops.instruction_level(isa):
        codes = ops.batch_topk_encode(x, weight, None, 100)
    assert codes.offsets.tolist() == [0] * 151 + [100] * 50


@pytest.mark.parametrize("isa", AVAILABLE)
def test_special_values(isa):
    """NaN first, then infinity; a row of NaN holds no padding. All scores equal, all zero, all negative."""
    x, weight, bias = torch.randn(4, 20), torch.randn(1500, 20), torch.zeros(1500)
    weight[700], bias[3], bias[4] = torch.nan, torch.inf, -torch.inf
    x[2, 0] = torch.nan
    ones = torch.ones(40, 300)
    with ops.instruction_level(isa):
        got = ops.batch_topk_encode(x, weight, bias, 1510)
        equal = ops.batch_topk_encode(torch.zeros(300, 1), torch.zeros(40, 1), torch.full((40,), 2.5), 90)
        zero = ops.batch_topk_encode(torch.zeros(300, 1), torch.ones(40, 1), None, 90)
        negative = ops.batch_topk_encode(-ones, ones[:40], None, 90)
    want = reference.batch_topk_encode(x, weight, bias, 1510)
    assert torch.equal(got.indices, want[1])
    assert torch.equal(got.offsets, want[2])
    assert torch.equal(torch.isnan(got.values), torch.isnan(want[0]))
    assert int(torch.isnan(got.values).sum()) == 1503
    for codes, value in ((equal, 2.5), (zero, 0.0), (negative, 0.0)):
        assert codes.offsets[:4].tolist() == [0, 40, 80, 90]
        assert codes.indices.tolist() == [*range(40), *range(40), *range(10)]
        assert bool((codes.values == value).all())


def test_same_bits_for_any_thread_count_and_level():
    x, weight, bias, pre_bias = problem(603, 96, 4100)
    threads = torch.get_num_threads()
    want = ops.batch_topk_encode(x, weight, bias, 603 * 9, pre_bias=pre_bias)
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            for isa in AVAILABLE[1:] or AVAILABLE:
                with ops.instruction_level(isa):
                    got = ops.batch_topk_encode(x, weight, bias, 603 * 9, pre_bias=pre_bias)
                assert all(torch.equal(a, b) for a, b in zip(want[:3], got[:3], strict=True)), (isa, count)
    finally:
        torch.set_num_threads(threads)


def test_more_rows_than_one_group():
    """8192 rows are in flight at a time: the best of the first group may fall to the second's."""
    x, weight, pre_bias = torch.randn(8300, 4), torch.randn(70, 4), torch.randn(4)
    x[8192:] *= 30
    codes = ops.batch_topk_encode(x, weight, None, 9000, pre_bias=pre_bias)
    assert_exact(codes, 9000, x, weight, torch.zeros(70), pre_bias)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_rounds_once(dtype):
    x, weight, bias, pre_bias = (t.to(dtype) for t in problem(20, 48, 300))
    codes = ops.batch_topk_encode(x, weight, bias, 140, pre_bias=pre_bias)
    wide = ops.batch_topk_encode(x.float(), weight.float(), bias.float(), 140, pre_bias=pre_bias.float())
    assert codes.values.dtype == dtype
    assert torch.equal(codes.values, wide.values.to(dtype))
    assert torch.equal(codes.indices, wide.indices)


def test_empty_batch_and_strides():
    empty = ops.batch_topk_encode(torch.empty(0, 5), torch.randn(9, 5), None, 0)
    assert empty.offsets.tolist() == [0]
    x, weight, bias, pre_bias = problem(30, 40, 200)
    want = ops.batch_topk_encode(x, weight, bias, 77, pre_bias=pre_bias)
    wide = torch.zeros(30, 80)
    wide[:, ::2] = x
    got = ops.batch_topk_encode(wide[:, ::2], weight.T.contiguous().T, bias, 77, pre_bias=pre_bias)
    assert all(torch.equal(a, b) for a, b in zip(want[:3], got[:3], strict=True))


@pytest.mark.parametrize("total", [-1, 28])
def test_errors(total):
    with pytest.raises(ValueError, match=rf"total: expected 0 <= total <= B·F = 27, got {total}"):
        ops.batch_topk_encode(torch.zeros(3, 5), torch.zeros(9, 5), None, total)


@pytest.mark.parametrize("chunk", [1, 40, 41, 1000, 1 << 24])
@pytest.mark.parametrize("total", [0, 1, 7, 60, 399, 400])
def test_what_runs_on_cuda(monkeypatch, chunk, total):
    """Called here, on scores that are small integers, so that a third of them tie and no block rounds otherwise than
    the whole. Planted: ties to the last; places not shifted by the block's rows; NaN as smallest. All caught."""
    module = importlib.import_module("saekern.ops.batch_topk_encode")
    monkeypatch.setattr(module, "CHUNK", chunk)
    generator = torch.Generator().manual_seed(total)
    x, weight = (torch.randint(-1, 3, shape, generator=generator).float() for shape in ((10, 5), (40, 5)))
    for bad in (None, torch.nan, torch.inf):
        if bad is not None:
            x[3, 2] = bad
        got = library.CUDA["batch_topk_encode"](x, weight, None, total, None, True)
        want = ops.batch_topk_encode(x, weight, None, total)
        for name, a, b in zip(("values", "indices", "offsets"), got, want, strict=False):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}")
        entries, segments = module.reference_order(got[1], 40, True)
        assert torch.equal(got[3], entries)
        assert torch.equal(got[4], segments)
    empty = library.CUDA["batch_topk_encode"](x[:0], weight, None, 0, None, False)
    assert empty[2].tolist() == [0]
