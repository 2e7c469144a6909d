"""Explanations of latents: how well they tell where a latent fires, on a trained model and on a random one."""

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from saekern.report.drawing import BLUE, GREY, ORANGE, Drawing
from saekern.report.results import Results
from saekern.report.section import Section, Table
from saekern.report.text import interval, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Do interpretation scores tell learnt latents from meaningless ones?"
NAMES = {"detection": "detection", "fuzzing": "fuzzing", "probability": "p of the scored latents"}


def section(found: dict[str, Any], results: Results) -> Section:
    trained, salmon = found["trained"], found["salmon"]
    judge = found["judge"] or "rules on the bytes or tokens before, found by counting"
    notes = [
        f"Explainer and judge: {judge}. Explained on the even sequences, judged on the odd ones. Detection: does the "
        "latent fire anywhere in this window of text; fuzzing: are the marked tokens those on which it fires. "
        "Both are balanced accuracies, 0.5 for a judge that knows nothing.",
        f"Of {trained['scored'] + sum(trained['skipped'].values())} live latents of seed {found['anchor']} drawn at "
        f"random {trained['scored']} could be scored; left out: "
        + ", ".join(f"{count} {reason}" for reason, count in trained["skipped"].items())
        + ". Null: the explanation of another latent. Intervals are over latents of one SAE of each kind, each by "
        "itself.",
    ]
    return Section(
        name="interpretation",
        title=TITLE,
        verdict=_verdict(found),
        tables=(_table(found), *(() if not trained["latents"] else (_examples(trained),))),
        drawings=(Drawing("interpretation", "Scores and stability", 8.4, partial(_draw, trained, salmon)),),
        notes=tuple(notes),
    )


def _verdict(found: dict[str, Any]) -> str:
    mean = found["trained"]["mean"]
    sentences = [
        f"Explanations of latents tell where they fire with a balanced accuracy of "
        f"{number(mean['detection']['mean'], 2)} (another latent's explanation: "
        f"{number(mean['null_detection']['mean'], 2)})."
    ]
    groups = found["stable"]
    if groups:
        low, high = groups["effect"]["lower"], groups["effect"]["upper"]
        word = "higher" if low > 0.5 else "lower" if high < 0.5 else "not measurably different"
        sentences.append(
            f"Detection of stable latents is {word} than that of unstable ones "
            f"({groups['mean'][0]:.2f} and {groups['mean'][1]:.2f})."
            if word != "not measurably different"
            else f"Detection of stable and unstable latents is not measurably different ({groups['mean'][0]:.2f} and "
            f"{groups['mean'][1]:.2f})."
        )
    if "comparison" not in found:
        sentences.append("No variant on a random model was there to compare with.")
        return " ".join(sentences)
    for name, label in NAMES.items():
        line = found["comparison"]["lines"][name]
        low, high = line["lower"], line["upper"]
        if low is None or low <= 0 <= high:
            word = "does not tell the two models apart"
        else:
            word = "is higher on the trained model" if low > 0 else "is higher on the random model"
        sentences.append(f"{label.capitalize()} {word} ({line['first']:.3f} and {line['second']:.3f}).")
    return " ".join(sentences)


def _table(found: dict[str, Any]) -> Table:
    header = ["score", "trained model", "random model", "difference", "P(trained > random)"]
    rows = []
    lines = found.get("comparison", {"lines": {}})["lines"]
    for name, label in (NAMES | {"null_detection": "null detection", "null_fuzzing": "null fuzzing"}).items():
        means = [_mean(arm, name) for arm in (found["trained"], found["salmon"])]
        line = lines.get(name)
        difference, effect = "–", "–"
        if line is not None:
            difference = interval(line["difference"], line["lower"], line["upper"])
            effect = interval(line["effect"]["value"], line["effect"]["lower"], line["effect"]["upper"], digits=2)
        rows.append([label, *means, difference, effect])
    return Table("interpretation", "Scores of explanations, beside stability", header, rows)


def _mean(arm: dict[str, Any] | None, name: str) -> str:
    if arm is None:
        return "–"
    if name == "probability":
        known = [value for value in arm["probability"] if value is not None]
        return number(float(np.mean(known)) if known else None, 3)
    mean = arm["mean"][name]
    return interval(mean["mean"], mean["lower"], mean["upper"])


def _examples(trained: dict[str, Any]) -> Table:
    """The latents whose explanations do best and worst."""
    ordered = sorted(
        zip(trained["latents"], trained["probability"], strict=True), key=lambda pair: -pair[0]["detection"]["value"]
    )
    chosen = ordered if len(ordered) <= 12 else ordered[:6] + ordered[-6:]
    rows = [
        [
            str(latent["latent"]),
            _short(latent["explanation"]),
            f"{latent['detection']['value']:.2f}",
            number(latent["fuzzing"]["value"], 2),
            number(p, 2),
        ]
        for latent, p in chosen
    ]
    header = ["latent", "explanation", "detection", "fuzzing", "p"]
    return Table("interpretation_examples", "Best and worst explanations", header, rows, numeric=False)


def _short(text: str) -> str:
    return text if len(text) <= 120 else text[:119] + "…"


def _draw(trained: dict[str, Any], salmon: dict[str, Any] | None, figure: "Figure") -> tuple[str, str]:
    panels = figure.subplots(1, 3)
    arms = [("trained model", trained, BLUE)] + ([("random model", salmon, ORANGE)] if salmon else [])
    for ax, (name, label) in zip(panels, NAMES.items(), strict=True):
        for arm, scores, colour in arms:
            values = _values(scores, name)
            edges = np.linspace(0, 1, 21)
            heights = np.histogram(values, edges)[0] / max(1, len(values))
            ax.stairs(heights, edges, fill=True, color=colour, alpha=0.25)
            ax.stairs(heights, edges, color=colour, lw=1.6, label=arm)
        if name != "probability":
            ax.axvline(0.5, color=GREY, lw=1, ls=(0, (3, 3)))
        ax.set(xlabel=label, xlim=(0, 1))
    panels[0].set_ylabel("share of latents")
    panels[-1].legend(loc="upper center")
    caption = (
        "Detection and fuzzing scores of explanations, and how often the same latents reappear in other seeds, for an "
        "SAE on the trained model and one on a randomly initialised copy. The dashed line is chance."
    )
    return caption, "Three histograms: detection, fuzzing and reappearance, each for a trained and a random model."


def _values(scores: dict[str, Any], name: str) -> np.ndarray:
    whole = scores["probability"] if name == "probability" else [latent[name]["value"] for latent in scores["latents"]]
    return np.array([value for value in whole if value is not None], dtype=float)
