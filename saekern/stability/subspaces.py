"""Do latents that no other seed has lie in directions that other seeds' have: subspaces of unstable decoder rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from saekern.matching.geometry import as_dictionary, live_rows
from saekern.stability.directions import principal_directions, subspace, unit_rows
from saekern.stability.jackknife import Estimate, over_ordered_pairs
from saekern.stability.nulls import random_rotation

CONTROLS = ("random", "stable", "gaussian", "pca")


@dataclass(frozen=True, eq=False)
class Subspaces:
    """Shares of the energy of unstable rows that subspaces hold, by rank. Made by `subspaces`. S seeds, R ranks."""

    ranks: list[int]
    """[R] dimensions of the subspaces."""
    width: int
    """D."""
    counts: Tensor
    """[S] int64: unstable rows of each seed."""
    excluded: Tensor
    """[S] int64: rows of each seed in neither group: dead, undecided or zero."""
    within: Tensor
    """[S, R] float64: E_within, of a seed's rows in the subspace of the same rows. Large by fitting alone: see
    `gaussian_within`."""
    cross: Tensor
    """[S, S, R] E_cross, of the rows of the second seed in the subspace of the first; NaN on the diagonal."""
    controls: dict[str, Tensor]
    """By name [S, S, R], the rows of the second seed in another subspace, drawn with the first: "random" directions;
    "stable" rows of the first seed, as many as it has unstable ones (or all, if fewer), if every seed has any;
    "gaussian" rows, as many; "pca" of the data, the same for every first seed, if there was a covariance. NaN on the
    diagonal, like `cross`."""
    gaussian_within: Tensor
    """[S, R]: E_within of as many Gaussian rows: what it is for rows without any structure."""
    angles: Tensor
    """[S, S, R]: mean cos² of the principal angles between the subspaces of two seeds; by chance r/D."""
    energies: Tensor
    """[S, min(D, most rows)] σ² of each seed's rows, falling; 0 beyond its rank."""
    stable_used: Tensor
    """[S] int64: stable rows behind the control of that name."""
    centred: bool
    """Whether each group of rows was centred."""
    confidence: float
    """Coverage of the intervals, each by itself."""

    @property
    def chance(self) -> Tensor:
        """[R] r/D: the expected share in a random subspace, whatever the rows."""
        return torch.tensor(self.ranks, dtype=torch.float64).clamp(max=self.width) / self.width

    @property
    def stable_rank(self) -> Tensor:
        """[S] ‖U‖_F² / ‖U‖₂²."""
        return self.energies.sum(1) / self.energies[:, 0]

    @property
    def effective_rank(self) -> Tensor:
        """[S] exp(−Σ p log p), p = σ²/Σσ²: of energies, not of σ as `evaluation.effective_rank`."""
        return torch.special.entr(self.energies / self.energies.sum(1, keepdim=True)).sum(1).exp()

    def rank_at(self, share: float = 0.9) -> Tensor:
        """[S] int64: dimensions that hold a share of a seed's own energy."""
        held = self.energies.cumsum(1) / self.energies.sum(1, keepdim=True)
        return (held < share - 1e-12).sum(1) + 1

    def estimate(self, name: str = "cross") -> Estimate:
        """Mean over ordered pairs of seeds of "cross", "angles" or a control, and its interval by leaving one seed out,
        [R] each; NaN ends with fewer than 3 seeds."""
        return over_ordered_pairs(self._pairs(name), self.confidence)

    def excess(self, control: str) -> Estimate:
        """E_cross less a control's share, paired by both seeds: mean and interval, [R] each. NaN where a rank is above
        the directions of some seed's rows (or stable rows): a subspace of more dimensions would be compared with less.
        """
        least = int(self.stable_used.min()) if control == "stable" else self.width
        difference = self.cross - self._pairs(control)
        return over_ordered_pairs(torch.where(self._equal(least), difference, torch.nan), self.confidence)

    def gap(self) -> Estimate:
        """E_within of a seed's rows less their E_cross in another's subspace: what is lost by going to another seed.
        Mean over ordered pairs and interval, [R] each; NaN where `excess` is. Fitting alone leaves
        `gaussian_within` − `chance`."""
        return over_ordered_pairs(torch.where(self._equal(), self.within - self.cross, torch.nan), self.confidence)

    def to_json(self) -> dict[str, Any]:
        """Means over seeds or pairs, and intervals, as plain numbers."""
        names = ("cross", "angles", *self.controls)
        return {
            "ranks": self.ranks,
            "width": self.width,
            "unstable": self.counts.tolist(),
            "excluded": self.excluded.tolist(),
            "stable_used": self.stable_used.tolist(),
            "centred": self.centred,
            "confidence": self.confidence,
            "chance": self.chance.tolist(),
            "within": self.within.mean(0).tolist(),
            "gaussian_within": self.gaussian_within.mean(0).tolist(),
            "stable_rank": self.stable_rank.tolist(),
            "effective_rank": self.effective_rank.tolist(),
            "rank_at_90": self.rank_at(0.9).tolist(),
        } | {
            "share": {name: _plain(self.estimate(name)) for name in names},
            "excess": {name: _plain(self.excess(name)) for name in self.controls},
            "gap": _plain(self.gap()),
            "comparisons": (len(self.controls) + 1) * len(self.ranks),
        }

    def _equal(self, most: int | None = None) -> Tensor:
        """[R] bool: ranks that every seed's rows (and `most` others) have."""
        full = int((self.energies > 0).sum(1).min())
        return torch.tensor(self.ranks) <= (full if most is None else min(full, most))

    def _pairs(self, name: str) -> Tensor:
        known = {"cross": self.cross, "angles": self.angles} | self.controls
        if name not in known:
            raise ValueError(f"name: expected one of {', '.join(known)}, got {name!r}")
        return known[name]


