"""adam_step on CPU against float64, with bounds from the arithmetic."""

import pytest
import torch
from adam_bounds import SETTINGS, assert_step_within_bound, state
from bounds import UNIT

from saekern import ops, reference

SHAPES = [(1, 1), (1, 17), (7, 1), (3, 16), (5, 31), (64, 64), (33, 257), (300, 65), (0, 4), (4, 0)]
VECTORS = [(0,), (1,), (13,), (4096,), (40_000,)]


@pytest.mark.parametrize(("project", "normalize"), [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_step_is_within_its_bound(shape, dtype, project, normalize):
    """Five steps, each from the state the last one left. Planted: bias correction of the first moment with step + 1;
    tail columns left out of the norm; a projection 0.01 % short; eps inside the root. All caught."""
    tensors = state(shape, dtype)
    for step in range(1, 6):
        tensors[1] = (torch.randn(shape) * (torch.arange(shape[0])[:, None] != 1)).to(dtype)
        before = [t.clone() for t in tensors]
        ops.adam_step(*tensors, step, project=project, normalize=normalize, **SETTINGS)
        assert torch.equal(tensors[1], before[1])
        assert_step_within_bound(before, tensors, step, project, normalize, **SETTINGS)


@pytest.mark.parametrize("shape", VECTORS)
def test_vectors(shape):
    tensors = state(shape)
    before = [t.clone() for t in tensors]
    ops.adam_step(*tensors, 3, **SETTINGS)
    assert_step_within_bound(before, tensors, 3, False, False, **SETTINGS)


def test_follows_torch_adam_with_projection_and_normalisation():
    """Thirty steps: float32 beside torch.optim.Adam in float64. A relative error of ≤ 4tu in v and 3tu in the moving
    average of |g| moves the parameter by ≤ lr · (5t + 8) u · (that average over √v̂) a step, and a unit-norm row carries
    the error on; the ratio is below 2 here."""
    tensors = state((40, 33))
    tensors[0][:1] = torch.nn.functional.normalize(torch.ones(1, 33), dim=1)
    tensors[2].zero_()
    tensors[3].zero_()
    twin = tensors[0].double().requires_grad_()
    optimiser = torch.optim.Adam([twin], lr=SETTINGS["lr"], betas=(0.9, 0.999), eps=SETTINGS["eps"])
    drift = 0.0
    for step in range(1, 31):
        tensors[1] = torch.randn(40, 33)
        ops.adam_step(*tensors, step, project=True, normalize=True, **SETTINGS)
        with torch.no_grad():
            g = tensors[1].double()
            twin.grad = g - (g * twin).sum(1, keepdim=True) * twin
            optimiser.step()
            twin.copy_(torch.nn.functional.normalize(twin, dim=1))
        drift += 2 * (SETTINGS["lr"] * 2 * (5 * step + 8 + 33) + 33 + 8) * UNIT
        assert (tensors[0] - twin).abs().max() <= drift


def test_no_row_operations_on_zero_rows():
    param = torch.zeros(3, 8)
    tensors = [param, torch.zeros(3, 8), torch.zeros(3, 8), torch.zeros(3, 8)]
    ops.adam_step(*tensors, 1, lr=0.1, project=True, normalize=True)
    assert not any(t.any() for t in tensors)


def test_a_row_without_gradient_still_moves():
    tensors = [torch.ones(1, 4), torch.zeros(1, 4), torch.full((1, 4), 0.5), torch.full((1, 4), 0.25)]
    ops.adam_step(*tensors, 2, lr=0.1)
    assert (tensors[0] < 1).all()
    assert torch.equal(tensors[2], torch.full((1, 4), 0.5) * 0.9)


def test_nan_stays_in_its_row():
    tensors, clean = state((6, 20)), None
    clean = [t.clone() for t in tensors]
    tensors[1][3, 4] = torch.nan
    for each in (tensors, clean):
        ops.adam_step(*each, 1, lr=0.1, project=True, normalize=True)
    assert tensors[0][3].isnan().all()
    others = [0, 1, 2, 4, 5]
    assert all(torch.equal(a[others], b[others]) for a, b in zip(tensors, clean, strict=True) if a is not tensors[1])


@pytest.mark.parametrize("row_operations", [False, True])
@pytest.mark.parametrize("shape", [(700, 129), (3, 30_000)])
def test_same_bits_for_any_thread_count(shape, row_operations):
    """Planted: the row's norm carried from one task to the next; caught."""
    start, results = state(shape), []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            tensors = [t.clone() for t in start]
            ops.adam_step(*tensors, 1, project=row_operations, normalize=row_operations, **SETTINGS)
            results.append(tensors)
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("row_operations", [False, True])
def test_an_encoder_stored_transposed(row_operations):
    """[D, F] with stride (1, D), as SAE encoders are kept: updated in place, without a copy or with one."""
    plain = state((30, 21))
    strided = [t.t().contiguous().t() for t in plain]
    places = [t.data_ptr() for t in strided]
    for tensors in (plain, strided):
        ops.adam_step(*tensors, 1, project=row_operations, normalize=row_operations, **SETTINGS)
    assert all(torch.equal(a, b) for a, b in zip(plain, strided, strict=True))
    assert places == [t.data_ptr() for t in strided]
    assert all(t.stride() == (1, 30) for t in strided)


def test_parameters_that_require_gradients():
    param, grad, exp_avg, exp_avg_sq = state((5, 6))
    leaf = torch.nn.Parameter(param)
    version = leaf._version
    with torch.no_grad():
        ops.adam_step(leaf, grad, exp_avg, exp_avg_sq, 1, lr=0.1)
    assert leaf._version > version  # autograd sees that saved copies are out of date


def test_float64_runs_the_reference():
    tensors = [t.double() for t in state((5, 6))]
    twin = [t.clone() for t in tensors]
    ops.adam_step(*tensors, 4, project=True, normalize=True, **SETTINGS)
    reference.adam_step(*twin, 4, project=True, normalize=True, **SETTINGS)
    assert all(torch.equal(a, b) for a, b in zip(tensors, twin, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("shape", "row_operations"), [((33, 65), False), ((33, 65), True), ((7,), False)])
def test_half_gradients_and_a_half_copy(shape, dtype, row_operations):
    """The bits of a step whose gradient was widened before, and the copy those of a cast after it; also where the
    encoder is stored transposed (in float64 the order of sums changes with that). Planted: the copy taken before the
    step; caught."""
    wide = state(shape, dtype)
    wide[1] = wide[1].bfloat16().to(dtype)
    narrow = [t.clone() for t in wide]
    narrow[1] = narrow[1].bfloat16()
    rounded = torch.full_like(narrow[1], torch.nan)
    turned = [t.t().contiguous().t() if t.dim() == 2 else t.clone() for t in (*narrow, rounded)]
    settings = SETTINGS | {"project": row_operations, "normalize": row_operations}
    ops.adam_step(*wide, 2, **settings)
    for *tensors, copy in ([*narrow, rounded], turned)[: 2 if dtype == torch.float32 else 1]:
        version = copy._version
        ops.adam_step(*tensors, 2, rounded=copy, **settings)
        assert all(torch.equal(a, b.to(dtype)) for a, b in zip(wide, tensors, strict=True))
        assert torch.equal(copy, tensors[0].bfloat16())
        assert copy._version > version


def test_opcheck_and_compile():
    arguments = (*state((5, 6)), 1, 0.1, 0.9, 0.999, 1e-8, True, True)
    torch.library.opcheck(torch.ops.saekern.adam_step.default, arguments)
    rounded = torch.empty(5, 6, dtype=torch.bfloat16)
    torch.library.opcheck(torch.ops.saekern.adam_step.default, (*arguments, None, rounded))

    def step(param, grad, exp_avg, exp_avg_sq):
        ops.adam_step(param, grad, exp_avg, exp_avg_sq, 1, lr=0.1, normalize=True)

    eager = state((5, 6))
    compiled = [t.clone() for t in eager]
    step(*eager)
    torch.compile(step, fullgraph=True, backend="aot_eager")(*compiled)
    assert all(torch.equal(a, b) for a, b in zip(eager, compiled, strict=True))


def test_errors_say_what_came():
    param, grad, exp_avg, exp_avg_sq = state((5, 6))
    with pytest.raises(ValueError, match="step: expected step >= 1, got 0"):
        ops.adam_step(param, grad, exp_avg, exp_avg_sq, 0, lr=0.1)
    with pytest.raises(ValueError, match=r"grad: expected shape \[5, 6\], got \[5, 5\]"):
        ops.adam_step(param, grad[:, :5], exp_avg, exp_avg_sq, 1, lr=0.1)
    with pytest.raises(ValueError, match=r"exp_avg: expected torch.float32 like param, got torch.float64"):
        ops.adam_step(param, grad, exp_avg.double(), exp_avg_sq, 1, lr=0.1)
    with pytest.raises(ValueError, match=r"grad: expected a floating-point tensor, got torch.int32"):
        ops.adam_step(param, grad.int(), exp_avg, exp_avg_sq, 1, lr=0.1)
    with pytest.raises(ValueError, match=r"rounded: expected shape \[5, 6\], got \[6, 5\]"):
        ops.adam_step(param, grad, exp_avg, exp_avg_sq, 1, lr=0.1, rounded=param.T.bfloat16())
    with pytest.raises(ValueError, match=r"expected shape \[R, C\] for project or normalize, got \[6\]"):
        ops.adam_step(param[0], grad[0], exp_avg[0], exp_avg_sq[0], 1, lr=0.1, project=True)


@pytest.mark.parametrize("row_operations", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("count", [0, 1, 40, 301])
def test_listed_rows_are_the_dense_gradient(count, dtype, row_operations):
    """Planted: the first listed row of a block sought one too far; ones as the gradient of other rows; both caught."""
    dense = state((301, 65), dtype)
    listed = [t.clone() for t in dense]
    latents = torch.randperm(301)[:count].sort().values
    listed[1] = torch.randn(count, 65).to(dtype)
    dense[1] = torch.zeros_like(dense[0]).index_copy_(0, latents, listed[1])
    settings = SETTINGS | {"project": row_operations, "normalize": row_operations}
    ops.adam_step(*dense, 2, **settings)
    before = [t.clone() for t in listed]
    count_threads = torch.get_num_threads()
    for threads in (1, 2, 3):
        again = [t.clone() for t in before]
        torch.set_num_threads(threads)
        try:
            ops.adam_step(*again, 2, latents=latents, **settings)
        finally:
            torch.set_num_threads(count_threads)
        assert all(torch.equal(dense[i], again[i]) for i in (0, 2, 3))


def test_row_gradients_of_the_decoder_go_straight_into_the_step():
    values, indices, weight = torch.rand(20, 4), torch.randint(50, (20, 4)), torch.randn(50, 33)
    upstream = torch.randn(20, 33)
    latents, rows, _ = ops.decode_row_gradients(upstream, values, indices, weight)
    leaf = weight.clone().requires_grad_()
    ops.decode(values, indices, leaf).backward(upstream)
    steps = []
    for grad, listed in ((leaf.grad, None), (rows, latents)):
        tensors = [weight.clone(), grad, torch.zeros(50, 33), torch.zeros(50, 33)]
        ops.adam_step(*tensors, 1, lr=0.1, project=True, normalize=True, latents=listed)
        steps.append(tensors[0])
    assert torch.equal(*steps)


def test_listed_rows_under_opcheck():
    tensors = state((9, 5))
    tensors[1] = torch.randn(2, 5)
    arguments = (*tensors, 1, 0.1, 0.9, 0.999, 1e-8, True, True, torch.tensor([3, 7]))
    torch.library.opcheck(torch.ops.saekern.adam_step, arguments)


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        ([3, 3], "latents: expected ascending numbers from 0 to 8, got 3 at position 1"),
        ([5, 9], "latents: expected ascending numbers from 0 to 8, got 9 at position 1"),
        ([-1, 2], "latents: expected ascending numbers from 0 to 8, got -1 at position 0"),
        ([1], r"grad: expected shape \[1, 5\], got \[2, 5\]"),
    ],
)
def test_listed_rows_that_do_not_fit(latents, message):
    tensors = state((9, 5))
    tensors[1] = torch.randn(2, 5)
    before = [t.clone() for t in tensors]
    with pytest.raises(ValueError, match=message):
        ops.adam_step(*tensors, 1, lr=0.1, latents=torch.tensor(latents))
    assert all(torch.equal(a, b) for a, b in zip(before, tensors, strict=True))
