"""What is lost when stable or unstable latents are masked."""

from functools import partial
from typing import TYPE_CHECKING, Any

from saekern.report.drawing import BLUE, GREY, ORANGE, Drawing
from saekern.report.results import Results
from saekern.report.section import Section, Table
from saekern.report.text import interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Do reconstructions need the stable latents more?"
STABLE, EQUAL = "stable", "unstable_equal_mass"
NAMES = {
    "stable": "stable",
    "unstable": "unstable, as many",
    "unstable_equal_mass": "unstable, of equal mass",
    "random": "any live latents, as many",
    "random_equal_mass": "any live latents, of equal mass",
}
COLOURS = {"stable": BLUE, "unstable": ORANGE, "random": GREY}
METRICS = {"ev": "loss of explained variance", "ce": "rise of cross-entropy, nats"}


def section(found: dict[str, Any], results: Results) -> Section:
    metrics = [metric for metric in METRICS if found[metric] is not None]
    drawings = tuple(
        Drawing(f"masking_{metric}", METRICS[metric].capitalize(), 6.2, partial(_draw, found, metric))
        for metric in metrics
    )
    notes = [
        f"Codes are set to zero after the selection, which is not repeated: {found['rows']:,} held-out rows, "
        f"{found['draws']} random orders, the same rows for every mask. A latent's mass is its mean activation; the "
        f"stable latents have {found['group_mass']['stable']:.1%} of it, the unstable ones "
        f"{found['group_mass']['unstable']:.1%}.",
        f"Intervals are {found['confidence']:.0%} over orders and rows together, each by itself: "
        f"{found['comparisons']} comparisons are not corrected for their number. Null: any live latents.",
    ]
    return Section(
        name="masking",
        title=TITLE,
        verdict=_verdict(found, metrics),
        tables=tuple(_table(found, metric) for metric in metrics),
        drawings=drawings,
        notes=tuple(notes),
    )


def _verdict(found: dict[str, Any], metrics: list[str]) -> str:
    sentences = []
    for metric in metrics:
        for other, how in (("unstable", "as many"), (EQUAL, "of equal mass")):
            level = _largest(found["differences"][f"{STABLE} - {other}"][metric]["mean"])
            if level is None:
                sentences.append(f"Too few unstable latents to mask {how}.")
                continue
            low, high = (found["differences"][f"{STABLE} - {other}"][metric][end][level] for end in ("lower", "upper"))
            word = "more than" if low > 0 else "less than" if high < 0 else "neither measurably more nor less than"
            sentences.append(
                f"Masking {found['levels'][level]} stable latents costs {word} masking unstable ones, {how} "
                f"({METRICS[metric]}, difference {low:+.4f} to {high:+.4f})."
            )
    return " ".join(dict.fromkeys(sentences))


def _largest(values: list[float | None]) -> int | None:
    """The last level at which both groups have enough latents."""
    return next((i for i in reversed(range(len(values))) if values[i] is not None), None)


def _table(found: dict[str, Any], metric: str) -> Table:
    header = ["stable latents masked", *NAMES.values(), "stable − unstable of equal mass"]
    paired = found["differences"][f"{STABLE} - {EQUAL}"][metric]
    rows = []
    for level, count in enumerate(found["levels"]):
        cells = [found["arms"][arm][metric] for arm in NAMES] + [paired]
        rows.append([f"{count:,}", *(interval(*(cell[end][level] for end in cell), digits=4) for cell in cells)])
    return Table(f"masking_{metric}", METRICS[metric].capitalize(), header, rows)


def _draw(found: dict[str, Any], metric: str, figure: "Figure") -> tuple[str, str]:
    ax = figure.add_subplot()
    for arm, label in NAMES.items():
        colour, line = COLOURS[arm.removesuffix("_equal_mass")], ":" if arm.endswith("mass") else "-"
        at = [i for i, mean in enumerate(found["arms"][arm][metric]["mean"]) if mean is not None]
        x = [found["levels"][i] for i in at]
        low, mean, high = ([found["arms"][arm][metric][e][i] for i in at] for e in ("lower", "mean", "upper"))
        ax.plot(x, mean, color=colour, ls=line, lw=1.8, marker="o", ms=3, label=label)
        ax.fill_between(x, low, high, color=colour, alpha=0.12, lw=0)
    ax.set(xscale="log", xlabel="m, stable latents masked (or as many, or their mass)", ylabel=METRICS[metric])
    ax.set_xticks(found["levels"], [f"{level:,}" for level in found["levels"]], minor=False)
    ax.minorticks_off()
    ax.legend(loc="upper left")
    caption = (
        f"{METRICS[metric].capitalize()} against the number of masked latents, {found['confidence']:.0%} intervals. "
        "Unstable latents fire less, so that equal counts favour them: the dotted lines mask latents of equal mass."
    )
    return caption, f"Lines of the {METRICS[metric]} for masked stable, unstable and random latents."
