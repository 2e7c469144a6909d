"""What `trajectories` finds, and what it says of itself."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saekern.stability.initialisation import SAME, SHARED
from saekern.stability.jackknife import Estimate, interval, leave_one_run_out, over_pairs, over_runs, plain


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One geometry of S runs at T steps; P pairs of runs in the order of itertools.combinations."""

    steps: list[int]
    """[T], the first 0."""
    distance: Tensor
    """[T, P] float64, D(t): mean of 1 − cosine over latents live at the end in both runs, matched one-to-one."""
    distance_all: Tensor
    """[T, P] D(t) over all latents, dead ones included: dead latents that never left a shared start agree perfectly.
    At step 0 it is exactly 0 where runs are equal but for rounding."""
    same: Tensor
    """[P] share of the atoms that are the same in both runs at step 0, dead or not: 1 where all are shared, 0 where
    initialisations are independent, between where runs draw on a common pool such as rows of the data."""
    movement: Tensor
    """[T, S] M(t): mean of 1 − cosine between a run's live latents and itself at step 0, matched one-to-one."""
    null: Tensor
    """[T, N] D(t) of N pairs of which one run is turned by a random rotation: chance, at this shape."""
    birth: Tensor
    """[S, F] int64: the first step from which on the latent stays within θ of its own final direction; −1 if dead."""
    locked: Tensor
    """[T, S, F] int16: other runs where the latent has at t, and keeps to the end, its final partner at ≥ θ."""
    null_locked: Tensor
    """[T] share of live latents so locked in to a rotated run: chance."""
    live: Tensor
    """[S, F] bool: not dead at the end, and not zero then."""
    threshold: float
    """θ."""
    confidence: float
    """Coverage of the intervals."""

    @property
    def runs(self) -> int:
        return self.movement.shape[1]

    @property
    def between(self) -> Estimate:
        """D(t) [T], its mean over pairs and the jackknife interval over runs."""
        return over_pairs(self.distance, self.runs, self.confidence)

    @property
    def between_all(self) -> Estimate:
        """As `between`, dead latents included."""
        return over_pairs(self.distance_all, self.runs, self.confidence)

    @property
    def moved(self) -> Estimate:
        """M(t) [T], its mean over runs and Student's interval."""
        return over_runs(self.movement, self.confidence)

    @property
    def index(self) -> Estimate | None:
        """The stabilisation index (D(0) − D(T)) / D(0) of mean distances over the latents live at the end, jackknifed
        over runs; None where a pair begins at D(0) = 0. Latents that end live in one run may have had their like among
        those that end dead in the other: D(0) is then large for that reason, and `index_all` must agree."""
        return self._index(self.distance)

    @property
    def index_all(self) -> Estimate | None:
        """The same over all latents, dead ones where they were left."""
        return self._index(self.distance_all)

    def _index(self, distance: Tensor) -> Estimate | None:
        if bool((self.distance_all[0] == 0).any()) or float(distance[0].nanmean()) <= SAME:
            return None
        whole, without = leave_one_run_out(distance, self.runs)  # [T], [T, S]
        return interval(1 - whole[-1] / whole[0], 1 - without[-1] / without[0], self.confidence)

    def lock_in(self, share: float = 0.5) -> Tensor:
        """[S, F] int64: the first step by which the latent has locked in to at least `share` of the other runs; −1
        where it never does."""
        if not 0 < share <= 1:
            raise ValueError(f"share: expected 0 < share <= 1, got {share}")
        needed = math.ceil(share * (self.runs - 1) - 1e-9)  # 1e-9: 0.1 · 30 is 3, not 3.000…4
        enough = self.locked >= needed  # once True, it stays: locked never falls with t
        first = torch.tensor(self.steps)[enough.to(torch.int8).argmax(0)]
        return torch.where(enough[-1], first, -1)

    @property
    def locked_share(self) -> Tensor:
        """[T] float64: share of (live latent, other run) that has locked in; at the end the share that matches."""
        return self.locked.sum((1, 2)).double() / (int(self.live.sum()) * (self.runs - 1))

    def to_json(self) -> dict[str, Any]:
        """Means with intervals at every step, as plain numbers; None where there is no value."""
        index, index_all, born = self.index, self.index_all, self.birth[self.live].double()
        levels = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
        ages = torch.quantile(born, levels, interpolation="lower") if len(born) else torch.full((3,), torch.nan)
        return {
            "steps": self.steps,
            "runs": self.runs,
            "live": self.live.sum(1).tolist(),
            "threshold": self.threshold,
            "interval": f"delete-one-run jackknife, {self.confidence:.0%}; M: Student's t over runs",
            "distance": self.between.to_json(),
            "distance_all": self.between_all.to_json(),
            "null": plain(self.null.mean(1)),
            "movement": self.moved.to_json(),
            "same_at_start": plain(self.same.mean()),
            "stabilisation_index": None if index is None else index.to_json(),
            "stabilisation_index_all": None if index_all is None else index_all.to_json(),
            "birth": dict(zip(("10%", "50%", "90%"), plain(ages), strict=True)),  # type: ignore[arg-type]
            "locked": plain(self.locked_share),
            "null_locked": plain(self.null_locked),
        }


