"""What the page knows of single latents of the first seed, the anchor: the two tables, and the latent explorer.

One seed, because a stable latent is in all of them.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from saekern import evaluation, features
from saekern.features import nearest_rows
from saekern.matching import PairStore
from saekern.pipeline.measure import finite
from saekern.pipeline.sources import Part, Sources
from saekern.pipeline.steps import write_json

ANCHOR = 0
NEIGHBOURS = 5
PER_QUARTER = 1  # contexts from each quarter of the activations, beside the strongest


class _Text(Part):
    """Rows of a cache with the text they came from, as `features.dashboard` reads it."""

    def __init__(self, rows: Part) -> None:
        start, cache = rows.start, rows.rows
        while isinstance(cache, Part):
            start, cache = start + cache.start, cache.rows
        super().__init__(cache, start, start + len(rows))
        self.path, self.manifest = getattr(cache, "path", ""), getattr(cache, "manifest", {})
        self.tokens = getattr(cache, "tokens", None)
        self.text = getattr(cache, "text", None)
        self.snippet = getattr(cache, "snippet", None)

    @property
    def positions(self) -> Tensor:
        return self.rows.positions[self.start : self.stop]


def latents(sources: Sources, work: Path) -> None:
    """`latents.json`: the most and the least stable latents with their strongest contexts. `explorer.json` and
    `explorer.safetensors`: partners in every other seed, contexts and statistics of many more."""
    config, shown = sources.config, sources.config.report
    arrays = load_file(sources.folder / "results" / "stability.safetensors")
    store = PairStore.open(sources.folder / "pairs")
    own = store.sizes[ANCHOR]  # beyond it there is padding, where another seed has more
    p, live = (arrays[name][ANCHOR, :own] for name in ("probability", "live"))
    cosine = torch.stack([store[ANCHOR, j].cosine.double() for j in range(1, config.seeds)]).nanmean(0)
    rows = _Text(sources.evaluated()) if config.has_rows else None
    order = torch.from_numpy(np.lexsort((cosine.nan_to_num().numpy(), p.nan_to_num().numpy())))
    order = order[live[order]]
    table: list[dict[str, Any]] = []
    if rows is not None and rows.tokens is not None and shown.latents > 0:
        enough = arrays["firing"][ANCHOR, :own] * len(rows) >= shown.contexts
        table = _table(sources, rows, order[enough[order]], arrays, cosine)
    write_json(work / "latents.json", finite(table))

    chosen = choose(order, own, shown.explorer, shown.explorer_random)
    found = _partners(sources, store, chosen)
    records = _records(sources, rows, chosen)
    kept = {"cosine": cosine.float(), "chosen": chosen, **found}
    save_file({name: tensor.contiguous() for name, tensor in kept.items()}, work / "explorer.safetensors")
    write_json(work / "explorer.json", finite({"rows": 0 if rows is None else len(rows), "latents": records}))


def choose(order: Tensor, count: int, ends: int, others: int) -> Tensor:
    """The latents at both ends of `order`, and `others` of the rest of all `count` at random: int64, ascending."""
    ends = min(ends, (len(order) + 1) // 2)
    picked = torch.zeros(count, dtype=torch.bool)
    picked[order[:ends]] = True
    picked[order[len(order) - ends :]] = True
    rest = (~picked).nonzero()[:, 0]
    picked[rest[torch.randperm(len(rest), generator=torch.Generator().manual_seed(0))[:others]]] = True
    return picked.nonzero()[:, 0]


def _table(
    sources: Sources, rows: _Text, order: Tensor, arrays: dict[str, Tensor], cosine: Tensor
) -> list[dict[str, Any]]:
    """Order: p, then the mean cosine with the best partners."""
    shown, sae = sources.config.report, sources.sae(ANCHOR)
    count = min(shown.latents, len(order) // 2)
    table = []
    for group, chosen in {"stable": order.flip(0)[:count], "unstable": order[:count]}.items():
        top, values = evaluation.top_activations(sae, rows, chosen, shown.contexts)
        for latent, positions, strengths in zip(chosen.tolist(), top.tolist(), values.tolist(), strict=True):
            entry = {"group": group, "seed": ANCHOR, "latent": latent, "cosine": float(cosine[latent])}
            entry |= {name: float(arrays[name][ANCHOR, latent]) for name in ("probability", "firing")}
            entry["snippets"] = [
                _context(rows, row, value, shown.before, shown.after)
                for row, value in zip(positions, strengths, strict=True)
                if value > 0
            ]
            table.append(entry)
    return table


def _context(rows: _Text, row: int, value: float, before: int, after: int) -> dict[str, Any]:
    text, token, rest = rows.snippet(row + rows.start, before=before, after=after)  # type: ignore[misc]
    return {"before": text, "token": token, "after": rest, "value": value}


def _partners(sources: Sources, store: PairStore, chosen: Tensor) -> dict[str, Tensor]:
    """Of each chosen latent in each other seed [L, S-1]: the nearest live latent, its cosine, how much larger that is
    than the second largest, and whether the partner's own nearest is this latent. −1 and NaN where there is none."""
    anchor = sources.dictionaries[ANCHOR][chosen].detach().cpu()
    columns: dict[str, list[Tensor]] = {"partner": [], "partner_cosine": [], "margin": [], "mutual": []}
    for j in range(1, len(store.sizes)):
        forward, backward = store[ANCHOR, j], store[j, ANCHOR]
        partner = forward.index[chosen]
        there = partner >= 0
        other = sources.dictionaries[j].detach().cpu()[store.live(j)]
        best = nearest_rows(anchor, other, 2)[1]  # the store keeps the best alone
        columns["partner"].append(partner.int())
        columns["partner_cosine"].append(forward.cosine[chosen].float())
        columns["margin"].append(torch.where(there, best[:, 0] - best[:, 1], torch.nan))
        columns["mutual"].append((there & (backward.index[partner.clamp(min=0)] == chosen)).to(torch.uint8))
    return {name: torch.stack(parts, 1) for name, parts in columns.items()}


def _records(sources: Sources, rows: _Text | None, chosen: Tensor) -> list[dict[str, Any]]:
    """Contexts, statistics and neighbours; without rows neighbours alone."""
    if len(chosen) == 0:
        return []
    shown = sources.config.report
    if rows is None:
        near = features.in_same(sources.dictionaries[ANCHOR].detach().cpu(), chosen, NEIGHBOURS)
        pairs = zip(near.index.tolist(), near.cosine.tolist(), strict=True)
        found = [[[i, round(c, 4)] for i, c in zip(*both, strict=True) if i >= 0] for both in pairs]
        return [{"i": i, "near": one} for i, one in zip(chosen.tolist(), found, strict=True)]
    board = features.dashboard(
        sources.sae(ANCHOR),
        rows,  # type: ignore[arg-type]
        chosen,
        top=shown.contexts,
        per_quarter=PER_QUARTER,
        before=shown.before,
        after=shown.after,
    )
    return [features.record(latent) for latent in board.latents]
