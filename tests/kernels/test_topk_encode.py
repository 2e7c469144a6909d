"""The Triton encoder against float64 and, where integers make every sum exact, against the reference bit for bit."""

import pytest
import torch
from exact_topk import assert_exact_topk, problem
from sparse_codes import lazy_zeros

from saekern import reference
from saekern.kernels import group_maxima, streaming_select, topk_encode, topk_screen
from saekern.kernels.streaming_select import LARGEST_K, OVERFLOW, SUB, capacity
from saekern.kernels.topk_encode import plan

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [  # B, D, F, K; chunks of 256 latents
    (1, 1, 1, 1),
    (3, 5, 7, 7),
    (5, 37, 257, 16),
    (2, 127, 600, 1),
    (2, 64, 401, 300),
    (2, 600, 131, 5),
    (2, 9, 700, LARGEST_K + 1),
]
NOT_FINITE = pytest.mark.filterwarnings("ignore:(invalid|overflow|divide by zero):RuntimeWarning")  # NumPy's


@pytest.fixture(autouse=True)
def _chunks_of_256(monkeypatch):
    monkeypatch.setattr(topk_encode, "TILES", {9: 1})
    monkeypatch.setattr(topk_encode, "NARROW", -1)


@pytest.fixture
def by_maxima(monkeypatch):
    monkeypatch.setattr(topk_encode, "NARROW", 1024)
    monkeypatch.setattr(group_maxima, "ROWS", 16)  # the interpreter takes a second for a tile of 128 × 256
    monkeypatch.setattr(group_maxima, "LATENTS", 128)


@pytest.fixture(params=["screen", "stream", "maxima"])
def dtype(request):
    """The type in which a path is taken."""
    if request.param == "maxima":
        request.getfixturevalue("by_maxima")
    return torch.float32 if request.param == "screen" else torch.bfloat16


def encode(device, x, weight, bias, k, pre_bias=None, dead=None, k_aux=0, relu=True, order=False):
    x, weight, bias, pre_bias, dead = (None if t is None else t.to(device) for t in (x, weight, bias, pre_bias, dead))
    out = topk_encode.topk_encode(x, weight, bias, k, pre_bias, relu, dead, k_aux, order)
    return tuple(t.cpu() for t in out)


def integers(batch, width, latents):
    """x, weight, bias, pre_bias whose products and sums are exact in every type: ties are real, and many."""
    shapes = (batch, width), (latents, width), (latents,), (width,)
    return tuple(torch.randint(-2, 3, shape).float() for shape in shapes)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_exact(device, shape, dtype):
    """Planted: a chunk's tail not masked; ReLU left out; the shift's sign; no pre-bias in the rescoring; all caught."""
    batch, width, latents, k = shape
    x, weight, bias, pre_bias = (t.to(dtype) for t in problem(batch, width, latents))
    for b, p, relu in ((bias, pre_bias, True), (None, None, False)):
        values, indices, *_ = encode(device, x, weight, b, k, p, relu=relu)
        assert values.dtype == dtype
        assert indices.dtype == torch.int64
        assert_exact_topk(values, indices, x, weight, b, p, relu=relu)


def test_float16(device):
    x, weight, bias, pre_bias = (t.half() for t in problem(3, 31, 300))
    values, indices, *_ = encode(device, x, weight, bias, 11, pre_bias)
    assert values.dtype == torch.float16
    assert_exact_topk(values, indices, x, weight, bias, pre_bias)


@pytest.mark.parametrize("k", [1, 50, LARGEST_K + 1])
def test_ties_go_to_the_smaller_latent(device, dtype, k):
    x, weight, bias, pre_bias = integers(4, 11, 600)
    dead = torch.rand(600) < 0.3
    want = reference.topk_encode_aux(x, weight, bias, k, dead, 70, pre_bias=pre_bias)
    got = encode(device, *(t.to(dtype) for t in (x, weight, bias)), k, pre_bias.to(dtype), dead, 70)
    for g, w in zip(got, want, strict=False):
        assert torch.equal(g, w.to(g.dtype))


