"""Intervals of scores that are made of shares."""

import torch
from scipy.special import ndtri
from torch import Tensor


def wilson(hits: Tensor, total: Tensor, confidence: float = 0.95) -> tuple[Tensor, Tensor]:
    """Wilson's interval of a share, float64; 0 to 1 for no trials."""
    z2 = float(ndtri((1 + confidence) / 2)) ** 2
    hits, total = hits.double(), total.double()
    middle = (hits + z2 / 2) / (total + z2)
    half = (z2 * (hits * (1 - hits / total.clamp(min=1)) + z2 / 4)).sqrt() / (total + z2)
    return (middle - half).clamp(0, 1), (middle + half).clamp(0, 1)


def balanced_interval(
    hits: tuple[int, int], totals: tuple[int, int], confidence: float = 0.95
) -> tuple[float, float, float]:
    """½(p₁ + p₂) of two independent shares, and its interval: the distances to both Wilson ends, added in squares
    (Newcombe's way for differences). It does not vanish where both shares are 0 or 1."""
    count, total = torch.tensor(hits), torch.tensor(totals)
    share = count.double() / total
    lower, upper = wilson(count, total, confidence)
    down, up = ((share - lower).square().sum().sqrt(), (upper - share).square().sum().sqrt())
    mean = float(share.mean())
    return mean, max(0.0, mean - float(down) / 2), min(1.0, mean + float(up) / 2)
