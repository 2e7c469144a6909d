"""Runs over the course of training: distances between them, movement from the start, and when each latent is found."""

from collections.abc import Callable, Sequence
from itertools import combinations, pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from saekern.matching import Matching, center, match, whiten
from saekern.matching.geometry import as_dictionary, live_rows
from saekern.stability.initialisation import SAME
from saekern.stability.nulls import random_rotation
from saekern.stability.trajectory import Trajectories, Trajectory

Move = Callable[[Any], Tensor]  # a dictionary or SAE -> [F, D] in some geometry


def trajectories(
    snapshots: Sequence[Sequence[Any]],
    steps: Sequence[int],
    *,
    dead: Sequence[Tensor | None] | None = None,
    mean: Tensor | Literal["atoms"] | None = None,
    covariance: Tensor | None = None,
    threshold: float = 0.7,
    null_pairs: int = 2,
    seed: int = 0,
    confidence: float = 0.95,
) -> Trajectories:
    """D(t) between runs, M(t) from the start, and birth and lock-in of each latent, from snapshots of S runs.

    D_ij(t) = mean over matched latents of 1 − cos(d_i(t), d_j(t)), one-to-one by assignment; M_s(t) the same between
    run s at t and itself at step 0. D(0) = 0 means that runs share their initialisation: their later agreement is
    descent, and no stabilisation index is given.

    birth    the first snapshot from which on the latent stays within θ of its own final direction.
    lock-in  the first snapshot from which on its partner in another run is the final one, with cosine ≥ θ.

    Each matching starts from the prices of its neighbour in time. Memory: the snapshots of one run, one dictionary of
    another, and T·S·F bytes twice; a lazy sequence is read about S/2 times.

    Args:
        snapshots: S ≥ 2 runs, each T dictionaries [F, D] or SAEs, all of one shape.
        steps: T ascending steps, the first 0: the initial state.
        dead: one bool mask [F] (or None) a run: latents dead at the end. They are set aside at every t, except in
            `distance_all`, and in whether an initialisation is shared.
        mean: adds the geometry "centered". "atoms": each dictionary without the mean of its own non-zero atoms,
            whatever these are measured in. [D]: without this, for atoms that lie in data space; taken from shorter
            ones, such as unit atoms beside rows of norm 10, it is an offset that makes all of them alike.
        covariance: [D, D] of the activations; adds "whitened", which is centred as well.
        threshold: θ of birth and lock-in.
        null_pairs: pairs whose second run is turned by a random rotation, at every t: what D(t) and lock-in are by
            chance among dictionaries of this shape.
        seed: of the rotations.
        confidence: of the intervals over runs.

    Raises:
        ValueError: fewer than two runs, steps that do not begin at 0, or numbers of snapshots or shapes that differ.

    The diagnostic is Brzozowski & Chung's (2026, arXiv 2606.02061); the definitions are ours, their body being
    unavailable to us.
    """
    runs, shape = len(snapshots), _shape(snapshots, steps)
    dead = [None] * runs if dead is None else list(dead)
    if len(dead) != runs:
        raise ValueError(f"dead: expected {runs} masks, one a run, got {len(dead)}")
    if not -1 <= threshold <= 1 or not 0 < confidence < 1 or null_pairs < 0:
        got = f"{threshold}, {confidence} and {null_pairs}"
        raise ValueError(f"expected threshold in -1..1, confidence in 0..1 and null_pairs >= 0, got {got}")
    live = torch.stack(
        [live_rows(as_dictionary(run[-1]), mask).cpu() for run, mask in zip(snapshots, dead, strict=True)]
    )
    rotations = _rotations(null_pairs, runs, shape[1], seed)
    found = {
        name: _Follow(snapshots, len(steps), move, dead, live, threshold).all(list(steps), rotations, confidence)
        for name, move in _geometries(mean, covariance).items()
    }
    # An offset a thousand times the spread brings raw distances of independent runs below rounding; not all of them.
    shared = torch.stack([one.distance_all[0] == 0 for one in found.values()]).all(0)
    return Trajectories(found, shared, list(steps), runs)


