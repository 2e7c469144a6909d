"""The GPU's measurement script, run on the CPU: every part works, none takes another with it, nothing is kept."""

import csv
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from saekern.bench import gpu, gpu_benches, gpu_hierarchical, gpu_times, record
from saekern.bench.common import Goal, Run, WrongAnswer, verify, words
from saekern.bench.gpu_problems import Dictionaries, Layer, check_decode, check_encode, check_nearest
from saekern.bench.gpu_shapes import BENCHES, GRID
from saekern.bench.table import render

pytest.importorskip("triton")
CPU = torch.device("cpu")


def test_dry_run(tmp_path):
    """Planted: a kernel that raises; a resume that starts anew; an answer 1 % off; each shows as FAILED or REFUSED."""
    results = Path(gpu.__file__).parent / "results"
    before = {path: path.read_bytes() for path in results.glob("*.csv")}
    command = [sys.executable, "-P", "-m", "saekern.bench.gpu", "--dry-run"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    for text in ("train killed and resumed: the same bytes", "Failed: nothing", "Skipped for want of time: nothing"):
        assert text in run.stdout
    assert "FAILED" not in run.stdout
    assert "REFUSED" not in run.stdout
    for made in BENCHES:
        assert f"{made.bench.op} {made.bench.mode}  {words(made.bench.quick[0])}" in run.stdout
    assert {path: path.read_bytes() for path in results.glob("*.csv")} == before
    assert list(tmp_path.iterdir()) == []


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(gpu, "build", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert "no GPU that this PyTorch can use" in capsys.readouterr().err


def test_the_grid_is_all_there():
    shapes = {made.bench.op: made.bench.shapes for made in BENCHES}
    for op, each in (("topk_encode", 1), ("decode", 2)):
        assert len(shapes[op]) == each * len(GRID)
        assert {(s["D"], s["F"], s["K"]) for s in shapes[op]} == set(GRID)
        assert all(s["B"] == 8192 for s in shapes[op])
    for made in BENCHES:
        for shape in made.bench.shapes:
            assert made.bound(shape).bytes > 0


def test_every_goal_shape_has_a_goal():
    for made in BENCHES:
        for shape in made.bench.shapes[: made.goals_at]:
            assert any(goal.applies(shape, True) for goal in made.bench.goals), words(shape)
    assert Goal((), at_most=4000).verdict({"saekern": 3999.0}, True).met
    assert not Goal((), at_most=4000).verdict({"saekern": 4001.0}, True).met
    assert Goal((), at_most=4000).verdict({"torch": 1.0}, True) is None


class Options:
    device, seconds, no_compile, until = "cpu", 0.0, True, float("inf")


def test_a_provider_that_fails_is_a_row(monkeypatch, tmp_path):
    """The others keep their figures, and the file says why. Planted: the failure raised; caught."""
    made = next(made for made in BENCHES if made.bench.op == "adam_step")
    real = made.bench.setup

    def setup(problem, provider):
        if provider == "saekern":
            return Run(lambda: 1 / 0, lambda _: None)
        if provider == "torch":
            run = real(problem, provider)
            return Run(run.call, lambda _: (_ for _ in ()).throw(WrongAnswer("off")), run.prepare)
        return real(problem, provider)

    providers = ("saekern", "torch", "x")
    broken = replace(made, bench=replace(made.bench, setup=setup, providers=providers))
    rows = gpu_times.measure(broken, made.bench.quick[0], Options, gpu_times.Roofs())
    notes = {row["provider"]: row.get("note", "") for row in rows}
    assert notes["saekern"] == "ZeroDivisionError: division by zero"
    assert notes["torch"] == "REFUSED, wrong answer: off"
    assert float(next(row for row in rows if row["provider"] == "x")["median_ms"]) > 0
    same = gpu_times.facts(CPU)
    record.append(tmp_path / "gpu.csv", [same | row for row in rows], record.GPU_COLUMNS)
    with (tmp_path / "gpu.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["note"] == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize("fails_at", [1, 3])
def test_a_provider_that_fails_while_timed_loses_its_own_figures_only(fails_at):
    calls = []

    def call():
        calls.append(1)
        if len(calls) == fails_at:
            raise MemoryError

    runs = {"a": Run(call, lambda _: None), "b": Run(lambda: None, lambda _: None)}
    times = gpu_times.interleave(runs, gpu_times.Clock(CPU), 0.0, (4, 4))
    assert list(times) == ["b"]
    assert times["b"].rounds == 4
    assert len(calls) == fails_at


def test_a_part_that_hangs_is_stopped(capsys):
    code = "import time; print('SKIPPED [\"a shape\"]', flush=True); time.sleep(60)"
    seen = dict(gpu.watched([sys.executable, "-c", code], {}, 2))
    assert seen["skipped"] == ["a shape"]
    assert seen["code"] < 0


def layer(**changes):
    return Layer({"B": 24, "D": 32, "F": 64, "K": 4, "latents": "zipf", **changes}, CPU)


def test_checks_refuse_what_is_wrong():
    """A latent exchanged, a value off by 1 %, a gradient row lost, a partner that is not the nearest."""
    made = layer()
    scores = (made.x.double() - made.b_dec) @ made.w_enc.double().T + made.b_enc
    top = scores.topk(5)
    values, indices = top.values.relu().to(made.x.dtype), top.indices
    check_encode(made, values[:, :4], indices[:, :4])
    with pytest.raises(WrongAnswer, match="not among the k largest"):
        check_encode(made, values[:, 1:], torch.cat([indices[:, 1:4], scores.argmin(1, keepdim=True)], 1))
    with pytest.raises(WrongAnswer, match="values"):
        check_encode(made, values[:, :4] * 1.02, indices[:, :4])
    with pytest.raises(WrongAnswer, match="a latent twice"):
        check_encode(made, values[:, :4], indices[:, :4].clone().index_fill_(1, torch.tensor([1, 2]), 3))
    run = gpu_benches.decode_setup(made, "torch")
    verify(run)
    loss, grad_values, grad_weight = run.call()
    hot = int(made.codes[1].flatten().bincount().argmax())
    scale = 1 / float((made.x.double() - made.x.double().mean(0)).square().sum())
    for name, spoilt in (("values", grad_values * 1.1), ("weight", grad_weight.index_fill(0, torch.tensor(hot), 0))):
        with pytest.raises(WrongAnswer, match="gradient"):
            check_decode(made, loss, {"values": grad_values, "weight": grad_weight, name: spoilt}, scale)
    pairs = Dictionaries({"S": 2, "F": 40, "D": 16}, CPU)
    answer = gpu_benches.nearest_setup(pairs, "torch").call()
    check_nearest(pairs, answer)
    a, index, b, back = answer[0]
    with pytest.raises(WrongAnswer, match="index: not the nearest"):
        check_nearest(pairs, [(a, index.roll(1), b, back)])


@pytest.mark.parametrize("budgets", [{}, {"J": 2}])
def test_hierarchical_check_refuses_what_is_wrong(budgets):
    made = layer(**budgets)
    run = gpu_hierarchical.setup(made, "torch")
    verify(run)
    run.prepare()
    loss, grad_values, grad_weight = run.call()
    hot = int(made.codes[1].flatten().bincount().argmax())
    off = {"loss": (1.001 * loss, grad_values, grad_weight), "values": (loss, 1.1 * grad_values, grad_weight)}
    off["latent"] = (loss, grad_values, grad_weight.index_fill(0, torch.tensor(hot), 0))
    for name, answer in off.items():
        with pytest.raises(WrongAnswer, match=name):
            run.check(answer)


def test_hot_codes_are_hot():
    made = Layer({"B": 2000, "D": 8, "F": 4096, "K": 16, "latents": "zipf"}, CPU)
    _, indices = made.codes
    counts = indices.flatten().bincount(minlength=4096).sort(descending=True).values
    assert counts[7] > 0.28 * 2000
    assert indices.sort(1).values.diff(dim=1).min() > 0
    assert indices.max() < 4096


def test_results_reach_the_readme():
    made = next(made for made in BENCHES if made.bench.op == "topk_encode")
    base = {"date": "2026-11-30T10:00:00Z", "op": "topk_encode", "mode": made.bench.mode, "dtype": "bfloat16"}
    base |= {"shape": words(made.bench.shapes[1]), "device": "NVIDIA H200", "instruction_sets": "sm_90", "threads": ""}
    base |= {"torch": "2.13", "others": "", "peak_mib": ""}
    ours = {"provider": "saekern", "median_ms": "3.6", "peak_mib": "70"}
    text = render([base | ours, base | {"provider": "gemm", "median_ms": "3.2"}], [made.bench])
    assert text.startswith("NVIDIA H200 (sm_90), torch 2.13, 2026-11-30:")
    assert "| 3.6 ms | gemm, 3.2 ms | 1.12 × | ≤ 1.2 of it | met |" in text
    assert "| 70 MiB |  | 70 MiB | ≤ 95.3674 MiB | met |" in text
