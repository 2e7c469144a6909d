"""Stable against unstable latents, statistic by statistic: effect sizes and tests."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import mannwhitneyu
from torch import Tensor

from saekern.stability.features import FeatureStability
from saekern.stability.roc import auroc
from saekern.stability.statistics import ActivationStatistics


@dataclass(frozen=True, eq=False)
class GroupComparison:
    """Of A anchors and Q statistics: how stable latents differ from unstable ones. Made by `compare_groups`."""

    names: list[str]
    """[Q] statistics."""
    anchors: list[int]
    """[A] positions of the anchors among the runs."""
    stable: list[int]
    """[A] stable latents compared."""
    unstable: list[int]
    """[A] unstable latents compared."""
    dead: list[int]
    """[A] latents left out as dead, by the stability's masks or for too few firings."""
    medians: Tensor
    """[A, Q, 2] float64: median of the stable and of the unstable latents."""
    effect: Tensor
    """[A, Q] float64: P(stable > unstable) + ½ P(equal), 0.5 for no difference."""
    lower: Tensor
    """[A, Q] lower end of the effect's interval (DeLong, logit scale)."""
    upper: Tensor
    """[A, Q] upper end."""
    p_value: Tensor
    """[A, Q] two-sided Mann–Whitney U, Holm's adjustment over the Q statistics of the anchor. Anchors are not pooled:
    their stable latents are the same features, and would be counted A times."""
    confidence: float
    """Coverage of the intervals."""

    def to_json(self) -> dict[str, Any]:
        """Of each statistic the first anchor's test in full, and the spread of the effect between anchors."""
        lines = []
        for q, name in enumerate(self.names):
            known = self.effect[:, q][self.effect[:, q].isfinite()]
            lines.append(
                {
                    "statistic": name,
                    "median_stable": _number(self.medians[0, q, 0]),
                    "median_unstable": _number(self.medians[0, q, 1]),
                    "effect": _number(self.effect[0, q]),
                    "lower": _number(self.lower[0, q]),
                    "upper": _number(self.upper[0, q]),
                    "p_holm": _number(self.p_value[0, q]),
                    "effect_mean": known.mean().item() if len(known) else None,
                    "effect_min": known.min().item() if len(known) else None,
                    "effect_max": known.max().item() if len(known) else None,
                }
            )
        return {
            "anchors": self.anchors,
            "stable": self.stable,
            "unstable": self.unstable,
            "dead": self.dead,
            "confidence": self.confidence,
            "interval": "DeLong, logit scale; over latents, each anchor its own",
            "test": "Mann-Whitney U, two-sided",
            "multiple_comparisons": f"Holm over {len(self.names)} statistics of one anchor; anchors not pooled",
            "lines": lines,
        }


def compare_groups(
    statistics: Sequence[ActivationStatistics],
    stability: FeatureStability,
    anchors: Sequence[int] | None = None,
    confidence: float = 0.95,
) -> GroupComparison:
    """Mann–Whitney tests and their effect sizes, stable against unstable latents of each anchor, dead ones left out.

    The null is an effect of 0.5; that of the statistics themselves (an entropy is small because a latent is rare) is
    the same comparison of statistics with shuffled tokens.

    Args:
        statistics: of each anchor.
        stability: of all runs.
        anchors: which runs the statistics are of; default the first ones.

    Raises:
        ValueError: statistics that do not fit the runs.
    """
    chosen = list(range(len(statistics))) if anchors is None else list(anchors)
    check_anchors(statistics, stability, chosen)
    names = list(statistics[0].table())
    shape = (len(chosen), len(names))
    medians = torch.full((*shape, 2), torch.nan, dtype=torch.float64)
    effect, lower, upper, p_value = (torch.full(shape, torch.nan, dtype=torch.float64) for _ in range(4))
    stable, unstable, dead = [], [], []
    for a, (run, found) in enumerate(zip(chosen, statistics, strict=True)):
        size = stability.sizes[run]
        live = stability.live[run, :size] & found.live
        groups = [group[run, :size] & live for group in (stability.stable, stability.unstable)]
        stable.append(int(groups[0].sum()))
        unstable.append(int(groups[1].sum()))
        dead.append(size - int(live.sum()))
        for q, values in enumerate(found.table().values()):
            x, y = (values[group & values.isfinite()] for group in groups)
            if len(x) and len(y):
                medians[a, q, 0], medians[a, q, 1] = torch.quantile(x, 0.5), torch.quantile(y, 0.5)
                effect[a, q], lower[a, q], upper[a, q] = auroc(x, y, confidence)
                p_value[a, q] = mannwhitneyu(x.numpy(), y.numpy()).pvalue
        p_value[a] = holm(p_value[a])
    return GroupComparison(names, chosen, stable, unstable, dead, medians, effect, lower, upper, p_value, confidence)


def check_anchors(
    statistics: Sequence[ActivationStatistics], stability: FeatureStability, anchors: Sequence[int]
) -> None:
    """Raises ValueError where the statistics are not those of these runs."""
    runs = len(stability.sizes)
    if not statistics or len(anchors) != len(statistics) or any(not 0 <= run < runs for run in anchors):
        raise ValueError(f"anchors: expected one of 0..{runs - 1} for each of {len(statistics)}, got {list(anchors)}")
    for run, found in zip(anchors, statistics, strict=True):
        if len(found.counts) != stability.sizes[run]:
            raise ValueError(
                f"statistics: expected {stability.sizes[run]} latents for run {run}, got {len(found.counts)}"
            )


def holm(p: Tensor) -> Tensor:
    """Holm's adjusted p-values, [n]: reject those ≤ α and the chance of any false rejection is at most α. NaN stays
    and is not counted."""
    known = (~p.isnan()).nonzero()[:, 0]
    ordered, order = p[known].sort()
    factor = torch.arange(len(known), 0, -1, dtype=p.dtype)
    out = p.clone()
    if len(known):
        out[known[order]] = (ordered * factor).cummax(0).values.clamp(max=1)
    return out


def _number(value: Tensor) -> float | None:
    return None if bool(value.isnan()) else value.item()
