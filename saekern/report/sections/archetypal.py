"""Whether latents correspond to what is known to be there."""

from functools import partial
from typing import TYPE_CHECKING, Any

from saekern.report.drawing import BLUE, GREY, ORANGE, Drawing
from saekern.report.results import Results
from saekern.report.section import Section, Table
from saekern.report.text import interval, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Do latents correspond to known objects and classes?"
METRICS = {
    "plausibility": "plausibility",
    "plausibility_excess": "plausibility, excess over chance",
    "identifiability": "soft identifiability",
    "excess": "identifiability, excess over chance",
}
SHOWN = {"plausibility_excess": "plausibility", "excess": "soft identifiability"}


def section(found: dict[str, Any], results: Results) -> Section:
    collages, classes = found["collages"], found["classes"]
    settings = collages["settings"]
    tables, verdict = [_collages(collages["arms"])], _verdict(collages["arms"])
    drawings = [
        Drawing("archetypal_collages", "Collages of four objects", 9.0, partial(_draw_collages, collages["arms"]))
    ]
    notes = [
        "Plausibility: mean over classes of the cosine of the class's direction with its nearest live latent. Soft "
        "identifiability: mean accuracy of the best single latent at its best threshold. Their nulls: randomly rotated "
        "latents; labels dealt to the rows at random. Excess: 0 by chance, 1 when every class is told.",
        f"{settings['sets']} sets of {settings['count']:,} rows that show {settings['parts']} of {settings['objects']} "
        f"objects each, D = {settings['width']}. The paper photographs collages through vision models; rows made "
        f"without one are ours. “truth” is an SAE that knows the objects. Intervals: {collages['interval']}; not "
        "corrected for the number of comparisons.",
    ]
    if classes is not None:
        tables += [_classes(classes["arms"]), _by_class(classes["by_class"])]
        verdict += " " + _verdict_of_classes(classes["arms"])
        drawings.append(
            Drawing("archetypal_classes", "Classes of bytes", 9.0, partial(_draw_classes, classes["by_class"]))
        )
        notes.append(
            f"Classes of the current byte on {classes['rows']:,} held-out rows; a class's direction is the mean of its "
            "rows less the mean of all. Intervals are Student's over seeds, which share rows and classes."
        )
    return Section("archetypal", TITLE, verdict, tuple(tables), tuple(drawings), tuple(notes))


def _verdict(lines: list[dict[str, Any]]) -> str:
    first, sentences = lines[0]["arm"], []
    arms = dict.fromkeys(line["arm"] for line in lines if line["arm"] not in (first, "truth"))
    for metric, name in SHOWN.items():
        words: dict[str, list[str]] = {"larger": [], "smaller": [], "not measurably different": []}
        for line in lines:
            if line["metric"] == metric and line["arm"] in arms:
                words[_beside(line["difference_lower"], line["difference_upper"])].append(f"“{line['arm']}”")
        parts = [f"{word} for {', '.join(names)}" for word, names in words.items() if names]
        sentences.append(f"On collages, {name} over chance is, beside “{first}”, {'; '.join(parts)}.")
    return " ".join(sentences)


def _beside(lower: float | None, upper: float | None) -> str:
    if lower is None or upper is None or lower <= 0 <= upper:
        return "not measurably different"
    return "larger" if lower > 0 else "smaller"


def _verdict_of_classes(lines: list[dict[str, Any]]) -> str:
    sentences = []
    for line in lines:
        for metric, name in SHOWN.items():
            lower, upper = line[metric]["lower"], line[metric]["upper"]
            word = "not shown to differ from chance"
            if lower is not None and lower > 0:
                word = "above chance"
            elif upper is not None and upper < 0:
                word = "below chance"
            shown = interval(line[metric]["mean"], lower, upper)
            sentences.append(f"For classes of bytes the {name} of {line['arm']} is {word}: excess {shown}.")
    return " ".join(sentences)


