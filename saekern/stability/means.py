"""The mean of a few independent numbers and Student's interval of it."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from scipy.special import stdtrit


class MeanInterval(NamedTuple):
    """A mean over independent units and its interval; None where it cannot be said."""

    mean: float | None
    lower: float | None  # None with fewer than two numbers
    upper: float | None
    units: int  # numbers that are known: NaN is left out


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> MeanInterval:
    """x̄ ± t s/√n, t the quantile of Student's distribution with n − 1 degrees of freedom; exact for normal values."""
    known = torch.tensor([value for value in values if value == value], dtype=torch.float64)
    if len(known) == 0:
        return MeanInterval(None, None, None, 0)
    mean = float(known.mean())
    if len(known) == 1:
        return MeanInterval(mean, None, None, 1)
    half = float(known.std()) / len(known) ** 0.5 * float(stdtrit(len(known) - 1, (1 + confidence) / 2))
    return MeanInterval(mean, mean - half, mean + half, len(known))
