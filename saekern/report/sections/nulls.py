"""The study's seeds beside SAEs and dictionaries that should find nothing."""

from functools import partial
from typing import TYPE_CHECKING, Any

from saekern.report.drawing import BLUE, GREY, ORANGE, Drawing
from saekern.report.results import Results
from saekern.report.section import Section, Table
from saekern.report.sections.variants import direction, estimate
from saekern.report.text import number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Do SAEs on nothing agree as much?"
KINDS = {
    "random_model": "a randomly initialised copy of the model, the dead salmon",
    "shuffled_marginals": "rows shuffled dimension by dimension",
    "shuffled_covariance": "rows shuffled along principal components",
}


def section(found: dict[str, Any], results: Results) -> Section:
    nulls = [arm for arm in found["variants"] if arm["rows_from"] != "model"]
    notes = [
        "Trained nulls: the same kind of SAE, trained and matched within itself in the same way, on rows in which the "
        "model's structure is broken. A random model still tells tokens apart, and one random model, one shuffle, was "
        "drawn: the intervals are over seeds alone. Live latents only; EV is on held-out rows of each arm's own kind.",
        f"Intervals are {found['confidence']:.0%}: a jackknife over runs, differences by Welch's formula, each by "
        f"itself ({len(nulls)} comparisons, not corrected for their number). The ranges of random and rotated "
        "dictionaries are over their draws. The shares of stable latents depend on the number of seeds.",
    ]
    if any(arm["d_sae"] != found["main"]["d_sae"] or arm["k"] != found["main"]["k"] for arm in nulls):
        notes.append("Some nulls differ from the study's SAE in size or K too, so that not all is due to the rows.")
    return Section(
        name="nulls",
        title=TITLE,
        verdict=_verdict(found, nulls),
        tables=(_table(found, nulls),),
        drawings=(Drawing("nulls", "Stability of the seeds and of the nulls", 6.2, partial(_draw, found, nulls)),),
        notes=tuple(notes),
    )


def _verdict(found: dict[str, Any], nulls: list[dict[str, Any]]) -> str:
    main = _p(found["main"])
    chance = found["main"]["null"]["match_rate"]["mean"]
    sentences = [
        f"Live latents of the study reappear in another seed with mean p = {number(main['mean'], 3)}; random "
        f"dictionaries of this size do with {number(chance, 3)}."
    ]
    for arm in nulls:
        words = {
            "more": "they agree more than SAEs on the model, so that stability alone does not show that a latent is "
            "about what the model has learnt",
            "less": "they agree less than SAEs on the model",
            "same": "that is not measurably different from SAEs on the model",
            "unknown": "with so few seeds it cannot be said whether that differs from SAEs on the model",
        }
        gap = arm["difference"]["mean_probability"]
        kind = direction(gap)
        known = "" if kind == "unknown" else f" (difference {gap['low']:+.3f} to {gap['high']:+.3f})"
        sentences.append(
            f"SAEs on {KINDS[arm['rows_from']]} ({arm['variant']}) have {number(_p(arm)['mean'], 3)}: "
            f"{words[kind]}{known}."
        )
    return " ".join(sentences)


def _table(found: dict[str, Any], nulls: list[dict[str, Any]]) -> Table:
    header = ["arm", "seeds", "mean p", "centred", "difference from the study's", "stable", "unstable", "EV", "dead"]
    rows = []
    for arm in (found["main"], *nulls):
        raw, centred = arm["estimates"]["raw"], arm["estimates"]["centred"]["mean_probability"]
        gap = "–" if arm is found["main"] else estimate(arm["difference"]["mean_probability"], 3)
        rows.append(
            [
                arm["variant"],
                str(arm["seeds"]),
                estimate(raw["mean_probability"], 3),
                estimate(centred, 3),
                gap,
                estimate(raw["stable"], 3),
                estimate(raw["unstable"], 3),
                estimate(arm["ev"], 4),
                f"{arm['dead']['mean']:.1%}",
            ]
        )
    for name, null in _controls(found):
        rate = null["match_rate"]
        spread = f"{number(rate['mean'], 4)} ({number(rate['min'], 4)} to {number(rate['max'], 4)})"
        rows.append([name, "–", spread, "–", "–", number(null["stable"]["mean"], 3), "–", "–", "–"])
    return Table("nulls", "The study's seeds and the nulls", header, rows)


def _controls(found: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    main = found["main"]
    return [("random dictionaries", main["null"]), ("the study's, each rotated by itself", main["rotated"])]


def _draw(found: dict[str, Any], nulls: list[dict[str, Any]], figure: "Figure") -> tuple[str, str]:
    ax = figure.add_subplot()
    bars = [(arm["variant"], _p(arm), BLUE if arm is found["main"] else ORANGE) for arm in (found["main"], *nulls)]
    bars += [(name, null["match_rate"] | {"low": None}, GREY) for name, null in _controls(found)]
    for row, (_, value, colour) in enumerate(bars):
        if value["mean"] is None:
            continue
        ax.plot(value["mean"], row, "o", ms=7, color=colour)
        if value["low"] is not None:
            ax.plot([value["low"], value["high"]], [row, row], color=colour, lw=2)
    ax.set(yticks=range(len(bars)), yticklabels=[name for name, _, _ in bars], ylim=(len(bars) - 0.5, -0.5))
    ax.set(xlim=(-0.02, 1.02), xlabel="mean reappearance probability p of live latents")
    caption = (
        f"Each arm matched within itself, {found['confidence']:.0%} intervals over seeds. Blue: SAEs on the model. "
        "Orange: SAEs on rows without its structure. Grey: dictionaries that were not trained on anything."
    )
    return caption, "Points of the mean reappearance probability of the study's seeds and of each null."


def _p(arm: dict[str, Any]) -> dict[str, Any]:
    return arm["estimates"]["raw"]["mean_probability"]
