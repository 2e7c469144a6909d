"""The harness: order, refusal of wrong answers, what reaches the result file."""

import argparse
import csv
import dataclasses
import platform
import time

import pytest
import torch

from saekern.bench import __main__ as command
from saekern.bench import machine, peak, record
from saekern.bench.common import (
    Absent,
    Bench,
    Goal,
    Run,
    Shape,
    WrongAnswer,
    expect_close,
    interleave,
    quantiles,
    step,
)

SHAPE = {"n": 3}


def fake(call, check=lambda result: None, prepare=None) -> Run:
    return Run(call, check, prepare)


def test_providers_take_turns():
    """Each turn warms up and then counts. Planted: one provider's rounds one after the other; caught."""
    calls = []
    runs = {name: fake(lambda name=name: calls.append(name)) for name in "ABC"}
    times = interleave(runs, budget=0, rounds=(4, 9))
    assert "".join(calls) == "ABC" + 4 * "AABBCC"  # the first round says how many fit
    assert all(spent.rounds == 4 for spent in times.values())


def test_cpu_time_is_that_of_the_call():
    """Sleeping costs none; preparation is not counted. Planted: `prepare` between the two readings; caught."""

    def busy():
        end = time.process_time() + 0.03
        while time.process_time() < end:
            pass

    runs = {"sleeps": fake(lambda: time.sleep(0.05), prepare=busy), "works": fake(busy)}
    times = interleave(runs, budget=0, rounds=(3, 3))
    assert times["sleeps"].median >= 50
    assert times["sleeps"].cpu < 15
    assert times["works"].cpu >= 30


def test_a_long_call_is_made_once():
    """Its figure is the call that was checked. Planted: it is timed like the others; caught."""
    calls = []
    runs = {"saekern": fake(lambda: calls.append("a")), "slow": fake(lambda: (calls.append("b"), time.sleep(0.2)))}
    slow = dataclasses.replace(bench(runs), once_above=0.1)
    rows, _, _ = command.measure("op", 0, slow, SHAPE, options())
    assert [(row["provider"], row["rounds"]) for row in rows][1] == ("slow", 1)
    assert calls.count("b") == 1
    assert rows[0]["rounds"] > 1
    assert 200 <= float(rows[1]["median_ms"]) < 2000


def test_what_a_result_says_is_kept():
    run = dataclasses.replace(fake(lambda: 7), note=lambda result: f"{result} rows recomputed")
    rows, _, _ = command.measure("op", 0, bench({"saekern": run}), SHAPE, options())
    assert rows[0]["note"] == "7 rows recomputed"
    assert "    7 rows recomputed" in command.table(bench({}), SHAPE, rows, [], True)


def test_without_its_data_a_bench_says_so():
    def inputs(shape, data):
        raise Absent("no folder")

    absent = dataclasses.replace(bench({"saekern": fake(lambda: None)}), inputs=inputs, reads_data=True)
    assert command.measure("op", 0, absent, SHAPE, options()) == ([], ["not measured: no folder"], 0)


def test_preparation_is_not_timed():
    """Planted: the clock started before `prepare`; caught."""
    ticks = iter(range(100))
    clock = [0.0]

    def prepare():
        clock[0] += 1000.0

    def call():
        clock[0] += 1.0
        return next(ticks)

    assert step(fake(call, prepare=prepare), clock=lambda: clock[0])[0] == 1.0


def test_quantiles_of_eleven():
    spent = quantiles([second / 1000 for second in (10, 0, 9, 1, 8, 2, 7, 3, 6, 4, 5)])
    assert tuple(round(value, 6) for value in spent[:4]) == (5, 2, 8, 11)


def bench(runs: dict[str, Run | Exception], shape: Shape = SHAPE) -> Bench:
    def setup(problem, provider):
        if isinstance(runs[provider], Exception):
            raise runs[provider]
        return runs[provider]

    return Bench("op", "mode", (shape,), (shape,), tuple(runs), lambda shape: None, setup, (Goal(("slow",), faster=2),))


def options(**changes) -> argparse.Namespace:
    return argparse.Namespace(
        **{"providers": "", "budget": 0.0, "no_memory": True, "isa": "", "data": None, "full": False} | changes
    )


def refuse(result):
    raise WrongAnswer("off by one")


def test_a_wrong_answer_gets_no_number():
    """Planted: timing without `verify`; caught."""
    timed = []
    runs = {
        "saekern": fake(lambda: None),
        "wrong": fake(lambda: timed.append(1), refuse),
        "missing": Absent("not here"),
        "slow": fake(lambda: None),
    }
    rows, notes, failures = command.measure("op", 0, bench(runs), SHAPE, options())
    assert [row["provider"] for row in rows] == ["saekern", "slow"]
    assert len(timed) == 1  # the call that was checked
    assert failures == 1
    assert "missing: absent (not here)" in notes
    assert "wrong: REFUSED, wrong answer at this shape: off by one" in notes


