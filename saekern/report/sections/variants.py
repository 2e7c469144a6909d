"""Stability against explained variance: architectures, sizes, K, budgets, layers, models."""

from functools import partial
from typing import TYPE_CHECKING, Any

from saekern.report.drawing import BLUE, GREY, ORANGE, Drawing
from saekern.report.pareto import COLOURS, MARKERS
from saekern.report.results import Results
from saekern.report.section import Section, Table
from saekern.report.text import interval, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Which SAEs are stable, and what does it cost?"
ORDERED = {"size": "F, latents", "k": "K, active latents", "budget": "training rows", "layer": "layer"}
FIELD = {"size": "d_sae", "k": "k", "budget": "train_rows", "layer": "hook"}


def section(found: dict[str, Any], results: Results) -> Section:
    arms = {arm["variant"]: arm for arm in (found["main"], *found["variants"]) if arm["rows_from"] == "model"}
    axes = {}
    for name, axis in found["axes"].items():
        members = [arms[one] for one in axis["arms"] if one in arms]
        if len(members) > 1:
            axes[name] = members
    lines = [name for name in axes if name in ORDERED]
    drawings = [Drawing("variants_scatter", "Stability against explained variance", 8.4, partial(_scatter, axes))]
    if lines:
        width = max(4.2, 3.1 * len(lines))
        drawings.append(Drawing("variants_lines", "Along each axis", width, partial(_lines, axes, lines)))
    main = found["main"]
    notes = [
        "Every arm is matched within itself; live latents only, dead ones counted beside. Mean p does not depend on "
        "the number of seeds; the shares do, since “in all but ε” of few is easier: those of the study's seeds are of "
        f"its first {main['share_seeds']}. Chance is the mean p of random dictionaries of the arm's size.",
        f"Intervals are {found['confidence']:.0%}: a jackknife over runs for p and the shares, Student's for EV, "
        "Welch's for differences, each by itself: not corrected for their number. EV is on held-out rows of the arm's "
        "own layer and model, and can be compared only where these are the same.",
    ]
    return Section(
        name="variants",
        title=TITLE,
        verdict=_verdict(found, axes),
        tables=tuple(_table(name, members) for name, members in axes.items()),
        drawings=tuple(drawings),
        notes=tuple(notes),
    )


def direction(gap: dict[str, float | None]) -> str:
    """What the interval of a difference allows: "more", "less", "same" or "unknown"."""
    if gap["low"] is None or gap["high"] is None:
        return "unknown"
    return "more" if gap["low"] > 0 else "less" if gap["high"] < 0 else "same"


def estimate(value: dict[str, Any], digits: int) -> str:
    return interval(value["mean"], value["low"], value["high"], digits=digits)


def _verdict(found: dict[str, Any], axes: dict[str, list[dict[str, Any]]]) -> str:
    sentences = []
    for name, members in axes.items():
        if name in ORDERED and "ends" in found["axes"][name]:
            sentences.append(_along(name, members, found["axes"][name]["ends"]))
        else:
            sentences += _beside(name, members, found["main"]["variant"])
    return " ".join(sentences)


def _along(name: str, members: list[dict[str, Any]], ends: dict[str, Any]) -> str:
    first, last = (_value(name, arm) for arm in (members[0], members[-1]))
    words = {
        "more": "rises",
        "less": "falls",
        "same": "does not change measurably",
        "unknown": "cannot be compared with so few seeds",
    }
    parts = []
    for key, what in (("mean_probability", "mean p"), ("ev", "EV")):
        gap = ends[key]
        if key == "ev" and name == "layer":
            continue  # of different rows
        known = "" if gap["low"] is None else f" (difference {gap['low']:+.3f} to {gap['high']:+.3f})"
        parts.append(f"{what} {words[direction(gap)]}{known}")
    return f"From {ORDERED[name]} = {first} to {last} {' and '.join(parts)}."


def _beside(name: str, members: list[dict[str, Any]], main: str) -> list[str]:
    others = [arm for arm in members if arm["variant"] != main]
    groups: dict[str, list[str]] = {"more": [], "less": [], "same": [], "unknown": []}
    both = []  # more stable at less EV, or less stable at more
    for arm in others:
        stable = direction(arm["difference"]["mean_probability"])
        groups[stable].append(arm["variant"])
        fit = direction(arm["difference"]["ev"])
        if name != "model" and (stable, fit) in (("more", "less"), ("less", "more")):
            both.append(arm["variant"])
    words = {
        "more": "more stable than the study's SAE",
        "less": "less stable",
        "same": "not measurably different in stability",
        "unknown": "too few seeds to compare",
    }
    listed = [f"{words[kind]}: {', '.join(names)}" for kind, names in groups.items() if names]
    text = "; ".join(listed)
    sentences = [f"By {name}, {text}."]
    if name != "model":
        sentences.append(
            f"Stability is traded for EV, one up and the other down, in {len(both)} of {len(others)}"
            + (f" ({', '.join(both)})." if both else ".")
        )
    return sentences


