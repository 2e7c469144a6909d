"""Rows → the text around them, with the latent's activation at every token."""

import codecs
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from saekern.activations import ActivationCache
from saekern.evaluation.rows import encode
from saekern.evaluation.top_activations import entries, slots_of


class Context(NamedTuple):
    """A stretch of one sequence. A piece is a token, or the bytes that make one character."""

    row: int
    value: float  # the code in that row
    pieces: list[str]
    values: list[float | None]  # the latent's code at each piece, None where the cache has no row
    focus: int  # the piece of the row itself


@torch.no_grad()
def window_codes(
    sae: Any,
    cache: ActivationCache,
    latents: Tensor,
    rows: Tensor,
    before: int,
    after: int,
    *,
    batch: int = 4096,
    progress: bool = False,
) -> Tensor:
    """Codes of L latents around n rows of each: float32 [L, n, before + 1 + after], NaN where the cache has no row.

    Every row is encoded at most once, however many windows it lies in.

    Args:
        latents: distinct, int64 [L].
        rows: int64 [L, n], −1 for none.
    """
    slot_of = slots_of(latents, sae.dictionary.shape[0])
    places, inside = _windows(cache, rows, before, after)
    row_of = torch.full((cache.tokens.numel(),), -1) if cache.tokens is not None else torch.empty(0)
    row_of[cache.positions] = torch.arange(len(cache))
    asked = torch.where(inside, row_of[places], -1)  # [L, n, window]
    codes = torch.where(asked >= 0, 0.0, torch.nan)
    where = (asked >= 0).flatten().nonzero()[:, 0]
    slots = where // (asked.shape[1] * asked.shape[2])
    needed, number = asked.flatten()[where].unique(return_inverse=True)
    key, order = (number * len(latents) + slots).sort(stable=True)
    where, found = where[order], torch.zeros(len(key))
    start = 0
    with tqdm(total=len(needed), unit="row", unit_scale=True, desc="contexts", disable=not progress) as bar:
        for part in needed.split(batch):
            slot, value, row = entries(encode(sae, cache.take(part)), slot_of)
            have, at = ((row + start) * len(latents) + slot).sort()
            bounds = torch.tensor([start, start + len(part)]) * len(latents)
            low, high = torch.searchsorted(key, bounds).tolist()
            if len(have):
                place = torch.searchsorted(have, key[low:high]).clamp(max=len(have) - 1)
                found[low:high] = torch.where(have[place] == key[low:high], value[at][place], 0.0)
            start += len(part)
            bar.update(len(part))
    codes.view(-1)[where] = found
    return codes


def contexts(cache: ActivationCache, rows: Tensor, values: Tensor, codes: Tensor, before: int) -> list[Context]:
    """The texts of one latent's rows [n] (those ≥ 0), with `codes` [n, window] from `window_codes`."""
    after = codes.shape[1] - before - 1
    places, inside = _windows(cache, rows[None], before, after)
    tokens = cache.tokens
    assert tokens is not None
    ids = tokens.flatten()[places[0]]  # [n, window]
    made = []
    for row, value, line, codes_of, kept in zip(
        rows.tolist(), values.tolist(), ids.tolist(), codes.tolist(), inside[0].tolist(), strict=True
    ):
        if row < 0:
            continue
        first, last = kept.index(True), len(kept) - kept[::-1].index(True)
        pieces: list[str] = []
        known: list[float | None] = []
        at, focus = first, 0
        for text, length in split(cache, line[first:last]):
            here = [code for code in codes_of[at : at + length] if code == code]
            if at <= before < at + length:
                focus = len(pieces)
            pieces.append(text)
            known.append(max(here) if here else None)
            at += length
        made.append(Context(row, value, pieces, known, focus))
    return made


def split(cache: ActivationCache, tokens: list[int]) -> list[tuple[str, int]]:
    """Pieces of text that can be read alone, each with the number of its tokens: bytes of one character stay together,
    bytes that are no UTF-8 become U+FFFD."""
    if cache.manifest["text"] != "bytes":
        return [(cache.text([token]), 1) for token in tokens]
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    pieces, waiting = [], 0
    for i, token in enumerate(tokens):
        text = decoder.decode(bytes([token]), final=i == len(tokens) - 1)
        waiting += 1
        if text:
            pieces.append((text, waiting))
            waiting = 0
    return pieces


def _windows(cache: ActivationCache, rows: Tensor, before: int, after: int) -> tuple[Tensor, Tensor]:
    """Places in `tokens.flatten()` around rows [L, n], and which of them are in the row's sequence: [L, n, window]."""
    if cache.tokens is None:
        raise ValueError(f"{cache.path}: this cache holds no tokens")
    length = cache.tokens.shape[1]
    place = cache.positions[rows.clamp(min=0)][..., None]
    moved = place % length + torch.arange(-before, after + 1)
    first = 1 if cache.manifest["exclude_bos"] else 0
    inside = (moved >= first) & (moved < length) & (rows >= 0)[..., None]
    return (place - place % length + moved).clamp(0, cache.tokens.numel() - 1), inside
