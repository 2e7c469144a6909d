"""What a reconstruction and a language model lose when stable, unstable or any latents are masked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saekern.activations import Rows
from saekern.activations.harvest import activations
from saekern.activations.hugging_face import hooked
from saekern.evaluation.language_model import losses_by_sequence
from saekern.evaluation.rows import Variance
from saekern.stability.contributions import Blocks, activation_mass, nested, reconstructed, reconstructions
from saekern.stability.interval import crossed_interval
from saekern.stability.mask_plan import ARMS, MaskPlan, mask_plan


class Estimate(NamedTuple):
    """A mean with the ends of its interval, [L] each, NaN where a group has not enough latents."""

    mean: Tensor
    lower: Tensor
    upper: Tensor


@dataclass(frozen=True, eq=False)
class Masking:
    """Losses against the number of masked latents. Made by `masking`. A arms, R draws, L levels.

    Every mask is seen by the same rows and sequences, so that differences of arms are paired.
    """

    plan: MaskPlan
    """Which latents each arm masks."""
    ev: float
    """Explained variance with nothing masked."""
    ev_drop: Tensor
    """[A, R, L, blocks] float64: what a block of consecutive rows adds to the loss of EV; their mean is EV − EV(M)."""
    ce: float | None
    """Next-token cross entropy with the unmasked SAE in place, in nats; None without a model."""
    ce_rise: Tensor | None
    """[A, R, L, sequences] float64: by how much each sequence's loss rises above that of the unmasked SAE."""
    error_term: bool
    """Whether the model got x − (x̂ − x̂_M), the SAE's error kept, or x̂_M."""
    rows: int
    """Rows of the explained variance."""
    confidence: float
    """Coverage of the intervals, each by itself: levels and arms are not corrected for being many."""

    def curve(self, arm: str, metric: str = "ev") -> Estimate:
        """EV − EV(M), or CE(M) − CE for metric "ce", of each level: mean and interval over draws and blocks of rows (or
        sequences) together, `interval.crossed_interval`."""
        return Estimate(*crossed_interval(self._of(metric)[self._index(arm)], self.confidence))

    def difference(self, a: str, b: str, metric: str = "ev") -> Estimate:
        """What arm a loses more than arm b, paired by draw, level, and block of rows or sequence."""
        values = self._of(metric)
        return Estimate(*crossed_interval(values[self._index(a)] - values[self._index(b)], self.confidence))

    def to_json(self) -> dict[str, Any]:
        """Means over draws and intervals as plain numbers; None where a group has not enough latents."""
        metrics = ["ev"] + ([] if self.ce is None else ["ce"])
        plan = self.plan
        arms = {
            arm: {
                "masked": _means(plan.masked[i].double().where(plan.masked[i] >= 0, torch.nan)),
                "mass": _means(plan.mass[i]),
            }
            | {metric: _plain(self.curve(arm, metric)) for metric in metrics}
            for i, arm in enumerate(plan.arms)
        }
        pairs = (("stable", "unstable"), ("stable", "random"), ("unstable", "random"))
        equal = (("stable", "unstable_equal_mass"), ("stable", "random_equal_mass"))
        differences = {
            f"{a} - {b}": {metric: _plain(self.difference(a, b, metric)) for metric in metrics}
            for a, b in pairs + equal
        }
        return {
            "levels": plan.levels,
            "draws": plan.masked.shape[1],
            "groups": plan.groups,
            "group_mass": plan.group_mass,
            "dead": plan.dead,
            "rows": self.rows,
            "ev": self.ev,
            "ce": self.ce,
            "error_term": self.error_term,
            "confidence": self.confidence,
            "comparisons": len(differences) * len(plan.levels) * len(metrics),
            "arms": arms,
            "differences": differences,
        }

    def _of(self, metric: str) -> Tensor:
        values = {"ev": self.ev_drop, "ce": self.ce_rise}.get(metric)
        if values is None:
            known = "'ev'" if self.ce is None else "'ev' or 'ce'"
            raise ValueError(f"metric: expected {known}, got {metric!r}")
        return values.movedim(2, 1)  # [A, L, R, units]

    def _index(self, arm: str) -> int:
        if arm not in self.plan.arms:
            raise ValueError(f"arm: expected one of {', '.join(ARMS)}, got {arm!r}")
        return self.plan.arms.index(arm)