@NOT_FINITE
def test_rows_that_fill_every_list(device, dtype):
    """One column, so that scores are x times the weight: all equal, ascending (each latent beats all before it),
    descending, all negative, zeros, NaN, infinite. 1100 latents: more than any list for this k holds.

    Planted: a later tie let in; all ties kept; caught."""
    latents = 1100
    x = torch.tensor([0.0, 1.0, -1.0, torch.nan, torch.inf]).to(dtype)[:, None]
    ramp = torch.arange(1.0, latents + 1).sqrt()  # ties after rounding to bfloat16
    late = torch.cat([torch.ones(600), 1 + ramp[:500]])  # a list full of ties, then what beats them
    for weight, shift in ((torch.ones(latents), 2.5), (ramp, 0), (late, 0)):
        weight, bias = weight.to(dtype)[:, None], torch.full((latents,), shift, dtype=dtype)
        want = reference.topk_encode(x, weight, bias, 20, relu=False)
        got = encode(device, x, weight, bias, 20, relu=False)
        assert torch.equal(got[1][:3], want[1][:3])
        assert torch.equal(got[0][:3], want[0][:3])
        assert bool((got[1][3:] == torch.arange(20)).all())
        assert bool(got[0][3].isnan().all())
        assert bool((got[0][4] == torch.inf).all())


def test_zeros_of_both_signs_tie(device):
    """Planted: keys that order −0 below +0; caught."""
    scores = torch.tensor([[-0.0, 0.0, -1.0, 0.0, -0.0, 1.0]], device=device)
    words, state = (torch.zeros(1, *shape, dtype=torch.int32, device=device) for shape in ((2, 512), (2,)))
    streaming_select.select_kernel[(1,)](
        scores, None, words, state, *[None] * 5, 0, 6, 4, 2, 512, SUB, 512, num_warps=1
    )
    values, indices = torch.empty(1, 4, device=device), torch.empty(1, 4, dtype=torch.int64, device=device)
    streaming_select.finish_kernel[(1,)](words, state, None, values, indices, 4, False, 2, SUB, 512, 16, num_warps=1)
    assert indices.tolist() == [[5, 0, 1, 3]]


@NOT_FINITE
def test_special_values(device, dtype):
    """NaN is largest, infinities order as numbers do, ±0 tie, tiny and huge scores keep their order.

    Planted: NaN below all else; caught."""
    x = torch.randn(5, 20)
    weight, bias = torch.randn(300, 20), torch.zeros(300)
    weight[70] = torch.nan
    bias[3], bias[4], bias[5] = torch.inf, -torch.inf, -0.0
    x[1, 0] = torch.nan
    x[2, 0] = torch.inf
    x[3] *= 1e30
    x[4] *= 1e-30
    x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
    want = reference.topk_encode(x, weight, bias, 30)
    got = encode(device, x, weight, bias, 30)
    assert torch.equal(got[0].isnan(), want[0].isnan())
    assert torch.equal(got[1][:3], want[1][:3])
    assert torch.equal(got[1][3:, :2], torch.tensor([[70, 3], [70, 3]]))
    assert_exact_topk(*encode(device, x[4:], weight[100:], None, 30)[:2], x[4:], weight[100:], None, None)


@NOT_FINITE
@NOT_FINITE
def test_a_weight_that_rounds_to_infinity(device):
    """3.4e38 is finite in float32 and, rounded to nearest, infinite in bfloat16; a row of zeros scores 0 with it.
    (Triton's interpreter cuts instead of rounding, so that only a GPU can fail here.)"""
    x, weight = torch.zeros(2, 40), torch.randn(300, 40)
    weight[7, 3] = 3.4e38
    x[1] = torch.randn(40)
    values, indices, *_ = encode(device, x, weight, None, 4)
    assert indices[0].tolist() == [0, 1, 2, 3]
    assert not values[0].any()
    want = reference.topk_encode(x.double(), weight.double(), None, 4)[1]
    assert torch.equal(indices[1], want[1])


