"""Intervals: of a share, of a mean over draws and rows. Those over runs are in `jackknife`."""

import torch
from scipy.special import betaincinv, stdtrit
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


def crossed_interval(values: Tensor, confidence: float = 0.95) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and Student's interval of it over two kinds of units at once: draws R by rows U, values [..., R, U].

    Both kinds are random, so the variance of the grand mean is s²(row means)/R + s²(column means)/U, with degrees of
    freedom by Satterthwaite's formula. The interaction is counted twice, which errs to the wide side. Where one kind
    has a single unit or does not vary, the interval is over the other; with one unit of both kinds it is NaN.
    """
    draws, units = values.shape[-2:]
    values = values.to(torch.float64)
    mean = values.mean((-2, -1))
    parts = [(values.mean(axis).var(-1) / count, count - 1) for axis, count in ((-1, draws), (-2, units)) if count > 1]
    if not parts:
        return mean, torch.full_like(mean, torch.nan), torch.full_like(mean, torch.nan)
    variance = torch.stack([part for part, _ in parts]).sum(0)
    spread = torch.stack([part.square() / freedom for part, freedom in parts]).sum(0)
    freedom = torch.where(spread > 0, variance.square() / spread, 1.0)
    half = variance.sqrt() * torch.as_tensor(stdtrit(freedom.numpy(), (1 + confidence) / 2))
    return mean, mean - half, mean + half
