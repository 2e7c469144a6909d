"""How far the shares of stable and unstable latents hang on θ and ε."""

from functools import partial
from typing import TYPE_CHECKING, Any

from saekern.report.drawing import BLUE, GREY, INK, ORANGE, Drawing
from saekern.report.results import Results
from saekern.report.section import Section, Table
from saekern.report.text import percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Does the boundary depend on θ and ε?"
GROUPS = {"stable": BLUE, "unstable": ORANGE}


def section(found: dict[str, Any], results: Results) -> Section:
    null = found["null"]
    notes = [
        f"Intervals are {found['confidence']:.0%} over runs: delete-one-run jackknife, a run left out as anchor and as "
        f"one of the others. Shares are means over all anchors. Null: {null['runs']} of the dictionaries, each rotated "
        "by itself, which keeps the angles inside it.",
    ]
    if null["comparisons"] != found["seeds"]["comparisons"]:
        notes.append(
            f"The null has {null['comparisons']} comparisons and the seeds {found['seeds']['comparisons']}: “stable” "
            "is the easier for fewer."
        )
    vacuous = sorted({line["epsilon"] for line in found["seeds"]["lines"] if line["vacuous"]})
    if len(vacuous) > 1:
        notes.append(
            f"With {found['seeds']['comparisons']} comparisons ε = {', '.join(f'{e:g}' for e in vacuous)} are the same."
        )
    drawing = Drawing("thresholds", "Stable and unstable shares against θ", 8.4, partial(_draw, found))
    return Section("thresholds", TITLE, _verdict(found), (_by_threshold(found), _grid(found)), (drawing,), tuple(notes))


def _verdict(found: dict[str, Any]) -> str:
    thresholds, at = found["thresholds"], found["thresholds"].index(found["threshold"])
    low, high = max(0, at - 1), min(len(thresholds) - 1, at + 1)
    below, above = (found["intervals"][i]["stable"] for i in (low, high))
    shares = (
        f"the stable share is {percent(*below.values())} at θ = {thresholds[low]:g} and {percent(*above.values())} at "
        f"θ = {thresholds[high]:g}"
    )
    if below["low"] is None:
        first = f"Next to the study's θ = {found['threshold']:g} {shares}; two seeds give no interval."
    elif below["low"] > above["high"]:
        first = f"The boundary depends on θ: {shares}, more than their intervals."
    else:
        first = f"Next to the study's θ = {found['threshold']:g} the choice is not measurable: {shares}."
    null = [line["stable"] for line in _lines(found["null"], found)]
    level = next((t for t, share in zip(thresholds, null, strict=True) if (share or 0) < 0.001), None)
    second = (
        f" Rotated dictionaries have at least 0.1 % stable latents at every θ up to {thresholds[-1]:g}."
        if level is None
        else f" By chance less than 0.1 % are stable from θ = {level:g} on."
    )
    return first + second


def _lines(sweep: dict[str, Any], found: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of the study's ε, one a θ."""
    return [line for line in sweep["lines"] if line["epsilon"] == found["epsilon"]]


def _by_threshold(found: dict[str, Any]) -> Table:
    header = ["θ", "stable", "unstable", "mean p", "null: stable", "null: unstable", "null: mean p"]
    rows = []
    for threshold, line, null in zip(
        found["thresholds"], found["intervals"], _lines(found["null"], found), strict=True
    ):
        cells = [percent(*line[name].values()) for name in ("stable", "unstable", "mean_probability")]
        cells += [percent(null[name], digits=2) for name in ("stable", "unstable", "mean_probability")]
        rows.append([f"{threshold:g}", *cells])
    return Table("thresholds", f"Shares at ε = {found['epsilon']:g}", header, rows)


def _grid(found: dict[str, Any]) -> Table:
    header = ["stable / unstable", *(f"ε = {epsilon:g}" for epsilon in found["epsilons"])]
    share = {(line["threshold"], line["epsilon"]): line for line in found["seeds"]["lines"]}
    rows = []
    for threshold in found["thresholds"]:
        lines = [share[threshold, epsilon] for epsilon in found["epsilons"]]
        cells = [f"{percent(line['stable'])} / {percent(line['unstable'])}" for line in lines]
        rows.append([f"θ = {threshold:g}", *cells])
    return Table("thresholds_epsilons", "Shares at every θ and ε", header, rows)


def _draw(found: dict[str, Any], figure: "Figure") -> tuple[str, str]:
    theta = found["thresholds"]
    for ax, (name, colour) in zip(figure.subplots(1, 2, sharey=True), GROUPS.items(), strict=True):
        for epsilon in found["epsilons"]:
            if epsilon != found["epsilon"]:
                values = [line[name] for line in found["seeds"]["lines"] if line["epsilon"] == epsilon]
                ax.plot(theta, values, color=colour, lw=0.8, alpha=0.5)
        lines = [line[name] for line in found["intervals"]]
        ax.plot(theta, [line["mean"] for line in lines], color=colour, lw=2.2, marker="o", ms=3, label="seeds")
        if lines[0]["low"] is not None:
            ends = [[line[end] for line in lines] for end in ("low", "high")]
            ax.fill_between(theta, *ends, color=colour, alpha=0.15, lw=0)
        null = [line[name] for line in _lines(found["null"], found)]
        ax.plot(theta, null, color=GREY, lw=1.8, ls=":", marker="o", ms=3, label="rotated dictionaries")
        ax.axvline(found["threshold"], color=INK, lw=0.8, ls=(0, (3, 3)))
        ax.set(xlabel="θ", title=name, ylim=(-0.02, 1.02))
        ax.legend(loc="upper right" if name == "stable" else "lower right")
    figure.axes[0].set_ylabel("share of live latents")
    caption = (
        f"Shares against θ; thick line and band: ε = {found['epsilon']:g} and its interval over runs. Thin lines: the "
        "other ε. Dotted: dictionaries rotated by themselves. Dashed: the study's θ."
    )
    return caption, "Lines of the stable and the unstable share against the threshold, with their null."