@pytest.mark.parametrize("k", [1, 3, 5])
def test_few_groups_are_read(device, by_maxima, k):
    """Fewer latents wanted than there are groups, of which the last is one latent and another is padding.

    Planted: the padding counted as a group; the bound itself left out; both caught."""
    x, weight, bias, pre_bias = (t.bfloat16() for t in problem(9, 9, 257))
    weight[-1] *= 9  # the best latent of half the rows
    assert plan(9, 9, 257, k, 0, torch.bfloat16).path == "maxima"
    got = encode(device, x, weight, bias, k, pre_bias)
    assert_exact_topk(*got[:2], x, weight, bias, pre_bias)
    weight[70], weight[200] = torch.nan, torch.inf
    got = encode(device, x.abs(), weight, bias, k)
    assert bool((got[1][:, :2] == torch.tensor([70, 200])[:k]).all())
    assert bool(got[0][:, 0].isnan().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dead_share", [0.0, 0.05, 1.0])
def test_aux_is_the_top_of_the_dead(device, dtype, dead_share):
    """Planted: live latents let in; padding taken from the first slot on in every row; caught."""
    x, weight, bias, pre_bias = (t.to(dtype) for t in problem(3, 17, 530))
    bias, pre_bias = (bias, pre_bias) if dead_share else (None, None)
    dead = torch.rand(530) < dead_share
    got = encode(device, x, weight, bias, 9, pre_bias, dead, 57)
    assert_exact_topk(*got[:2], x, weight, bias, pre_bias)
    values, indices = got[2:4]
    count = min(57, int(dead.sum()))
    if count:
        assert_exact_topk(values, indices, x, weight, bias, pre_bias, dead)
    assert bool(dead[indices[:, :count]].all())
    assert not values[:, count:].any()
    live = (~dead).nonzero().flatten()[: 57 - count]
    assert torch.equal(indices[:, count:], live.expand(3, -1))


@pytest.mark.parametrize("rounded", ["x", "weight"])
def test_roundings_that_all_point_one_way(device, rounded):
    """1 + 0.0038 rounds to 1 in bfloat16. Latent 0 meets only such elements, latent 1 one more that are exact: the
    rounded product prefers latent 1 (65 to 64), the true one latent 0 (64.24 to 64.2), and 130 between them fill up.

    Planted: the bound without ‖x − x̂‖, and without ‖w − ŵ‖; each caught by its case."""
    high = 1 + 0.0038
    x, weight = torch.ones(1, 130), torch.zeros(700, 130)
    weight[0, :64] = 1.0
    weight[1, 64:129] = 1.0
    (x if rounded == "x" else weight)[0, :64] = high
    weight[1, 128] = 0.1
    indices = encode(device, x, weight, None, 1)[1]
    assert indices.item() == 0
    exact = (x @ weight.T)[0, :2]
    assert exact[0] > exact[1]
    coarse = (x.bfloat16().float() @ weight.bfloat16().float().T)[0, :2]
    assert coarse[0] < coarse[1]


class Spied:
    """A kernel that tells what it is about to be called with."""

    def __init__(self, kernel, look):
        self.kernel, self.look = kernel, look

    def __getitem__(self, grid):
        def launch(*arguments, **options):
            self.look(*arguments)
            self.kernel[grid](*arguments, **options)

        return launch


def test_candidates_beyond_the_list_are_all_scored_exactly(device, monkeypatch):
    """1100 latents within the bound of one another: the list of 1024 overflows, the row is done again in full.

    Planted: the row left as it was, caught; the overflow not noticed: it crashed."""
    counts = []
    spied = Spied(topk_screen.overflow_kernel, lambda words, state, *_: counts.append(state[:2, 0].tolist()))
    monkeypatch.setattr(topk_screen, "overflow_kernel", spied)
    x = torch.randn(2, 30)
    weight = torch.randn(1, 30) + 1e-5 * torch.randn(1100, 30)
    weight[100:400] = weight[100:101]  # and real ties
    bias = 1e-6 * torch.randn(1100)
    dead = torch.rand(1100) < 0.5
    got = encode(device, x, weight, bias, 12, None, dead, 12)
    assert counts[0] == [OVERFLOW.value] * 2, "the list did not overflow"
    assert_exact_topk(*got[:2], x, weight, bias, None)
    assert_exact_topk(*got[2:4], x, weight, bias, None, dead)
    assert OVERFLOW.value not in counts[1]


@NOT_FINITE
def test_rows_of_zeros_and_of_nan_need_no_second_look(device, monkeypatch):
    """Padding rows would otherwise tie everywhere and cost a pass over all latents each.

    Planted: a row of zeros not known to be exact; caught."""

    def look(words, state, *_):
        assert OVERFLOW.value not in state[:3, 0]

    monkeypatch.setattr(topk_screen, "overflow_kernel", Spied(topk_screen.overflow_kernel, look))
    x = torch.zeros(3, 7)
    x[1, 3] = torch.nan
    shift = torch.randn(7)
    for bias in (None, torch.randn(1100)):
        want = reference.topk_encode(x, weight := torch.randn(1100, 7), bias, 6, relu=False)
        got = encode(device, x + shift, weight, bias, 6, shift, relu=False)
        assert torch.equal(got[1][:2], want[1][:2])
        assert torch.equal(got[0][0], want[0][0])


def test_several_row_blocks(device, monkeypatch):
    """The second block's rows must not see the first one's lists.

    Planted: the second block written over the first, caught; its lists not emptied: it crashed."""
    for name in ("STREAM_ROWS", "SCREEN_ROWS"):
        monkeypatch.setattr(topk_encode, name, 2)
    monkeypatch.setattr(topk_encode, "TILE", (2, 256))
    for dtype in (torch.bfloat16, torch.float32):
        x, weight, bias, pre_bias = (t.to(dtype) for t in problem(5, 4, 300))
        assert plan(5, 4, 300, 3, 0, dtype)[-3:-1] == (3, 2)
        got = encode(device, x, weight, bias, 3, pre_bias)
        assert_exact_topk(*got[:2], x, weight, bias, pre_bias)


def test_same_bits_again_and_for_other_strides(device, dtype):
    x, weight, bias, pre_bias = (t.to(dtype) for t in problem(5, 30, 400))
    want = encode(device, x, weight, bias, 8, pre_bias, order=True)
    wide = torch.zeros(5, 60, dtype=dtype)
    wide[:, ::2] = x
    strided = wide[:, ::2], weight.T.contiguous().T, bias.repeat(2, 1).T.reshape(-1)[::2], 8, pre_bias
    for arguments in [(x, weight, bias, 8, pre_bias)] * (1 if device == "cpu" else 10) + [strided]:
        got = encode(device, *arguments, order=True)
        assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))
    entries, segments = reference.latent_order(want[1], 400)
    assert torch.equal(want[4], entries)
    assert torch.equal(want[5], segments)


