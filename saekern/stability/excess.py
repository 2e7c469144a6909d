"""Agreement beyond chance: what a null control leaves of match rates and of single latents."""

from dataclasses import dataclass
from typing import Any

import torch
from scipy.special import betaincinv
from scipy.stats import binom
from torch import Tensor

from saekern.stability.features import FeatureStability
from saekern.stability.nulls import Control


@dataclass(frozen=True, eq=False)
class NullExcess:
    """Feature stability beside a control in which nothing should reappear. Made by `null_excess`."""

    kind: str
    """The control's kind."""
    observed: float
    """Share of (live latent, other run) comparisons that reach θ."""
    chance: float
    """The same share of the control, all draws together."""
    chance_upper: float
    """Upper confidence bound of `chance` (Clopper–Pearson, one-sided, as if the comparisons were independent, which
    those of one latent are not quite): above 0 even where the control had no match."""
    excess: float
    """(observed − chance) / (1 − chance): 0 at chance, 1 when everything reappears; negative below chance."""
    p_value: Tensor
    """[S, F] float64: P(Bin(N, chance_upper) ≥ hits), that a latent of chance level reappears so often; NaN where not
    live."""
    beyond_chance: Tensor
    """[S, F] bool: latents that reappear more often than chance, the false discovery rate of each anchor held at
    `level` over its live latents (Benjamini–Hochberg)."""
    level: float
    """False discovery rate, and 1 − coverage of `chance_upper`."""
    calibrated_threshold: float
    """The cosine that the control's partners exceed with the share `level`: a θ with that rate of chance matches."""

    def to_json(self) -> dict[str, Any]:
        """Plain numbers; "beyond_chance" is the mean over anchors of the share of live latents."""
        live = (~self.p_value.isnan()).sum(1).double()
        share = self.beyond_chance.sum(1)[live > 0] / live[live > 0]
        return {
            "kind": self.kind,
            "observed": self.observed,
            "chance": self.chance,
            "chance_upper": self.chance_upper,
            "excess": self.excess,
            "beyond_chance": share.mean().item() if len(share) else None,
            "level": self.level,
            "multiple_comparisons": "Benjamini-Hochberg over the live latents of each anchor",
            "calibrated_threshold": self.calibrated_threshold,
        }


def null_excess(observed: FeatureStability, control: Control, level: float = 0.05) -> NullExcess:
    """What is left of feature stability when agreement by chance is taken off.

    Ours: the papers compare with nulls by eye. At θ = 0.7 and D ≥ 100 Gaussian dictionaries have no match at all and
    nothing changes; in narrow models, for clustered atoms (`rotated_null`) and for low θ, it does.

    Args:
        control: `random_null`, `rotated_null` or another, at the same θ.
        level: false discovery rate, and the share that the calibrated threshold leaves to chance.

    Raises:
        ValueError: another θ than the control's, a control without comparisons, or a level out of range.
    """
    if not 0 < level < 1:
        raise ValueError(f"level: expected 0 < level < 1, got {level}")
    threshold = control.draws[0].threshold
    if threshold != observed.threshold:
        raise ValueError(f"control: expected the threshold {observed.threshold}, got {threshold}")
    trials = sum(int(draw.live.sum()) * draw.comparisons for draw in control.draws)
    matches = sum(int(draw.hits.sum()) for draw in control.draws)
    compared = int(observed.live.sum()) * observed.comparisons
    if trials == 0 or compared == 0:
        raise ValueError("control: expected live latents in both, got none")
    rate, chance = int(observed.hits.sum()) / compared, matches / trials
    upper = 1.0 if matches == trials else float(betaincinv(matches + 1, trials - matches, 1 - level))
    table = torch.from_numpy(binom.sf(torch.arange(observed.comparisons + 1).numpy() - 1, observed.comparisons, upper))
    p = torch.where(observed.live, table[observed.hits], torch.nan)
    beyond = torch.stack([benjamini_hochberg(line, level) for line in p])
    excess = (rate - chance) / (1 - chance) if chance < 1 else 0.0
    calibrated = control.cosines.quantile(1 - level)
    return NullExcess(control.kind, rate, chance, upper, excess, p, beyond, level, calibrated)


def benjamini_hochberg(p: Tensor, level: float) -> Tensor:
    """Which hypotheses are rejected, bool like p [n]: the k smallest, k largest with p_(k) ≤ k level / n; NaN never."""
    known = (~p.isnan()).nonzero()[:, 0]
    ordered, order = p[known].sort()
    passed = (ordered <= torch.arange(1, len(known) + 1) * level / max(1, len(known))).nonzero()[:, 0]
    out = torch.zeros(len(p), dtype=torch.bool)
    if len(passed):
        out[known[order[: int(passed[-1]) + 1]]] = True
    return out
