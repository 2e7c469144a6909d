"""How far apart runs are before training: agreement that was there from the start is not a finding."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saekern.matching.all_pairs import AllPairs
from saekern.matching.geometry import side_of
from saekern.matching.pair import Method, match_both, same_space

# Cosines of equal rows miss 1 by a few 1e-7 in float32; independent atoms never come within 1e-5 of each other.
SAME = 1e-5
SHARED = "shared initialisation: D(0) = 0, agreement is not stabilisation"


@dataclass(frozen=True, eq=False)
class InitialDistance:
    """D(0) and D(T), the distances between runs at initialisation and at the end. Made by `initial_distance`."""

    initial: Tensor
    """[P] float64, D(0) of every pair of runs: mean over matched latents of 1 − cosine; 0 if equal but for rounding."""
    final: Tensor | None
    """[P] D(T) over latents that are live in both runs; None when no final dictionaries were given."""
    final_all: Tensor | None
    """[P] D(T) over all latents, dead ones included: dead latents that never left a shared start agree perfectly."""
    method: str
    """"assignment" (one-to-one) or "nearest"."""

    @property
    def shared_pairs(self) -> int:
        """Pairs of runs whose initial dictionaries are the same up to order."""
        return int((self.initial == 0).sum())

    @property
    def shared(self) -> bool:
        return self.shared_pairs > 0

    @property
    def index(self) -> float | None:
        """The stabilisation index (D(0) − D(T)) / D(0) of the mean distances; None if initialisation is shared."""
        if self.final is None or self.shared:
            return None
        return stabilisation_index(self.initial.nanmean().item(), self.final.nanmean().item())

    @property
    def verdict(self) -> str:
        if self.shared:
            return f"shared initialisation in {self.shared_pairs} of {len(self.initial)} pairs: agreement says nothing"
        if self.final is None:
            return "independent initialisation"
        moved = "closer together" if self.final.nanmean() < self.initial.nanmean() else "no closer together"
        return f"independent initialisation; runs end {moved} than they began"

    def to_json(self) -> dict[str, Any]:
        """Means and standard deviations over pairs as plain numbers; None where there is no value."""
        return {
            "method": self.method,
            "pairs": len(self.initial),
            "initial": _summary(self.initial),
            "final": _summary(self.final),
            "final_all": _summary(self.final_all),
            "shared_init": self.shared,
            "shared_pairs": self.shared_pairs,
            "stabilisation_index": self.index,
            "verdict": self.verdict,
        }


def initial_distance(
    initial: Sequence[Any],
    final: Sequence[Any] | None = None,
    *,
    dead: Sequence[Tensor | None] | None = None,
    method: Method = "assignment",
) -> InitialDistance:
    """D(t) = mean over matched latents of (1 − cosine), for every pair of runs, at initialisation and at the end.

    Zero atoms, which some initialisations have, carry no direction and are left out. Runs that end in one place though
    they began apart have stabilised; runs that began in one place have not shown anything.

    Args:
        initial, final: S dictionaries [F, D] (or SAEs) before and after training, in the same order.
        dead: one bool mask [F] (or None) a run: latents dead at the end.
        method: "assignment" as in the source, or "nearest".

    Raises:
        ValueError: a different number of runs before and after, or dictionaries that do not fit.

    Source: Brzozowski & Chung 2026, arXiv 2606.02061.
    """
    if final is not None and len(final) != len(initial):
        raise ValueError(f"final: expected {len(initial)} dictionaries like initial, got {len(final)}")
    start = _distances(initial, method, None)
    start = torch.where(start <= SAME, 0, start)
    if final is None:
        return InitialDistance(start, None, None, method)
    everything = _distances(final, method, None)
    masked = dead is not None and any(mask is not None and bool(mask.any()) for mask in dead)
    return InitialDistance(start, _distances(final, method, dead) if masked else everything, everything, method)


def dictionary_distance(
    a: Any, b: Any, method: Method = "assignment", *, dead: tuple[Tensor | None, Tensor | None] = (None, None)
) -> float:
    """Mean of 1 − cosine over the matched latents of two dictionaries, in 0..2; NaN when none could be matched.

    With "nearest" the mean of both directions, so that d(a, b) = d(b, a).
    """
    sides = same_space(side_of(a, dead[0], "a"), side_of(b, dead[1], "b"))
    forward, backward = match_both(*sides, method)
    return _mean_distance(forward.cosine, backward.cosine)


def stabilisation_index(initial: float, final: float) -> float | None:
    """(D(0) − D(T)) / D(0): 1 when runs end together, 0 when no closer than they began; None when D(0) is 0."""
    return None if initial <= SAME else (initial - final) / initial


def _distances(dictionaries: Sequence[Any], method: Method, dead: Sequence[Tensor | None] | None) -> Tensor:
    pairs = AllPairs(dictionaries, method, dead)
    return torch.tensor(
        [_mean_distance(pair.forward.cosine, pair.backward.cosine) for pair in pairs], dtype=torch.float64
    )


def _mean_distance(forward: Tensor, backward: Tensor) -> float:
    # An assignment has the same pairs from either side, so the mean of both directions is the mean over pairs.
    mean = (forward.to(torch.float64).nanmean() + backward.to(torch.float64).nanmean()).item() / 2
    return 1 - min(mean, 1.0) if mean == mean else mean


def _summary(values: Tensor | None) -> dict[str, float | None] | None:
    if values is None:
        return None
    known = values[values.isfinite()]
    if len(known) == 0:
        return {"mean": None, "sd": None}
    return {"mean": known.mean().item(), "sd": known.std().item() if len(known) > 1 else None}
