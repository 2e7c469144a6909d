"""The page about single latents: a dashboard → one HTML text, searched and sorted in the browser."""

import html
import json
import math
from typing import Any

from saekern.features import Band, Context, Dashboard, Latent
from saekern.report.document import asset, document

PER_DECADE = 5  # bins of the densities


def features_page(dashboard: Dashboard) -> str:
    """The whole document, with style, script and data inside. Texts become text nodes, never markup."""
    title = f"Latents of {dashboard.name}"
    # "<" is the only character that could end the script element or open a comment in it.
    data = json.dumps(_data(dashboard), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    data = data.replace("<", "\\u003c")
    return document(
        title,
        ["style.css", "features.css"],
        'addEventListener("error", () => { document.documentElement.dataset.errors = "yes"; });',
        _body(dashboard, title) + f'\n<script type="application/json" id="data">{data}</script>',
        late=asset("features.js"),
    )


def _body(dashboard: Dashboard, title: str) -> str:
    dead = sum(count == 0 for count in dashboard.counts)
    tiles = [
        (f"{dashboard.count:,}", f"latents, {_text(dashboard.architecture)}, of width {dashboard.width:,}"),
        (f"{len(dashboard.latents):,}", "of them on this page"),
        (f"{dead / dashboard.count:.1%}", f"are dead here: {dead:,} fire in no row"),
        (f"{dashboard.rows:,}", f"rows{_source(dashboard)}"),
    ]
    cells = "".join(f'<div class="tile"><b>{value}</b><span>{label}</span></div>' for value, label in tiles)
    sorts = [("i", "number"), ("n", "density"), ("max", "largest activation"), ("near", "nearest in this SAE")]
    if dashboard.others:
        sorts.append(("other", f"nearest in {dashboard.others[0]}"))
    choices = "".join(f'<option value="{key}">{_text(name)}</option>' for key, name in sorts)
    return f"""<header><h1>{_text(title)}</h1></header>
<div class="head"><div class="tiles">{cells}</div>
<figure id="overview"><figcaption></figcaption></figure></div>
<noscript><p class="note">This page draws its latents with JavaScript, which is off.</p></noscript>
<div class="bar" role="search">
<label>Search <input id="search" type="search" placeholder="number, or text" autocomplete="off" spellcheck="false">
</label>
<label>Sort by <select id="sort">{choices}</select></label>
<button id="order" type="button" aria-pressed="false">descending</button>
<label class="check"><input id="live" type="checkbox"> without dead ones</label>
<output id="count"></output>
</div>
<div class="split"><nav aria-label="Latents"><ol id="list"></ol><button id="more" type="button">show more</button></nav>
<main id="latent" tabindex="-1"></main></div>"""


def _source(dashboard: Dashboard) -> str:
    where = f" of {_text(dashboard.model)}" if dashboard.model else ""
    where += f", <code>{_text(dashboard.hook)}</code>" if dashboard.hook else ""
    return f"{where}, {dashboard.sequences:,} sequences" if dashboard.sequences else where


def _data(dashboard: Dashboard) -> dict[str, Any]:
    return {
        "rows": dashboard.rows,
        "lens": dashboard.lens,
        "texts": dashboard.context > 0,
        "others": dashboard.others,
        "overview": density_bins(dashboard.counts, dashboard.rows),
        "latents": [_latent(latent) for latent in dashboard.latents],
    }


def density_bins(counts: list[int], rows: int) -> dict[str, Any]:
    """Latents by density on a logarithmic scale, dead ones apart.

    Bin i holds 10^((first+i)/5) ≤ count/rows < 10^((first+i+1)/5); density 1 goes into the last bin below it."""
    places = [min(-1, math.floor(PER_DECADE * math.log10(count / rows) + 1e-12)) for count in counts if count]
    first = min(places, default=-1)
    bins = [0] * -first
    for place in places:
        bins[place - first] += 1
    return {"edges": [10 ** ((first + i) / PER_DECADE) for i in range(len(bins) + 1)], "bins": bins}


def _latent(latent: Latent) -> dict[str, Any]:
    used = max((i + 1 for i, count in enumerate(latent.histogram) if count), default=0)
    return {
        "i": latent.latent,
        "n": latent.active,
        "max": _short(latent.largest),
        "mean": _short(latent.mean),
        "h": latent.histogram[:used],
        "w": latent.bin_width,
        "norm": _short(latent.norm),
        "ec": _short(latent.encoder_cosine),
        "up": [[token.text, _short(token.logit)] for token in latent.promoted],
        "down": [[token.text, _short(token.logit)] for token in latent.suppressed],
        "near": [[neighbour.latent, _short(neighbour.cosine)] for neighbour in latent.similar],
        "other": [
            {"mutual": mutual, "list": [[neighbour.latent, _short(neighbour.cosine)] for neighbour in found]}
            for found, mutual in zip(latent.partners, latent.mutual, strict=True)
        ],
        "bands": [_band(band) for band in latent.bands],
    }


def _band(band: Band) -> dict[str, Any]:
    return {
        "q": band.quarter,
        "low": _short(band.low),
        "high": _short(band.high),
        "texts": [_context(context) for context in band.contexts],
    }


def _context(context: Context) -> list[Any]:
    """[focus, code, pieces, {piece: code}]. One string where every piece is one character, but not half of one, as
    halves would join; only codes > 0."""
    single = all(len(piece) == 1 and not "\ud800" <= piece <= "\udfff" for piece in context.pieces)
    known = {str(i): _short(value) for i, value in enumerate(context.values) if value}
    return [context.focus, _short(context.value), "".join(context.pieces) if single else context.pieces, known]


def _short(value: float | None) -> float | None:
    """Four digits: what a reader can use, in a third of the bytes."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.4g}")


def _text(value: Any) -> str:
    return html.escape(str(value))