def test_nothing_to_do(device, dtype):
    weight = torch.randn(9, 5, dtype=dtype)
    got = encode(device, torch.empty(0, 5, dtype=dtype), weight, None, 3, dead=torch.ones(9, dtype=torch.bool), k_aux=2)
    assert [tuple(t.shape) for t in got] == [(0, 3), (0, 3), (0, 2), (0, 2), (0,), (0,)]
    values, indices, *_ = encode(device, torch.empty(2, 0, dtype=dtype), weight[:, :0], weight[:, 0], 4, relu=False)
    want = weight[:, 0].sort(descending=True, stable=True)
    assert torch.equal(values, want.values[:4].expand(2, 4))
    assert torch.equal(indices, want.indices[:4].expand(2, 4))


def test_offsets_beyond_2_to_the_31(device):
    """A candidate in the last row of a weight with 2^31 + 64 elements. Its memory is never touched but there.

    Planted: 32-bit offsets: it crashed."""
    weight = lazy_zeros(2**25 + 1, 64).to(device)
    weight[-1] = torch.randn(64)
    x = torch.randn(1, 64).to(device)
    words, state = (torch.zeros(1, *shape, dtype=torch.int32, device=device) for shape in ((3, 1024), (2,)))
    words[0, 0, 0], state[0, 0] = 2**25, 1
    topk_screen.rescore_kernel[(1,)](
        words, state, x, None, weight, None, torch.ones(1).to(device), torch.ones(1).to(device), 64, 1, SUB, 1024,
        topk_screen.TILE, topk_screen.BLOCK_D, num_warps=topk_screen.WARPS,
    )  # fmt: skip
    score = words[0, 1, :1].view(torch.float32)
    score = torch.where(score < 0, (words[0, 1, :1] ^ 0x7FFFFFFF).view(torch.float32), score)
    want = weight[-1].double() @ x[0].double()
    assert (score - want).abs() <= 70 * 2.0**-24 * (weight[-1].abs() @ x[0].abs())


