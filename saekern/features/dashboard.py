"""Everything that a page or a file says about chosen latents."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saekern.activations import ActivationCache
from saekern.features.collect import Activity, collect
from saekern.features.contexts import Context, contexts, window_codes
from saekern.features.logit_lens import LogitLens, Unembedding, logit_lens, why_not
from saekern.features.neighbours import Neighbours, in_other, in_same

QUARTERS = 4


class Band(NamedTuple):
    """Contexts between two activations."""

    quarter: int | None  # 0 the weakest of the activations > 0, 3 the strongest; None: the very strongest of all
    low: float
    high: float
    share: float  # of the firing rows; of the very strongest ones not said: NaN
    contexts: list[Context]


class Token(NamedTuple):
    text: str
    logit: float


class Neighbour(NamedTuple):
    latent: int
    cosine: float


@dataclass(frozen=True)
class Latent:
    """One latent; JSON types, so that nothing is computed after this."""

    latent: int
    active: int
    """Rows in which its code is not zero; 0: dead here."""
    largest: float
    mean: float | None
    """Over the rows in which it is active."""
    histogram: list[int]
    """Positive codes, bin i from i·bin_width to (i+1)·bin_width."""
    bin_width: float
    bands: list[Band]
    """The strongest contexts, then each quarter of the firing rows, strongest first."""
    promoted: list[Token]
    suppressed: list[Token]
    logit_histogram: list[int]
    """Of the whole vocabulary, equal bins from the most suppressed to the most promoted token's logit."""
    norm: float
    encoder_cosine: float | None
    """Between its encoder column and its decoder row; None where the architecture has no dense encoder."""
    similar: list[Neighbour]
    """The nearest decoder rows of the same SAE."""
    partners: list[list[Neighbour]]
    """The nearest and the runner-up in each of the other SAEs."""
    mutual: list[bool]
    """Whether the nearest in that SAE has this latent as its own nearest."""
    largest_neurons: list[tuple[int, float]]
    """The largest entries of the decoder row."""
    absolute_sum: float
    """Σ|entries| of the decoder row."""


@dataclass(frozen=True)
class Dashboard:
    name: str
    architecture: str
    width: int
    count: int
    """Latents of the SAE."""
    rows: int
    sequences: int
    context: int
    model: str | None
    hook: str | None
    counts: list[int]
    """Rows in which each latent of the SAE is active, chosen or not."""
    lens: str | None
    """Why there is no logit lens; None where there is one."""
    others: list[str]
    latents: list[Latent]


