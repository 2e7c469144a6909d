"""Which latents are masked, in which order: groups, equal counts and equal masses."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

ARMS = ("stable", "unstable", "random", "unstable_equal_mass", "random_equal_mass")
TOLERANCE = 0.05
"""An equal mass is one within 5 % of what it should equal, if the group cannot come nearer."""


@dataclass(frozen=True, eq=False)
class MaskPlan:
    """Nested masks: a latent masked at one level is masked at all later ones. Made by `mask_plan`."""

    arms: tuple[str, ...]
    """The A kinds: "stable", "unstable" and "random" (any live latent) mask m latents at level m; "unstable_equal_mass"
    and "random_equal_mass" as many as have the mass of the m stable ones of the same draw."""
    levels: list[int]
    """[L] the m, ascending."""
    when: Tensor
    """[A, R, F] int64: the number of the level from which on a latent is masked; L for never."""
    masked: Tensor
    """[A, R, L] int64: latents masked; −1 where the group has not enough of them, or of mass."""
    mass: Tensor
    """[A, R, L] float64: share of the mass of all latents that is masked; NaN there."""
    groups: dict[str, int]
    """Latents of "stable", "unstable" and "random"."""
    group_mass: dict[str, float]
    """Their shares of the mass of all latents."""
    dead: int
    """Latents that are not live, and in no group."""

    def cells(self) -> Iterator[tuple[int, int]]:
        """Every arm and draw."""
        return ((arm, draw) for arm in range(len(self.arms)) for draw in range(self.masked.shape[1]))


def mask_plan(
    mass: Tensor,
    stable: Tensor,
    unstable: Tensor,
    live: Tensor,
    *,
    levels: Sequence[int] | None = None,
    draws: int = 5,
    seed: int = 0,
) -> MaskPlan:
    """Random orders of each group, and where the levels cut them.

    Args:
        mass: [F], mean |z| of each latent; the others as in `masking`.

    Raises:
        ValueError: as `masking`.
    """
    latents = len(mass)
    for name, mask in (("stable", stable), ("unstable", unstable), ("live", live)):
        if mask.dtype != torch.bool or list(mask.shape) != [latents]:
            raise ValueError(f"{name}: expected bool [{latents}], got {mask.dtype} {list(mask.shape)}")
    if draws < 1:
        raise ValueError(f"draws: expected draws >= 1, got {draws}")
    live, mass = live.cpu(), mass.double().cpu()
    groups = {"stable": stable.cpu() & live, "unstable": unstable.cpu() & live, "random": live}
    sizes = {name: int(mask.sum()) for name, mask in groups.items()}
    for name, size in sizes.items():
        if size == 0:
            raise ValueError(f"{name if name != 'random' else 'live'}: expected at least one live latent, got none")
    if bool((groups["stable"] & groups["unstable"]).any()):
        raise ValueError("stable and unstable: expected no latent in both")
    cuts = _levels(levels, sizes)
    when = torch.full((len(ARMS), draws, latents), len(cuts))
    masked = torch.full((len(ARMS), draws, len(cuts)), -1)
    share = torch.full(masked.shape, torch.nan, dtype=torch.float64)
    for draw in range(draws):
        orders = {name: _shuffled(mask, seed, draw, i) for i, (name, mask) in enumerate(groups.items())}
        sums = {name: _cumulative(mass[order]) for name, order in orders.items()}
        for i, arm in enumerate(ARMS):
            name = arm.removesuffix("_equal_mass")
            counts = [m if m <= sizes[name] else -1 for m in cuts]
            if name != arm:
                wanted = [float(sums["stable"][m]) if m <= sizes["stable"] else torch.inf for m in cuts]
                counts = [_count(sums[name], target) for target in wanted]
            done = 0
            for level, count in enumerate(counts):
                if count >= 0:
                    when[i, draw, orders[name][done:count]] = level
                    share[i, draw, level] = sums[name][count]
                    done = max(done, count)
            masked[i, draw] = torch.tensor(counts)
    everything = float(mass.sum()) or float("nan")
    held = {name: float(mass[mask].sum()) / everything for name, mask in groups.items()}
    return MaskPlan(ARMS, cuts, when, masked, share / everything, sizes, held, int((~live).sum()))


def _levels(levels: Sequence[int] | None, sizes: dict[str, int]) -> list[int]:
    largest = sizes["random"]
    if levels is None:
        powers = [1 << i for i in range(largest.bit_length())]
        return sorted({*powers, *sizes.values()})
    if not levels or min(levels) < 0 or max(levels) > largest:
        raise ValueError(f"levels: expected numbers from 0 to {largest} (the live latents), got {list(levels)}")
    return sorted(set(levels))


def _shuffled(mask: Tensor, seed: int, draw: int, group: int) -> Tensor:
    state = np.random.SeedSequence([seed, draw, group]).generate_state(1, np.uint64)[0]
    members = mask.nonzero()[:, 0]
    return members[torch.randperm(len(members), generator=torch.Generator().manual_seed(int(state) >> 1))]


def _cumulative(mass: Tensor) -> Tensor:
    """[n + 1]: the mass of the first 0 … n."""
    return torch.cat([mass.new_zeros(1), mass.cumsum(0)])


def _count(sums: Tensor, target: float) -> int:
    """How many of the order come nearest to a mass; −1 if all of them have too little."""
    if target > float(sums[-1]):
        return len(sums) - 1 if target <= float(sums[-1]) * (1 + TOLERANCE) else -1
    above = int(torch.searchsorted(sums, target))
    return above if above == 0 or float(sums[above]) - target < target - float(sums[above - 1]) else above - 1
