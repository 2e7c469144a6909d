"""The cost model: our launchers stay near the lower bound at the goal shapes, and naive ones do not pass."""

import importlib
import math
from dataclasses import replace

import pytest
import torch

from saekern.bench import kernel_costs, kernel_formulas, recorder
from saekern.bench.common import Absent, words
from saekern.bench.kernel_bounds import priced
from saekern.bench.kernel_costs import Roofs
from saekern.bench.roofline import main
from saekern.bench.roofline_cases import (
    CODES,
    decode_case,
    decode_loss_case,
    empty,
    encode_case,
    goal_cases,
    layer,
    train_step_case,
)
from saekern.bench.sass import kernel_modules

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")

CASES = [pytest.param(case, id=f"{case.op} {words(case.shape)}") for case in goal_cases()]


@pytest.mark.parametrize("case", CASES)
def test_goal_shapes(case):
    """Planted: one slice as wide as the row; scores in a [B, F] matrix; both caught."""
    try:
        line = priced(case)
    except Absent as reason:
        pytest.skip(str(reason))
    assert line.faults() == []
    assert line.seconds >= case.bound.seconds(line.roofs)


def test_every_kernel_has_a_formula():
    modules = map(importlib.import_module, kernel_modules())
    names = {form.kernel.fn.__name__ for module in modules for form in module.forms()}
    assert names - set(kernel_formulas.KERNELS) == set()


def test_longer_lists_of_partners_have_a_price():
    """Off the goal shapes. Planted: the formula's name for the output, as it was; caught."""
    from saekern.kernels.nearest_top import WIDEST, nearest_top

    steps = recorder.recorded(lambda: nearest_top(empty(300, 64), empty(700, 64), WIDEST + 1)).steps
    (table,) = (kernel_formulas.cost(step, Roofs()) for step in steps if step.name == "table_kernel")
    assert table.written == 4 * 300 * 700


def naive(run, like):
    return priced(replace(like, op="naive", run=run)).faults()


def test_a_dense_encoder_fails():
    case = encode_case(CODES[1])
    made = layer(CODES[1])
    faults = naive(lambda: torch.addmm(made.b_enc, made.x - made.b_dec, made.w_enc.T).relu().topk(made.k), case)
    assert len(faults) == 3
    assert "× the time of its bound" in faults[0]
    assert "MB beside its results, at most 100" in faults[1]
    assert "allocates [8192, 65536], 1074 MB" in faults[2]


def test_gathered_rows_fail():
    """[B, K, D] temporaries, forward and backward."""
    made, grad = layer(CODES[1]), empty(8192, 2304)

    def forward():
        return (made.values[:, :, None] * made.w_dec[made.indices]).sum(1) + made.b_dec

    def backward():
        rows = (made.values[:, :, None] * grad[:, None]).view(-1, 2304)
        return torch.zeros_like(made.w_dec).index_add_(0, made.indices.view(-1), rows)

    for run in (forward, backward):
        faults = naive(run, decode_case(CODES[1]))
        assert "× the lower bound" in faults[0]
        assert "allocates [" in faults[-1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("latents", [16384, 65536, 131072])
@pytest.mark.parametrize("width", [768, 2304, 4096])
def test_a_dictionary_stays_in_l2(width, latents, dtype):
    for k in (32, 64, 128):
        assert priced(decode_case({"B": 8192, "F": latents, "D": width, "K": k}, dtype)).faults() == []


def test_a_dictionary_that_falls_out_of_l2_fails(monkeypatch):
    """Slices as wide as the row; and of 256 columns whatever F, which for K = 128 leave the codes no room."""
    from saekern.kernels import decode as module

    monkeypatch.setattr(module, "slices", lambda *_: module.Slices(1, 4096, 8))
    assert "× the lower bound" in priced(decode_case(CODES[1])).faults()[0]
    monkeypatch.setattr(module, "slices", lambda *_: module.Slices(9, 256, 1))
    assert priced(decode_loss_case(CODES[2])).ratio > priced(decode_loss_case(CODES[1])).ratio + 0.08
    assert "× the lower bound" in priced(decode_case(CODES[1], torch.float32)).faults()[0]


def test_many_small_launches_fail():
    made = layer(CODES[0])
    faults = naive(lambda: [part + 1 for part in made.values.split(64)], decode_loss_case(CODES[0]))
    assert faults == ["128 launches, at most 18"]


@triton.jit
def unknown_kernel(x, count, BLOCK: tl.constexpr):
    pass


def test_recorder_sees_what_the_launcher_does():
    x = empty(5, 7)

    def run():
        y = x.t().contiguous()
        unknown_kernel[lambda meta: (triton.cdiv(y.numel(), meta["BLOCK"]),)](y, y.numel(), BLOCK=16, num_warps=2)
        unknown_kernel[(0,)](y, 0, BLOCK=16)
        return y

    record = recorder.recorded(run)
    assert [step.name for step in record.steps if not step.view] == ["aten::clone", "unknown_kernel"]
    launch = record.steps[-1]
    assert launch.grid == (3,)
    assert launch["count"] == 35
    assert launch["x"] is record.result
    assert [tuple(b.shape) for b in record.buffers] == [(7, 5)]
    with pytest.raises(ValueError, match="unknown_kernel: no formula for this kernel; add it to KERNELS"):
        kernel_formulas.cost(launch, Roofs())


def test_operations_of_torch():
    roofs = Roofs()

    def only(run):
        steps = [s for s in recorder.recorded(run).steps if not s.view]
        assert len(steps) == 1
        return kernel_formulas.cost(steps[0], roofs)

    a, b = empty(1024, 512), empty(512, 256)
    product = only(lambda: a @ b)
    assert product.matrix == 2.0 * 1024 * 512 * 256
    assert product.read == a.nbytes + b.nbytes
    assert product.written == 0, "512 KB of scores stay in L2"
    assert only(lambda: a.add_(1)).bytes == 2 * a.nbytes
    assert only(lambda: a.zero_()).bytes == a.nbytes
    keys = empty(2**20, dtype=torch.int32)
    assert only(lambda: keys.sort(stable=True)).read == 2**20 * 16
    large = empty(2**24, dtype=torch.int32)
    assert only(lambda: large.sort(stable=True)).read == 2**24 * (4 * 12 + 4)
    assert math.isclose(product.seconds(roofs)["tensor cores"], product.matrix / 788e12)


def test_the_table_names_its_assumptions(capsys):
    assert main(["--steps"]) == 0
    shown = capsys.readouterr().out
    for name in ("decode_kernel", "segment_kernel", "aten::sort", *kernel_costs.ASSUMPTIONS):
        assert name in shown


def test_a_step_is_the_sum_of_its_parts():
    """The train step's bound is below what its parts move, with or without an encoder kernel."""
    try:
        line = priced(train_step_case(CODES[1]))
    except Absent as reason:
        pytest.skip(str(reason))
    assert line.moved > line.case.bound.moved()
    assert line.faults() == []
    weight = empty(65536, 2304, dtype=torch.float32)

    def with_casts():
        """As autocast would: both weights rounded, both gradients widened."""
        for _ in range(2):
            weight.bfloat16().float()
        return line.case.run()

    assert naive(with_casts, line.case) == ["moves 1.56 × the lower bound, at most 1.3"]