class _Follow:
    """One geometry."""

    def __init__(
        self,
        snapshots: Sequence[Sequence[Any]],
        count: int,
        move: Move,
        dead: Sequence[Tensor | None],
        live: Tensor,
        threshold: float,
    ):
        self.snapshots, self.count, self.move, self.dead = snapshots, count, move, dead
        self.live, self.threshold = live, threshold
        self.runs, self.latents = live.shape

    def all(self, steps: list[int], rotations: list[tuple[int, int, Tensor]], confidence: float) -> Trajectory:
        count, runs = self.count, self.runs
        pairs = {pair: column for column, pair in enumerate(combinations(range(runs), 2))}
        distance = torch.full((count, len(pairs)), torch.nan, dtype=torch.float64)
        distance_all, same = distance.clone(), torch.full((len(pairs),), torch.nan, dtype=torch.float64)
        movement = torch.full((count, runs), torch.nan, dtype=torch.float64)
        null = torch.full((count, len(rotations)), torch.nan, dtype=torch.float64)
        null_locked = null.clone()
        locked = torch.zeros(count, runs, self.latents, dtype=torch.int16)
        birth = torch.full((runs, self.latents), -1)
        for i in range(runs):
            rows = [self.move(snapshot) for snapshot in self.snapshots[i]]
            movement[:, i] = self._movement(rows, self.dead[i])
            born = self._birth(rows)
            birth[i] = torch.where(self.live[i], torch.tensor(steps)[born], -1)
            for j in range(i + 1, runs):
                column = pairs[i, j]
                other = self._at(j)
                masks = (self.dead[i], self.dead[j])
                distance[:, column], held, final, every = self._pair(rows, other, masks)
                if any(mask is not None and bool(mask.any()) for mask in masks):
                    distance_all[:, column], _, _, every = self._pair(rows, other, (None, None))
                else:
                    distance_all[:, column] = distance[:, column]
                same[column] = every
                locked[:, i] += held
                where, t = final.clamp(min=0).expand_as(held), torch.arange(count)[:, None].expand_as(held)
                locked[t[held], j, where[held]] += 1  # one-to-one: no index twice at one t
            for draw, (a, b, rotation) in enumerate(rotations):
                if a == i:
                    turned = self._at(b, rotation)
                    null[:, draw], held, _, _ = self._pair(rows, turned, (self.dead[a], self.dead[b]))
                    null_locked[:, draw] = held.sum(1) / self.live[a].sum()
        distance_all[0] = torch.where(distance_all[0] <= SAME, 0, distance_all[0])
        return Trajectory(
            steps,
            distance,
            distance_all,
            same,
            movement,
            null,
            birth,
            locked,
            null_locked.mean(1),
            self.live,
            self.threshold,
            confidence,
        )

    def _at(self, run: int, rotation: Tensor | None = None) -> Callable[[int], Tensor]:
        def at(t: int) -> Tensor:
            rows = self.move(self.snapshots[run][t])
            return rows if rotation is None else (rows.double() @ rotation.to(rows.device)).to(rows.dtype)

        return at

    def _pair(
        self, rows: list[Tensor], other: Callable[[int], Tensor], masks: tuple[Tensor | None, Tensor | None]
    ) -> tuple[Tensor, Tensor, Tensor, float]:
        """D(t) [T], who is locked in at t [T, F] bool, the final partners [F], and the share that is equal at step 0.
        Backwards in time: lock-in is about the end."""
        distance = torch.empty(self.count, dtype=torch.float64)
        held = torch.zeros(self.count, self.latents, dtype=torch.bool)
        found: Matching | None = None
        for t in reversed(range(self.count)):
            found = match(rows[t], other(t), dead=masks, start=found)
            distance[t] = _distance(found.cosine)
            cosine, index = found.cosine.cpu(), found.index.cpu()
            if t == self.count - 1:
                final, stays = index, torch.ones_like(index, dtype=torch.bool)
            stays &= (cosine >= self.threshold) & (index == final)  # NaN, without a partner, is not
            held[t] = stays
        known = cosine[~cosine.isnan()].double()
        return distance, held, final, float((known >= 1 - SAME).double().mean())

    def _movement(self, rows: list[Tensor], dead: Tensor | None) -> Tensor:
        distance, found = torch.empty(self.count, dtype=torch.float64), None
        for t in range(self.count):
            found = match(rows[t], rows[0], dead=(dead, dead), start=found)
            distance[t] = _distance(found.cosine)
        return distance

    def _birth(self, rows: list[Tensor]) -> Tensor:
        """[F] position of the snapshot of each latent's birth."""
        stays = torch.ones(self.latents, dtype=torch.bool)
        born = torch.full((self.latents,), self.count - 1)
        for t in reversed(range(self.count - 1)):
            cosine = F.cosine_similarity(rows[t].double(), rows[-1].double(), dim=1).cpu()
            stays &= cosine >= self.threshold
            born[stays] = t
        return born