@dataclass(frozen=True, eq=False)
class Trajectories:
    """The same runs in every geometry. Made by `trajectories`."""

    geometries: dict[str, Trajectory]
    """"raw", and "centered" and "whitened" where the data's mean and covariance were given."""
    shared_pairs: Tensor
    """[P] bool: pairs with D(0) = 0 in every geometry, over all latents."""
    steps: list[int]
    """[T]."""
    runs: int
    """S."""

    @property
    def shared(self) -> bool:
        """Whether any pair of runs began at the same dictionary, up to order."""
        return bool(self.shared_pairs.any())

    @property
    def verdict(self) -> str:
        """In words; from "centered" where there is one, as an offset of the atoms is no agreement."""
        if self.shared:
            some = (
                ""
                if self.shared_pairs.all()
                else f" ({int(self.shared_pairs.sum())} of {len(self.shared_pairs)} pairs)"
            )
            same = bool((self.geometries["raw"].distance_all == 0).all())
            return SHARED + some + ("; the runs are identical at every step" if same else "")
        name = "centered" if "centered" in self.geometries else "raw"
        one = self.geometries[name]
        partly = float(one.same.nanmean())
        some_shared = f"{partly:.0%} of the atoms are shared at step 0; "  # two k-means may share one by chance
        prefix = some_shared if partly >= 0.005 else "independent initialisation: "
        index, index_all = one.index, one.index_all
        if index is None or index_all is None:
            return f"{prefix}D(0) = 0 in {name} cosine, which says nothing"
        if not index.low.isfinite():
            return (
                f"{prefix}stabilisation index {float(index.mean):.2f} ({name} cosine), of too few runs for an interval"
            )
        ends = f"{_shown(index)} over live latents, {_shown(index_all)} over all ({name} cosine)"
        if index.low > 0 and index_all.low > 0:
            return f"{prefix}runs end closer together than they began, stabilisation index {ends}"
        if index.high < 0 and index_all.high < 0:
            return f"{prefix}runs end farther apart than they began, stabilisation index {ends}"
        return f"{prefix}no stabilisation seen, index {ends}"

    def to_json(self) -> dict[str, Any]:
        return {
            "shared_init": self.shared,
            "shared_pairs": int(self.shared_pairs.sum()),
            "pairs": len(self.shared_pairs),
            "verdict": self.verdict,
            "geometries": {name: one.to_json() for name, one in self.geometries.items()},
        }

    def arrays(self) -> dict[str, Tensor]:
        """The tensors of every geometry, by "geometry.name", as a safetensors or npz file takes them."""
        names = ("distance", "distance_all", "same", "movement", "null", "birth", "locked", "null_locked")
        return {f"{g}.{name}": getattr(one, name) for g, one in self.geometries.items() for name in names}


def _shown(index: Estimate) -> str:
    return f"{float(index.mean):.2f} [{float(index.low):.2f}, {float(index.high):.2f}]"
