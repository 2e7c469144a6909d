"""Arms of an initialisation ablation: recipes that make an untrained SAE from an init seed and rows."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saekern.activations import Rows
from saekern.sae import SAE, ArchetypalSAE, TopKSAE, archetypal_points
from saekern.sae.geometric_median import geometric_median
from saekern.sae.initial import unit_directions

STARTS = ("random", "kmeans-shared", "kmeans-own", "kmeans-half", "data")
NORMALISATIONS = ("l2", "identity")
ENCODER, POINTS, HALF = 1, 2, 3  # streams of an init seed, beside the SAE's own
SAMPLE = 32_768  # rows of the centre, as of TrainConfig.pre_bias_rows


@dataclass(frozen=True)
class Arm:
    """One cell of the ablation."""

    name: str
    """For tables; unique in a study."""
    make: Callable[[int, Rows], SAE]
    """(init_seed, rows) → an untrained SAE."""
    factors: dict[str, Any] = field(default_factory=dict)
    """What distinguishes it, plain values: columns of the table."""


class Pool:
    """Points that several arms and runs ask for, computed once for the rows at hand."""

    def __init__(self) -> None:
        self._rows: Rows | None = None
        self._known: dict[Any, Tensor] = {}

    def get(self, rows: Rows, key: Any, compute: Callable[[], Tensor]) -> Tensor:
        if self._rows is not rows:
            self._rows, self._known = rows, {}
        if key not in self._known:
            self._known[key] = compute()
        return self._known[key]


def arm(
    d_sae: int,
    k: int,
    *,
    name: str | None = None,
    start: str = "random",
    constraint: bool = False,
    normalisation: str = "l2",
    tied: bool = True,
    points: int | None = None,
    points_seed: int = 0,
    relaxation: float = 0.1,
    multiplier: bool = False,
    centre: bool = True,
    base: type[SAE] = TopKSAE,
    pool: Pool | None = None,
    **options: Any,
) -> Arm:
    """A recipe.

    start            "random": unit directions; with the constraint, Dirichlet W over shared k-means points.
                     "kmeans-shared": centroids of one k-means, of `points_seed`, in every run: D(0) = 0.
                     "kmeans-own": centroids of a k-means of the run's own seed.
                     "kmeans-half": of one seed, on the run's own random half of the rows.
                     "data": distinct rows, drawn by the run's seed.
    constraint       RA-SAE: atoms W C + Λ, C the points; W starts at the points themselves ("eye").
    normalisation    "l2": decoder rows of norm 1 throughout; "identity": free, and centroids and rows keep their
                     length. With the constraint atoms have no norm of their own: only "identity".
    tied             the encoder starts along the atoms; False: along random directions of the run's seed, as long.

    Args:
        points: n', how many there are; None is d_sae. With fewer, the other atoms are zero at first.
        relaxation, multiplier: of the constraint; see ArchetypalSAE.
        centre: points minus the geometric median of the rows, from which training starts b_dec. False for b_dec = 0.
        base: the class, TopKSAE's constructor and parameters assumed; `options` are its other arguments.
        pool: shared by arms, so that each k-means runs once.
    """
    if start not in STARTS:
        raise ValueError(f"start: expected one of {', '.join(STARTS)}, got {start!r}")
    if normalisation not in NORMALISATIONS:
        raise ValueError(f"normalisation: expected one of {', '.join(NORMALISATIONS)}, got {normalisation!r}")
    if constraint and normalisation != "identity":
        raise ValueError("normalisation: expected 'identity' with the constraint, whose atoms are computed, got 'l2'")
    count, kept = points or d_sae, pool or Pool()
    kind = base if normalisation == "l2" or constraint else _free(base)  # type: ignore[arg-type]
    random = start == "random"

    def make(init_seed: int, rows: Rows) -> SAE:
        if constraint:
            sae: SAE = ArchetypalSAE(
                rows.width,
                d_sae,
                points=_points(kept, rows, "kmeans-shared" if random else start, count, points_seed, init_seed, centre),
                relaxation=relaxation,
                base=kind,
                base_args={"k": k, **options},
                init="dirichlet" if random else "eye",
                projection="normalize",
                multiplier=multiplier,
                init_seed=init_seed,
            )
        else:
            sae = kind(rows.width, d_sae, k=k, init_seed=init_seed, **options)  # type: ignore[call-arg]
            if not random:
                _start_at_(sae, _points(kept, rows, start, count, points_seed, init_seed, centre), normalisation, k)
        if not tied:
            _untie_(sae, init_seed)
        return sae

    factors = {"start": start, "constraint": constraint, "normalisation": normalisation, "tied": tied}
    title = f"{start}, {'constraint' if constraint else normalisation}, {'tied' if tied else 'untied'}"
    return Arm(name or title, make, factors)


def initialisation_grid(d_sae: int, k: int, **options: Any) -> list[Arm]:
    """Every start × {l2, identity, constraint} × {tied, untied}: 30 arms; `options` go to `arm`."""
    pool = Pool()
    kinds = [("l2", False), ("identity", False), ("identity", True)]
    return [
        arm(d_sae, k, start=start, normalisation=norm, constraint=constraint, tied=tied, pool=pool, **options)
        for start, (norm, constraint), tied in product(STARTS, kinds, (True, False))
    ]


def _points(pool: Pool, rows: Rows, start: str, count: int, seed: int, init_seed: int, centre: bool) -> Tensor:
    """[count, D]"""

    def compute() -> Tensor:
        if start == "data":
            found = archetypal_points(rows, count, "data", seed=derived(init_seed, POINTS))
        elif start == "kmeans-own":
            found = archetypal_points(rows, count, seed=derived(init_seed, POINTS))
        elif start == "kmeans-half":
            found = archetypal_points(Half(rows, derived(init_seed, HALF)), count, seed=seed)
        else:
            found = archetypal_points(rows, count, seed=seed)
        return found - _centre(pool, rows) if centre else found

    own = None if start == "kmeans-shared" else init_seed
    return pool.get(rows, (start, count, seed, own, centre), compute)


def _centre(pool: Pool, rows: Rows) -> Tensor:
    sample = min(SAMPLE, len(rows))
    spaced = torch.arange(sample) * len(rows) // sample
    return pool.get(rows, "centre", lambda: geometric_median(rows.take(spaced)))


class Half:
    """A random half of the rows, in order."""

    def __init__(self, rows: Rows, seed: int):
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
        self.rows, self.width = rows, rows.width
        self.indices = order[: max(1, len(rows) // 2)].sort().values

    def __len__(self) -> int:
        return len(self.indices)

    def take(self, indices: Tensor) -> Tensor:
        return self.rows.take(self.indices[indices])


@torch.no_grad()
def _start_at_(sae: SAE, points: Tensor, normalisation: str, k: int) -> None:
    """Decoder rows at the points, the encoder tied to them: along each atom, and for atoms with a length of their own
    ÷ (‖d‖² √k), as in ArchetypalSAE, so that the first x̂ has the length of x."""
    atoms = points.new_zeros(sae.d_sae, sae.d_in)
    atoms[: len(points)] = points[: sae.d_sae]
    norm = torch.linalg.vector_norm(atoms, dim=1, keepdim=True)
    live = norm > 0
    unit = atoms / torch.where(live, norm, 1)
    if normalisation == "l2":
        atoms, scale = unit, torch.ones_like(norm)
    else:
        scale = 1 / (torch.where(live, norm, 1) * k**0.5)
    mean = scale[live].mean() if bool(live.any()) else 1.0
    sae.W_dec.copy_(atoms)
    sae.W_enc.T.copy_(torch.where(live, unit * scale, sae.W_enc.T * mean))  # without an atom: its random direction


@torch.no_grad()
def _untie_(sae: SAE, init_seed: int) -> None:
    length = torch.linalg.vector_norm(sae.W_enc, dim=0).mean()
    sae.W_enc.T.copy_(unit_directions(sae.d_sae, sae.d_in, derived(init_seed, ENCODER), sae.W_enc.device) * length)


@cache
def _free(base: type[SAE]) -> type[SAE]:
    """The class without its rule that decoder rows have norm 1."""
    return type(f"Free{base.__name__}", (base,), {"unit_norm_rows": (), "__module__": __name__})


def derived(seed: int, stream: int) -> int:
    return int(np.random.SeedSequence([seed, stream]).generate_state(1, np.uint64)[0]) >> 1
