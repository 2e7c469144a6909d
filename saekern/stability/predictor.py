"""Can stability be told from one seed alone? A logistic regression on activation statistics, judged on other seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import t as student
from torch import Tensor

from saekern.stability.features import FeatureStability
from saekern.stability.group_comparison import check_anchors
from saekern.stability.roc import Auroc, auroc
from saekern.stability.statistics import ActivationStatistics

RIDGE = 1e-3  # on standardised inputs and the mean log loss: keeps separable groups finite, shrinks others by 0.1 %


@dataclass(frozen=True, eq=False)
class StabilityPredictor:
    """A predictor of stable against unstable from one seed's statistics. Made by `predict_stability`."""

    names: list[str]
    """[Q] statistics, as they enter."""
    weight: Tensor
    """[Q] float64: log odds of "stable" for one standard deviation more."""
    bias: float
    """Log odds at the training latents' means."""
    mean: Tensor
    """[Q] means of the training latents."""
    scale: Tensor
    """[Q] standard deviations of the training latents; 1 where there is none."""
    train: int
    """The run it was fitted on."""
    test: list[int]
    """[T] the runs it was judged on."""
    heldout: list[Auroc]
    """[T] area under the ROC curve on each, DeLong interval over its latents."""
    within: Auroc
    """The same on the training run: optimistic."""
    single: dict[str, float]
    """Mean held-out area of each statistic alone, in the direction that the training run has: what the regression must
    beat."""
    null: Tensor
    """[draws] mean held-out area of the same regression fitted to permuted labels. One such fit has a direction by
    chance and may be far from 0.5 either way: the spread is what the area must stand out of."""
    with_dead: float
    """Mean held-out area when dead latents count as unstable: the trap. Dead latents are easy to tell, so it is
    inflated by as many as there are; never quote it as a result."""
    dead: list[int]
    """[T] latents of each test run left out as dead."""
    confidence: float
    """Coverage of the intervals."""

    @property
    def area(self) -> Auroc:
        """Mean over the test runs, with a Student interval over them (NaN for one run). Runs are the draws here; they
        share the training run and their labels come from comparisons with each other, so it is rather too short."""
        values = torch.tensor([found.value for found in self.heldout], dtype=torch.float64)
        values = values[values.isfinite()]
        if len(values) < 2:
            return Auroc(float(values.mean()), float("nan"), float("nan"))
        half = float(student.ppf((1 + self.confidence) / 2, len(values) - 1)) * float(values.std()) / len(values) ** 0.5
        middle = float(values.mean())
        return Auroc(middle, max(0.0, middle - half), min(1.0, middle + half))

    def score(self, statistics: ActivationStatistics) -> Tensor:
        """[F] float64 log odds of "stable"; NaN where a statistic is missing, as for dead latents."""
        return _inputs(statistics) @ (self.weight / self.scale) + self.bias - (self.mean / self.scale) @ self.weight

    def to_json(self) -> dict[str, Any]:
        """Plain numbers; None where there is none."""
        return {
            "train": self.train,
            "test": self.test,
            "area": _triple(self.area),
            "interval": "Student over test runs; of each run DeLong over latents",
            "heldout": [_triple(found) for found in self.heldout],
            "within": _triple(self.within),
            "single": {name: _number(value) for name, value in self.single.items()},
            "null": {"mean": known.mean().item(), "min": known.min().item(), "max": known.max().item()}
            if len(known := self.null[self.null.isfinite()])
            else None,
            "with_dead": _number(self.with_dead),
            "dead": self.dead,
            "weight": dict(zip(self.names, self.weight.tolist(), strict=True)),
            "confidence": self.confidence,
        }


def predict_stability(
    statistics: Sequence[ActivationStatistics],
    stability: FeatureStability,
    train: int = 0,
    *,
    anchors: Sequence[int] | None = None,
    confidence: float = 0.95,
    draws: int = 20,
    seed: int = 0,
) -> StabilityPredictor:
    """Fits stable against unstable on one run's live latents, and judges on those of every other anchor.

    The undecided middle is left out, as in the definition of the two groups: areas are larger than for all latents. A
    test run's latents are in part the features it was fitted on: what is held out is the seed, not the feature.

    Args:
        statistics: of each anchor, over the same rows.
        stability: of all runs.
        train: the run to fit on, an anchor.
        anchors: which runs the statistics are of; default all, in the order of `stability`.
        draws: permutations of the labels for the null, from `seed`.

    Raises:
        ValueError: statistics that do not fit, or a training run with less than two latents in a group.

    Source: the protocol is ours; the trap of dead latents (AUROC 0.981 with 60 % dead) is told by a replication of
    Gerasimov et al. 2026.
    """
    chosen = list(range(len(stability.sizes))) if anchors is None else list(anchors)
    check_anchors(statistics, stability, chosen)
    if train not in chosen:
        raise ValueError(f"train: expected an anchor, one of {chosen}, got {train}")
    by_run = dict(zip(chosen, statistics, strict=True))
    test = [run for run in chosen if run != train]
    groups = {run: _groups(found, stability, run) for run, found in by_run.items()}
    inputs = {run: _inputs(found) for run, found in by_run.items()}
    if min(int(group.sum()) for group in groups[train]) < 2:
        sizes = [int(group.sum()) for group in groups[train]]
        raise ValueError(f"train: expected at least 2 stable and 2 unstable latents, got {sizes[0]} and {sizes[1]}")

    x, label = _labelled(inputs[train], groups[train])
    fitted = _Fit(x, label)
    heldout = [_area(fitted.score(inputs[run]), groups[run], confidence) for run in test]
    within = _area(fitted.score(x), (label == 1, label == 0), confidence)
    generator, null = torch.Generator().manual_seed(seed), []
    for _ in range(draws):
        permuted = _Fit(x, label[torch.randperm(len(label), generator=generator)])
        null.append(_mean([_area(permuted.score(inputs[run]), groups[run], confidence) for run in test]))
    names = list(by_run[train].table())
    single = {}
    for q, name in enumerate(names):
        direction = 1 if _area(inputs[train][:, q], groups[train], confidence).value >= 0.5 else -1
        single[name] = _mean([_area(direction * inputs[run][:, q], groups[run], confidence) for run in test])
    with_dead = _with_dead(by_run, stability, train, test, confidence)
    dead = [int((~(stability.live[run, : stability.sizes[run]] & by_run[run].live)).sum()) for run in test]
    return StabilityPredictor(
        names,
        fitted.weight,
        fitted.bias,
        fitted.mean,
        fitted.scale,
        train,
        test,
        heldout,
        within,
        single,
        torch.tensor(null, dtype=torch.float64),
        with_dead,
        dead,
        confidence,
    )


