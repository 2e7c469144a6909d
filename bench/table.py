"""`python -m saekern.bench.table`: the README's results table, from the committed CSV files and nothing else.

One line a goal: the ratio of medians of the last run on each machine, beside what was aimed at. Disturbed runs (others
kept more than QUIET CPUs busy) are marked, losses are listed like wins.
"""

import argparse
import importlib
import sys
from collections.abc import Iterable
from pathlib import Path

from saekern.bench.common import UNITS, Bench, Goal
from saekern.bench.machine import QUIET
from saekern.bench.record import latest_runs, read

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
HEADER = "| work | shape | ours | against | measured | goal | |\n|---|---|---|---|---|---|---|"


def main(argv: list[str] | None = None) -> int:
    """`--check` writes nothing and returns 1 where the README is not up to date."""
    folder = Path(__file__).resolve().parent
    parse = argparse.ArgumentParser(prog="python -m saekern.bench.table", description=__doc__)
    parse.add_argument("--readme", type=Path, default=folder.parent / "README.md")
    parse.add_argument("--results", type=Path, default=folder / "results", help="folder of CSV files")
    parse.add_argument("--check", action="store_true", help="only say whether the README is up to date")
    options = parse.parse_args(argv)
    old = options.readme.read_text()
    new = replace_between(old, render(read(sorted(options.results.glob("*.csv"))), [*all_benches(), *gpu_benches()]))
    if options.check:
        return int(old != new)
    options.readme.write_text(new)
    return 0


def all_benches() -> list[Bench]:
    from saekern.bench.__main__ import NAMES

    return [bench for name in NAMES for bench in importlib.import_module(f"saekern.bench.{name}").BENCHES]


def gpu_benches() -> list[Bench]:
    from saekern.bench.gpu_shapes import BENCHES

    return [made.bench for made in BENCHES]


def replace_between(text: str, body: str) -> str:
    """Raises ValueError where the marks are missing."""
    if BEGIN not in text or END not in text:
        raise ValueError(f"expected the lines {BEGIN} and {END}")
    head, rest = text.split(BEGIN, 1)
    return f"{head}{BEGIN}\n{body}\n{END}{rest.split(END, 1)[1]}"


def render(rows: Iterable[dict[str, str]], benches: Iterable[Bench]) -> str:
    """Markdown: for every device its facts, then the table. "Not yet measured." without rows."""
    by_device: dict[str, list[list[dict[str, str]]]] = {}
    for run in latest_runs(rows):
        first = run[0]
        device = f"{first['device']} ({first['instruction_sets']})"
        device += f", {first['threads']} thread{'s'[first['threads'] == '1' :]}" if first["threads"] else ""
        by_device.setdefault(device, []).append(run)
    benches = list(benches)
    parts = []
    for device, runs in by_device.items():
        lines = [line for bench in benches for run in runs for line in goal_lines(bench, run)]
        if lines:
            dates = sorted(run[0]["date"][:10] for run in runs)
            span = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
            parts.append("\n".join([f"{device}, torch {runs[0][0]['torch']}, {span}:\n", HEADER, *lines]))
    return "\n\n".join(parts) or "Not yet measured."


def goal_lines(bench: Bench, run: list[dict[str, str]]) -> list[str]:
    first = run[0]
    if (first["op"], first["mode"]) != (bench.op, bench.mode):
        return []
    shape = dict(word.split("=", 1) for word in first["shape"].split(" "))
    sizes = [{name: str(value) for name, value in full.items()} for full in bench.shapes]
    if shape not in sizes:  # a small shape of --quick
        return []
    bf16 = "bf16" in first["instruction_sets"]
    return [line for goal in bench.goals if goal.applies(shape, bf16) for line in goal_line(bench, goal, run, bf16)]


def goal_line(bench: Bench, goal: Goal, run: list[dict[str, str]], bf16: bool) -> list[str]:
    figures = {row["provider"]: float(row[goal.metric] or 0) for row in run}
    verdict = goal.verdict(figures, bf16)
    if verdict is None:
        return []
    unit = UNITS[goal.metric]
    busy = f", disturbed: others used {run[0]['others']} CPUs" if float(run[0]["others"] or 0) > QUIET else ""
    rival, limit = f"{verdict.rival}, {figures[verdict.rival]:.4g} {unit}", goal.words(bf16)
    measured = f"{verdict.ratio:.2f} ×"
    if goal.at_most is not None:
        rival, measured, limit = "", f"{verdict.ratio:.4g} {unit}", f"{limit} {unit}"
    return [
        f"| `{bench.op}` {bench.mode} | {run[0]['shape']} | {figures[goal.ours]:.4g} {unit} | {rival} | {measured} |"
        f" {limit} | {'met' if verdict.met else 'missed'}{busy} |"
    ]


if __name__ == "__main__":
    sys.exit(main())
