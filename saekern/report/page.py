"""The page: results and pictures → one HTML text that needs nothing else."""

import html
import json
from importlib.resources import files
from typing import Any

from saekern.report.figures import Picture
from saekern.report.results import Results
from saekern.report.text import snippet, table
from saekern.report.verdict import verdicts

# Marks every figure whose drawing has a size, and counts script errors: what the browser test reads.
SCRIPT = """
addEventListener("error", () => { document.documentElement.dataset.errors = "yes"; });
addEventListener("load", () => {
  for (const svg of document.querySelectorAll("figure svg")) {
    const box = svg.getBBox();
    if (box.width > 0 && box.height > 0) svg.parentElement.dataset.drawn = "yes";
  }
});
"""


def page(results: Results, pictures: list[Picture]) -> str:
    """The whole document, with style, script and pictures inside."""
    title = html.escape(results.run["title"])
    style = files("saekern.report").joinpath("style.css").read_text(encoding="utf-8")
    body = "\n".join(
        [
            f"<header><h1>{title}</h1>{_lead(results)}</header>",
            _tiles(results),
            _section("Is the dictionary good enough?", _verdicts(results)),
            _section("What was run", _run(results)),
            _section("Every seed", _seeds(results)),
            _section("Stability", _stability(results) + _figures(pictures)),
            _section("Latents", _latents(results)),
            _section("Settings", _settings(results)),
        ]
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'  # else a browser asks the server for favicon.ico
        f"<title>{title}</title>\n<style>\n{style}</style>\n<script>{SCRIPT}</script>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>\n{content}\n</section>"


def _lead(results: Results) -> str:
    stability = results.stability
    raw, others = stability["raw"]["live"], stability["seeds"] - 1
    return (
        f'<p class="lead">Of the latents that fire, <b>{raw["stable"]:.1%}</b> reappear in at least '
        f"{1 - stability['epsilon']:.0%} of the other {others} independently trained seeds, and <b>{raw['unstable']:.1%}</b> "
        f"in at most {stability['epsilon']:.0%} of them.</p>"
    )


def _tiles(results: Results) -> str:
    stability = results.stability
    raw, null = stability["raw"], stability["null"]["raw"]
    tiles = [
        (f"{raw['live']['mean']:.3f}", "mean reappearance probability, live latents"),
        (f"{null['mean']:.3f}", "the same for random dictionaries"),
    ]
    if raw.get("distance_initial") is not None:
        tiles.append(
            (f"{raw['distance_initial']:.2f} → {raw['distance_final']:.2f}", "D(0) → D(end), distance between runs")
        )
    if stability.get("iou"):
        iou = stability["iou"]
        tiles.append((f"{iou['mean']:.3f}", f"IoU of nearest and one-to-one matches, ± {iou['sd']:.3f}"))
    cells = "".join(f'<div class="tile"><b>{value}</b><span>{label}</span></div>' for value, label in tiles)
    return f'<div class="tiles">{cells}</div>'


def _verdicts(results: Results) -> str:
    kinds = {True: "met", False: "missed", None: "unmeasured"}
    lines = verdicts(results.evaluation)
    items = "".join(
        f'<li class="{kinds[line.passed]}"><strong>{line.name}: {kinds[line.passed]}.</strong>{html.escape(line.sentence)}</li>'
        for line in lines
    )
    missed = [line.name.lower() for line in lines if line.passed is False]
    close = (
        f"<p>Missed: {', '.join(missed)}. Stability figures of a dictionary below the floor describe a poor fit first.</p>"
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
    header = ["seed", "init seed", "data seed", "EV", "L0", "dead", "CE", "CE recovered"]
    rows = [
        [
            str(seed["seed"]),
            str(seed["init_seed"]),
            str(seed["data_seed"]),
            f"{seed['ev']:.4f}",
            f"{seed['l0']:.2f}",
            f"{seed['dead']:.1%}",
            _number(seed.get("ce_sae"), 4),
            _number(seed.get("recovered"), 4),
        ]
        for seed in evaluation["seeds"]
    ]
    text = (
        f"<p>EV is 1 − residual variance / variance on {evaluation['rows']:,} rows that training did not see. "
        f"PCA with {evaluation['k']} components reaches {evaluation['pca_ev']:.4f}. "
    )
    if evaluation.get("ce_clean") is not None:
        text += (
            f"Cross-entropy is in nats a token on {evaluation['ce_tokens']:,} tokens: {evaluation['ce_clean']:.4f} untouched, "
            f"{evaluation['ce_zero']:.4f} with the activation set to zero; recovered is the share of that difference kept."
        )
    return text + "</p>" + table(header, rows)


def _stability(results: Results) -> str:
    stability = results.stability
    rows = []
    for kind, name in (("raw", "raw cosine"), ("centred", "after subtracting the data mean")):
        for which, label in (("live", "live latents"), ("all", "all latents")):
            share = stability[kind][which]
            rows.append([f"{name}, {label}", *_shares(share), str(share["count"])])
        null = stability["null"].get(kind)
        if null:
            rows.append([f"{name}, random dictionaries", *_shares(null), str(null["count"])])
    header = ["", "stable", "between", "unstable", "mean p", "95 % interval", "latents"]
    notes = [f"<p class='note'>{note}</p>" for note in notes_on(stability)]
    return table(header, rows) + "".join(notes)


def notes_on(stability: dict[str, Any]) -> list[str]:
    """What a reader must know before quoting the shares."""
    others, epsilon = stability["seeds"] - 1, stability["epsilon"]
    notes = []
    if stability["vacuous"]:
        notes.append(
            f"With {others} comparisons ε = {epsilon:g} decides nothing by itself: “stable” means found in "
            f"<em>every</em> other seed and “unstable” in <em>none</em>. From {round(1 / epsilon)} comparisons on it allows exceptions."
        )
    varied = "initialisation alone" if stability["varied"] == "init" else "initialisation and the order of the data"
    notes.append(f"Between seeds the {varied} varied. The interval of mean p is over seeds as anchors.")
    iou = stability.get("iou")
    if iou:
        notes.append(
            f"Nearest neighbours may share a partner; one-to-one assignment may not. On {iou['pairs_compared']} pairs the sets of "
            f"matched latents agree to an IoU of {iou['mean']:.3f} ± {iou['sd']:.3f}, the sets of matched pairs to "
            f"{iou['pairs_mean']:.3f} ± {iou['pairs_sd']:.3f}."
        )
    return notes


def _shares(share: dict[str, Any]) -> list[str]:
    interval = share.get("interval")
    return [
        f"{share['stable']:.1%}",
        f"{1 - share['stable'] - share['unstable']:.1%}",
        f"{share['unstable']:.1%}",
        f"{share['mean']:.4f}",
        f"{interval[0]:.4f} – {interval[1]:.4f}" if interval else "",
    ]


def _figures(pictures: list[Picture]) -> str:
    items = "".join(
        f'<figure id="{p.name}"><h3>{p.title}</h3>'
        + p.svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(p.alt, quote=True)}"', 1)
        + f"<figcaption>{html.escape(p.caption)}</figcaption></figure>"
        for p in pictures
    )
    return f'<div class="figures">{items}</div>'


def _latents(results: Results) -> str:
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
        "<p>Each line is one of the contexts in which the latent is most active, with the token it is active on marked. "
        f"p counts the {others} other seeds; mean cosine is with the best partner in each.</p>"
    )
    return text + "<br>".join(parts)


def _settings(results: Results) -> str:
    config = html.escape(json.dumps(results.run["config"], indent=2, ensure_ascii=False))
    return f"<details><summary>The whole configuration</summary><pre>{config}</pre></details>"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _text(value: Any) -> str:
    return html.escape(f"{value:,}" if isinstance(value, int) else str(value))