class _Fit:
    """Logistic regression with a ridge, by Newton's method on standardised inputs."""

    def __init__(self, x: Tensor, label: Tensor):
        self.mean, spread = x.mean(0), x.std(0, correction=0)
        self.scale = torch.where(spread > 0, spread, 1.0)
        design = torch.cat([(x - self.mean) / self.scale, torch.ones_like(x[:, :1])], 1)
        penalty = torch.full((design.shape[1],), RIDGE, dtype=torch.float64)
        penalty[-1] = 1e-9  # the bias is free, but for groups that are one
        beta = torch.zeros(design.shape[1], dtype=torch.float64)

        def loss(beta: Tensor) -> float:
            z = design @ beta
            return float((torch.nn.functional.softplus(z) - label * z).mean() + (penalty * beta.square()).sum() / 2)

        for _ in range(100):
            p = torch.sigmoid(design @ beta)
            gradient = design.T @ (p - label) / len(label) + penalty * beta
            curvature = (design.T * (p * (1 - p))) @ design / len(label) + penalty.diag()
            step, size, now = torch.linalg.solve(curvature, gradient), 1.0, loss(beta)
            while loss(beta - size * step) > now and size > 1e-6:
                size /= 2
            beta = beta - size * step
            if float(step.abs().max()) < 1e-9:
                break
        self.weight, self.bias = beta[:-1], float(beta[-1])

    def score(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.scale @ self.weight + self.bias


def _inputs(statistics: ActivationStatistics) -> Tensor:
    """[F, Q]"""
    return torch.stack(list(statistics.table().values()), 1)


def _groups(statistics: ActivationStatistics, stability: FeatureStability, run: int) -> tuple[Tensor, Tensor]:
    """[F] bool: stable and unstable latents whose statistics are all known, which those of dead ones are not."""
    size = stability.sizes[run]
    known = statistics.live & _inputs(statistics).isfinite().all(1)
    return stability.stable[run, :size] & known, stability.unstable[run, :size] & known


def _labelled(x: Tensor, groups: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    stable, unstable = groups
    label = torch.cat([torch.ones(int(stable.sum())), torch.zeros(int(unstable.sum()))]).double()
    return torch.cat([x[stable], x[unstable]]), label


def _area(score: Tensor, groups: tuple[Tensor, Tensor], confidence: float) -> Auroc:
    return auroc(score[groups[0]], score[groups[1]], confidence)


def _with_dead(
    statistics: dict[int, ActivationStatistics],
    stability: FeatureStability,
    train: int,
    test: Sequence[int],
    confidence: float,
) -> float:
    """The whole procedure again, dead latents among the unstable ones, with 0 for what is not known of them and half a
    firing for the frequency of those without any."""
    inputs, groups = {}, {}
    for run, found in statistics.items():
        x = _inputs(found).nan_to_num(0.0)
        x[:, 0] = (found.counts.double().clamp(min=0.5) / found.rows).log10()
        size = stability.sizes[run]
        dead = ~(stability.live[run, :size] & found.live)
        inputs[run] = x
        groups[run] = (stability.stable[run, :size] & ~dead, stability.unstable[run, :size] | dead)
    fitted = _Fit(*_labelled(inputs[train], groups[train]))
    return _mean([_area(fitted.score(inputs[run]), groups[run], confidence) for run in test])


def _mean(found: Sequence[Auroc]) -> float:
    return float(torch.tensor([area.value for area in found], dtype=torch.float64).nanmean())


def _triple(found: Auroc) -> dict[str, float | None]:
    return {name: _number(value) for name, value in found._asdict().items()}


def _number(value: float) -> float | None:
    return value if value == value else None
