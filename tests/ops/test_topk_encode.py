"""topk_encode and topk_encode_aux on CPU: every instruction level against float64."""

import numpy as np
import pytest
import torch
from exact_topk import assert_exact_topk, problem

from saekern import _C, ops, reference
from saekern.ops.topk_encode import encode as encode_in_order

LEVELS = ("portable", "avx2", "avx512", "avx512bf16")
AVAILABLE = LEVELS[: LEVELS.index(_C.isa()) + 1]
SHAPES = [  # B, D, F, K
    (1, 1, 1, 1),
    (5, 3, 64, 64),
    (7, 13, 129, 5),
    (31, 33, 1023, 1),
    (97, 64, 2049, 17),
    (3, 127, 5003, 300),
    (130, 512, 1025, 32),
]


def encode(x, weight, bias, k, pre_bias=None, dead=None, k_aux=0, relu=True, threads=2, isa=""):
    """The extension itself, so that instruction level and thread count can be chosen."""
    batch = x.shape[0]
    values, aux_values = torch.empty(batch, k), torch.empty(batch, k_aux)
    indices, aux_indices = (torch.empty(v.shape, dtype=torch.int64) for v in (values, aux_values))
    arrays = [None if t is None else t.numpy() for t in (x, weight, bias, pre_bias)]
    _C.topk_encode(
        *arrays,
        None,
        None,
        values.numpy(),
        indices.numpy(),
        None if dead is None else dead.numpy(),
        aux_values.numpy(),
        aux_indices.numpy(),
        relu,
        threads,
        isa,
    )
    return values, indices, aux_values, aux_indices


@pytest.mark.parametrize("isa", AVAILABLE)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_exact(shape, isa):
    """Planted: the last panel packed short by one; caught."""
    batch, width, latents, k = shape
    x, weight, bias, pre_bias = problem(batch, width, latents)
    values, indices, _, _ = encode(x, weight, bias, k, pre_bias, isa=isa)
    assert_exact_topk(values, indices, x, weight, bias, pre_bias)


@pytest.mark.parametrize("isa", AVAILABLE)
@pytest.mark.parametrize("rounded", ["x", "weight"])
def test_roundings_that_all_point_one_way(rounded, isa):
    """1 + 0.0038 rounds to 1 in bfloat16. Latent 0 meets only such elements, latent 1 one more that are exact:
    the rounded product prefers latent 1 (513 to 512), the true one latent 0 (513.9 to 513).

    Planted: the slack without ‖x − x̂‖‖w‖, and without ‖x̂‖‖w − ŵ‖; each caught at avx512bf16 by its case."""
    high = 1 + 0.0038
    x, weight = torch.ones(1, 1025), torch.zeros(3000, 1025)
    weight[0, :512] = 1.0
    weight[1, 512:] = 1.0
    (x if rounded == "x" else weight)[0, :512] = high
    _, indices, _, _ = encode(x, weight, None, 1, isa=isa)
    assert indices.item() == 0


@pytest.mark.parametrize("isa", AVAILABLE)
@pytest.mark.parametrize("dead_share", [0.0, 0.02, 1.0])
def test_aux_is_the_top_of_the_dead(isa, dead_share):
    """Planted: the live latents left in the auxiliary selection; caught."""
    x, weight, bias, pre_bias = problem(41, 65, 2050)
    dead = torch.rand(2050) < dead_share
    values, indices, aux_values, aux_indices = encode(x, weight, bias, 9, pre_bias, dead, k_aux=57, isa=isa)
    assert_exact_topk(values, indices, x, weight, bias, pre_bias)
    count = min(57, int(dead.sum()))
    if count:
        assert_exact_topk(aux_values, aux_indices, x, weight, bias, pre_bias, dead)
    assert bool(dead[aux_indices[:, :count]].all())
    assert not dead[aux_indices[:, count:]].any()
    assert not aux_values[:, count:].any()


@pytest.mark.parametrize("isa", AVAILABLE)
def test_integers_match_exactly_and_ties_go_to_the_smaller_index(isa):
    """Small integers are exact in bfloat16 and in every sum, so ties are real: thousands of them here.

    Planted: ties ranked by the larger index; caught."""
    x = torch.randint(-2, 3, (60, 24)).float()
    weight = torch.randint(-2, 3, (3000, 24)).float()
    bias = torch.randint(-1, 2, (3000,)).float()
    want = reference.topk_encode(x, weight, bias, 50)
    values, indices, _, _ = encode(x, weight, bias, 50, isa=isa)
    assert torch.equal(values, want[0])
    assert torch.equal(indices, want[1])