def dashboard(
    sae: Any,
    cache: ActivationCache,
    latents: Tensor,
    *,
    name: str = "SAE",
    unembedding: Unembedding | None = None,
    word: Callable[[int], str] | None = None,
    others: Mapping[str, Tensor] | None = None,
    top: int = 8,
    per_quarter: int = 2,
    before: int = 40,
    after: int = 16,
    tokens: int = 10,
    sample: int = 64,
    batch: int = 4096,
    progress: bool = False,
) -> Dashboard:
    """Looks at chosen latents of an SAE on the rows of a cache: two passes over it at most.

    Args:
        sae: any SAE of ours.
        cache: rows of the SAE's width. Without tokens there are no contexts.
        latents: distinct latents, int64 [L].
        name: of the SAE, for the reader.
        unembedding: of the cache's model, for the logit lens.
        word: the text of any token of the vocabulary; a cache knows only those that occur in it.
        others: name -> dictionary [F', D] to look for partners in.
        top: strongest contexts, each from another sequence.
        per_quarter: contexts from each quarter of the rows in which a latent fires.
        before, after: tokens of a context on either side.
        tokens: of the vocabulary at either end.
        sample: firing rows from which the quarters' bounds and contexts are taken; all of them where it fires rarer.
        batch: rows at a time.
        progress: show bars.

    Raises:
        ValueError: latents that are not there, an empty cache, widths that differ, options out of range.
    """
    if len(cache) == 0:
        raise ValueError(f"{cache.path}: this cache has no rows")
    if cache.width != sae.dictionary.shape[1]:
        raise ValueError(f"{cache.path}: rows are {cache.width} wide, the SAE reads {sae.dictionary.shape[1]}")
    for option, value, least in (
        ("top", top, 1),
        ("per_quarter", per_quarter, 0),
        ("before", before, 0),
        ("after", after, 0),
        ("tokens", tokens, 1),
        ("sample", sample, QUARTERS),
    ):
        if value < least:
            raise ValueError(f"{option}: expected at least {least}, got {value}")
    dictionary = sae.dictionary.detach().cpu()
    texts = cache.tokens is not None
    groups = cache.positions // cache.manifest["context"] if texts else None
    seen = collect(sae, cache, latents, top=top, sample=sample, groups=groups, batch=batch, progress=progress)
    bands = _bands(sae, cache, seen, per_quarter, before, after, batch, progress) if texts else [[]] * len(latents)
    reason = "No logit lens: no model was given." if unembedding is None else None
    reason = reason or why_not(cache.manifest.get("hook"), cache.width, unembedding)  # type: ignore[arg-type]
    lens = None if reason else logit_lens(dictionary[latents], unembedding, tokens)  # type: ignore[arg-type]
    same = in_same(dictionary, latents)
    elsewhere = {key: in_other(dictionary, other.detach().cpu(), latents) for key, other in (others or {}).items()}
    return Dashboard(
        name=name,
        architecture=getattr(sae, "architecture", type(sae).__name__),
        width=dictionary.shape[1],
        count=dictionary.shape[0],
        rows=len(cache),
        sequences=cache.manifest.get("sequences", 0),
        context=cache.manifest.get("context", 0),
        model=cache.manifest.get("model"),
        hook=cache.manifest.get("hook"),
        counts=seen.counts.tolist(),
        lens=reason,
        others=list(elsewhere),
        latents=_latents(
            word or cached_word(cache), dictionary, _encoder(sae), seen, bands, lens, same, list(elsewhere.values())
        ),
    )


def _latents(
    word: Callable[[int], str],
    dictionary: Tensor,
    encoder: Tensor | None,
    seen: Activity,
    bands: list[list[Band]],
    lens: LogitLens | None,
    same: Neighbours,
    elsewhere: list[Neighbours],
) -> list[Latent]:
    rows = dictionary[seen.latents].double()  # [L, D]
    norms, sums = rows.norm(dim=1).tolist(), rows.abs().sum(1).tolist()
    large, neurons = rows.topk(min(3, rows.shape[1]), dim=1)
    cosines = None if encoder is None else _cosines(encoder[seen.latents].double(), rows)
    made = []
    for i, latent in enumerate(seen.latents.tolist()):
        active = int(seen.counts[latent])
        made.append(
            Latent(
                latent=latent,
                active=active,
                largest=float(seen.largest[i]),
                mean=float(seen.mean[i]) if active else None,
                histogram=seen.histogram[i].tolist(),
                bin_width=float(seen.width[i]),
                bands=bands[i],
                promoted=_tokens(word, lens.top_tokens[i], lens.top_values[i]) if lens else [],
                suppressed=_tokens(word, lens.bottom_tokens[i], lens.bottom_values[i]) if lens else [],
                logit_histogram=lens.histogram[i].tolist() if lens else [],
                norm=norms[i],
                encoder_cosine=cosines[i] if cosines else None,
                similar=_neighbours(same, i),
                partners=[_neighbours(other, i) for other in elsewhere],
                mutual=[bool(other.mutual[i]) for other in elsewhere],
                largest_neurons=list(zip(neurons[i].tolist(), large[i].tolist(), strict=True)),
                absolute_sum=sums[i],
            )
        )
    return made


