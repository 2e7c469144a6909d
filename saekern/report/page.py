"""The page: results and pictures → one HTML text that needs nothing else."""

import html
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from saekern.report.document import asset, document
from saekern.report.drawing import Picture
from saekern.report.explorer import explorer_html
from saekern.report.figures import VARIANTS
from saekern.report.given import NO_ROWS, UNKNOWN, given_saes, strict_sentence
from saekern.report.methods import methods_html
from saekern.report.pareto import comparable, comparison
from saekern.report.results import Results
from saekern.report.section import Section, figures_html, section_html
from saekern.report.text import number, snippet, table
from saekern.report.verdict import verdicts

FEW_SEEDS = 16  # more than that and their table is folded
SCRIPT = 'addEventListener("error", () => { document.documentElement.dataset.errors = "yes"; });'


def page(results: Results, pictures: list[Picture], sections: Sequence[tuple[Section, list[Picture]]] = ()) -> str:
    """The whole document, with style, script and pictures inside; `sections` are those of the experiments."""
    title = html.escape(results.run["title"])
    of_seeds = [picture for picture in pictures if picture.name not in VARIANTS]
    seeds = "Every SAE" if results.saes else "Every seed"
    parts = [
        *_found([section for section, _ in sections]),
        Part("part-quality", "Is the dictionary good enough?", _verdicts(results)),
        Part("part-run", "What was run", _run(results)),
        Part("part-seeds", seeds, _seeds(results)),
        Part("part-stability", "Stability", _stability(results) + figures_html(of_seeds)),
        *(Part(section.name, section.title, section_html(section, drawn)) for section, drawn in sections),
        Part("part-latents", "Most and least stable latents", _latents(results)),
        *([Part("explorer", "All latents", explorer_html(results))] if results.explorer else []),
        *_variants(results, [picture for picture in pictures if picture.name in VARIANTS]),
        Part("part-methods", "Methods", methods_html(results)),
        Part("part-settings", "Settings", _settings(results)),
    ]
    body = "\n".join(
        [
            f"<header><h1>{title}</h1>{_lead(results)}</header>",
            _tiles(results),
            f'<div class="page">{_contents(parts)}<main>',
            *(part.html() for part in parts),
            "</main></div>",
        ]
    )
    scripts = ["export.js", "report.js", *(["view.js", "explorer.js"] if results.explorer else [])]
    late = "\n".join(asset(name) for name in scripts)
    return document(results.run["title"], ["style.css", "view.css", "page.css"], SCRIPT, body, late=late)


class Part(NamedTuple):
    """A part of the page that the contents name."""

    name: str
    title: str
    content: str

    def html(self) -> str:
        heading = f"<h2>{html.escape(self.title)}</h2>"
        return f'<section id="{self.name}">{heading}\n{self.content}\n</section>'


def _contents(parts: list[Part]) -> str:
    items = "".join(f'<li><a href="#{part.name}">{html.escape(part.title)}</a></li>' for part in parts)
    button = '<button type="button" aria-expanded="false">☰ Contents <span></span></button>'
    return f'<nav class="contents-of-page" aria-label="Contents">{button}<ol>{items}</ol></nav>'


def _found(sections: list[Section]) -> list[Part]:
    """What every experiment found, in words."""
    if not sections:
        return []
    items = "".join(
        f'<li><a href="#{s.name}">{html.escape(s.title)}</a> {html.escape(s.verdict)}</li>' for s in sections
    )
    return [Part("part-found", "What was found", f'<ul class="found">{items}</ul>')]


def _lead(results: Results) -> str:
    stability = results.stability
    live, others = stability["raw"]["live"], stability["seeds"] - 1
    if stability["vacuous"]:
        found, lost = f"all of the other {others}", "none"
    else:
        found = f"at least {1 - stability['epsilon']:.0%} of the other {others}"
        lost = f"at most {stability['epsilon']:.0%}"
    whose = "that fire" if results.evaluation else "with a direction (which of them ever fire is not known)"
    trained = "SAEs" if results.saes else "independently trained seeds"
    return (
        f'<p class="lead">Of the latents {whose}, <b>{_percent(live["stable"])}</b> reappear in {found} '
        f"{trained}, and <b>{_percent(live['unstable'])}</b> in {lost} of them.</p>"
    )


def _tiles(results: Results) -> str:
    stability = results.stability
    live, null = stability["raw"]["live"], stability["null"]["random"]
    tiles = [
        (number(live["mean_probability"], 3), "mean reappearance probability p of live latents"),
        (number(null["match_rate"]["mean"], 3), "the same for random dictionaries"),
    ]
    if "raw" in stability["distance"]:
        distance = stability["distance"]["raw"]
        moved = f"{number(distance['initial']['mean'], 2)} → {number(distance['final']['mean'], 2)}"
        tiles.append((moved, "D(0) → D(end): distance between runs, matched one to one"))
    if stability["iou"]:
        iou = stability["iou"]["features"]
        label = f"IoU of what nearest and one-to-one matching find, ± {number(iou['sd'], 3)}"
        tiles.append((number(iou["mean"], 3), label))
    cells = "".join(f'<div class="tile"><b>{value}</b><span>{label}</span></div>' for value, label in tiles)
    return f'<div class="tiles">{cells}</div>'