def test_same_bits_for_any_thread_count_batch_and_level():
    """Values come from one dot product in a fixed order; only levels without fused multiply-add may round otherwise."""
    x, weight, bias, pre_bias = problem(203, 96, 4100)
    dead = torch.rand(4100) < 0.3
    want = encode(x, weight, bias, 33, pre_bias, dead, k_aux=40, threads=1)
    for isa in AVAILABLE[1:] or AVAILABLE:
        for threads in (1, 2, 3, 7):
            got = encode(x, weight, bias, 33, pre_bias, dead, k_aux=40, threads=threads, isa=isa)
            assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True)), (isa, threads)
    one = [encode(x[i : i + 1], weight, bias, 33, pre_bias, dead, k_aux=40) for i in (0, 100, 202)]
    for row, got in zip((0, 100, 202), one, strict=True):
        assert all(torch.equal(a[row : row + 1], b) for a, b in zip(want, got, strict=True))


@pytest.mark.parametrize("isa", AVAILABLE)
def test_rows_that_tie_everywhere(isa):
    """All scores equal: the first K latents win, and memory does not grow with F (candidates are settled)."""
    weight = torch.randn(9000, 16)
    values, indices, _, _ = encode(torch.zeros(300, 16), weight, torch.full((9000,), 2.5), 20, isa=isa)
    assert bool((indices == torch.arange(20)).all())
    assert bool((values == 2.5).all())
    same = weight[:1].expand(9000, 16).contiguous()
    _, indices, _, _ = encode(torch.randn(20, 16), same, None, 20, isa=isa)
    assert bool((indices == torch.arange(20)).all())


@pytest.mark.parametrize("isa", AVAILABLE)
def test_special_values(isa):
    """NaN is largest, infinities order as numbers do, ±0 tie, denormals and 1e±30 keep their order.

    Planted: an ordered comparison (drops NaN) in the candidate test; it crashed."""
    x = torch.randn(6, 20)
    weight = torch.randn(1500, 20)
    bias = torch.zeros(1500)
    weight[700] = torch.nan
    bias[3], bias[4], bias[5] = torch.inf, -torch.inf, -0.0
    x[1, 0] = torch.nan
    x[2, 0] = torch.inf
    x[3] *= 1e30
    x[4] *= 1e-30
    x[5] *= 1e-40  # denormal
    want = reference.topk_encode(x, weight, bias, 30)
    values, indices, _, _ = encode(x, weight, bias, 30, isa=isa)
    assert torch.equal(torch.isnan(values), torch.isnan(want[0]))
    assert torch.equal(indices[:4], want[1][:4])
    assert bool((indices[3:, 0] == 700).all())
    assert torch.equal(indices[4:, 1], torch.tensor([3, 3]))
    _, negative, _, _ = encode(-x[4:5].abs(), weight.abs(), None, 5, isa=isa)  # every score below zero
    assert torch.equal(negative, reference.topk_encode(-x[4:5].abs(), weight.abs(), None, 5)[1])


def test_relu_clamps_after_selection():
    x, weight = torch.randn(50, 8), torch.randn(40, 8)
    values, indices = ops.topk_encode(x, weight, None, 40)
    raw_values, raw_indices = ops.topk_encode(x, weight, None, 40, relu=False)
    assert torch.equal(indices, raw_indices)
    assert torch.equal(values, raw_values.relu())
    assert bool((raw_values < 0).any())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_rounds_once(dtype):
    x, weight, bias, pre_bias = (t.to(dtype) for t in problem(20, 48, 300))
    values, indices = ops.topk_encode(x, weight, bias, 7, pre_bias=pre_bias)
    wide = ops.topk_encode(x.float(), weight.float(), bias.float(), 7, pre_bias=pre_bias.float())
    assert values.dtype == dtype
    assert torch.equal(values, wide[0].to(dtype))
    assert torch.equal(indices, wide[1])


def test_double_runs_in_double():
    x, weight, bias, _ = (t.double() for t in problem(9, 20, 100))
    values, indices = ops.topk_encode(x, weight, bias, 6)
    want = torch.sort(x @ weight.T + bias, dim=1, descending=True, stable=True)
    assert values.dtype == torch.float64
    assert torch.equal(indices, want.indices[:, :6])


def test_inputs_of_any_stride():
    x, weight, bias, pre_bias = problem(30, 40, 200)
    want = ops.topk_encode(x, weight, bias, 4, pre_bias=pre_bias)
    wide = torch.zeros(30, 80)
    wide[:, ::2] = x
    got = ops.topk_encode(wide[:, ::2], weight.T.contiguous().T, bias.repeat(2)[:200], 4, pre_bias=pre_bias)
    assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))


def test_empty_batch():
    values, indices = ops.topk_encode(torch.empty(0, 5), torch.randn(9, 5), None, 3)
    assert values.shape == indices.shape == (0, 3)


def test_rows_without_elements():
    """A panel of such rows takes no bytes; dividing by them killed the process."""
    values, indices = ops.topk_encode(torch.empty(4, 0), torch.empty(9, 0), torch.arange(9.0), 2)
    assert torch.equal(values, torch.tensor([8.0, 7.0]).expand(4, 2))
    assert torch.equal(indices, torch.tensor([8, 7]).expand(4, 2))


