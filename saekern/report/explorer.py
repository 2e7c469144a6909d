"""The latent explorer: every latent of the anchor seed with p̂ and frequency, many with partners and contexts.

Arrays travel as base64 of little-endian numbers: at F = 16384 and S = 96 the partners of 2,000 latents are 1.7 million
bytes so, and would be eight million as text.
"""

import base64
import json
import shlex
from typing import Any

import numpy as np

from saekern.report.results import Results

KINDS = ("dead", "stable", "between", "unstable")  # as explorer.js numbers them
NONE = -32768  # a cosine that is not there


def explorer_html(results: Results) -> str:
    """The section's content; it needs view.js, export.js and explorer.js at the page's end."""
    stability, found = results.stability, results.explorer
    assert found is not None
    shown = len(found["chosen"])
    sorts = {"p": "p̂", "firing": "frequency", "cosine": "mean cosine", "i": "number"}
    if results.evaluation is None:
        del sorts["firing"]
    filters = {"all": "all", "stable": "stable", "between": "between", "unstable": "unstable", "dead": "dead"}
    filters["shown"] = "with partners"
    choices = {"sort": sorts, "kind": filters}
    sort, kind = (
        "".join(f'<option value="{key}">{word}</option>' for key, word in choices[name].items()) for name in choices
    )
    # "<" is the only character that could end the script element or open a comment in it.
    data = json.dumps(explorer_data(results), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    data = data.replace("<", "\\u003c")
    return f"""<p>Every latent of the first seed. {shown:,} of them have their partners in the other
{stability["seeds"] - 1} seeds, neighbours and contexts here: those at both ends of p̂, and some at random.</p>
<noscript><p class="note">The explorer draws with JavaScript, which is off.</p></noscript>
<div class="bar" role="search">
<label>Search <input id="search" type="search" placeholder="number, or text" autocomplete="off" spellcheck="false">
</label>
<label>Sort by <select id="sort">{sort}</select></label>
<button id="order" type="button" aria-pressed="true">descending</button>
<label>Show <select id="kind">{kind}</select></label>
<button id="table" type="button" title="Save these latents as latents.csv">CSV</button>
<output id="count"></output>
</div>
<div class="split"><nav class="index" aria-label="Latents"><ol id="list"></ol>
<button id="more" type="button">show more</button></nav>
<div class="latent" id="latent" tabindex="-1"></div></div>
<script type="application/json" id="explorer-data">{data}</script>"""


def explorer_data(results: Results) -> dict[str, Any]:
    """What explorer.js reads."""
    found, arrays = results.explorer, results.arrays
    assert found is not None
    own = len(found["cosine"])  # beyond it there is padding, where another seed has more latents
    anchor = {name: arrays[name][0, :own] for name in arrays if arrays[name].ndim == 2 and not name.startswith("pair")}
    live, stable, unstable = (anchor[name].astype(bool) for name in ("live", "stable", "unstable"))
    kind = np.select([~live, stable, unstable], [0, 1, 3], 2)
    records = found["records"]
    first, seeds = results.run["config"].get("first_seed", 0), results.stability["seeds"]
    counted = [i if results.saes else first + i for i in range(1, seeds)]
    return {
        "seeds": seeds,
        "labels": [str(label) for label in counted],
        "threshold": results.stability["threshold"],
        "command": _command(results),
        "texts": any(record.get("bands") for record in records),
        "p": _packed(anchor["probability"], "<f4"),
        "centred": _packed(anchor["probability_centred"], "<f4"),
        "lower": _packed(anchor.get("lower"), "<f4"),
        "upper": _packed(anchor.get("upper"), "<f4"),
        "firing": _packed(anchor.get("firing") if results.evaluation is not None else None, "<f4"),
        "cosine": _packed(found["cosine"], "<f4"),
        "kind": _packed(kind, "u1"),
        "chosen": _packed(found["chosen"], "<i4"),
        "partner": _packed(found["partner"], "<i4"),
        "partner_cosine": _packed(_ten_thousandths(found["partner_cosine"]), "<i2"),
        "margin": _packed(_ten_thousandths(found["margin"]), "<i2"),
        "mutual": _packed(found["mutual"], "u1"),
        "records": [_kept(record) for record in records],
    }


def _command(results: Results) -> str | None:
    """What shows any other latent; None where there are no rows to see it on."""
    if results.evaluation is None:
        return None
    sae = results.saes[0]["path"] if results.saes else "STUDY/seeds/000"
    cache = results.run["config"].get("activations", {}).get("cache") or "STUDY/activations/heldout"
    return f"saekern features {shlex.quote(sae)} --activations {shlex.quote(cache)} --out latent.html --latents"


def _kept(record: dict[str, Any]) -> dict[str, Any]:
    """Without what this page does not show: it has no other SAE's dictionary and no unembedding."""
    return {name: value for name, value in record.items() if name not in ("up", "down", "other")}


def _ten_thousandths(values: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(values), NONE, np.rint(np.nan_to_num(values) * 10_000))


def _packed(values: np.ndarray | None, kind: str) -> str | None:
    return None if values is None else base64.b64encode(values.astype(kind).tobytes()).decode()
