"""Intervals of means over pairs of runs: the runs are the sample, not the pairs, which share them."""

from itertools import combinations
from typing import NamedTuple

import torch
from scipy.special import stdtrit
from torch import Tensor


class Estimate(NamedTuple):
    """A mean and the ends of its interval, tensors of one shape; the ends are NaN with fewer than three runs."""

    mean: Tensor
    low: Tensor
    high: Tensor

    def to_json(self) -> dict:
        """Plain numbers, or lists of them; None where there is no value."""
        return {name: plain(value) for name, value in self._asdict().items()}


def over_pairs(values: Tensor, runs: int, confidence: float = 0.95) -> Estimate:
    """Mean over pairs [..., P] → [...], with the delete-one-run jackknife: each run is left out with all of its pairs,
    SE² = (S−1)/S Σ_s (m₋ₛ − m̄)², and the interval is m ± t_{S−1} SE.

    A mean over pairs is a U-statistic of order two: its pairs share runs, so P values are not P observations, and an
    interval that takes them so is too short by up to √(P/S). The jackknife's SE errs upwards (Efron & Stein 1981). A
    bootstrap over runs would pair a run with itself, at distance 0. NaN pairs are left out.

    Args:
        values: in the order of itertools.combinations(range(runs), 2).
    """
    total, without = leave_one_run_out(values, runs)
    return interval(total, without, confidence)


def over_ordered_pairs(values: Tensor, confidence: float = 0.95) -> Estimate:
    """The same of values [S, S, ...] → [...] that differ by direction: mean over runs i ≠ j. A NaN among them is one in
    the mean: what is compared must be known of every pair."""
    runs = values.shape[0]
    values = values.to(torch.float64)
    off = ~torch.eye(runs, dtype=torch.bool).reshape(runs, runs, *(1,) * (values.dim() - 2))
    values = torch.where(off, values, 0)
    total = values.sum((0, 1))
    without = (total - values.sum(1) - values.sum(0)) / ((runs - 1) * (runs - 2) or torch.nan)  # [S, ...]
    return interval(total / (runs * (runs - 1)), without.movedim(0, -1), confidence)


def over_runs(values: Tensor, confidence: float = 0.95) -> Estimate:
    """Mean over runs [..., S] → [...] with Student's interval, which the jackknife of a mean over runs is."""
    known = values.isfinite()
    total, count = values.double().where(known, 0).sum(-1, keepdim=True), known.sum(-1, keepdim=True)
    without = (total - values.double().where(known, 0)) / (count - known.to(torch.int64))
    return interval((total / count)[..., 0], without, confidence)


def leave_one_run_out(values: Tensor, runs: int) -> tuple[Tensor, Tensor]:
    """The mean over pairs [...], and that over the pairs without run s [..., S]."""
    pairs = list(combinations(range(runs), 2))
    if values.shape[-1] != len(pairs):
        raise ValueError(f"values: expected {len(pairs)} pairs of {runs} runs last, got {list(values.shape)}")
    has = torch.zeros(runs, len(pairs), dtype=torch.float64)
    for column, pair in enumerate(pairs):
        has[list(pair), column] = 1
    known = values.isfinite()
    kept, count = values.double().where(known, 0), known.double()
    total, number = kept.sum(-1, keepdim=True), count.sum(-1, keepdim=True)
    return (total / number)[..., 0], (total - kept @ has.T) / (number - count @ has.T)


def interval(estimate: Tensor, without: Tensor, confidence: float) -> Estimate:
    """From an estimate [...] and its values without each run [..., S]."""
    runs = without.shape[-1]
    spread = (without - without.mean(-1, keepdim=True)).square().sum(-1)
    error = ((runs - 1) / runs * spread).sqrt()
    reach = error * float(stdtrit(runs - 1, 0.5 + confidence / 2)) if runs >= 3 else torch.full_like(error, torch.nan)
    return Estimate(estimate, estimate - reach, estimate + reach)


def plain(value: Tensor) -> float | list | None:
    """Numbers, None for NaN, lists of them for a tensor with dimensions."""
    if value.dim():
        return [plain(part) for part in value]
    number = float(value)
    return number if number == number else None
