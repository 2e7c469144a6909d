"""The page about single latents: a dashboard → one HTML text, searched and sorted in the browser."""

import html
import json
import math
from typing import Any

from saekern.features import Dashboard, record
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
        ["style.css", "view.css", "features.css"],
        'addEventListener("error", () => { document.documentElement.dataset.errors = "yes"; });',
        _body(dashboard, title) + f'\n<script type="application/json" id="data">{data}</script>',
        late=asset("view.js") + asset("features.js"),
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
<div class="split"><nav class="index" aria-label="Latents"><ol id="list"></ol>
<button id="more" type="button">show more</button></nav>
<main class="latent" id="latent" tabindex="-1"></main></div>"""


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
        "latents": [record(latent) for latent in dashboard.latents],
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


def _text(value: Any) -> str:
    return html.escape(str(value))
