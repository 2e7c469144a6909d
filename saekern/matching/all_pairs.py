"""Every pair of many dictionaries, one pair in memory at a time."""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations, groupby
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from saekern.matching import batches
from saekern.matching import store as disk
from saekern.matching.geometry import Side, side_of
from saekern.matching.pair import Method, check_method, match_both, same_space
from saekern.matching.result import Pair
from saekern.matching.store import PairStore

log = logging.getLogger(__name__)


class AllPairs:
    """The pairs of S dictionaries, matched when they are iterated over, never kept: what a `PairStore` is filled from.

    Items of `dictionaries` are fetched when needed, about S²/2 + 2 S times in all, so that a lazy sequence that
    loads from disk keeps two dictionaries in memory.

    Raises:
        TypeError, ValueError: fewer than two dictionaries, different widths, masks that do not fit, unknown method.
    """

    def __init__(
        self, dictionaries: Sequence[Any], method: Method = "nearest", dead: Sequence[Tensor | None] | None = None
    ):
        check_method(method)
        if isinstance(dictionaries, Tensor) and dictionaries.dim() != 3:
            raise ValueError(f"dictionaries: expected several [F, D] or one [S, F, D], got {list(dictionaries.shape)}")
        runs = len(dictionaries)
        if runs < 2:
            raise ValueError(f"dictionaries: expected at least 2, got {runs}")
        if dead is not None and len(dead) != runs:
            raise ValueError(f"dead: expected {runs} masks, one a dictionary, got {len(dead)}")
        self.dictionaries, self.method = dictionaries, method
        self.sizes: list[int] = []
        self.keys: list[str] = []
        self._live: list[Tensor] = []
        width = None
        for i in range(runs):
            rows, live, _ = side_of(dictionaries[i], None if dead is None else dead[i], f"dictionaries[{i}]")
            width = rows.shape[1] if width is None else width
            if rows.shape[1] != width:
                expected = f"expected shape [F, {width}] like dictionaries[0]"
                raise ValueError(f"dictionaries[{i}]: {expected}, got {list(rows.shape)}")
            self.sizes.append(rows.shape[0])
            self._live.append(live.cpu())
            self.keys.append(disk.dictionary_key(rows, self._live[i]))

    def side(self, i: int) -> Side:
        side = side_of(self.dictionaries[i], None, f"dictionaries[{i}]")
        return side._replace(live=self._live[i].to(side.live.device))

    def live(self, i: int) -> Tensor:
        return self._live[i]

    def positions(self) -> Iterator[tuple[int, int]]:
        return combinations(range(len(self.sizes)), 2)

    def __len__(self) -> int:
        return len(self.sizes) * (len(self.sizes) - 1) // 2

    def __iter__(self) -> Iterator[Pair]:
        return self.compute(self.positions())

    def compute(self, positions: Iterable[tuple[int, int]]) -> Iterator[Pair]:
        """The pairs at `positions`, on the host; those of one i in a row, so that its dictionary is fetched once."""
        resident = batches.residents(self.dictionaries) if self.method == "nearest" else None
        if resident is not None:
            yield from batches.Batches(self.dictionaries, resident, self._live).compute(positions)
            return
        for i, partners in groupby(positions, key=lambda position: position[0]):
            first = self.side(i)
            for _, j in partners:
                yield Pair(i, j, *match_both(*same_space(first, self.side(j)), self.method)).cpu()


def match_all(
    dictionaries: Sequence[Any],
    method: Method = "nearest",
    store: str | os.PathLike | None = None,
    progress: bool = True,
    *,
    dead: Sequence[Tensor | None] | None = None,
    seeds: Sequence[int] | None = None,
) -> PairStore:
    """The matching of every pair of dictionaries, in both directions, streamed to the folder `store`.

    Can be killed at any moment: a pair's file appears whole or not at all, and a second call with the same dictionaries
    computes only the pairs that are missing, damaged, or made from other inputs (compared by hash). Dictionaries may be
    added anywhere and taken out: the pairs of the others keep their files, under new names. Where two change places,
    theirs is computed anew.
    Memory: two dictionaries and one pair; an assignment takes what `match` does beside them, lists of 50 to 256
    candidates a latent, and never a matrix [F, F]. For nearest partners dictionaries that lie on a GPU, in a list or
    one [S, F, D], are prepared there once each: half as much memory again. Results are on the host; with `store=None`
    they stay in its memory: 12 (S−1) bytes a latent. Margins and certificates are not kept.

    Args:
        dictionaries: S dictionaries [F, D] or SAEs with `.dictionary`, F may differ; a lazy sequence is read as needed.
        method: "nearest" (one cosine pass a pair serves both directions) or "assignment" (one exact solution a pair,
            the same from either side).
        store: folder to write to; None keeps the result in memory.
        dead: one bool mask [F] (or None) a dictionary: latents to set aside.
        seeds: labels of the runs, kept in the store; default 0..S−1.

    Raises:
        TypeError, ValueError: dictionaries, masks or method that do not fit.
        OSError: the store cannot be written; pairs written before stay valid.
    """
    pairs = AllPairs(dictionaries, method, dead)
    labels = list(range(len(pairs.sizes))) if seeds is None else [int(seed) for seed in seeds]
    if len(labels) != len(pairs.sizes):
        raise ValueError(f"seeds: expected {len(pairs.sizes)} labels, one a dictionary, got {len(labels)}")
    bar = tqdm(total=len(pairs), desc=f"match ({method})", unit="pair", disable=not progress)
    with bar:
        if store is None:
            memory = {}
            for pair in pairs:
                memory[pair.i, pair.j] = (pair, pairs.live(pair.i), pairs.live(pair.j))
                bar.update()
            return PairStore(method, labels, pairs.sizes, pairs.keys, memory=memory)

        folder = Path(store)
        folder.mkdir(parents=True, exist_ok=True)
        key = {(i, j): disk.pair_key(method, pairs.keys[i], pairs.keys[j]) for i, j in pairs.positions()}
        # First, so that a store whose dictionaries changed never mixes old pairs with the new: readers compare keys.
        disk.write_manifest(folder, method, labels, pairs.sizes, pairs.keys)
        missing = disk.missing_pairs(folder, key)
        if len(missing) < len(key):
            log.info("%s: %d of %d pairs are already there", folder, len(key) - len(missing), len(key))
            bar.update(len(key) - len(missing))
        for pair in pairs.compute(missing):
            disk.write_pair(folder, pair, pairs.live(pair.i), pairs.live(pair.j), key[pair.i, pair.j])
            bar.update()
    return PairStore(method, labels, pairs.sizes, pairs.keys, folder=folder)