def subspaces(
    dictionaries: Sequence[Any],
    unstable: Sequence[Tensor],
    stable: Sequence[Tensor],
    *,
    ranks: Sequence[int] | None = None,
    covariance: Tensor | None = None,
    centred: bool = False,
    seed: int = 0,
    confidence: float = 0.95,
) -> Subspaces:
    """E_within(r) = ‖U_s V_s V_sᵀ‖² / ‖U_s‖² and E_cross(r) = ‖U_t V_s V_sᵀ‖² / ‖U_t‖², U_s the normalised unstable
    decoder rows of seed s, V_s their r leading right singular vectors; and the same with other subspaces V.

    The control "pca" matters most: if unstable rows merely lie where the activations vary, any seed's subspace holds
    any other's. "random" and "gaussian" give r/D, and with them every share of rank D is 1. About 5 S² products of
    [D, D] and [D, largest rank] in float64, and 16 S D² bytes.

    Args:
        dictionaries: S ≥ 2 dictionaries [F, D] or SAEs.
        unstable, stable: S masks [F] (bool) each, every seed as anchor: `FeatureStability.unstable`.
        ranks: dimensions from 0 to D; None: powers of two, and D.
        covariance: [D, D] of the activations, for the control "pca".
        centred: see `subspace`; report both.

    Raises:
        ValueError: too few dictionaries, other widths, masks that do not fit, a seed with fewer than 2 unstable rows,
            or ranks out of range.

    Source: Gerasimov et al. 2026 (arXiv 2606.12138), section 6.2; the controls and the intervals are ours.
    """
    if len(dictionaries) < 2:
        raise ValueError(f"dictionaries: expected at least 2, got {len(dictionaries)}")
    groups = [groups_of(dictionaries[s], unstable[s], stable[s], s) for s in range(len(dictionaries))]
    width = groups[0][0].shape[1]
    for s, (rows, _, _) in enumerate(groups):
        if rows.shape[1] != width:
            raise ValueError(f"dictionaries[{s}]: expected width {width} like the first, got {rows.shape[1]}")
    chosen = _ranks(ranks, width)
    pca = None if covariance is None else principal_directions(covariance, width)
    with_stable = all(len(reference) for _, reference, _ in groups)
    grams, bases, gaussian_within = [], [], []
    energies = torch.zeros(len(groups), min(width, max(len(rows) for rows, _, _ in groups)), dtype=torch.float64)
    for s, (rows, _, _) in enumerate(groups):
        unit = unit_rows(rows, centred)
        own = subspace(rows, centred=centred)
        grams.append(unit.T @ unit / unit.square().sum())
        bases.append(own.basis)
        energies[s, : len(own.energy)] = own.energy
    pairs = {name: _empty(len(groups), len(chosen)) for name in ("cross", "angles", *CONTROLS)}
    for s, (rows, reference, _) in enumerate(groups):
        generator = generator_of(seed, s)
        noise = torch.randn(len(rows), width, dtype=torch.float64, generator=generator)
        gaussian = subspace(noise, centred=centred)
        gaussian_within.append(_cumulated(gaussian.energy / gaussian.energy.sum(), chosen))
        sample = reference[torch.randperm(len(reference), generator=generator)[: len(rows)]]
        made = {
            "cross": bases[s],
            "random": random_rotation(width, generator),
            "gaussian": gaussian.basis,
        }
        if with_stable:
            made["stable"] = subspace(sample, centred=centred and len(sample) > 1).basis
        if pca is not None:
            made["pca"] = pca
        for t in range(len(groups)):
            if s == t:
                continue
            for name, basis in made.items():
                basis = basis[:, : chosen[-1]]
                pairs[name][s, t] = _cumulated(((grams[t] @ basis) * basis).sum(0), chosen)
            if s < t:
                pairs["angles"][s, t] = pairs["angles"][t, s] = _mean_cosines(bases[s], bases[t], chosen)
    within = torch.stack([_cumulated(energy / energy.sum(), chosen) for energy in energies])
    return Subspaces(
        chosen,
        width,
        torch.tensor([len(rows) for rows, _, _ in groups]),
        torch.tensor([left for _, _, left in groups]),
        within,
        pairs["cross"],
        {name: pairs[name] for name in CONTROLS if name in made},
        torch.stack(gaussian_within),
        pairs["angles"],
        energies,
        torch.tensor([min(len(rows), len(reference)) for rows, reference, _ in groups]),
        centred,
        confidence,
    )