def test_more_rows_than_one_group():
    """8192 rows are in flight at a time: the second group must not see the first one's candidates."""
    x, weight = torch.randn(8200, 4), torch.randn(70, 4)
    values, indices = ops.topk_encode(x, weight, None, 2)
    tail = ops.topk_encode(x[8190:], weight, None, 2)
    assert torch.equal(values[8190:], tail[0])
    assert torch.equal(indices[8190:], tail[1])


def test_autocast_takes_the_autocast_dtype():
    x, weight = torch.randn(5, 8), torch.randn(30, 8)
    with torch.autocast("cpu", torch.bfloat16):
        values, _ = ops.topk_encode(x, weight, None, 3)
    assert values.dtype == torch.bfloat16


def test_the_order_by_latent():
    x, weight = torch.randn(40, 8, requires_grad=True), torch.randn(30, 8)
    _, indices, _, _, order = encode_in_order(x, weight, None, 3)
    want = reference.latent_order(indices, 30)
    assert torch.equal(order.entries, want[0])
    assert torch.equal(order.segments, want[1])
    with torch.no_grad():
        assert encode_in_order(x, weight, None, 3)[4] is None


@pytest.mark.parametrize("relu", [True, False])
def test_opcheck(relu):
    x, weight, bias, pre_bias = (t.requires_grad_() for t in problem(9, 7, 60))
    dead = torch.rand(60) < 0.5
    for aux in ((None, 0), (dead, 11)):
        torch.library.opcheck(torch.ops.saekern.topk_encode, (x, weight, bias, 5, pre_bias, relu, *aux, True))


def test_compiles_whole():
    x, weight, bias, pre_bias = problem(12, 6, 80)

    def run(x):
        values, indices = ops.topk_encode(x, weight, bias, 4, pre_bias=pre_bias)
        return values.sum(1), indices

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert all(torch.equal(a, b) for a, b in zip(run(x), compiled(x), strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3)}, r"x: expected shape \[B, D\], got \[3\]"),
        ({"weight": torch.zeros(9, 4)}, r"weight: expected shape \[F, 5\], got \[9, 4\]"),
        ({"bias": torch.zeros(8)}, r"bias: expected shape \[9\], got \[8\]"),
        ({"pre_bias": torch.zeros(9)}, r"pre_bias: expected shape \[5\], got \[9\]"),
        ({"x": torch.zeros(3, 5, dtype=torch.int64)}, r"x: expected a floating-point tensor, got torch.int64"),
        ({"weight": torch.zeros(9, 5).double()}, r"weight: expected torch.float32 like x, got torch.float64"),
        ({"k": 0}, r"k: expected 1 <= k <= F = 9, got 0"),
        ({"k": 10}, r"k: expected 1 <= k <= F = 9, got 10"),
    ],
)
def test_errors(change, message):
    arguments = {"x": torch.zeros(3, 5), "weight": torch.zeros(9, 5), "bias": None, "k": 2, "pre_bias": None} | change
    with pytest.raises(ValueError, match=message):
        ops.topk_encode(
            arguments["x"], arguments["weight"], arguments["bias"], arguments["k"], pre_bias=arguments["pre_bias"]
        )


def test_aux_errors():
    x, weight = torch.zeros(3, 5), torch.zeros(9, 5)
    with pytest.raises(ValueError, match=r"dead: expected bool, got torch.float32"):
        ops.topk_encode_aux(x, weight, None, 2, torch.zeros(9), 1)
    with pytest.raises(ValueError, match=r"k_aux: expected 0 <= k_aux <= F = 9, got 10"):
        ops.topk_encode_aux(x, weight, None, 2, torch.zeros(9, dtype=torch.bool), 10)


def test_unknown_level_is_an_error():
    with pytest.raises(ValueError, match="isa: this processor has"):
        encode(torch.zeros(1, 1), torch.zeros(1, 1), None, 1, isa="mmx")


def test_wrong_dtype_is_refused_by_the_extension():
    floats = np.zeros((1, 1), np.float32)
    with pytest.raises(TypeError, match="incompatible function arguments"):
        _C.row_topk(floats.astype(np.float64), floats, np.zeros((1, 1), np.int64), 1)


@pytest.mark.parametrize("level", AVAILABLE)
def test_instruction_level_changes_no_bit(level):
    """Planted: the ops not passing the level on; caught by the level that no processor has."""
    x, weight, bias, pre_bias = problem(19, 33, 700)
    best = ops.topk_encode(x, weight, bias, 9, pre_bias=pre_bias)
    with ops.instruction_level(level):
        held = ops.topk_encode(x, weight, bias, 9, pre_bias=pre_bias)
        assert ops.library.isa() == level
    assert all(torch.equal(a, b) for a, b in zip(best, held, strict=True))
    assert ops.library.isa() == _C.isa()
    with ops.instruction_level("avx1024"), pytest.raises(ValueError, match="isa: this processor has"):
        ops.topk_encode(x, weight, bias, 9)
