"""Other architectures on the same rows: the explained variance that each reaches at its sparsity."""

import html
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from saekern.report.results import Results
from saekern.report.text import number, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ["#2f7fd0", "#e0792f", "#3d9a50", "#b0478f", "#8a6d3b", "#5b5fc7", "#c0392b", "#2a9d9d", "#7f8c1f"]
MARKERS = "osD^vPX<"  # one fewer than colours: 72 pairs before one comes back


class Point(NamedTuple):
    """One SAE at one sparsity."""

    variant: str
    series: str  # what belongs on one line
    parameters: int | None
    seed: int
    l0: float
    ev: float
    dead: float
    ce: float | None


def points(results: Results) -> Iterator[Point]:
    """Those of the variants on the study's rows, and the study's own seeds."""
    for seed in results.evaluation["seeds"] if results.evaluation else ():
        yield Point(
            "the study's", "the study's", None, seed["seed"], seed["l0"], seed["ev"], seed["dead"], seed.get("ce_sae")
        )
    for one in comparable(results):
        for point in one["points"]:
            name = one["variant"] + (f", k = {point['k']}" if point["k"] is not None else "")
            yield Point(
                name,
                series(one),
                one["parameters"],
                one["seed"],
                point["l0"],
                point["ev"],
                point["dead"],
                point.get("ce_sae"),
            )


def comparable(results: Results) -> list[dict[str, Any]]:
    """The variants that saw the study's rows, all of them; explained variance on other rows is another quantity."""
    return [one for one in results.variants if one.get("comparable", True)]


def series(variant: dict[str, Any]) -> str:
    """The name up to a last number: "batch_topk-16" and "batch_topk-32" are one line of the plot."""
    head, _, tail = variant["variant"].rpartition("-")
    return head if head and tail.replace(".", "").isdigit() else variant["variant"]


def pareto(results: Results, ax: "Axes") -> tuple[str, str]:
    lines: dict[str, list[Point]] = {}
    for point in points(results):
        lines.setdefault(point.series, []).append(point)
    for i, (name, found) in enumerate(lines.items()):
        found.sort(key=lambda point: point.l0)
        ax.plot(
            [point.l0 for point in found],
            [point.ev for point in found],
            marker=MARKERS[i % len(MARKERS)],
            ms=4.5,
            lw=1.2,
            ls="-" if i < len(COLOURS) else "--",
            color=COLOURS[i % len(COLOURS)],
            label=name,
        )
    ax.set_xscale("log", base=2)
    ax.set(xlabel="L0: active latents a row", ylabel="explained variance")
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    caption = (
        "Explained variance against the number of active latents, on rows that training did not see. Further up and to "
        "the left is better. A line joins SAEs of one kind, or one SAE that encodes at several sparsities."
    )
    return caption, "Explained variance against L0 for every architecture."


def comparison(results: Results) -> str:
    """The table under the plot."""
    header = ["SAE", "seed", "parameters", "L0", "EV", "dead", "CE"]
    rows = [
        [
            html.escape(point.variant),
            str(point.seed),
            "" if point.parameters is None else f"{point.parameters:,}",
            f"{point.l0:.2f}",
            f"{point.ev:.4f}",
            f"{point.dead:.1%}",
            number(point.ce, 4),
        ]
        for point in points(results)
    ]
    return table(header, rows)
