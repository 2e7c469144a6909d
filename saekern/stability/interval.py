"""The binomial interval of a share."""

import torch
from scipy.special import betaincinv
from torch import Tensor


def binomial_interval(trials: int, confidence: float) -> tuple[Tensor, Tensor]:
    """Clopper–Pearson interval of p for every count 0..trials: two tensors [trials + 1], float64.

    The ends are quantiles of beta distributions; coverage is at least `confidence` for every p, more for few trials.
    """
    count = torch.arange(trials + 1, dtype=torch.float64).numpy()
    tail = (1 - confidence) / 2
    lower = torch.from_numpy(betaincinv(count.clip(min=1), trials - count.clip(min=1) + 1, tail))
    upper = torch.from_numpy(betaincinv(count.clip(max=trials - 1) + 1, trials - count.clip(max=trials - 1), 1 - tail))
    lower[0], upper[trials] = 0.0, 1.0
    return lower, upper
