"""How many seeds are enough for the distribution of p̂."""

from functools import partial
from typing import TYPE_CHECKING, Any

from saekern.report.drawing import BLUE, GREY, ORANGE, Drawing
from saekern.report.results import Results
from saekern.report.section import Section, Table
from saekern.report.text import interval, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Are there enough seeds?"


def section(found: dict[str, Any], results: Results) -> Section:
    notes = (
        "Distance: the largest difference between two distribution functions of p over live latents of all anchors. "
        f"Ranges are the smallest and the largest of {found['draws']} random choices of the runs. Two sets share no "
        "run of comparison, but they share the anchors.",
        "Two sets may agree and both be coarse: with one run p is 0 or 1. “To all” shows that, but goes to 0 at the "
        "end by construction, because the n runs are among all of them: so it counts up to half of them. Null: what "
        "binomial noise and the few values that p can take with n runs alone leave of it.",
    )
    drawing = Drawing("convergence", "Distance between distributions of p", 6.2, partial(_draw, found))
    return Section("convergence", TITLE, _verdict(found), (_table(found),), (drawing,), notes)


def _verdict(found: dict[str, Any]) -> str:
    apart, limit = [line for line in found["lines"] if line["disjoint"]["mean"] is not None], found["distance"]
    last = apart[-1]
    if found["enough"] is None:
        return (
            f"Not shown: with n = {last['runs']}, the largest two sets that {found['comparisons']} comparisons allow, "
            f"the distribution of p is up to {number(last['disjoint']['max'], 3)} from that of another set and up to "
            f"{number(last['to_full']['max'], 3)} from that of all runs; {limit:g} was asked for."
        )
    runs = found["enough"]
    return (
        f"Yes, for the distribution of p to {limit:g}, from n = {runs} comparisons on: in all {found['draws']} choices "
        f"two sets without a common run are nearer to each other than that, and each to all {found['comparisons']}."
    )


def _table(found: dict[str, Any]) -> Table:
    header = ["comparison runs", "two sets without a common run", "to all runs", "null of “to all”"]
    rows = []
    for line in found["lines"]:
        cells = [interval(*(line[name][end] for end in ("mean", "min", "max"))) for name in ("disjoint", "to_full")]
        rows.append([str(line["runs"]), *cells, number(line["expected"], 3)])
    return Table("convergence", "Distances, mean (smallest to largest)", header, rows)


def _draw(found: dict[str, Any], figure: "Figure") -> tuple[str, str]:
    ax = figure.add_subplot()
    for name, label, colour in (("disjoint", "two sets", BLUE), ("to_full", "to all runs", GREY)):
        lines = [line for line in found["lines"] if line[name]["mean"] is not None]
        x = [line["runs"] for line in lines]
        low, mean, high = ([line[name][end] for line in lines] for end in ("min", "mean", "max"))
        ax.plot(x, mean, color=colour, lw=2, marker="o", ms=3.5, label=label)
        ax.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
    runs = [line["runs"] for line in found["lines"]]
    ax.plot(runs, [line["expected"] for line in found["lines"]], color=GREY, lw=1.5, ls=":", label="null of “to all”")
    ax.axhline(found["distance"], color=ORANGE, lw=1, ls=(0, (3, 3)), label=f"{found['distance']:g}")
    ax.set(xscale="log", xticks=runs, xlabel="n, comparison runs", ylabel="largest distance", ylim=(0, None))
    ax.set_xticks(runs, [str(n) for n in runs])
    ax.minorticks_off()
    ax.legend(loc="upper right")
    caption = (
        "How far the distribution of p from n runs is from that of n others, and of all. Bands: smallest to largest of "
        f"{found['draws']} choices. Dashed: what was asked for."
    )
    return caption, "Lines of the distance between distributions of p against the number of runs."