def _value(axis: str, arm: dict[str, Any]) -> str:
    value = arm[FIELD[axis]]
    return f"{value:,}" if isinstance(value, int) else str(value)


def _table(axis: str, members: list[dict[str, Any]]) -> Table:
    varied = ["model", "hook"] if axis == "model" else [FIELD[axis]] if axis in FIELD else ["arch", "d_sae"]
    names = {"d_sae": "F", "train_rows": "rows", "k": "K", "arch": "architecture"}
    header = ["arm", *(names.get(field, field) for field in varied), "seeds", "mean p", "centred", "chance"]
    header += ["stable", "unstable", "EV", "EV's spread", "L0", "dead"]
    rows = []
    for arm in members:
        raw, centred = arm["estimates"]["raw"], arm["estimates"]["centred"]["mean_probability"]
        shown = [arm[field] for field in varied]
        rows.append(
            [
                arm["variant"],
                *(f"{value:,}" if isinstance(value, int) else str(value) for value in shown),
                str(arm["seeds"]),
                estimate(raw["mean_probability"], 3),
                estimate(centred, 3),
                number(arm["null"]["match_rate"]["mean"], 4),
                estimate(raw["stable"], 3),
                estimate(raw["unstable"], 3),
                estimate(arm["ev"], 4),
                number(arm["ev"]["sd"], 4),
                f"{arm['l0']['mean']:.2f}",
                f"{arm['dead']['mean']:.1%}",
            ]
        )
    return Table(f"variants_{axis}", f"Stability by {axis}", header, rows)


def _errors(ax: Any, x: list[float], value: list[dict[str, Any]], colour: str, line: str, label: str) -> None:
    ends = [(v["mean"], v["mean"]) if v["low"] is None else (v["low"], v["high"]) for v in value]
    bars = [[v["mean"] - low for v, (low, _) in zip(value, ends, strict=True)]]
    bars.append([high - v["mean"] for v, (_, high) in zip(value, ends, strict=True)])
    ax.errorbar(x, [v["mean"] for v in value], bars, color=colour, ls=line, marker="o", ms=4, lw=1.6, label=label)


def _scatter(axes: dict[str, list[dict[str, Any]]], figure: "Figure") -> tuple[str, str]:
    ax, drawn = figure.add_subplot(), set()
    for i, (name, members) in enumerate(axes.items()):
        for j, arm in enumerate(members):
            p, ev = arm["estimates"]["raw"]["mean_probability"], arm["ev"]
            if arm["variant"] in drawn or p["mean"] is None or ev["mean"] is None:
                continue
            drawn.add(arm["variant"])
            own = arm["axis"] is None
            bars = [None if v["low"] is None else [[v["mean"] - v["low"]], [v["high"] - v["mean"]]] for v in (ev, p)]
            ax.errorbar(
                ev["mean"],
                p["mean"],
                xerr=bars[0],
                yerr=bars[1],
                color="#10305c" if own else COLOURS[(i if len(axes) > 1 else j) % len(COLOURS)],
                marker="*" if own else MARKERS[j % len(MARKERS)],
                ms=11 if own else 5,
                lw=1,
                ls="none",
                label=arm["variant"] if own else f"{name}: {arm['variant']}",
            )
    ax.set(xlabel="explained variance", ylabel="mean reappearance probability p")
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=7, ncols=1 + len(drawn) // 18)
    caption = (
        "Each arm matched within itself, with intervals over seeds. Up is more stable, right is a better fit. The star "
        "is the study's own SAE. Arms of other layers or models have EV of other rows."
    )
    return caption, "Scatter of stability against explained variance for every arm."


def _lines(axes: dict[str, list[dict[str, Any]]], lines: list[str], figure: "Figure") -> tuple[str, str]:
    panels = figure.subplots(1, len(lines), sharey=True, squeeze=False)[0]
    for ax, name in zip(panels, lines, strict=True):
        members = [arm for arm in axes[name] if arm["estimates"]["raw"]["mean_probability"]["mean"] is not None]
        words = name == "layer"
        x = list(range(len(members))) if words else [arm[FIELD[name]] for arm in members]
        p, ev = ([arm["estimates"]["raw"]["mean_probability"] for arm in members], [arm["ev"] for arm in members])
        _errors(ax, x, p, BLUE, "-", "mean p")
        _errors(ax, x, ev, ORANGE, "--", "EV")
        chance = [arm["null"]["match_rate"]["mean"] for arm in members]
        ax.plot(x, chance, color=GREY, ls=":", lw=1.6, label="p of random dictionaries")
        ax.set(xlabel=ORDERED[name], ylim=(-0.03, 1.03))
        if words:
            ax.set_xticks(x, [str(arm["hook"]) for arm in members], rotation=20, ha="right", fontsize=7)
        else:
            ax.set_xscale("log", base=2)
            ax.set_xticks(x, [f"{value:,}" for value in x], fontsize=7)
            ax.minorticks_off()
    panels[0].legend(loc="best", fontsize=7)
    caption = "One setting changed at a time, the study's own SAE among them; intervals over seeds."
    return caption, "Lines of stability and explained variance along " + ", ".join(lines) + "."