def groups_of(source: Any, unstable: Tensor, stable: Tensor, s: int) -> tuple[Tensor, Tensor, int]:
    """Unstable rows, stable rows, and how many are neither."""
    rows = as_dictionary(source, f"dictionaries[{s}]").cpu()
    nonzero, found = live_rows(rows, None), []
    for name, mask, fewest in (("unstable", unstable, 2), ("stable", stable, 0)):
        mask = mask[: len(rows)].cpu()  # masks of FeatureStability are padded to the largest dictionary
        if mask.dtype != torch.bool or mask.shape != nonzero.shape:
            raise ValueError(f"{name}[{s}]: expected bool [{len(rows)}], got {mask.dtype} {list(mask.shape)}")
        found.append(rows[mask & nonzero])
        if len(found[-1]) < fewest:
            raise ValueError(f"{name}[{s}]: expected at least {fewest} rows, got {len(found[-1])}")
    return found[0], found[1], len(rows) - len(found[0]) - len(found[1])


def _ranks(ranks: Sequence[int] | None, width: int) -> list[int]:
    if ranks is None:
        return sorted({*(1 << i for i in range(width.bit_length())), width})
    if not ranks or min(ranks) < 0 or max(ranks) > width:
        raise ValueError(f"ranks: expected numbers from 0 to D = {width}, got {list(ranks)}")
    return sorted(set(ranks))


def _cumulated(energy: Tensor, ranks: list[int]) -> Tensor:
    """Sums of the first r; a subspace with fewer directions has no more to give."""
    sums = torch.cat([energy.new_zeros(1), energy.cumsum(0)])
    return sums[torch.tensor(ranks).clamp(max=len(energy))].clamp(max=1.0)


def _mean_cosines(a: Tensor, b: Tensor, ranks: list[int]) -> Tensor:
    """Mean cos² of the principal angles = ‖A_rᵀ B_r‖_F² / r; a side with fewer directions than r has all of them."""
    sums = F.pad((a.T @ b).square().cumsum(0).cumsum(1), (1, 0, 1, 0))
    of_a, of_b = (torch.tensor(ranks).clamp(max=side.shape[1]) for side in (a, b))
    fewer = torch.minimum(of_a, of_b)
    return (sums[of_a, of_b] / torch.where(fewer > 0, fewer, torch.nan)).clamp(max=1.0)


def _empty(runs: int, ranks: int) -> Tensor:
    return torch.full((runs, runs, ranks), torch.nan, dtype=torch.float64)


def generator_of(seed: int, run: int) -> torch.Generator:
    state = np.random.SeedSequence([seed, run]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)


def _plain(found: tuple[Tensor, Tensor, Tensor]) -> dict[str, list[float | None]]:
    names = ("mean", "lower", "upper")
    return {name: [None if x != x else x for x in values.tolist()] for name, values in zip(names, found, strict=True)}
