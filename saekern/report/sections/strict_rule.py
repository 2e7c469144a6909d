"""Latents whose encoder and decoder agree on their partner, beside those that the decoder alone finds."""

from functools import partial
from typing import TYPE_CHECKING, Any

from saekern.report.drawing import BLUE, GREY, Drawing
from saekern.report.results import Results
from saekern.report.section import Section, Table
from saekern.report.text import number, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Does the answer depend on how latents are matched?"
NAMES = {
    "argmax": "nearest decoder row reaches θ",
    "decoder": "assigned decoder row reaches θ",
    "encoder": "assigned encoder row reaches θ",
    "same_partner": "both assignments choose one partner",
    "shared": "shared: one partner, both reach θ",
}
# Paulo & Belrose 2025, arXiv 2501.16615 (Llama 3 8B, 131k latents; Pythia-160M, 32k).
PUBLISHED_SHARED = "30 % (131k latents), 42 % (32k)"
# deenais/sae-stability-pythia70m: three ReLU SAEs of 2,048 latents; found in both of the other two seeds.
REPLICATION = {"argmax": "74.5 %", "decoder": "72.8 %", "shared": "67.6 %"}


def section(found: dict[str, Any], results: Results) -> Section:
    notes = (
        f"The first {found['runs']} seeds, θ = {found['threshold']:g}, dead latents left out; intervals are "
        f"{found['confidence']:.0%} over runs (jackknife). Null: {found['null_runs']} of them, encoder and decoder of "
        f"each rotated together. Partners chosen independently agree in {percent(found['independent'], digits=2)}.",
        "Published shares: Paulo & Belrose 2025 (pairs of seeds) and, for three ReLU SAEs of Pythia-70M, an "
        "independent replication that counts latents found in both of the two other seeds; IoU: Gerasimov et al. 2026. "
        "Other models and sizes: the order of the rules can agree, values need not.",
    )
    drawing = Drawing("strict_rule", "Latents found in another seed, by rule", 6.2, partial(_draw, found))
    return Section(
        "strict_rule", TITLE, _verdict(found), (_rates(found), *_overlap(results.stability)), (drawing,), notes
    )


def _verdict(found: dict[str, Any]) -> str:
    shared, argmax, fewer = found["rates"]["shared"], found["rates"]["argmax"], found["argmax - shared"]
    shares = f"{percent(*shared.values())} of latents are shared with another seed"
    others = f"{percent(*argmax.values())} by the nearest decoder row alone"
    null = f" By chance {percent(found['null']['shared'], digits=2)} are shared."
    if fewer["low"] is None:
        return f"By the strict rule {shares}, {others}; two seeds give no interval." + null
    reach = f"{100 * fewer['low']:.1f} to {100 * fewer['high']:.1f} points"
    if fewer["low"] > 0:
        return f"Yes: when encoder and decoder must agree {shares}, {others}; fewer by {reach}." + null
    return f"Not measurably: when encoder and decoder must agree {shares}, {others} (difference {reach})." + null


def _rates(found: dict[str, Any]) -> Table:
    header = ["rule", "in another seed", "null: rotated", "published", "in both of two others", "replication"]
    both = found["both_of_two"] or {}
    rows = [
        [
            label,
            percent(*found["rates"][name].values()),
            percent(found["null"][name], digits=2),
            PUBLISHED_SHARED if name == "shared" else "–",
            percent(both.get(name)),
            REPLICATION.get(name, "–"),
        ]
        for name, label in NAMES.items()
    ]
    return Table("strict_rule", "Share of live latents found, by rule", header, rows)


def _overlap(stability: dict[str, Any]) -> list[Table]:
    iou = stability["iou"]
    if not iou:
        return []
    spread = {kind: f"{number(iou[kind]['mean'], 3)} ± {number(iou[kind]['sd'], 3)}" for kind in ("features", "pairs")}
    rows = [
        ["IoU of latents that nearest and assigned partners find", spread["features"], "0.978 ± 0.001"],
        ["IoU of pairs of latents", spread["pairs"], "–"],
        ["mean cosine of assigned latents (PW-MCC)", number(iou["pw_mcc"], 3), "–"],
    ]
    title = f"Nearest against one-to-one, {iou['pairs_compared']} pairs of seeds, ± spread over pairs"
    return [Table("assignment", title, ["", "here", "published"], rows)]


def _draw(found: dict[str, Any], figure: "Figure") -> tuple[str, str]:
    ax = figure.add_subplot()
    names = [*reversed(NAMES)]
    for y, name in enumerate(names):
        rate = found["rates"][name]
        ax.plot(found["null"][name], y, "o", ms=6, mfc="none", mec=GREY, label="rotated" if y == 0 else None)
        if rate["low"] is not None:
            ax.plot([rate["low"], rate["high"]], [y, y], color=BLUE, lw=3, alpha=0.4)
        ax.plot(rate["mean"], y, "o", ms=6, color=BLUE, label="seeds" if y == 0 else None)
    ax.set(yticks=range(len(names)), yticklabels=[NAMES[name] for name in names])
    ax.set(ylim=(-0.5, len(names) - 0.2), xlabel="share of live latents")
    ax.legend(loc="upper right", ncols=2)
    caption = (
        f"Mean over ordered pairs of {found['runs']} seeds, bars {found['confidence']:.0%} intervals over runs; "
        "circles: the same dictionaries, each rotated by itself."
    )
    return caption, "Dots with intervals of the share of latents found by five rules, beside their null."
