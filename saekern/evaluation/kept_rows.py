"""The best rows of many latents from a stream of codes, in memory of latents × kept rows."""

import torch
from torch import Tensor


class KeptRows:
    """For each of L latents the n rows of highest priority, descending; among equals the row that came first.

    What is kept depends on the stream and not on how it was cut into batches.

    Args:
        latents, n: L and n.
        groups: int64 [rows of the stream], ≥ 0. Given, no two rows of a latent are of one group: the best of each.
    """

    def __init__(self, latents: int, n: int, groups: Tensor | None = None) -> None:
        if n < 1:
            raise ValueError(f"n: expected at least 1, got {n}")
        self.rows = torch.full((latents, n), -1)
        self.values = torch.zeros(latents, n)
        self._priority = torch.full((latents, n), -torch.inf, dtype=torch.float64)
        self._groups = groups

    def add(self, slots: Tensor, rows: Tensor, values: Tensor, priority: Tensor | None = None) -> None:
        """Entries of the next rows, [m] each, rows ascending: which latent (0 … L−1), row, code and priority, which is
        the code if not given."""
        priority = values.double() if priority is None else priority
        better = priority > self._priority[slots, -1]  # equal is not enough: the earlier row stays
        slots, rows, values, priority = slots[better], rows[better], values[better], priority[better]
        touched, n = slots.unique(), self.rows.shape[1]
        filled = (self.rows[touched] >= 0).flatten()
        slots = torch.cat([touched.repeat_interleave(n)[filled], slots])
        rows = torch.cat([self.rows[touched].flatten()[filled], rows])
        values = torch.cat([self.values[touched].flatten()[filled], values])
        priority = torch.cat([self._priority[touched].flatten()[filled], priority])
        order = priority.argsort(descending=True, stable=True)  # what was there comes first among equals
        if self._groups is not None:
            order = order[_first_of_each(slots[order], self._groups[rows[order]])]
        order = order[slots[order].argsort(stable=True)]
        slots = slots[order]
        rank = torch.arange(len(slots)) - torch.searchsorted(slots, slots)
        order, slots, rank = order[rank < n], slots[rank < n], rank[rank < n]
        self.rows[slots, rank] = rows[order]
        self.values[slots, rank] = values[order]
        self._priority[slots, rank] = priority[order]


def _first_of_each(slots: Tensor, groups: Tensor) -> Tensor:
    """Ascending places of the first entry of every (slot, group)."""
    key = slots * (int(groups.max()) + 1 if len(groups) else 1) + groups
    order = key.argsort(stable=True)
    new = torch.ones(len(key), dtype=torch.bool)
    new[1:] = key[order][1:] != key[order][:-1]
    return order[new].sort().values