@torch.no_grad()
def masking(
    sae: Any,
    rows: Rows,
    stable: Tensor,
    unstable: Tensor,
    *,
    live: Tensor | None = None,
    levels: Sequence[int] | None = None,
    draws: int = 5,
    seed: int = 0,
    model: Any = None,
    hook: str | None = None,
    sequences: Tensor | None = None,
    exclude_bos: bool = True,
    error_term: bool = False,
    blocks: int = 50,
    batch: int = 4096,
    confidence: float = 0.95,
) -> Masking:
    """EV and cross entropy with the first m latents of a random order masked: z_i = 0 after the selection, which is not
    repeated. The orders are drawn anew `draws` times, of five kinds (`mask_plan`): m stable, unstable or any live
    latents, and as many unstable or live ones as have the mass of the m stable ones. A latent's mass is its mean |z|
    over `rows`. Unstable latents fire less, so that equal counts favour them: read the equal masses.

    Rows are encoded once, for the masses, and once for all masks. The model runs once for each mask.

    Args:
        stable, unstable: [F] bool, a run's rows of `FeatureStability.stable` and `.unstable`.
        live: [F] bool, the latents that may be masked; None: those that fire on `rows`.
        levels: the m; None: powers of two and the sizes of the groups. A group of fewer than m latents has NaN there.
        model, hook, sequences: as in `evaluation.cross_entropy`; all or none. Those need not be the texts of `rows`.
        error_term: give the model x − (x̂ − x̂_M) in place of x̂_M.
        blocks: parts of consecutive rows, the units of the interval of EV; at most the number of rows.

    Raises:
        ValueError: masks that do not fit, an empty group, levels out of range, or a model without its texts.

    Source: the experiment of Gerasimov et al. 2026 (arXiv 2606.12138), who mask four times as many unstable latents to
    match frequency. Exact matching by mass, the draws, the baselines and the intervals are ours.
    """
    if len({model is None, hook is None, sequences is None}) != 1:
        raise ValueError("model, hook and sequences: expected all three, or none of them")
    mass, counts = activation_mass(sae, rows, batch)
    plan = mask_plan(
        mass, stable, unstable, counts > 0 if live is None else live, levels=levels, draws=draws, seed=seed
    )
    error, drop = _explained(sae, rows, plan, min(blocks, len(rows)), batch)
    ce, rise = None, None
    if model is not None and hook is not None and sequences is not None:
        ce, rise = _cross_entropies(sae, model, hook, sequences, plan, exclude_bos, error_term)
    return Masking(plan, 1 - error, drop, ce, rise, error_term, len(rows), confidence)


def _explained(sae: Any, rows: Rows, plan: MaskPlan, blocks: int, batch: int) -> tuple[float, Tensor]:
    units, variance, plain = Blocks(len(rows), blocks), Variance(rows.width), torch.zeros(blocks, dtype=torch.float64)
    masked = torch.zeros(*plan.masked.shape, blocks, dtype=torch.float64)
    for given in reconstructions(sae, rows, batch):
        variance.add(given.x.cpu())
        error = given.x.double() - given.x_hat
        plain += units.sums(error.square().sum(1), given.start)
        for arm, draw in plan.cells():
            taken = nested(sae, given, plan.when[arm, draw], len(plan.levels))
            squares = torch.stack([(error + part).square().sum(1) for part in taken])  # [L, B]
            masked[arm, draw] += units.sums(squares, given.start)
    total = variance.total() or float("nan")  # equal rows have no variance to explain
    drop = (masked - plain) * (blocks / total)
    return float(plain.sum()) / total, torch.where(plan.masked[..., None] >= 0, drop, torch.nan)


def _cross_entropies(
    sae: Any, model: Any, hook: str, sequences: Tensor, plan: MaskPlan, exclude_bos: bool, error_term: bool
) -> tuple[float, Tensor]:
    """CE of the unmasked SAE, and [A, R, L, sequences] above it. 32 sequences at a time."""
    plain, rises = [], []
    for tokens in sequences.split(32):
        x = activations(hooked(model), hook, tokens)  # [B, T, D]
        given = reconstructed(sae, x.flatten(0, 1))

        def loss(replaced: Tensor, tokens: Tensor = tokens, x: Tensor = x) -> Tensor:
            return losses_by_sequence(model, hook, tokens, replaced.reshape(x.shape), exclude_bos=exclude_bos)

        unmasked = loss(given.x_hat)
        whole = given.x.double() if error_term else given.x_hat
        reference = loss(whole) if error_term else unmasked
        rise = torch.full((*plan.masked.shape, len(tokens)), torch.nan, dtype=torch.float64)
        for arm, draw in plan.cells():
            for level, part in enumerate(nested(sae, given, plan.when[arm, draw], len(plan.levels))):
                if plan.masked[arm, draw, level] >= 0:
                    rise[arm, draw, level] = loss(whole - part) - reference
        plain.append(unmasked)
        rises.append(rise)
    return float(torch.cat(plain).mean()), torch.cat(rises, -1)


def _means(values: Tensor) -> list[float | None]:
    return [None if value != value else value for value in values.double().mean(0).tolist()]


def _plain(estimate: Estimate) -> dict[str, list[float | None]]:
    return {
        name: [None if value != value else value for value in values.tolist()]
        for name, values in estimate._asdict().items()
    }
