"""What stable and unstable latents fire on, and whether that tells them apart."""

from functools import partial
from typing import TYPE_CHECKING, Any

from saekern.report.drawing import BLUE, GREY, INK, ORANGE, Drawing
from saekern.report.results import Results
from saekern.report.section import Section, Table
from saekern.report.text import interval, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "What do stable latents fire on, and can one seed tell?"
NAMES = {
    "log_frequency": "firing frequency, log₁₀",
    "mean_activation": "mean code where it fires",
    "token_entropy": "token entropy, nats",
    "multi_token_ratio": "multi-token ratio",
    "surface_score": "surface-form score",
}
DRAWN = ("log_frequency", "token_entropy", "surface_score")
BY_TOKEN = ("token_entropy", "surface_score")  # what shuffled tokens change


def section(found: dict[str, Any], results: Results) -> Section:
    groups, predictor = found["groups"], found["predictor"]
    notes = [
        f"{found['rows']:,} held-out rows; latents with fewer than {found['min_firings']} firings are left out, of "
        f"seed {groups['anchors'][0]} {groups['dead'][0]:,}. There are {groups['stable'][0]:,} stable and "
        f"{groups['unstable'][0]:,} unstable latents of that seed. Surface-form score: how well the current token "
        "alone tells whether the latent fires, in sequences held out (AUROC).",
        f"Effect: P(stable > unstable), 0.5 without a difference; {groups['confidence']:.0%} intervals (DeLong), "
        "p-values adjusted by Holm over the statistics of the seed. Seeds are not pooled, since they share features: "
        f"the range is over {len(groups['anchors'])} seeds. Null: tokens dealt to the rows at random, which leaves "
        "what frequency alone does.",
    ]
    tables = [_comparison(found)]
    drawings = [Drawing("statistics", "Stable and unstable latents", 8.4, partial(_draw, found))]
    if predictor:
        tables.append(_areas(predictor))
        drawings.append(Drawing("predictor", "Stability predicted from one seed", 6.2, partial(_draw_areas, predictor)))
        notes.append(
            f"The predictor is a logistic regression on the five statistics, fitted on seed {predictor['train']} and "
            "judged on the other seeds, stable against unstable; the latents between are left out. Held out is the "
            "seed, not the feature: stable latents of a test seed were in the training seed."
        )
    return Section(
        "statistics",
        TITLE,
        _differences(found) + (_prediction(predictor) if predictor else ""),
        tuple(tables),
        tuple(drawings),
        tuple(notes),
    )


def _differences(found: dict[str, Any]) -> str:
    """Of each statistic a word, where the test is clear and all anchors are on one side."""
    more: list[str] = []
    less: list[str] = []
    unclear: list[str] = []
    for line in found["groups"]["lines"]:
        name = NAMES[line["statistic"]].split(",")[0]
        clear = line["p_holm"] is not None and line["p_holm"] < 1 - found["groups"]["confidence"]
        if clear and line["effect_min"] > 0.5:
            more.append(name)
        elif clear and line["effect_max"] < 0.5:
            less.append(name)
        else:
            unclear.append(name)
    words = (("higher", more), ("lower", less))
    parts = [f"{word} {_listed(names)}" for word, names in words if names]
    text = f"Stable latents have {', and '.join(parts)} than unstable ones, in every seed." if parts else ""
    if unclear:
        text += f" No clear difference in {_listed(unclear)}."
    beyond = [NAMES[name].split(",")[0] for name in BY_TOKEN if _beyond(found, name)]
    if beyond:
        text += f" In {_listed(beyond)} they differ otherwise than frequency alone would make them."
    return text.strip()


def _listed(names: list[str]) -> str:
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else names[0]


def _beyond(found: dict[str, Any], name: str) -> bool:
    """Whether the effect's interval and that with shuffled tokens have nothing in common."""
    real, null = (_line(found[which], name) for which in ("groups", "shuffled"))
    if None in (real["lower"], null["lower"]):
        return False
    return real["lower"] > null["upper"] or real["upper"] < null["lower"]


def _line(groups: dict[str, Any], name: str) -> dict[str, Any]:
    return next(line for line in groups["lines"] if line["statistic"] == name)


def _prediction(predictor: dict[str, Any]) -> str:
    area, null = predictor["area"], predictor["null"]
    text = (
        f" A predictor fitted on one seed tells stable from unstable latents of other seeds with an AUROC of "
        f"{interval(*area.values())}"
    )
    if null is None or area["lower"] is None:
        return text + "."
    side = "above" if area["lower"] > null["max"] else "not clearly above"
    best, value = max(predictor["single"].items(), key=lambda item: item[1] or 0)
    return (
        f"{text}, {side} permuted labels ({number(null['min'], 2)} to {number(null['max'], 2)}); "
        f"{NAMES[best].split(',')[0]} alone has {number(value, 3)}."
    )


