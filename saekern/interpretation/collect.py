"""One pass over the rows: for each latent some stretches of text in which it fires, and some in which it does not."""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from saekern.activations import ActivationCache, ChosenRows
from saekern.evaluation.rows import batches, encode
from saekern.evaluation.top_activations import entries, slots_of
from saekern.interpretation.examples import Example, Examples

MERGE = 1_000_000  # firings that wait before windows too many are dropped: 32 MB


class _Layout:
    """Windows of `size` tokens one after the other; what is left at the end of a sequence is in none."""

    def __init__(self, cache: ActivationCache, rows: int, size: int) -> None:
        if cache.tokens is None:
            raise ValueError(f"{cache.path}: this cache holds no tokens")
        self.cache, self.tokens = cache, cache.tokens
        sequences, self.length = cache.tokens.shape
        self.first = 1 if cache.manifest["exclude_bos"] else 0
        self.size = min(size, self.length - self.first)
        self.each = (self.length - self.first) // self.size  # windows of a sequence
        self.count = sequences * self.each
        self.positions = cache.positions[:rows]
        place = self.positions % self.length - self.first
        inside = (place >= 0) & (place < self.each * self.size)
        window = self.positions // self.length * self.each + place.div(self.size, rounding_mode="floor")
        self.window = torch.where(inside, window, -1)  # [rows]
        self.offset = place - place.div(self.size, rounding_mode="floor") * self.size  # [rows] within the window
        self.known = torch.zeros(cache.tokens.numel(), dtype=torch.bool)  # tokens that have a row
        self.known[self.positions] = True
        self._pieces: dict[int, str] = {}

    def example(self, window: int, lead: int, codes: dict[int, float]) -> Example:
        """The window with up to `lead` tokens before it; `codes` by offset, others are 0 where there is a row."""
        sequence, number = divmod(window, self.each)
        begin = self.first + number * self.size
        low = max(self.first, begin - lead)
        mask = self.cache.attention_mask
        pieces: list[str] = []
        values: list[float | None] = []
        start = 0
        for at in range(low, begin + self.size):
            if mask is not None and not mask[sequence, at]:
                continue  # padding
            pieces.append(self._piece(int(self.tokens[sequence, at])))
            if at < begin:
                values.append(None)
                start = len(pieces)
            else:
                values.append(codes.get(at - begin, 0.0) if self.known[sequence * self.length + at] else None)
        return Example(pieces, start, values)

    def _piece(self, token: int) -> str:
        """A token's text. A byte that is not ASCII is written as such, so that there is one piece a token."""
        if token not in self._pieces:
            raw = self.cache.manifest["text"] == "bytes" and token >= 128
            self._pieces[token] = f"\\x{token:02x}" if raw else self.cache.text([token])
        return self._pieces[token]


class _Firings:
    """The firings in those windows of each latent that come first in a random order, at most `caps` in each half.

    A window that is dropped would be dropped later too, so that neither batches nor merging change what is kept.
    """

    def __init__(self, half: Tensor, order: Tensor, caps: tuple[int, int]) -> None:
        self.half, self.order, self.caps = half, order, torch.tensor(caps)
        self.slots = self.windows = self.offsets = torch.empty(0, dtype=torch.int64)
        self.values = torch.empty(0)
        self._waiting: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def add(self, slots: Tensor, windows: Tensor, offsets: Tensor, values: Tensor) -> None:
        self._waiting.append((slots, windows, offsets, values))
        if sum(len(part[0]) for part in self._waiting) > max(MERGE, len(self.slots)):
            self.merge()

    def merge(self) -> None:
        parts = [(self.slots, self.windows, self.offsets, self.values), *self._waiting]
        slots, windows, offsets, values = (torch.cat(columns) for columns in zip(*parts, strict=True))
        pair, member = (slots * len(self.order) + windows).unique(return_inverse=True)
        slot, window = pair // len(self.order), pair % len(self.order)
        group = slot * 2 + self.half[window]
        first = self.order[window].argsort()
        first = first[group[first].argsort(stable=True)]
        sorted_group = group[first]
        rank = torch.empty_like(first)
        rank[first] = torch.arange(len(first)) - torch.searchsorted(sorted_group, sorted_group)
        kept = (rank < self.caps[self.half[window]])[member]
        self.slots, self.windows, self.offsets, self.values = (v[kept] for v in (slots, windows, offsets, values))
        self._waiting = []


