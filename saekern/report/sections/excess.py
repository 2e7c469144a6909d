"""Reappearance beyond chance."""

from functools import partial
from typing import TYPE_CHECKING, Any

from saekern.report.drawing import BLUE, GREY, INK, ORANGE, Drawing
from saekern.report.results import Results
from saekern.report.section import Section, Table
from saekern.report.text import number, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "How much of the agreement is chance?"
CONTROLS = {"random": "random dictionaries", "rotated": "the dictionaries, each rotated by itself"}


def section(found: dict[str, Any], results: Results) -> Section:
    """`found`: results/stability.json."""
    level = next(iter(found["excess"].values()))["level"]
    notes = (
        "Excess: (observed − chance) / (1 − chance). Beyond chance: latents that reappear more often than the upper "
        f"{1 - level:.0%} bound of the chance rate explains, false discovery rate {level:.0%} over the live latents of "
        "each anchor (Benjamini–Hochberg), mean over anchors.",
        f"The calibrated θ leaves {level:.0%} of the null's partners at or above it. The interval of the observed rate "
        f"is {found['intervals']['confidence']:.0%} over runs (jackknife). Ours: the papers compare with nulls by eye.",
    )
    drawing = Drawing("excess", "Best cosines by chance and between seeds", 6.2, partial(_draw, found, results))
    return Section("excess", TITLE, _verdict(found), (_table(found),), (drawing,), notes)


def _verdict(found: dict[str, Any]) -> str:
    name, most = max(found["excess"].items(), key=lambda item: item[1]["chance"])
    rate = found["intervals"]["mean_probability"]
    first = (
        f"A latent has a partner in another seed with probability {percent(*rate.values())}; by chance with at most "
        f"{percent(most['chance_upper'], digits=2)} ({CONTROLS[name]})."
    )
    # Without an interval, with two seeds, nothing is said about it.
    above = rate["low"] is not None and rate["low"] > most["chance_upper"]
    second = (
        f" Beyond chance reappear {percent(most['beyond_chance'])} of the latents."
        if above
        else " That is not measurably more."
    )
    return first + second


def _table(found: dict[str, Any]) -> Table:
    header = ["null", "observed", "by chance", "upper bound", "excess", "latents beyond chance", "calibrated θ"]
    rows = [
        [
            CONTROLS[name],
            percent(line["observed"], digits=2),
            percent(line["chance"], digits=3),
            percent(line["chance_upper"], digits=3),
            number(line["excess"], 4),
            percent(line["beyond_chance"]),
            number(line["calibrated_threshold"], 3),
        ]
        for name, line in found["excess"].items()
    ]
    return Table("excess", f"At θ = {found['threshold']:g}, of all comparisons of a live latent", header, rows)


def _draw(found: dict[str, Any], results: Results, figure: "Figure") -> tuple[str, str]:
    ax = figure.add_subplot()
    edges = results.arrays["histogram_edges"]
    series = (
        ("cosine_histogram", "pairs of seeds", BLUE),
        ("null_histogram", "random", GREY),
        ("rotated_histogram", "rotated", ORANGE),
    )
    for name, label, colour in series:
        counts = results.arrays[name]
        above = counts[::-1].cumsum()[::-1] / max(1, counts.sum())
        ax.plot(edges[:-1], above, color=colour, lw=2, label=label)
    ax.axvline(found["threshold"], color=INK, lw=0.8, ls=(0, (3, 3)))
    for name, colour in (("random", GREY), ("rotated", ORANGE)):
        ax.plot(found["excess"][name]["calibrated_threshold"], found["excess"][name]["level"], "o", color=colour)
    ax.set(xlim=(0, 1), ylim=(-0.02, 1.02), xlabel="θ", ylabel="share of partners at or above θ")
    ax.legend(loc="upper right")
    caption = (
        "Share of best partners whose cosine reaches θ. Dots: the θ that leaves "
        f"{found['excess']['random']['level']:.0%} to chance. Dashed: the study's θ."
    )
    return caption, "Lines of the share of partners above the threshold, for seeds, random and rotated dictionaries."