def _verdicts(results: Results) -> str:
    kinds = {True: "met", False: "missed", None: "unmeasured"}
    words = {True: "met", False: "missed", None: "not measured"}
    if results.evaluation is None:
        return f"<p>Not known. {NO_ROWS}</p>"
    lines = verdicts(results.evaluation)
    items = "".join(
        f'<li class="{kinds[line.passed]}"><strong>{line.name}: {words[line.passed]}.</strong>'
        f"{html.escape(line.sentence)}</li>"
        for line in lines
    )
    missed = [line.name.lower() for line in lines if line.passed is False]
    close = (
        f"<p>Missed: {', '.join(missed)}. Below the floor, stability figures describe a poor fit first.</p>"
        if missed
        else ""
    )
    return f'<ul class="verdicts">{items}</ul>{close}'


def _run(results: Results) -> str:
    run = results.run
    items = [(name, value) for name, value in run["facts"].items()]
    items.append(("Versions", ", ".join(f"{name} {version}" for name, version in run["versions"].items())))
    if run.get("seconds"):
        spent = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in run["seconds"].items())
        items.append(("Time", spent))
    items.append(("Date", run["date"]))
    return "<dl>" + "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in items) + "</dl>"


def _seeds(results: Results) -> str:
    evaluation = results.evaluation
    given = given_saes(results.saes) + f'<p class="note">{UNKNOWN}</p>' if results.saes else ""
    if evaluation is None:
        return given
    header = ["seed", "init seed", "data seed", "EV", "L0", "dead", "CE", "CE recovered"]
    rows = [
        [
            str(seed["seed"]),
            str(seed.get("init_seed", "–")),
            str(seed.get("data_seed", "–")),
            f"{seed['ev']:.4f}",
            f"{seed['l0']:.2f}",
            f"{seed['dead']:.1%}",
            number(seed.get("ce_sae"), 4),
            number(seed.get("recovered"), 4),
        ]
        for seed in evaluation["seeds"]
    ]
    text = (
        f"<p>EV is 1 − residual variance / variance on {evaluation['rows']:,} rows"
        f"{'' if results.saes else ' that training did not see'}. "
        f"PCA with {evaluation['k']} components reaches {evaluation['pca_ev']:.4f}. "
    )
    if evaluation.get("ce_clean") is not None:
        text += (
            f"Cross-entropy is in nats a token on {evaluation['ce_tokens']:,} tokens: {evaluation['ce_clean']:.4f} "
            f"untouched, {evaluation['ce_zero']:.4f} with the activation set to zero; recovered is the share of that "
            "difference which the reconstruction keeps."
        )
    return given + text + "</p>" + _folded(table(header, rows), evaluation["seeds"])


def _folded(shown: str, seeds: list[dict[str, Any]]) -> str:
    """A long table of seeds behind a line with its range: 96 rows are four screens to scroll past."""
    if len(seeds) <= FEW_SEEDS:
        return shown
    ranges = (
        f"EV {min(seed['ev'] for seed in seeds):.4f} to {max(seed['ev'] for seed in seeds):.4f}, dead "
        f"{min(seed['dead'] for seed in seeds):.1%} to {max(seed['dead'] for seed in seeds):.1%}"
    )
    return f"<details><summary>All {len(seeds)} seeds: {ranges}</summary>{shown}</details>"


def _stability(results: Results) -> str:
    stability = results.stability
    rows = []
    for kind, name in (("raw", "raw cosine"), ("centred", "centred cosine")):
        for which, label in (("live", "live latents"), ("all", "all latents, dead ones as never found")):
            rows.append([f"{name}, {label}", *_shares(stability[kind][which])])
    limits = stability.get("intervals")
    if limits and limits["stable"]["low"] is not None:
        stable, unstable = (_between(limits[name], 100, 1) + " %" for name in ("stable", "unstable"))
        mean = _between(limits["mean_probability"], 1, 4)
        rows.insert(1, [f"its {limits['confidence']:.0%} interval, over seeds", stable, "", unstable, mean, ""])
    for kind, name in (("random", "random dictionaries"), ("rotated", "the same dictionaries, each rotated by itself")):
        null = stability["null"][kind]
        rows.append([f"null: {name}", _percent(null["stable"]["mean"]), "", "", _p(null["match_rate"]["mean"]), ""])
    header = ["mean over seeds as anchors, ± their spread", "stable", "between", "unstable", "mean p", "latents"]
    notes = [f'<p class="note">{note}</p>' for note in notes_on(stability)]
    return table(header, rows) + "".join(notes)