def test_rows_fill_the_columns(tmp_path):
    rows, _, _ = command.measure("op", 0, bench({"saekern": fake(lambda: None)}), SHAPE, options())
    path = tmp_path / "results" / "cpu.csv"
    for _ in range(2):
        record.append(path, [machine.facts(machine.instruction_sets()) | row for row in rows])
    with path.open() as file:
        lines = list(csv.reader(file))
    assert tuple(lines[0]) == record.COLUMNS
    assert len(lines) == 3
    kept = record.read([path])[0]
    assert kept["shape"] == "n=3"
    assert kept["torch"] == torch.__version__
    assert int(kept["threads"]) == torch.get_num_threads()
    assert all(kept[name] for name in ("date", "op", "median_ms", "p20_ms", "p80_ms", "device", "python", "rounds"))


def test_no_host_name_is_recorded():
    sets = machine.instruction_sets()
    assert platform.node() not in " ".join([*machine.facts(sets).values(), machine.machine_class(sets)]).split()
    assert machine.machine_class(sets).startswith("cpu-")


def test_a_lesser_level_is_recorded_as_one(monkeypatch):
    """Its rows get their own file and the goals for CPUs without bf16 instructions."""
    monkeypatch.setattr(machine, "instruction_sets", lambda: ("avx2", "avx512f", "avx512_vnni", "avx512_bf16"))
    assert machine.has_bf16(machine.used_sets(""))
    assert machine.used_sets("avx512") == ("avx2", "avx512f")
    assert not machine.has_bf16(machine.used_sets("avx512"))
    assert machine.machine_class(machine.used_sets("avx2")).endswith(f"-avx2-{torch.get_num_threads()}-threads")
    assert machine.used_sets("portable") == ()


def test_other_columns_are_refused(tmp_path):
    path = tmp_path / "old.csv"
    path.write_text("date,op\n")
    with pytest.raises(ValueError, match=r"old\.csv: expected the columns date, op, mode.* got date, op$"):
        record.append(path, [])


def test_the_table_shows_goal_and_ratio():
    row = {"p20_ms": "1", "p80_ms": "1", "cpu_ms": "1", "rounds": 7, "peak_mib": "", "rate": "", "rate_unit": ""}
    row["note"] = ""
    rows = [row | {"provider": "saekern", "median_ms": "2"}, row | {"provider": "slow", "median_ms": "3"}]
    text = command.table(bench({}), SHAPE, rows, [], True)
    assert "goal ≥ 2 × faster, median_ms of slow: 1.50, MISSED" in text
    assert "not measured" in command.table(bench({}), SHAPE, rows[:1], [], True)


def test_unknown_bench_is_an_error(capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(["decod"])
    assert stop.value.code == 2
    assert "no bench is called 'decod'" in capsys.readouterr().err


def test_shapes_are_chosen_by_their_values():
    shapes = ({"n": 8, "cost": "sae"}, {"n": 8, "cost": "sae30"}, {"n": 81, "cost": "sae"})
    assert command.chosen_shapes(shapes, "") == list(shapes)
    assert command.chosen_shapes(shapes, "n=8 cost=sae") == [shapes[0]]
    assert command.chosen_shapes(shapes, "n=9") == []


def test_goals():
    faster = Goal(("a", "b"), faster=4)
    assert faster.verdict({"saekern": 1.0, "a": 5.0, "b": 4.5}, True) == (4.5, "b", True)
    assert not faster.verdict({"saekern": 1.0, "a": 3.9}, True).met
    assert faster.verdict({"saekern": 1.0}, True) is None
    assert faster.verdict({"a": 1.0}, True) is None
    within = Goal(("roof",), within=0.65, elsewhere=1.3)
    assert not within.verdict({"saekern": 1.0, "roof": 1.0}, bf16=True).met
    assert within.verdict({"saekern": 1.0, "roof": 1.0}, bf16=False).met
    granted = Goal(("a",), within=1.2, plus=50)
    assert granted.words(True) == "≤ 1.2 of it + 50 ms"
    assert granted.verdict({"saekern": 61.0, "a": 10.0}, True) == (6.1, "a", True)
    assert not granted.verdict({"saekern": 63.0, "a": 10.0}, True).met
    assert Goal(("a",), faster=5, only={"F": 16}).applies({"F": 16, "B": 1}, True)
    assert not Goal(("a",), faster=5, only={"F": 16}).applies({"F": 32, "B": 1}, True)
    assert Goal(("a",), faster=5, needs_bf16=True).applies({}, True)
    assert not Goal(("a",), faster=5, needs_bf16=True).applies({}, False)


def test_nan_is_a_wrong_answer():
    with pytest.raises(WrongAnswer, match="y: 1 of 2 elements beyond the bound"):
        expect_close("y", torch.tensor([1.0, torch.nan]), torch.tensor([1.0, 1.0], dtype=torch.float64), 0.1)


@pytest.mark.skipif(not peak.Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_peak_memory_sees_a_tensor_that_was_freed():
    """96 MiB that live inside the call only. Planted: VmRSS read in the place of VmHWM; caught."""

    def call():
        return torch.ones(96 * 2**18).sum()

    measured = peak.measure(bench({"saekern": fake(call)}), SHAPE, "saekern")
    assert 95 < measured < 115
