"""The order in which rows are visited: a fresh permutation of the whole cache in every epoch."""

import numpy as np
import torch
from torch import Tensor


class Shuffle:
    """An endless sequence of row numbers, a function of (count, seed) alone, readable from any position.

    Position p is place p mod count of epoch p // count; each epoch is one permutation of all rows. A batch may span two
    epochs. The permutation of the present epoch is kept: 8 bytes a row.
    """

    def __init__(self, count: int, seed: int) -> None:
        if count < 1:
            raise ValueError(f"count: expected at least one row, got {count}")
        self.count, self.seed = count, seed
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def take(self, start: int, length: int) -> Tensor:
        """The row numbers at positions start … start + length − 1, int64."""
        parts: list[Tensor] = []
        while length > 0:
            epoch, place = divmod(start, self.count)
            part = self._permutation(epoch)[place : place + length]
            parts.append(part)
            start, length = start + part.numel(), length - part.numel()
        return parts[0] if len(parts) == 1 else torch.cat([torch.empty(0, dtype=torch.int64), *parts])

    def _permutation(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            # SeedSequence mixes the pair, so that (seed 0, epoch 1) and (seed 1, epoch 0) have nothing in common.
            state = int(np.random.SeedSequence([self.seed, epoch]).generate_state(1, np.uint64)[0])
            self._order = torch.randperm(self.count, generator=torch.Generator().manual_seed(state))
            self._epoch = epoch
        return self._order
