"""The tables of results come from CSV alone."""

from dataclasses import replace
from pathlib import Path

import pytest

from saekern.bench import record, table
from saekern.bench.common import Bench, Goal

BENCH = Bench(
    "decode", "forward", ({"B": 8, "F": 16},), ({"B": 1, "F": 2},), (), None, None, (Goal(("bag",), faster=5),)
)


def row(**changes: str) -> dict[str, str]:
    made = dict.fromkeys(record.COLUMNS, "")
    made |= {"date": "2026-01-02T03:04:05Z", "op": "decode", "mode": "forward", "shape": "B=8 F=16", "others": "0.01"}
    made |= {"device": "CPU 1", "instruction_sets": "avx2", "threads": "2", "torch": "2.13.0", "provider": "saekern"}
    return made | {"median_ms": "2.0"} | changes


def test_a_goal_is_one_line():
    text = table.render([row(), row(provider="bag", median_ms="11.0")], [BENCH])
    assert text.splitlines()[0] == "CPU 1 (avx2), 2 threads, torch 2.13.0, 2026-01-02:"
    assert "| `decode` forward | B=8 F=16 | 2 ms | bag, 11 ms | 5.50 × | ≥ 5 × faster | met |" in text


def test_only_the_last_run_counts():
    """Rows of two runs never meet in one ratio. Planted: all rows of a shape in one dictionary; caught."""
    old = [row(), row(provider="bag", median_ms="11.0")]
    new = [
        row(date="2026-02-02T03:04:05Z", median_ms="4.0"),
        row(date="2026-02-02T03:04:05Z", provider="bag", median_ms="8"),
    ]
    assert "2.00 × | ≥ 5 × faster | missed |" in table.render(old + new, [BENCH])
    assert "2.00 ×" in table.render(new + old, [BENCH])
    assert table.render([*old, new[0]], [BENCH]) == "Not yet measured."


def test_machines_of_one_name_with_other_instruction_sets_are_two():
    """Virtual machines call every processor by the same name. Planted: the name alone as the key; caught."""
    runs = [row(instruction_sets=sets, provider=name) for sets in ("avx2", "avx2 bf16") for name in ("saekern", "bag")]
    runs[3] = runs[3] | {"date": "2026-02-02T03:04:05Z"}
    runs[2] = runs[2] | {"date": "2026-02-02T03:04:05Z"}
    assert "CPU 1 (avx2)," in table.render(runs, [BENCH])
    assert "CPU 1 (avx2 bf16)," in table.render(runs, [BENCH])


def test_small_shapes_and_disturbed_runs():
    assert table.render([row(shape="B=1 F=2"), row(shape="B=1 F=2", provider="bag")], [BENCH]) == "Not yet measured."
    text = table.render([row(others="1.5"), row(provider="bag", others="1.5", median_ms="11")], [BENCH])
    assert "met, disturbed: others used 1.5 CPUs |" in text


def test_readme_is_rewritten_between_the_marks(tmp_path: Path):
    readme, full, results = tmp_path / "README.md", tmp_path / "results.md", tmp_path / "results"
    for page in (readme, full):
        page.write_text("# a\n<!-- results:begin -->\nold\n<!-- results:end -->\nb\n")
    real = {"op": "row_topk", "shape": "B=2048 F=16384 K=32"}
    record.append(results / "cpu.csv", [row(**real), row(**real, provider="torch", median_ms="11.0")])
    arguments = ["--readme", str(readme), "--full", str(full), "--results", str(results)]
    assert table.main([*arguments, "--check"]) == 1
    assert table.main(arguments) == 0
    assert table.main([*arguments, "--check"]) == 0
    text = readme.read_text()
    assert text.startswith("# a\n<!-- results:begin -->\nCPU 1 (avx2)")
    assert "| `row_topk` forward | torch | 5.5 × faster | 1 of 1 |\n<!-- results:end -->\nb\n" in text
    text = full.read_text()
    assert text.startswith("# a\n<!-- results:begin -->\nCPU 1 (avx2)")
    assert "| torch, 11 ms | 5.50 × | ≥ 5 × faster | met |\n<!-- results:end -->\nb\n" in text


def test_the_short_table_counts_misses_and_shows_the_range():
    """Planted: only goals that were met in the range; rivals of one goal only. Both caught."""
    goals = (Goal(("bag", "torch mm"), faster=5), Goal(("gemm",), within=0.5), Goal((), at_most=1500.0))
    bench = replace(BENCH, goals=goals, shapes=({"B": 8, "F": 16}, {"B": 8, "F": 32}))
    rows = [
        *(row(), row(provider="bag", median_ms="11.0"), row(provider="gemm", median_ms="8.0")),
        *(row(shape="B=8 F=32", median_ms="2000"), row(shape="B=8 F=32", provider="torch mm", median_ms="6000")),
    ]
    lines = table.render(rows, [bench], short=True).splitlines()
    assert lines[-3:] == [
        "| `decode` forward | bag, torch | 3–5.5 × faster | 1 of 2 |",
        "| `decode` forward | gemm | 0.25 × of it | 1 of 1 |",
        "| `decode` forward |  | 2–2,000 ms | 1 of 2 |",
    ]


def test_missing_marks_are_an_error():
    with pytest.raises(ValueError, match="expected the lines <!-- results:begin -->"):
        table.replace_between("# a", "x")


def test_pictures_come_from_csv(tmp_path: Path):
    pytest.importorskip("matplotlib")
    from saekern.bench import plot

    rows = [row(p20_ms="1.9", p80_ms="2.2"), row(provider="gemm MKL", median_ms="3.0", p20_ms="3", p80_ms="3")]
    record.append(tmp_path / "cpu.csv", rows)
    assert plot.main(["--results", str(tmp_path), "--out", str(tmp_path / "plots")]) == 0
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["decode-forward-B-8-F-16-2.png"]


def test_the_pages_show_the_committed_results():
    """`make results` after measuring. Planted: a digit of either table changed; both caught."""
    assert table.main(["--check"]) == 0