def _bands(
    sae: Any, cache: ActivationCache, seen: Activity, each: int, before: int, after: int, batch: int, progress: bool
) -> list[list[Band]]:
    """For each latent the strongest contexts and those of each quarter."""
    top = seen.top_rows.shape[1]
    rows = torch.full((len(seen.latents), top + QUARTERS * each), -1)
    values = torch.zeros(rows.shape)
    rows[:, :top], values[:, :top] = seen.top_rows, seen.top_values
    limits: list[list[tuple[float, float, float]]] = []
    for i in range(len(rows)):
        limits.append([])
        held = seen.sample_rows[i] >= 0
        value, order = seen.sample_values[i][held].sort(stable=True)
        row = seen.sample_rows[i][held][order]
        fresh = ~torch.isin(row, seen.top_rows[i])
        for quarter in range(QUARTERS):
            part = slice(quarter * len(row) // QUARTERS, (quarter + 1) * len(row) // QUARTERS)
            if len(row[part]) == 0:
                limits[i].append((0.0, 0.0, 0.0))
                continue
            limits[i].append((float(value[part][0]), float(value[part][-1]), len(row[part]) / len(row)))
            free = fresh[part].nonzero()[:, 0]
            chosen = free[_spread(len(free), each)].flip(0)  # strongest first
            place = slice(top + quarter * each, top + quarter * each + len(chosen))
            rows[i, place], values[i, place] = row[part][chosen], value[part][chosen]
    codes = window_codes(sae, cache, seen.latents, rows, before, after, batch=batch, progress=progress)
    made = []
    for i in range(len(rows)):
        texts = contexts(cache, rows[i, :top], values[i, :top], codes[i, :top], before)
        bands = [Band(None, texts[-1].value, texts[0].value, float("nan"), texts)] if texts else []
        for quarter in reversed(range(QUARTERS)):
            place = slice(top + quarter * each, top + (quarter + 1) * each)
            texts = contexts(cache, rows[i, place], values[i, place], codes[i, place], before)
            if texts:
                bands.append(Band(quarter, *limits[i][quarter], texts))
        made.append(bands)
    return made


def _spread(count: int, wanted: int) -> Tensor:
    """At most `wanted` of the places 0 … count − 1, at equal distances: the middles of as many equal parts."""
    wanted = min(count, wanted)
    return torch.tensor([(2 * i + 1) * count // (2 * wanted) for i in range(wanted)], dtype=torch.int64)


def _encoder(sae: Any) -> Tensor | None:
    try:
        weight = sae.W_enc
    except AttributeError:  # the architecture's own message: it has no dense encoder
        return None
    return weight.detach().T.cpu()


def _cosines(a: Tensor, b: Tensor) -> list[float | None]:
    """Of rows, None where one has no direction."""
    length = a.norm(dim=1) * b.norm(dim=1)
    return [float(dot / both) if both > 0 else None for dot, both in zip((a * b).sum(1), length, strict=True)]


def _tokens(word: Callable[[int], str], ids: Tensor, logits: Tensor) -> list[Token]:
    return [Token(word(token), logit) for token, logit in zip(ids.tolist(), logits.tolist(), strict=True)]


def cached_word(cache: ActivationCache) -> Callable[[int], str]:
    """Texts of single tokens: a byte that is no character alone as ⟨E2⟩, a token that the cache never saw as ⟨417⟩."""

    def word(token: int) -> str:
        if cache.manifest["text"] == "bytes":
            return chr(token) if token < 0x80 else f"⟨{token:02X}⟩"
        try:
            return cache.text([token])
        except KeyError:
            return f"⟨{token}⟩"

    return word


def _neighbours(found: Neighbours, i: int) -> list[Neighbour]:
    return [
        Neighbour(latent, cosine)
        for latent, cosine in zip(found.index[i].tolist(), found.cosine[i].tolist(), strict=True)
        if latent >= 0
    ]