def _collages(lines: list[dict[str, Any]]) -> Table:
    header = ["arm", "measure", "value", "null", "difference to the first arm", "dead latents"]
    rows = [
        [
            line["arm"],
            METRICS[line["metric"]],
            interval(line["mean"], line["lower"], line["upper"]),
            number(line["null"], 3),
            interval(line.get("difference"), line.get("difference_lower"), line.get("difference_upper")),
            number(line["dead"], 1),
        ]
        for line in lines
    ]
    return Table("archetypal_collages", "Collages of four objects", header, rows)


def _classes(lines: list[dict[str, Any]]) -> Table:
    header = ["SAEs", "seeds", *METRICS.values(), "null plausibility", "null identifiability", "constant answer"]
    rows = [
        [
            line["arm"],
            str(line["seeds"]),
            *(interval(*(line[metric][end] for end in ("mean", "lower", "upper"))) for metric in METRICS),
            number(line["plausibility_null"], 3),
            number(line["identifiability_null"], 3),
            number(line["majority"], 3),
        ]
        for line in lines
    ]
    return Table("archetypal_classes", "Classes of bytes", header, rows)


def _by_class(lines: list[dict[str, Any]]) -> Table:
    header = ["class", "SAEs", "share of rows", "cosine", "accuracy", "accuracy of a constant answer"]
    rows = [
        [
            line["class"],
            line["arm"],
            number(line["share"], 3),
            *(interval(*(line[key][end] for end in ("mean", "lower", "upper"))) for key in ("cosine", "accuracy")),
            number(max(line["share"], 1 - line["share"]), 3),
        ]
        for line in lines
    ]
    return Table("archetypal_by_class", "Every class of bytes", header, rows)


def _draw_collages(lines: list[dict[str, Any]], figure: "Figure") -> tuple[str, str]:
    arms = list(dict.fromkeys(line["arm"] for line in lines))
    axes = figure.subplots(1, len(SHOWN), sharey=True)
    for ax, (metric, name) in zip(axes, SHOWN.items(), strict=True):
        for y, arm in enumerate(arms):
            line = next(line for line in lines if (line["arm"], line["metric"]) == (arm, metric))
            colour = GREY if arm == "truth" else BLUE
            ax.plot(line["mean"], y, "o", color=colour, ms=5)
            if line["lower"] is not None:
                ax.plot([line["lower"], line["upper"]], [y, y], color=colour, lw=2)
        ax.set(xlabel=f"{name}, excess over chance", xlim=(min(0.0, ax.get_xlim()[0]), 1.04))
    axes[0].set_yticks(range(len(arms)), arms)
    axes[0].invert_yaxis()
    return (
        "Means over the sets with their intervals: 0 by chance, 1 for the truth.",
        "Points and intervals, an arm a line.",
    )


def _draw_classes(lines: list[dict[str, Any]], figure: "Figure") -> tuple[str, str]:
    classes, arms = (list(dict.fromkeys(line[key] for line in lines)) for key in ("class", "arm"))
    axes = figure.subplots(1, 2, sharey=True)
    for line in lines:
        y = classes.index(line["class"]) + 0.12 * arms.index(line["arm"])
        colour = BLUE if line["arm"] == arms[0] else ORANGE
        for ax, key in zip(axes, ("cosine", "accuracy"), strict=True):
            ax.plot(line[key]["mean"], y, "o", color=colour, ms=4)
            if line[key]["lower"] is not None:
                ax.plot([line[key]["lower"], line[key]["upper"]], [y, y], color=colour, lw=2)
        axes[1].plot(max(line["share"], 1 - line["share"]), y, "|", color=GREY, ms=8, mew=2)
    axes[0].set(xlabel="cosine with the nearest live latent", xlim=(0, 1))
    axes[1].set(xlabel="accuracy of the best latent", xlim=(None, 1.01))
    axes[0].set_yticks(range(len(classes)), classes)
    axes[0].invert_yaxis()
    shown = " " + f"Blue: {arms[0]}; orange: {', '.join(arms[1:])}." if len(arms) > 1 else ""
    return f"Means over seeds with their intervals; ticks: a constant answer.{shown}", "Points of each class of bytes."
