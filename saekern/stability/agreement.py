"""Agreement of runs as a whole: matched shares, mean cosines, and what one-to-one matching changes."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saekern.matching import Matching, PairStore
from saekern.matching.all_pairs import AllPairs


@dataclass(frozen=True, eq=False)
class PairAgreement:
    """Two numbers for every ordered pair of runs, row the anchor: a heat map. Made by `pair_agreement`."""

    match_rate: Tensor
    """[S, S] float64: share of the anchor's live latents whose partner reaches the threshold; NaN on the diagonal."""
    mean_cosine: Tensor
    """[S, S] mean cosine of the anchor's latents with their partners; NaN on the diagonal."""
    threshold: float
    """θ."""
    method: str
    """"nearest" or "assignment"."""

    @property
    def pw_mcc(self) -> float:
        """Pairwise mean correlation coefficient: mean over pairs of the mean matched cosine. Assignment only."""
        if self.method != "assignment":
            raise ValueError(f"pw_mcc: expected one-to-one matchings (method 'assignment'), got {self.method!r}")
        return self.mean_cosine.nanmean().item()

    def to_json(self) -> dict[str, Any]:
        """Mean and standard deviation over ordered pairs as plain numbers."""
        rate, cosine = _spread(self.match_rate), _spread(self.mean_cosine)
        out = {"method": self.method, "threshold": self.threshold, "match_rate": rate, "mean_cosine": cosine}
        return out | ({"pw_mcc": _number(self.pw_mcc)} if self.method == "assignment" else {})


@dataclass(frozen=True, eq=False)
class AssignmentIoU:
    """Overlap of what nearest and one-to-one matching call matched, for every ordered pair of runs.

    Made by `assignment_iou`. An entry is NaN on the diagonal and where neither side matched anything.
    """

    features: Tensor
    """[S, S] float64: |A ∩ H| / |A ∪ H| of the anchor's latents, A matched by nearest and H by assignment."""
    pairs: Tensor
    """[S, S] the same of (latent, partner) pairs: the partner must be the same one too."""
    threshold: float
    """θ."""

    def to_json(self) -> dict[str, Any]:
        """Mean and standard deviation over ordered pairs as plain numbers, and how many pairs had nothing matched."""
        runs = self.features.shape[0]
        undefined = int(self.features.isnan().sum()) - runs
        spreads = {"features": _spread(self.features), "pairs": _spread(self.pairs)}
        return {"threshold": self.threshold, "undefined": undefined} | spreads


def pair_agreement(pairs: PairStore | AllPairs, threshold: float = 0.7) -> PairAgreement:
    """Share matched and mean cosine of every ordered pair of runs."""
    runs = len(pairs.sizes)
    rate = torch.full((runs, runs), torch.nan, dtype=torch.float64)
    mean = rate.clone()
    for pair in pairs:
        for i, j, matching in ((pair.i, pair.j, pair.forward), (pair.j, pair.i, pair.backward)):
            cosine = matching.cosine.to("cpu", torch.float64)
            rate[i, j] = (cosine >= threshold).sum() / pairs.live(i).sum()  # left-over latents are not matched
            mean[i, j] = cosine.nanmean()
    return PairAgreement(rate, mean, threshold, pairs.method)


def pw_mcc(pairs: PairStore | AllPairs) -> float:
    """PW-MCC = mean over pairs of runs of (1/n) max_π Σ_i cos(a_i, b_π(i)), signed cosine, n the matched latents.

    Over live latents; with unequal numbers n is the smaller one. Source: Song et al. 2025, arXiv 2505.20254.

    Raises:
        ValueError: the pairs are not assignments.
    """
    return pair_agreement(pairs).pw_mcc


def assignment_iou(nearest: PairStore, assignment: PairStore, threshold: float = 0.7) -> AssignmentIoU:
    """IoU of A = {i : s_i ≥ θ} and H = {i : cos(i, π(i)) ≥ θ}, for every ordered pair of runs; A from the nearest
    partners, H from the assignment π. 1 means that allowing two latents one partner changes nothing.

    Args:
        nearest, assignment: `match_all` of the same dictionaries by either method.

    Raises:
        ValueError: the stores are of other methods, or of different dictionaries.

    Source: the robustness check of Gerasimov et al. 2026 (0.978 there).
    """
    for name, store in (("nearest", nearest), ("assignment", assignment)):
        if store.method != name:
            raise ValueError(f"{name}: expected a store with method {name!r}, got {store.method!r}")
    if nearest.keys != assignment.keys:
        raise ValueError(
            f"assignment: expected the dictionaries and masks of nearest (sizes {nearest.sizes}), got others "
            f"(sizes {assignment.sizes})"
        )
    runs = len(nearest.sizes)
    features = torch.full((runs, runs), torch.nan, dtype=torch.float64)
    same = features.clone()
    for pair in nearest:
        i, j = pair.i, pair.j
        for row, column, found in ((i, j, pair.forward), (j, i, pair.backward)):
            features[row, column], same[row, column] = _iou(found, assignment[row, column], threshold)
    return AssignmentIoU(features, same, threshold)


def _iou(nearest: Matching, assigned: Matching, threshold: float) -> tuple[float, float]:
    a, h = nearest.cosine >= threshold, assigned.cosine >= threshold
    both, either = int((a & h).sum()), int((a | h).sum())
    agreed = int((a & h & (nearest.index == assigned.index)).sum())
    if either == 0:
        return float("nan"), float("nan")
    # As sets of pairs, a latent whose two partners differ is two elements of the union.
    return both / either, agreed / (either + both - agreed)


def _spread(values: Tensor) -> dict[str, float | None]:
    known = values[values.isfinite()]
    mean = known.mean().item() if len(known) else None
    return {"mean": mean, "sd": known.std().item() if len(known) > 1 else None}


def _number(value: float) -> float | None:
    return value if value == value else None
