"""`python -m saekern.bench.roofline`: what each op moves and computes on a GPU, and how close that is to what it must.

A launcher is run on `meta` tensors at the goal shapes (`roofline_cases.py`, `recorder.py`); each of its launches is
priced by a formula over the grid and constants that it used (`kernel_formulas.py`). Beside it stands the lower bound:
every input read once, every result written once (`kernel_bounds.py`). Nothing is measured here: times are estimates
from the roofs, and may be wrong.
"""

import argparse
import sys
from collections.abc import Iterable

from saekern.bench.common import Absent, words
from saekern.bench.kernel_bounds import Line, priced
from saekern.bench.kernel_costs import ASSUMPTIONS, Roofs
from saekern.bench.roofline_cases import goal_cases


def table(lines: Iterable[Line]) -> str:
    head = f"{'op':<29}{'shape':<28}{'MB':>8}{'bound':>8}{'ratio':>7}{'GFLOP':>9}{'launches':>9}{'largest MB':>11}"
    text = [f"{head}{'ms':>8}{'bound':>8}  roof"]
    for line in lines:
        largest = line.record.largest()
        bound, work = line.case.bound, sum(c.matrix + c.vector for c in line.costs)
        text.append(
            f"{line.case.op:<29}{words(line.case.shape):<28}{line.moved / 1e6:>8.0f}{bound.moved() / 1e6:>8.0f}"
            f"{line.ratio:>7.2f}{work / 1e9:>9.1f}{line.launches:>9}"
            f"{0 if largest is None else largest.nbytes / 1e6:>11.1f}"
            f"{1e3 * line.seconds:>8.3f}{1e3 * bound.seconds(line.roofs):>8.3f}  {line.roof}"
        )
        text += [f"    MISSED: {fault}" for fault in line.faults()]
    return "\n".join(text)


def main(arguments: list[str] | None = None) -> int:
    """0; the gate is tests/bench/test_roofline.py."""
    parse = argparse.ArgumentParser(prog="python -m saekern.bench.roofline", description=__doc__.split("\n", 1)[0])
    for name, value in Roofs()._asdict().items():
        parse.add_argument(f"--{name.replace('_', '-')}", type=float, default=value, help="default %(default)g")
    parse.add_argument("--steps", action="store_true", help="also every launch of every op")
    options = vars(parse.parse_args(arguments))
    steps, roofs = options.pop("steps"), Roofs(**options)
    lines, absent = [], []
    for case in goal_cases():
        try:
            lines.append(priced(case, roofs))
        except (Absent, ValueError) as reason:
            absent.append(f"{case.op} {words(case.shape)}: absent ({reason})")
    print("\n".join([table(lines), *absent]))
    if steps:
        print("\n".join(detail(line) for line in lines))
    print("\nAssumed:", *(f"  {name}: {text}" for name, text in ASSUMPTIONS.items()), sep="\n")
    return 0


def detail(line: Line) -> str:
    text = [f"\n{line.case.op} {words(line.case.shape)}"]
    for step, price in zip(line.record.steps, line.costs, strict=True):
        if not step.view:
            grid = " × ".join(map(str, step.grid))
            moved = f"{price.read / 1e6:>9.1f} MB read{price.written / 1e6:>9.1f} written"
            text.append(f"  {step.name:<28}{grid:<16}{moved}")
    return "\n".join(text)


if __name__ == "__main__":
    sys.exit(main())