class Contexts:
    """What `collect` found of L latents; examples are made when they are asked for."""

    def __init__(
        self,
        layout: _Layout,
        kept: _Firings,
        fired: Tensor,
        drawn: Tensor,
        firings: Tensor,
        lead: int,
        negatives: tuple[int, int],
    ) -> None:
        kept.merge()
        self._layout, self._kept, self._fired, self._drawn = layout, kept, fired, drawn
        self._lead, self._negatives = lead, negatives
        self._by_slot = kept.slots.argsort(stable=True)
        self._bounds = torch.searchsorted(kept.slots[self._by_slot], torch.arange(len(fired) + 1)).tolist()
        self.firings = firings
        """[L] int64: rows in which each latent fires."""

    def explained(self, slot: int) -> Examples:
        """For the explainer, from the even sequences."""
        return self._examples(slot, 0)

    def judged(self, slot: int) -> Examples:
        """For the judge, from the odd sequences: none is in both."""
        return self._examples(slot, 1)

    def _examples(self, slot: int, half: int) -> Examples:
        kept, made = self._kept, partial(self._layout.example, lead=self._lead)
        mine = self._by_slot[self._bounds[slot] : self._bounds[slot + 1]]
        mine = mine[kept.half[kept.windows[mine]] == half]
        mine = mine[kept.order[kept.windows[mine]].argsort(stable=True)]
        codes: dict[int, dict[int, float]] = {}
        columns = (kept.windows[mine], kept.offsets[mine], kept.values[mine])
        for window, offset, value in zip(*(column.tolist() for column in columns), strict=True):
            codes.setdefault(window, {})[offset] = value
        silent = self._drawn[(kept.half[self._drawn] == half) & ~self._fired[slot]][: self._negatives[half]]
        return Examples(
            [made(window, codes=values) for window, values in codes.items()],
            [made(window, codes={}) for window in silent.tolist()],
        )


@torch.no_grad()
def collect(
    sae: Any,
    cache: ActivationCache,
    latents: Tensor,
    *,
    seed: int,
    rows: int | None = None,
    size: int = 31,
    lead: int = 8,
    positives: tuple[int, int] = (128, 96),
    negatives: tuple[int, int] = (128, 64),
    candidates: int = 2048,
    batch: int = 4096,
    progress: bool = False,
) -> Contexts:
    """Contexts of L latents, from one pass over the rows; the same for any batch size.

    Memory: for each latent the firings in its kept windows and `candidates` bytes a half, beside the cache's tokens.

    Args:
        sae: has `encode_sparse(x)` and `dictionary` [F, D]. A latent fires where its code is not zero.
        latents: distinct latents, int64 [L].
        seed: of which windows are kept.
        rows: only the first so many rows of the cache.
        size, lead: tokens of a window, and tokens shown before it.
        positives: windows in which a latent fires that are kept for the explainer and for the judge, drawn at random.
        negatives: the same for windows in which it does not fire, also not in the tokens before it. They are drawn
            among `candidates` random windows of each half, one set for all latents.

    Raises:
        ValueError: a cache without tokens, another width than the SAE's, latents that are repeated or not there, a
            lead longer than the window.
    """
    if not 0 <= lead <= size:
        raise ValueError(f"lead: expected 0 to size = {size}, got {lead}")
    count, width = sae.dictionary.shape
    if width != cache.width:
        raise ValueError(f"rows: expected the SAE's width {width}, got {cache.width}")
    slot_of = slots_of(latents, count)
    chosen = len(cache) if rows is None else min(rows, len(cache))
    layout = _Layout(cache, chosen, size)
    half = torch.arange(layout.count) // layout.each % 2
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(layout.count, generator=generator)
    held = torch.bincount(layout.window[layout.window >= 0], minlength=layout.count) > 0
    drawn = torch.cat([((half == h) & held).nonzero()[:, 0] for h in (0, 1)])
    drawn = drawn[order[drawn].argsort()]
    drawn = torch.cat([drawn[half[drawn] == h][:candidates] for h in (0, 1)])
    column_of = torch.full((layout.count + 1,), -1)  # the last one: behind the last window
    column_of[drawn] = torch.arange(len(drawn))
    fired = torch.zeros(len(latents), len(drawn), dtype=torch.bool)
    firings = torch.zeros(len(latents), dtype=torch.int64)
    kept = _Firings(half, order, positives)
    start = 0
    source = ChosenRows(cache, torch.arange(chosen))
    with tqdm(total=chosen, unit="row", unit_scale=True, desc="windows", disable=not progress) as bar:
        for x in batches(source, batch):
            slots, values, row = entries(encode(sae, x), slot_of)
            row += start
            firings += torch.bincount(slots, minlength=len(latents))
            inside = layout.window[row] >= 0
            slots, values, row = slots[inside], values[inside], row[inside]
            window, offset = layout.window[row], layout.offset[row]
            _mark(fired, slots, column_of[window])
            follows = (offset >= layout.size - lead) & (window % layout.each < layout.each - 1)
            _mark(fired, slots[follows], column_of[window[follows] + 1])
            kept.add(slots, window, offset, values)
            start += len(x)
            bar.update(len(x))
    return Contexts(layout, kept, fired, drawn, firings, lead, negatives)


def _mark(fired: Tensor, slots: Tensor, columns: Tensor) -> None:
    there = columns >= 0
    fired[slots[there], columns[there]] = True