def test_tiles_of_scores(device, monkeypatch):
    """Several tiles both ways, the last of each ragged. Planted: rows and latents exchanged; caught."""
    monkeypatch.setattr(topk_screen, "SCORE_TILE", (16, 32, 16))
    x, weight, bias, pre_bias = (t.to(device) for t in problem(35, 21, 150))
    scores = torch.full((35, 150), torch.nan, device=device)
    topk_screen.exact_scores(x, pre_bias, weight, bias, scores)
    want = (x.double() - pre_bias) @ weight.double().T + bias
    terms = (x - pre_bias).abs().double() @ weight.abs().double().T + bias.abs()
    assert bool(((scores - want).abs() <= 25 * 2.0**-24 * terms).all())


def test_five_million_latents_fit_the_grid():
    """A second or third axis ends at 65,535 programs. Planted: tiles of latents along the second; caught."""
    from saekern.bench.recorder import recorded

    x, weight = (torch.empty(rows, 8, device="meta") for rows in (3, 5_000_000))
    launches = []
    for k in (8, LARGEST_K + 1):
        arguments = x, weight, None, k, None, True, None, 0, False
        record = recorded(lambda arguments=arguments: topk_encode.topk_encode(*arguments))
        launches += [step for step in record.steps if step.kernel]
    assert {"round_kernel", "select_kernel", "score_kernel"} <= {step.name for step in launches}
    for step in launches:
        assert all(size <= 65_535 for size in step.grid[1:]), step.name
        assert step.grid[0] < 2**31


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [1, 100, 8192, 20000])
def test_plan(monkeypatch, dtype, batch):
    """Room for SUB more after a cut; everything covered; at the goals' shapes at most 100 MB in bfloat16, and whole
    waves nearly."""
    monkeypatch.setattr(topk_encode, "TILES", {9: 256})
    screened = dtype == torch.float32
    for latents in (1000, 16384, 65536, 131072):
        for k, k_aux in ((1, 0), (64, 0), (256, 0), (257, 0), (512, 0), (64, 512), (512, 512)):
            p = plan(batch, 2304, latents, k, k_aux, dtype)
            assert p.capacity >= k + SUB
            assert not k_aux or p.aux_capacity >= k_aux + SUB
            assert p.rows * p.row_blocks >= batch > p.rows * (p.row_blocks - 1)
            assert p.columns * p.chunks >= latents > p.columns * (p.chunks - 1)
            assert p.columns >= min(latents, SUB)  # the scratch of overflow_kernel
            words = p.rows * (p.columns + (3 if screened else 2) * (p.capacity + p.aux_capacity))
            assert 4 * words <= (165e6 if screened else 100e6)
            if batch == 8192 and latents == 65536 and k <= 256 and not k_aux:
                assert p.columns * p.rows in (2**23, *([2**23 // 3 * 3] if screened else []))
    assert plan(batch, 768, 65536, LARGEST_K + 1, 0, dtype).path == "dense"


def test_plan_by_maxima(monkeypatch):
    """D = 768 at the goals' shapes: within 1.2 GB, row blocks of equal size."""
    monkeypatch.setattr(topk_encode, "NARROW", 1024)
    for batch, latents in ((1, 16384), (8192, 65536), (8192, 131072), (20000, 2**18)):
        p = plan(batch, 768, latents, 64, 0, torch.bfloat16)
        assert p.path == "maxima"
        assert p.rows * p.row_blocks >= batch > p.rows * (p.row_blocks - 1)
        rows = -(-p.rows // 128) * 128
        assert 4 * rows * latents * (1 + 2 / 64) + 8 * rows * p.capacity <= 1.2e9
    assert plan(8192, 768, 2**18 + 1, 64, 0, torch.bfloat16).path == "stream"
    assert plan(8192, 768, 65536, 64, 0, torch.bfloat16, major=8).path == "stream"
    assert plan(8192, 768, 65536, 64, 32, torch.bfloat16).path == "stream"


def test_lists_have_room_for_what_a_block_brings():
    for screened in (False, True):
        for k in range(1, LARGEST_K + 1):
            assert capacity(k, screened) in streaming_select.SIZES
            assert capacity(k, screened) >= k + SUB