def _comparison(found: dict[str, Any]) -> Table:
    header = [
        "statistic",
        "median stable",
        "median unstable",
        "effect",
        "p (Holm)",
        "all seeds",
        "effect, tokens shuffled",
    ]
    rows = []
    for line in found["groups"]["lines"]:
        null = _line(found["shuffled"], line["statistic"])
        p = line["p_holm"]
        rows.append(
            [
                NAMES[line["statistic"]],
                number(line["median_stable"], 3),
                number(line["median_unstable"], 3),
                interval(line["effect"], line["lower"], line["upper"]),
                "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}",
                f"{number(line['effect_min'], 3)} to {number(line['effect_max'], 3)}",
                interval(null["effect"], null["lower"], null["upper"]) if line["statistic"] in BY_TOKEN else "the same",
            ]
        )
    return Table("statistics", f"Stable against unstable latents of seed {found['groups']['anchors'][0]}", header, rows)


def _areas(predictor: dict[str, Any]) -> Table:
    null = predictor["null"]
    rows = [
        ["regression, mean over held-out seeds", interval(*predictor["area"].values())],
        *(
            [f"regression on seed {run}", interval(*area.values())]
            for run, area in zip(predictor["test"], predictor["heldout"], strict=True)
        ),
        ["regression on its own seed (optimistic)", interval(*predictor["within"].values())],
        *([f"{NAMES[name]} alone", number(value, 3)] for name, value in predictor["single"].items()),
        ["null: permuted labels, mean (smallest to largest)", interval(*null.values()) if null else "–"],
        ["trap: dead latents counted as unstable", number(predictor["with_dead"], 3)],
    ]
    return Table("predictor", "Stable from unstable, AUROC on held-out seeds", ["predictor", "AUROC"], rows)


def _draw(found: dict[str, Any], figure: "Figure") -> tuple[str, str]:
    for ax, name in zip(figure.subplots(1, len(DRAWN)), DRAWN, strict=True):
        histogram = found["histograms"][name]
        for group, colour in (("stable", BLUE), ("unstable", ORANGE)):
            counts = histogram[group]
            shares = [count / max(1, sum(counts)) for count in counts]
            ax.stairs(shares, histogram["edges"], fill=True, color=colour, alpha=0.2)
            ax.stairs(shares, histogram["edges"], color=colour, lw=1.6, label=f"{group} ({sum(counts):,.0f})")
        ax.set(xlabel=NAMES[name])
    figure.axes[0].set_ylabel("share of the group")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    caption = (
        f"Distributions over the stable and the unstable latents of seed {found['groups']['anchors'][0]}, those with "
        f"at least {found['min_firings']} firings."
    )
    return caption, "Histograms of frequency, token entropy and surface-form score of stable and unstable latents."


def _draw_areas(predictor: dict[str, Any], figure: "Figure") -> tuple[str, str]:
    ax = figure.add_subplot()
    labels = ["dead counted as unstable (trap)", *(NAMES[name] for name in reversed(predictor["single"]))]
    labels.append("regression")
    ax.plot(predictor["with_dead"], 0, "x", ms=7, color=ORANGE)
    for y, value in enumerate(reversed(predictor["single"].values()), 1):
        ax.plot(value, y, "o", ms=6, color=BLUE, alpha=0.6)
    top = len(labels) - 1
    for area in predictor["heldout"]:
        ax.plot(area["value"], top, "|", ms=12, color=BLUE, alpha=0.6)
    area = predictor["area"]
    if area["lower"] is not None:
        ax.plot([area["lower"], area["upper"]], [top, top], color=BLUE, lw=4, alpha=0.4)
    ax.plot(area["value"], top, "o", ms=7, color=BLUE)
    if predictor["null"]:
        ax.axvspan(predictor["null"]["min"], predictor["null"]["max"], color=GREY, alpha=0.2, lw=0, label="permuted")
        ax.legend(loc="lower left")
    ax.axvline(0.5, color=INK, lw=0.8, ls=(0, (3, 3)))
    ax.set(yticks=range(len(labels)), yticklabels=labels, xlabel="AUROC on held-out seeds")
    caption = (
        "How well stable latents of other seeds are told from unstable ones by what one seed shows: all statistics "
        "(bar: interval over seeds; ticks: each seed), and each alone. Grey: fits to permuted labels. Cross: what it "
        "would be if dead latents counted as unstable; no result."
    )
    return caption, "Dots of areas under the ROC curve, with the range of permuted labels."
