"""Two dictionaries: best partners by blocks, or the one-to-one assignment of largest total cosine."""

from typing import Any, Literal

import torch
from torch import Tensor

from saekern import ops
from saekern.matching.assignment import linear_sum_assignment
from saekern.matching.geometry import as_dictionary, live_rows
from saekern.matching.result import Matching
from saekern.reference.nearest import unit_rows

Method = Literal["assignment", "nearest"]
METHODS = ("assignment", "nearest")
BLOCK = 1024  # rows of the cosine matrix per GEMM: 1024 × 131072 floats are 0.5 GiB, and larger blocks are no faster


def match(
    a: Any,
    b: Any,
    method: Method = "assignment",
    *,
    dead: tuple[Tensor | None, Tensor | None] = (None, None),
) -> Matching:
    """The partner of each of a's latents among b's, by signed cosine of the decoder rows.

    nearest:     index[i] = argmax_j cos(a_i, b_j); many latents may share a partner. Memory does not grow with Fa·Fb.
                 Ties go to the smaller index. The margin is the distance to the runner-up.
    assignment:  index = argmax over one-to-one maps π of Σ_i cos(a_i, b_π(i)); the smaller side is matched in full.
                 Dense: 4·Fa·Fb bytes of cosines beside the solver's own needs (16,384 latents: 1 GiB).

    Args:
        a, b: dictionaries [Fa, D] and [Fb, D], or SAEs with `.dictionary`. Fa and Fb may differ.
        dead: bool masks [Fa] and [Fb] (or None) of latents to set aside on either side: they get index −1 and are
            nobody's partner. Rows of norm zero are always set aside.

    Raises:
        TypeError, ValueError: an unknown method, or dictionaries and masks that do not fit.

    Source: Gerasimov et al. 2026 (nearest); Paulo & Belrose 2025 (assignment).
    """
    check_method(method)
    a, b = same_space(as_dictionary(a, "a"), as_dictionary(b, "b"))
    live_a, live_b = live_rows(a, dead[0], "a"), live_rows(b, dead[1], "b")
    if method == "assignment":
        return match_both(a, b, method, live_a, live_b)[0]
    if not live_a.any() or not live_b.any():
        return expand(None, live_a, live_b, a, margin=a.new_empty(0))
    kept = int(live_b.sum())
    cosine, index, _ = ops.nearest_top(rows_of(a, live_a), rows_of(b, live_b), min(2, kept))
    margin = cosine[:, 0] - cosine[:, 1] if kept > 1 else torch.full_like(cosine[:, 0], torch.nan)
    return expand((index[:, 0], cosine[:, 0]), live_a, live_b, a, margin)


def match_both(a: Tensor, b: Tensor, method: Method, live_a: Tensor, live_b: Tensor) -> tuple[Matching, Matching]:
    """Both directions, a → b and b → a, from one pass over the cosines (nearest) or one solution (assignment)."""
    if not live_a.any() or not live_b.any():
        return expand(None, live_a, live_b, a), expand(None, live_b, live_a, b)
    kept_a, kept_b = rows_of(a, live_a), rows_of(b, live_b)
    if method == "nearest":
        pair = ops.nearest(kept_a, kept_b)
        forward, backward = (pair.a_index, pair.a_cosine), (pair.b_index, pair.b_cosine)
    else:
        forward, backward = assign(kept_a, kept_b)
    return expand(forward, live_a, live_b, a), expand(backward, live_b, live_a, b)


def assign(a: Tensor, b: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The assignment as (index, cosine) from either side; −1 for the latents of the larger side that are left over."""
    unit_a, unit_b = unit_rows(a), unit_rows(b)
    cosine = torch.empty(a.shape[0], b.shape[0], dtype=unit_a.dtype)
    for start in range(0, a.shape[0], BLOCK):
        cosine[start : start + BLOCK] = unit_a[start : start + BLOCK] @ unit_b.T
    row, column = (torch.as_tensor(x, device=a.device) for x in linear_sum_assignment(cosine.numpy(), maximize=True))
    # Not read from the matrix: a float64 sum rounded once does not depend on the GEMM library's blocking.
    matched = (unit_a[row].to(torch.float64) * unit_b[column]).sum(dim=1).to(unit_a.dtype)
    return _scatter(row, column, matched, a.shape[0]), _scatter(column, row, matched, b.shape[0])


def _scatter(source: Tensor, target: Tensor, cosine: Tensor, size: int) -> tuple[Tensor, Tensor]:
    index = target.new_full((size,), -1)
    index[source] = target
    full = cosine.new_full((size,), torch.nan)
    full[source] = cosine
    return index, full


def expand(
    found: tuple[Tensor, Tensor] | None, live_a: Tensor, live_b: Tensor, a: Tensor, margin: Tensor | None = None
) -> Matching:
    """A matching among live latents, written in the numbering of all latents. None: nobody has a partner."""
    size = live_a.shape[0]
    index = torch.full((size,), -1, dtype=torch.int64, device=a.device)
    cosine = torch.full((size,), torch.nan, dtype=a.dtype, device=a.device)
    full_margin = None if margin is None else torch.full_like(cosine, torch.nan)
    if found is not None:
        numbers = live_b.nonzero()[:, 0]
        index[live_a] = torch.where(found[0] >= 0, numbers[found[0].clamp(min=0)], -1)
        cosine[live_a] = found[1]
        if full_margin is not None and margin is not None:
            full_margin[live_a] = margin
    return Matching(index, cosine, full_margin)


def rows_of(rows: Tensor, live: Tensor) -> Tensor:
    return rows if bool(live.all()) else rows[live]


def same_space(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"b: expected shape [Fb, {a.shape[1]}] like a's width, got {list(b.shape)}")
    if a.device != b.device:
        raise ValueError(f"b: expected device {a.device} like a, got {b.device}")
    dtype = torch.promote_types(a.dtype, b.dtype)
    return a.to(dtype), b.to(dtype)


def check_method(method: str) -> None:
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
