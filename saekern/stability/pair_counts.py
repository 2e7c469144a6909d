"""Counts of sparse keys from a stream."""

import torch
from torch import Tensor


class PairCounts:
    """How often each int64 key occurred; memory is that of the distinct keys and of `merge` waiting ones."""

    def __init__(self, merge: int):
        self._merge = merge
        self._keys, self._counts = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._number = 0

    def add(self, keys: Tensor, counts: Tensor | None = None) -> None:
        """Keys [m], each once or `counts` [m] times."""
        self._waiting.append((keys, torch.ones_like(keys) if counts is None else counts))
        self._number += len(keys)
        if self._number >= self._merge:
            self.result()

    def result(self) -> tuple[Tensor, Tensor]:
        """The distinct keys, ascending, and their counts."""
        keys = torch.cat([self._keys, *(k for k, _ in self._waiting)])
        counts = torch.cat([self._counts, *(c for _, c in self._waiting)])
        self._keys, place = keys.unique(return_inverse=True)
        self._counts = torch.zeros_like(self._keys).index_add_(0, place, counts)
        self._waiting, self._number = [], 0
        return self._keys, self._counts
