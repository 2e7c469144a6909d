"""threshold_encode on CPU: every instruction level against float64."""

import pytest
import torch
from bounds import UNIT
from exact_topk import problem

from saekern import _C, ops, reference

LEVELS = ("portable", "avx2", "avx512", "avx512bf16")
AVAILABLE = LEVELS[: LEVELS.index(_C.isa()) + 1]
SHAPES = [(1, 1, 1), (5, 3, 64), (7, 13, 129), (31, 33, 1023), (97, 64, 2049), (3, 127, 5003), (130, 512, 1025)]


def rows_of(codes):
    return torch.arange(codes.offsets.numel() - 1).repeat_interleave(codes.offsets.diff())


def assert_exact(codes, x, weight, bias, threshold, pre_bias):
    """With ε the rounding bound of a score, one that exceeds its threshold by more than ε in float64 is in, one below
    by more than ε is out, values are within ε of their scores, and rows ascend by latent."""
    score = (x.double() - pre_bias.double()) @ weight.double().T + bias.double()
    size = (x.abs().double() + pre_bias.abs().double()) @ weight.double().abs().T + bias.abs().double()
    eps = (x.shape[1] + 4) * UNIT * size
    chosen = torch.zeros(score.shape, dtype=torch.bool)
    rows = rows_of(codes)
    assert codes.offsets[0] == 0
    assert codes.offsets[-1] == codes.values.numel() == codes.indices.numel()
    chosen[rows, codes.indices] = True
    assert int(chosen.sum()) == codes.indices.numel(), "an index twice in one row"
    assert bool((codes.indices.diff()[rows.diff() == 0] > 0).all())
    limit = threshold.double()
    assert bool(chosen[score > limit + eps].all())
    assert not chosen[score < limit - eps].any()
    assert bool(((codes.values.double() - score[rows, codes.indices]).abs() <= eps[rows, codes.indices]).all())


@pytest.mark.parametrize("isa", AVAILABLE)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_exact(shape, isa):
    batch, width, latents = shape
    x, weight, bias, pre_bias = problem(batch, width, latents)
    spread = float(((x - pre_bias) @ weight.T).std(unbiased=False)) + 0.1
    with ops.instruction_level(isa):
        for threshold in (torch.zeros(latents), spread * (0.5 + torch.rand(latents)), spread * torch.randn(latents)):
            codes = ops.threshold_encode(x, weight, bias, threshold, pre_bias=pre_bias)
            assert_exact(codes, x, weight, bias, threshold, pre_bias)


@pytest.mark.parametrize("isa", AVAILABLE)
def test_integers_match_exactly_and_equal_is_not_above(isa):
    """Small integers are exact, so a score equal to its threshold is: a tenth of them here."""
    x = torch.randint(-2, 3, (60, 24)).float()
    weight = torch.randint(-2, 3, (3000, 24)).float()
    bias = torch.randint(-9, 10, (3000,)).float()
    threshold = torch.randint(-3, 12, (3000,)).float()
    want = reference.threshold_encode(x, weight, bias, threshold)
    with ops.instruction_level(isa):
        got = ops.threshold_encode(x, weight, bias, threshold)
    assert all(torch.equal(a, b) for a, b in zip(want, got[:3], strict=True))


@pytest.mark.parametrize("isa", AVAILABLE)
def test_roundings_that_all_point_one_way(isa):
    """1 + 0.0038 rounds to 1 in bfloat16: the score is 513.9, its product 512."""
    x, weight = torch.ones(1, 512), torch.ones(3000, 512)
    x[0, :500] = 1 + 0.0038
    with ops.instruction_level(isa):
        assert ops.threshold_encode(x, weight, None, 513.5).values.numel() == 3000
        assert ops.threshold_encode(x, weight, None, 514.0).values.numel() == 0


@pytest.mark.parametrize("isa", AVAILABLE)
def test_special_values(isa):
    """NaN is above every threshold, infinities compare as numbers do, −0 is not above 0. With 1500 latents the last
    panel has padding, which must not appear in a row of NaN."""
    x, weight, bias = torch.randn(5, 20), torch.randn(1500, 20), torch.zeros(1500)
    weight[700] = torch.nan
    bias[3], bias[4] = torch.inf, -torch.inf
    x[1, 0], x[2, 0] = torch.nan, torch.inf
    x[3], x[4] = 0.0, x[4] * 1e-40
    threshold = torch.zeros(1500)
    threshold[5], threshold[6], threshold[7] = torch.inf, -torch.inf, torch.nan
    want = reference.threshold_encode(x, weight, bias, threshold)
    with ops.instruction_level(isa):
        got = ops.threshold_encode(x, weight, bias, threshold)
    assert torch.equal(got.offsets[:5], want[2][:5])
    count = int(got.offsets[4])
    assert torch.equal(got.indices[:count], want[1][:count])
    assert torch.equal(torch.isnan(got.values[:count]), torch.isnan(want[0][:count]))
    assert got.offsets[2] - got.offsets[1] == 1500
    assert got.indices[got.offsets[3] : got.offsets[4]].tolist() == [3, 6, 700]