def _distance(cosine: Tensor) -> float:
    mean = float(cosine.double().nanmean())
    return 1 - min(mean, 1.0) if mean == mean else mean


def _geometries(mean: Tensor | Literal["atoms"] | None, covariance: Tensor | None) -> dict[str, Move]:
    spaces: dict[str, Move] = {"raw": as_dictionary}
    if mean is None:
        if covariance is not None:
            raise ValueError("covariance: expected the mean with it, got none")
        return spaces

    def centred(source: Any) -> Tensor:
        return center(source, mean_atom(source) if isinstance(mean, str) else mean)

    spaces["centered"] = centred
    if covariance is not None:
        root = whiten(torch.eye(len(covariance), dtype=torch.float64), covariance)  # Σ^(−1/2), decomposed once

        def whitened(source: Any) -> Tensor:
            rows = centred(source)
            return (rows.double() @ root.to(rows.device)).to(rows.dtype)

        spaces["whitened"] = whitened
    return spaces


def mean_atom(source: Any) -> Tensor:
    """[D] float64: the mean of the atoms that are not zero; 0 where all are."""
    rows = as_dictionary(source)
    return rows.double().sum(0) / live_rows(rows, None).sum().clamp(min=1)


def _rotations(count: int, runs: int, width: int, seed: int) -> list[tuple[int, int, Tensor]]:
    """Pairs (s, s+1), around, each with its rotation."""
    generator = torch.Generator().manual_seed(seed)
    return [(n % runs, (n + 1) % runs, random_rotation(width, generator)) for n in range(count)]


def _shape(snapshots: Sequence[Sequence[Any]], steps: Sequence[int]) -> tuple[int, int]:
    if len(snapshots) < 2:
        raise ValueError(f"snapshots: expected at least 2 runs, got {len(snapshots)}")
    ascending = all(a < b for a, b in pairwise(steps))
    if len(steps) < 2 or steps[0] != 0 or not ascending:
        raise ValueError(f"steps: expected at least two ascending steps, the first 0, got {list(steps)}")
    first = None
    for s, run in enumerate(snapshots):
        if len(run) != len(steps):
            raise ValueError(f"snapshots[{s}]: expected {len(steps)} snapshots, one a step, got {len(run)}")
        rows = as_dictionary(run[-1], f"snapshots[{s}][{len(run) - 1}]")
        first = rows.shape if first is None else first
        if rows.shape != first:
            raise ValueError(
                f"snapshots[{s}]: expected shape {list(first)} like the first run's, got {list(rows.shape)}"
            )
    assert first is not None
    return first[0], first[1]
