"""`python -m saekern.bench.table`: the tables of results, from the committed CSV files and nothing else.

docs/results.md has one line a goal: the ratio of medians of the last run on each machine, beside what was aimed at.
Disturbed runs (others kept more than QUIET CPUs busy) are marked, losses are listed like wins. The README has one line
a kind of work: the range of those ratios, and how many goals were met.
"""

import argparse
import importlib
import sys
from collections.abc import Iterable
from pathlib import Path

from saekern.bench.common import UNITS, Bench, Goal, Verdict
from saekern.bench.machine import QUIET
from saekern.bench.record import latest_runs, read

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
HEADER = "| work | shape | ours | against | measured | goal | |\n|---|---|---|---|---|---|---|"
SHORT_HEADER = "| work | against the fastest of | measured | goals met |\n|---|---|---|---|"


def main(argv: list[str] | None = None) -> int:
    """`--check` writes nothing and returns 1 where a table is not up to date."""
    folder = Path(__file__).resolve().parent
    parse = argparse.ArgumentParser(prog="python -m saekern.bench.table", description=__doc__)
    parse.add_argument("--readme", type=Path, default=folder.parent / "README.md", help="file of the short table")
    parse.add_argument("--full", type=Path, default=folder.parent / "docs" / "results.md", help="file of the full one")
    parse.add_argument("--results", type=Path, default=folder / "results", help="folder of CSV files")
    parse.add_argument("--check", action="store_true", help="only say whether both are up to date")
    options = parse.parse_args(argv)
    rows, benches = read(sorted(options.results.glob("*.csv"))), [*all_benches(), *gpu_benches()]
    stale = 0
    for file, short in ((options.readme, True), (options.full, False)):
        old = file.read_text()
        new = replace_between(old, render(rows, benches, short))
        stale |= old != new
        if not options.check:
            file.write_text(new)
    return int(stale and options.check)


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


def render(rows: Iterable[dict[str, str]], benches: Iterable[Bench], short: bool = False) -> str:
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
        found = [(bench, *pair) for bench in benches for run in runs for pair in verdicts(bench, run)]
        lines = summary(found) if short else [goal_line(*entry) for entry in found]
        if lines:
            dates = sorted(run[0]["date"][:10] for run in runs)
            span = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
            header = SHORT_HEADER if short else HEADER
            parts.append("\n".join([f"{device}, torch {runs[0][0]['torch']}, {span}:\n", header, *lines]))
    return "\n\n".join(parts) or "Not yet measured."


def verdicts(bench: Bench, run: list[dict[str, str]]) -> list[tuple[Goal, list[dict[str, str]], Verdict]]:
    """The goals that this run of the bench says something about."""
    first = run[0]
    if (first["op"], first["mode"]) != (bench.op, bench.mode):
        return []
    shape = dict(word.split("=", 1) for word in first["shape"].split(" "))
    sizes = [{name: str(value) for name, value in full.items()} for full in bench.shapes]
    if shape not in sizes:  # a small shape of --quick
        return []
    bf16 = has_bf16(run)
    judged = [(goal, goal.verdict(figures_of(goal, run), bf16)) for goal in bench.goals if goal.applies(shape, bf16)]
    return [(goal, run, verdict) for goal, verdict in judged if verdict is not None]


def has_bf16(run: list[dict[str, str]]) -> bool:
    return "bf16" in run[0]["instruction_sets"]


def figures_of(goal: Goal, run: list[dict[str, str]]) -> dict[str, float]:
    return {row["provider"]: float(row[goal.metric] or 0) for row in run}


def summary(found: Iterable[tuple[Bench, Goal, list[dict[str, str]], Verdict]]) -> list[str]:
    """One line for all goals of one work that are measured alike."""
    groups: dict[tuple[str, str], list[tuple[Goal, Verdict]]] = {}
    for bench, goal, _, verdict in found:
        kind = UNITS[goal.metric] if goal.at_most is not None else "faster" if goal.faster is not None else "of it"
        kind = f"{kind}, memory" if goal.at_most is None and goal.metric == "peak_mib" else kind
        groups.setdefault((f"`{bench.op}` {bench.mode}", kind), []).append((goal, verdict))
    lines = []
    for (work, kind), entries in groups.items():
        ratios = sorted(verdict.ratio for _, verdict in entries)
        span = "–".join(dict.fromkeys(map(three_digits, (ratios[0], ratios[-1]))))
        absolute = entries[0][0].at_most is not None
        rivals = (
            "" if absolute else ", ".join(sorted({name.split()[0] for goal, _ in entries for name in goal.against}))
        )
        measured = f"{span} {kind}" if absolute else f"{span} × {kind}"
        lines.append(f"| {work} | {rivals} | {measured} | {sum(v.met for _, v in entries)} of {len(entries)} |")
    return lines


def three_digits(figure: float) -> str:
    return f"{figure:.3g}" if figure < 1000 else f"{figure:,.0f}"


def goal_line(bench: Bench, goal: Goal, run: list[dict[str, str]], verdict: Verdict) -> str:
    bf16, figures = has_bf16(run), figures_of(goal, run)
    unit = UNITS[goal.metric]
    busy = f", disturbed: others used {run[0]['others']} CPUs" if float(run[0]["others"] or 0) > QUIET else ""
    rival, limit = f"{verdict.rival}, {figures[verdict.rival]:.4g} {unit}", goal.words(bf16)
    measured = f"{verdict.ratio:.2f} ×"
    if goal.at_most is not None:
        rival, measured, limit = "", f"{verdict.ratio:.4g} {unit}", f"{limit} {unit}"
    return (
        f"| `{bench.op}` {bench.mode} | {run[0]['shape']} | {figures[goal.ours]:.4g} {unit} | {rival} | {measured} |"
        f" {limit} | {'met' if verdict.met else 'missed'}{busy} |"
    )


if __name__ == "__main__":
    sys.exit(main())
