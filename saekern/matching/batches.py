"""Nearest partners on a GPU: every dictionary prepared once, several pairs in flight, results on their way to the host
while the next are computed."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from saekern import ops
from saekern.matching.geometry import matrix_of
from saekern.matching.result import Matching, Pair

LATENTS = 2**22  # of results at a time: 50 MB, 128 pairs of 16,384 latents
STACKED = 2**30  # bytes of separate dictionaries that are copied side by side, so that small pairs share a launch

Position = tuple[int, int]
Launched = tuple[list[Position], list[Tensor], Callable[[], object]]  # pairs, their results, what waits for these


def residents(dictionaries: Sequence) -> list[Tensor] | None:
    """The rows of every dictionary where all lie in the memory of one GPU and its kernels take them; None elsewhere."""
    if not isinstance(dictionaries, Tensor | list | tuple):
        return None
    rows = []
    for source in dictionaries:
        rows.append(matrix_of(source, "dictionary"))
        same = rows[-1].device == rows[0].device and rows[-1].dtype == rows[0].dtype
        if not same or rows[0].device.type != "cuda" or rows[0].dtype == torch.float64:
            return None
    return rows


class Batches:
    """The nearest pairs of dictionaries in the same memory. Takes, beside them, half a float32 dictionary's memory for
    each, and a float32 one's for those with latents set aside."""

    def __init__(self, dictionaries: Sequence, rows: list[Tensor], live: list[Tensor]):
        device = rows[0].device
        self.rows = rows
        self.numbers = [None if bool(mask.all()) else mask.nonzero()[:, 0].to(device) for mask in live]
        self.prepared: dict[int, ops.NearestRows] = {}
        self.all: ops.NearestRows | None = None
        even = all(numbers is None for numbers in self.numbers) and len({len(t) for t in rows}) == 1
        if even and isinstance(dictionaries, Tensor):
            self.all = ops.nearest_prepare(dictionaries)
        elif even and sum(t.nbytes for t in rows) <= STACKED:
            self.all = ops.nearest_prepare(torch.stack(rows))

    def compute(self, positions: Iterable[Position]) -> Iterator[Pair]:
        """One batch is always ahead of what the caller has."""
        wanted = list(positions)
        pairs = torch.tensor(wanted).to(self.rows[0].device, non_blocking=True)
        size = max(1, LATENTS // (2 * max(len(t) for t in self.rows))) if self.all else 1
        launched: Launched | None = None
        for first in range(0, len(wanted), size):
            batch = wanted[first : first + size]
            if self.all:
                found = list(ops.nearest_pairs(self.all, self.all, pairs[first : first + size]))
            else:
                found = self._one(*batch[0])
            following = (batch, *_towards_host(found))
            if launched:
                yield from _finished(*launched)
            launched = following
        if launched:
            yield from _finished(*launched)

    def _one(self, i: int, j: int) -> list[Tensor]:
        """The four results of one pair, each [1, F]."""
        for numbers in (self.numbers[i], self.numbers[j]):
            if numbers is not None and len(numbers) == 0:
                return [*self._nobody(i), *self._nobody(j)]
        pair = torch.zeros(1, 2, dtype=torch.int64, device=self.rows[i].device)
        a_cosine, a_index, b_cosine, b_index = ops.nearest_pairs(self._ready(i), self._ready(j), pair)
        return [*self._expand(a_cosine, a_index, i, j), *self._expand(b_cosine, b_index, j, i)]

    def _nobody(self, i: int) -> tuple[Tensor, Tensor]:
        shape, device = (1, len(self.rows[i])), self.rows[i].device
        return torch.full(shape, torch.nan, device=device), torch.full(shape, -1, device=device)

    def _ready(self, i: int) -> ops.NearestRows:
        if i not in self.prepared:
            numbers = self.numbers[i]
            self.prepared[i] = ops.nearest_prepare(self.rows[i] if numbers is None else self.rows[i][numbers])
        return self.prepared[i]

    def _expand(self, cosine: Tensor, index: Tensor, own: int, other: int) -> tuple[Tensor, Tensor]:
        """[1, F] in the numbering of all latents, from that of the live ones."""
        theirs, mine = self.numbers[other], self.numbers[own]
        if theirs is not None:
            index = theirs[index]
        if mine is None:
            return cosine, index
        full_cosine, full_index = self._nobody(own)
        return full_cosine.index_copy_(1, mine, cosine), full_index.index_copy_(1, mine, index)


def _towards_host(found: list[Tensor]) -> tuple[list[Tensor], Callable[[], object]]:
    """The results' copies on the host, and what waits until they are there."""
    if not found[0].is_cuda:
        return found, lambda: None
    host = [tensor.to("cpu", non_blocking=True) for tensor in found]  # into pinned memory, which torch keeps for reuse
    done = torch.cuda.Event()
    done.record(torch.cuda.current_stream(found[0].device))
    return host, done.synchronize


def _finished(batch: list[Position], found: list[Tensor], wait: Callable[[], object]) -> Iterator[Pair]:
    wait()
    for (i, j), *results in zip(batch, *found, strict=True):
        a_cosine, a_index, b_cosine, b_index = (result.clone() for result in results)  # of its own, not pinned
        yield Pair(i, j, Matching(a_index, a_cosine), Matching(b_index, b_cosine))
