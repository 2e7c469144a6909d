"""The nearest decoder rows of chosen latents, in the same dictionary and in another."""

from dataclasses import dataclass

import torch
from torch import Tensor

from saekern import ops
from saekern.matching.geometry import moderate, side_of
from saekern.matching.pair import same_space


@dataclass(frozen=True)
class Neighbours:
    """By signed cosine of decoder rows, ties to the smaller index. Rows of norm zero have and are no neighbours."""

    index: Tensor  # int64 [L, m], −1 where there are fewer
    cosine: Tensor  # float32 [L, m], NaN there
    mutual: Tensor  # bool [L]: the nearest's own nearest, looking back, is this latent


def in_other(dictionary: Tensor, other: Tensor, latents: Tensor, m: int = 2) -> Neighbours:
    """The m nearest rows of `other` [Fb, D] of rows `latents` of `dictionary` [Fa, D].

    Raises:
        ValueError: different widths, or entries that are not finite.
    """
    if dictionary.shape[1] != other.shape[1]:
        raise ValueError(f"expected rows as wide as this SAE's, {dictionary.shape[1]}, got {other.shape[1]}")
    index, cosine = nearest_rows(dictionary[latents], other, m)
    partner = index[:, 0]
    back = torch.full_like(partner, -1)
    back[partner >= 0] = nearest_rows(other[partner[partner >= 0]], dictionary, 1)[0][:, 0]
    return Neighbours(index, cosine, (partner >= 0) & (back == latents))


def in_same(dictionary: Tensor, latents: Tensor, m: int = 5) -> Neighbours:
    """The m nearest other rows of the same dictionary."""
    index, cosine = nearest_rows(dictionary[latents], dictionary, m + 1)
    itself = index == latents[:, None]
    itself[:, -1] |= ~itself.any(1)  # m + 1 rows stand before it: its copies, or everything of a row of norm zero
    index, cosine = index[~itself].view(-1, m), cosine[~itself].view(-1, m)
    first = index[:, 0]
    back = torch.full_like(first, -1)
    have = first >= 0
    if have.any():
        around, _ = nearest_rows(dictionary[first[have]], dictionary, 2)
        back[have] = torch.where(around[:, 0] == first[have], around[:, 1], around[:, 0])
    return Neighbours(index, cosine, (first >= 0) & (back == latents))


def nearest_rows(rows: Tensor, others: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """The m nearest of `others` [F, D] of each of `rows` [L, D]: index int64 [L, m], −1 where there are fewer, and
    cosine float32 [L, m], NaN there."""
    index = torch.full((len(rows), m), -1)
    cosine = torch.full((len(rows), m), torch.nan)
    if len(rows) == 0:
        return index, cosine
    a, b = same_space(side_of(rows.cpu(), None, "rows"), side_of(others.cpu(), None, "others"))
    if not a.live.any() or not b.live.any():
        return index, cosine
    kept_a, kept_b, _ = moderate(a, b, "cosine")
    found = min(m, len(kept_b))
    best, place, _ = ops.nearest_top(kept_a, kept_b, found)
    live = a.live.nonzero()[:, 0]
    index[live, :found] = b.live.nonzero()[:, 0][place]
    cosine[live, :found] = best.float()
    return index, cosine