def notes_on(stability: dict[str, Any]) -> list[str]:
    """What a reader must know before quoting the shares."""
    others, epsilon = stability["seeds"] - 1, stability["epsilon"]
    notes = []
    if stability["vacuous"]:
        enough = f" From {round(1 / epsilon)} comparisons on it allows exceptions." if epsilon else ""
        notes.append(
            f"<b>{others} comparisons are few.</b> ε = {epsilon:g} then decides nothing by itself: “stable” means "
            f"found in <em>every</em> other seed and “unstable” in <em>none</em>.{enough}"
        )
    if any(distance["shared_init"] for distance in stability["distance"].values()):
        notes.append(
            "<b>Seeds share their initialisation.</b> They agreed before training, so no latent is called stable."
        )
    varied = {
        "init": "Between seeds the initialisation alone varied. ",
        "init+data": "Between seeds the initialisation and the order of rows varied. ",
    }.get(stability["varied"], "")
    notes.append(
        f"{varied}Centred: the mean of all live decoder rows, of norm "
        f"{number(stability['mean_atom_norm'], 3)}, is subtracted first, so that an offset which all latents share "
        "does not pass for agreement."
    )
    iou = stability["iou"]
    if iou:
        notes.append(
            "Nearest neighbours may share a partner; a one-to-one assignment may not. On "
            f"{iou['pairs_compared']} pairs of seeds the two find the same latents to an IoU of "
            f"{_spread(iou['features'])} and the same pairs of latents to {_spread(iou['pairs'])}. The mean cosine of "
            f"assigned latents (PW-MCC) is {number(iou['pw_mcc'], 3)}."
        )
    if stability.get("strict"):
        sentence = strict_sentence(stability["strict"])
        notes.append(f"{sentence[0].upper()}{sentence[1:]} (Paulo and Belrose 2025).")
    return notes


def _shares(share: dict[str, Any]) -> list[str]:
    parts = [_percent(share[name], share[f"{name}_sd"]) for name in ("stable", "undecided", "unstable")]
    return [*parts, _p(share["mean_probability"], share["mean_probability_sd"]), f"{share['latents']:,}"]


def _percent(value: float | None, spread: float | None = None) -> str:
    return number(None if value is None else 100 * value, 1) + (f" ± {100 * spread:.1f}" if spread else "") + " %"


def _p(value: float | None, spread: float | None = None) -> str:
    return number(value, 4) + (f" ± {spread:.4f}" if spread else "")


def _between(estimate: dict[str, float], scale: float, digits: int) -> str:
    return " to ".join(f"{scale * min(1.0, max(0.0, estimate[end])):.{digits}f}" for end in ("low", "high"))


def _spread(values: dict[str, float | None]) -> str:
    return number(values["mean"], 3) + ("" if values["sd"] is None else f" ± {values['sd']:.3f}")


def _latents(results: Results) -> str:
    if results.evaluation is None:
        return "<p>There are no rows, so there are no contexts to show.</p>"
    if not results.latents:
        return "<p>The rows came without text, so there are no contexts to show.</p>"
    others = results.stability["seeds"] - 1
    parts = []
    for group, title in (("stable", "Most stable"), ("unstable", "Least stable")):
        chosen = [latent for latent in results.latents if latent["group"] == group]
        rows = [
            [
                f"{latent['seed']} · {latent['latent']}",
                f"{latent['probability']:.2f}",
                f"{latent['cosine']:.3f}",
                f"{latent['firing']:.2%}",
                "".join(snippet(s["before"], s["token"], s["after"]) for s in latent["snippets"]) or "never fires",
            ]
            for latent in chosen
        ]
        body = table(["seed · latent", "p", "mean cosine", "fires", "strongest contexts"], rows, numeric=False)
        parts.append(f"<h3>{title}</h3>{body.replace('<table>', '<table class=latents>')}")
    text = (
        "<p>Each line is one of the contexts in which the latent is most active, the token it is active on "
        f"marked. p counts the {others} other seeds; mean cosine is with the best partner in each.</p>"
    )
    return text + "<br>".join(parts)


def _variants(results: Results, pictures: list[Picture]) -> list[Part]:
    if not comparable(results) or results.evaluation is None:
        return []
    rows = results.evaluation["rows"]
    text = f"<p>Other SAEs, trained on the same rows in the same order and evaluated on the same {rows:,} rows.</p>"
    return [Part("part-variants", "Other architectures", text + figures_html(pictures) + comparison(results))]


def _settings(results: Results) -> str:
    config = html.escape(json.dumps(results.run["config"], indent=2, ensure_ascii=False))
    return f"<details><summary>The whole configuration</summary><pre>{config}</pre></details>"


def _text(value: Any) -> str:
    return html.escape(f"{value:,}" if isinstance(value, int) else str(value))
