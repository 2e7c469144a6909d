"""Cosines of any number of latents in fixed memory."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

BINS = 20_000  # width 1e-4 on [−1, 1]


@dataclass(eq=False)
class CosineHistogram:
    """Counts of cosines in 20,000 equal bins on [−1, 1]; quantiles are right to the width of a bin, 1e-4."""

    counts: Tensor = field(default_factory=lambda: torch.zeros(BINS, dtype=torch.int64))
    """[20000] int64."""

    def add(self, cosine: Tensor) -> None:
        """Counts every entry that is not NaN. Rounding may push a cosine past ±1: it counts in the last bin."""
        known = cosine[~cosine.isnan()].to("cpu", torch.float64)
        where = ((known + 1) * (BINS / 2)).floor().clamp(0, BINS - 1).to(torch.int64)
        self.counts += torch.bincount(where, minlength=BINS)

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    def quantile(self, q: float) -> float:
        """The cosine below which the share q lies, interpolated inside its bin; NaN when nothing was counted."""
        if not 0 <= q <= 1:
            raise ValueError(f"q: expected 0 <= q <= 1, got {q}")
        if self.total == 0:
            return float("nan")
        cumulative = self.counts.cumsum(0)
        target = max(q * self.total, 1e-9)
        where = int(torch.searchsorted(cumulative, torch.tensor(target, dtype=torch.float64)))
        inside = 1 - (float(cumulative[where]) - target) / float(self.counts[where])
        return -1 + (where + inside) * 2 / BINS

    def coarse(self, bins: int) -> tuple[Tensor, Tensor]:
        """Counts [bins] and edges [bins + 1] for a plot; `bins` divides 20,000."""
        if bins < 1 or BINS % bins:
            raise ValueError(f"bins: expected a divisor of {BINS}, got {bins}")
        return self.counts.reshape(bins, -1).sum(1), torch.linspace(-1, 1, bins + 1, dtype=torch.float64)
