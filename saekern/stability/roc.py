"""How well a number tells two groups apart, with its interval."""

from typing import NamedTuple

import torch
from scipy.stats import norm, rankdata
from torch import Tensor


class Auroc(NamedTuple):
    """P(x > y) + ½ P(x = y) for x of the first group and y of the second: 0.5 when they do not differ."""

    value: float
    lower: float
    upper: float


def auroc(positive: Tensor, negative: Tensor, confidence: float = 0.95) -> Auroc:
    """The area under the ROC curve, from ranks, ties counted half.

    Its interval is DeLong's: the variance of the mean placements of both groups (structural components), on the logit
    scale, so that it stays in 0..1. At 0 or 1 exactly the variance is 0; there the end towards the middle is that
    of a Clopper–Pearson bound at the smaller group's size, min(n, m).

    Args:
        positive, negative: [n] and [m] numbers without NaN.

    Returns:
        NaN for all three when a group is empty; NaN ends when a group has one member.

    Source: DeLong, DeLong & Clarke-Pearson 1988; ranks as in Sun & Xu 2014; the logit as in Pepe 2003.
    """
    n, m = len(positive), len(negative)
    if n == 0 or m == 0:
        return Auroc(*[float("nan")] * 3)
    x, y = positive.double().numpy(), negative.double().numpy()
    together = rankdata(torch.cat([positive, negative]).double().numpy())
    place_x = (together[:n] - rankdata(x)) / m  # share of the other group below each
    place_y = 1 - (together[n:] - rankdata(y)) / n
    value = float(place_x.mean())
    if n == 1 or m == 1:
        return Auroc(value, float("nan"), float("nan"))
    if value in (0.0, 1.0):
        edge = ((1 - confidence) / 2) ** (1 / min(n, m))
        return Auroc(value, edge, 1.0) if value == 1 else Auroc(value, 0.0, 1 - edge)
    deviation = float(place_x.var(ddof=1) / n + place_y.var(ddof=1) / m) ** 0.5
    half = float(norm.ppf((1 + confidence) / 2)) * deviation / (value * (1 - value))
    middle = torch.logit(torch.tensor(value, dtype=torch.float64))
    return Auroc(value, float(torch.sigmoid(middle - half)), float(torch.sigmoid(middle + half)))
