"""What a dictionary found of true features that are known: each direction, or only the space that they share."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from saekern import ops
from saekern.activations import LowRankRows
from saekern.matching import match
from saekern.matching.geometry import as_dictionary, live_rows
from saekern.stability.nulls import random_rotation


@dataclass(frozen=True, eq=False)
class Recovery:
    """Recovery of G true features by F latents, one by one and as a subspace. Made by `feature_recovery`."""

    matched: Tensor
    """[G] cosine of each true feature with its partner in the one-to-one assignment; NaN if it was left over."""
    nearest: Tensor
    """[G] cosine with its nearest latent, which two features may share."""
    identifiable: Tensor
    """[G] bool: the isolated features; the others lie in the block."""
    live: Tensor
    """[F] bool: the latents that were judged."""
    block: Tensor
    """[F] bool: live latents whose nearest true feature lies in the block."""
    captured: Tensor
    """[R] float64: share of the block features' energy in the first 1 … R right singular vectors of block latents
    (unit rows, uncentred), R = twice the rank, at most D. Where there are fewer vectors the curve stays flat."""
    possible: Tensor
    """[R] the same with the block features' own singular vectors: none capture more; 1 from their rank on."""
    inside: float
    """Share of the block latents' energy that lies inside the block; NaN without such latents."""
    rank: int
    """Dimensions of the block."""
    width: int
    """D."""
    threshold: float
    """Cosine from which a feature counts as recovered."""
    rotated: list[dict[str, float]]
    """`summary` of randomly rotated copies of the dictionary, one a draw: what chance gives."""
    scattered: list[dict[str, float]]
    """`summary` with the block latents replaced by uniform random directions inside the block, one a draw: what knowing
    the space, and nothing else, gives each latent. Few dimensions are soon filled: of rank 2, all of it."""

    @property
    def summary(self) -> dict[str, float]:
        """Means over each group: matched cosine (0 where left over), share recovered, and the captured energy at the
        block's rank. NaN for an empty group."""
        return _summary(self.matched, self.identifiable, self.captured, self.rank, self.threshold)

    @property
    def excess(self) -> float:
        """(m − m₀) / (1 − m₀), m the mean matched cosine of the block's features and m₀ that of `scattered`: 0 when
        latents are no nearer to them than directions thrown into the block, 1 when all are found."""
        if not self.scattered:
            return float("nan")
        chance = sum(draw["low_rank_matched"] for draw in self.scattered) / len(self.scattered)
        return (self.summary["low_rank_matched"] - chance) / (1 - chance)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, each beside its nulls (mean and range over draws); None where there is none."""
        out: dict[str, Any] = {
            "features": {"identifiable": int(self.identifiable.sum()), "low_rank": int((~self.identifiable).sum())},
            "left_over": int(self.matched.isnan().sum()),
            "latents": {"live": int(self.live.sum()), "dead": int((~self.live).sum()), "block": int(self.block.sum())},
            "rank": self.rank,
            "width": self.width,
            "threshold": self.threshold,
        }
        for name, value in self.summary.items():
            nulls = {"rotated": _spread(self.rotated, name)}
            if name.startswith("low_rank"):
                nulls["scattered"] = _spread(self.scattered, name)
            out[name] = {"value": _number(value)} | nulls
        out["captured"]["random_subspace"] = self.rank / self.width  # the expectation, exactly
        out["low_rank_excess"] = _number(self.excess)
        out["inside"] = _number(self.inside)
        out["captured_by_vectors"] = self.captured.tolist()
        out["possible_by_vectors"] = self.possible.tolist()
        return out


def feature_recovery(
    dictionary: Any,
    truth: LowRankRows,
    *,
    live: Tensor | None = None,
    threshold: float = 0.9,
    draws: int = 3,
    seed: int = 0,
) -> Recovery:
    """Compares a dictionary with the features that made its rows.

    Per latent: signed cosines of the true features with their partners, one-to-one and nearest. Per subspace: latents
    whose nearest true feature lies in the block give singular vectors V, and captured(r) = ‖H V_r V_rᵀ‖_F² / ‖H‖_F² is
    how much of the block's features H those span. The measures are ours, after the finding of Gerasimov et al. 2026
    (arXiv 2606.12138) that low-rank features are recovered as a subspace and not one by one.

    Args:
        dictionary: [F, D] or an SAE.
        truth: of `activations.low_rank_rows`; its rows are not read.
        live: [F] bool: latents that fire. Dead ones and zero rows are set aside, and counted.
        threshold: cosine from which a feature counts as recovered: 0.9, not the 0.7 of feature stability, which random
            directions reach in a block of 8 dimensions with 64 latents.
        draws: of each null.
        seed: decides the nulls.

    Raises:
        ValueError: another width than the truth's, a mask that does not fit, a threshold outside −1 … 1.
    """
    rows = as_dictionary(dictionary).cpu()
    width, rank = truth.dictionary.shape[1], len(truth.basis)
    if rows.shape[1] != width:
        raise ValueError(f"dictionary: expected the true features' width {width}, got {list(rows.shape)}")
    if not -1 <= threshold <= 1:
        raise ValueError(f"threshold: expected a cosine in -1..1, got {threshold}")
    if draws < 0:
        raise ValueError(f"draws: expected draws >= 0, got {draws}")
    if live is not None and (live.dtype != torch.bool or list(live.shape) != [len(rows)]):
        raise ValueError(f"live: expected bool [{len(rows)}], got {live.dtype} {list(live.shape)}")
    alive = live_rows(rows, None if live is None else ~live.cpu())
    unit = F.normalize(rows[alive].double(), dim=1)

    matched, nearest, member, captured = _compare(unit, truth)
    block = alive.clone()
    block[alive] = member
    energy = (unit[member] @ truth.basis.double().T).square().sum() / member.sum()  # unit rows: their energy is 1 each
    null: dict[str, list[dict[str, float]]] = {"rotated": [], "scattered": []}
    for draw in range(draws):
        state = np.random.SeedSequence([seed, draw]).generate_state(1)
        generator = torch.Generator().manual_seed(int(state[0]))
        turned = unit @ random_rotation(width, generator)
        thrown = torch.randn(int(member.sum()), rank, dtype=torch.float64, generator=generator)
        scattered = unit.clone()
        scattered[member] = F.normalize(thrown, dim=1) @ truth.basis.double()
        for name, copy in (("rotated", turned), ("scattered", scattered)):
            if name == "scattered" and not len(thrown):
                continue
            cosine, _, _, curve = _compare(copy, truth)
            null[name].append(_summary(cosine, truth.identifiable, curve, rank, threshold))
    features = truth.dictionary[~truth.identifiable].double()
    return Recovery(
        matched,
        nearest,
        truth.identifiable,
        alive,
        block,
        captured,
        captured_curve(features, features, min(2 * rank, width)),
        float(energy),
        rank,
        width,
        threshold,
        null["rotated"],
        null["scattered"],
    )


def captured_curve(features: Tensor, rows: Tensor, most: int) -> Tensor:
    """[most] float64: the share of the energy of `features` [n, D] in the first 1 … most right singular vectors of
    `rows` [m, D] (float64, uncentred; flat after the last vector, 0 without rows); NaN without features."""
    if not len(rows):
        return torch.zeros(most, dtype=torch.float64) if len(features) else torch.full((most,), torch.nan).double()
    vectors = leading_vectors(rows, most)  # [≤ most, D]
    curve = (features @ vectors.T).square().sum(0).cumsum(0) / features.square().sum()
    return torch.cat([curve, curve[-1:].expand(most - len(curve))])


def leading_vectors(rows: Tensor, most: int) -> Tensor:
    """Up to `most` right singular vectors of rows [m, D] as rows, without those of singular values that are rounding:
    beyond the rank of `rows` they would be arbitrary directions."""
    _, sigma, vectors = torch.linalg.svd(rows, full_matrices=False)
    floor = sigma[:1] * max(rows.shape) * torch.finfo(torch.float32).eps  # the rows were float32
    return vectors[sigma > floor][:most]


def _compare(unit: Tensor, truth: LowRankRows) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """matched, nearest [G]; which latents [F] belong to the block, and what they capture of it [R]."""
    features, most = truth.dictionary.double(), min(2 * len(truth.basis), unit.shape[1])
    block = features[~truth.identifiable]
    if not len(unit):
        nothing = torch.full((len(features),), torch.nan, dtype=torch.float64)
        return nothing, nothing, torch.zeros(0, dtype=torch.bool), captured_curve(block, unit, most)
    matched = match(features, unit, "assignment").cosine
    nearest = match(features, unit, "nearest").cosine
    member = ~truth.identifiable[ops.nearest_top(unit, features, 1)[1][:, 0]]
    return matched, nearest, member, captured_curve(block, unit[member], most)


def _summary(matched: Tensor, identifiable: Tensor, captured: Tensor, rank: int, threshold: float) -> dict[str, float]:
    out = {}
    for name, group in (("identifiable", identifiable), ("low_rank", ~identifiable)):
        cosine = matched[group].double().nan_to_num(0.0)
        out[f"{name}_matched"] = float(cosine.mean())
        out[f"{name}_recovered"] = float((cosine >= threshold).double().mean())
    return out | {"captured": float(captured[rank - 1])}


def _spread(draws: list[dict[str, float]], name: str) -> dict[str, float | None]:
    known = [draw[name] for draw in draws if draw[name] == draw[name]]
    if not known:
        return {"mean": None, "min": None, "max": None}
    return {"mean": sum(known) / len(known), "min": min(known), "max": max(known)}


def _number(value: float) -> float | None:
    return value if value == value else None