def test_same_bits_for_any_thread_count_batch_and_level():
    x, weight, bias, pre_bias = problem(203, 96, 4100)

    def run(x):
        return ops.threshold_encode(x, weight, bias, 1.5, pre_bias=pre_bias)

    threads = torch.get_num_threads()
    want = run(x)
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            for isa in AVAILABLE[1:] or AVAILABLE:
                with ops.instruction_level(isa):
                    got = run(x)
                assert all(torch.equal(a, b) for a, b in zip(want[:3], got[:3], strict=True)), (isa, count)
    finally:
        torch.set_num_threads(threads)
    one = run(x[100:101])
    begin, end = want.offsets[100:102].tolist()
    assert torch.equal(one.values, want.values[begin:end])
    assert torch.equal(one.indices, want.indices[begin:end])


def test_more_rows_than_one_group():
    x, weight, pre_bias = torch.randn(8200, 4), torch.randn(70, 4), torch.randn(4)
    codes = ops.threshold_encode(x, weight, None, 1.0, pre_bias=pre_bias)
    tail = ops.threshold_encode(x[8190:], weight, None, 1.0, pre_bias=pre_bias)
    assert torch.equal(codes.values[codes.offsets[8190] :], tail.values)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_compares_before_it_rounds(dtype):
    x, weight, bias, pre_bias = (t.to(dtype) for t in problem(20, 48, 300))
    threshold = torch.full((300,), 1.00001)
    codes = ops.threshold_encode(x, weight, bias, threshold, pre_bias=pre_bias)
    wide = ops.threshold_encode(x.float(), weight.float(), bias.float(), threshold, pre_bias=pre_bias.float())
    assert codes.values.dtype == dtype
    assert torch.equal(codes.values, wide.values.to(dtype))
    assert torch.equal(codes.indices, wide.indices)


def test_double_runs_in_double():
    x, weight, bias, pre_bias = (t.double() for t in problem(9, 20, 100))
    codes = ops.threshold_encode(x, weight, bias, 0.3, pre_bias=pre_bias)
    score = (x - pre_bias) @ weight.T + bias
    assert torch.equal(codes.values, score[score > 0.3])


def test_forms_of_the_threshold_and_strides():
    x, weight, bias, pre_bias = problem(30, 40, 200)
    want = ops.threshold_encode(x, weight, bias, 0.5, pre_bias=pre_bias)
    wide = torch.zeros(30, 80)
    wide[:, ::2] = x
    for threshold in (torch.tensor(0.5), torch.tensor([0.5]), torch.full((400,), 0.5)[::2], torch.tensor(0.5).double()):
        got = ops.threshold_encode(wide[:, ::2], weight.T.contiguous().T, bias, threshold, pre_bias=pre_bias)
        assert all(torch.equal(a, b) for a, b in zip(want[:3], got[:3], strict=True))


def test_nothing_found_and_empty_batch():
    none = ops.threshold_encode(torch.randn(4, 5), torch.randn(9, 5), None, torch.inf)
    empty = ops.threshold_encode(torch.empty(0, 5), torch.randn(9, 5), None, 0.0)
    assert none.offsets.tolist() == [0] * 5
    assert empty.offsets.tolist() == [0]
    assert none.values.numel() == empty.values.numel() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3)}, r"x: expected shape \[B, D\], got \[3\]"),
        ({"weight": torch.zeros(9, 4)}, r"weight: expected shape \[F, 5\], got \[9, 4\]"),
        ({"bias": torch.zeros(8)}, r"bias: expected shape \[9\], got \[8\]"),
        ({"threshold": torch.zeros(8)}, r"threshold: expected shape \[9\], got \[8\]"),
        ({"threshold": torch.zeros(9, dtype=torch.int64)}, r"threshold: expected a floating-point tensor"),
    ],
)
def test_errors(change, message):
    arguments = {"x": torch.zeros(3, 5), "weight": torch.zeros(9, 5), "bias": None, "threshold": 0.0} | change
    with pytest.raises(ValueError, match=message):
        ops.threshold_encode(*arguments.values())
