"""Two dictionaries: best partners by blocks, or the one-to-one assignment of largest total cosine, with its proof."""

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from saekern import ops
from saekern.matching.assignment import METRICS, Metric, Progress, VectorAssignment, assign_vectors
from saekern.matching.geometry import Side, moderate, side_of
from saekern.matching.result import Certificate, Matching
from saekern.matching.verify import worst_violation

Method = Literal["assignment", "nearest"]
METHODS = ("assignment", "nearest")
LISTED = 48  # candidates a latent that a GPU chooses for the solver, as many as the solver lists itself


def match(
    a: Any,
    b: Any,
    method: Method = "assignment",
    *,
    dead: tuple[Tensor | None, Tensor | None] = (None, None),
    metric: Metric = "cosine",
    verify: bool = False,
    start: Matching | Certificate | None = None,
    margin: Literal["bound", "exact"] = "bound",
    progress: Progress | None = None,
) -> Matching:
    """The partner of each of a's latents among b's, by signed cosine of the decoder rows.

    nearest:     index[i] = argmax_j cos(a_i, b_j); many latents may share a partner. Memory does not grow with Fa·Fb.
                 Ties go to the smaller index. The margin is the distance to the runner-up.
    assignment:  index = argmax over one-to-one maps π of Σ_i cos(a_i, b_π(i)); the smaller side is matched in full.
                 Exact for the cosines of the given rows computed in float64 and rounded once to float32 (float64 rows:
                 to float64), and the certificate proves it. The [Fa, Fb] matrix is never formed: beside the
                 dictionaries it takes about 50 candidates a latent and a packed copy of b if that is below 256 MB;
                 float64 dictionaries, and rows to be set aside, take one more copy. The answer does not depend on the
                 number of threads. Dictionaries on a GPU choose the candidates there; the search runs on the CPU.

    Args:
        a, b: dictionaries [Fa, D] and [Fb, D], or SAEs with `.dictionary`. Fa and Fb may differ.
        dead: bool masks [Fa] and [Fb] (or None) of latents to set aside on either side: they get index −1 and are
            nobody's partner. Rows of norm zero are always set aside.
        metric: for an assignment also "dot", ⟨a_i, b_j⟩, or "sqeuclidean", −‖a_i − b_j‖², in place of the cosine; the
            result's `cosine` then holds that.
        verify: look at all pairs once more, by other means, before the certificate says `verified`: the time of one
            matrix product [Fa, D] × [D, Fb].
        start: an earlier assignment of dictionaries with as many latents that changed little since: its prices are a
            better beginning. The total is the same, whatever they are, and the first pass over all pairs as long.
        margin: "exact" finds by how much the cosine of each pair can fall before another assignment is better; it takes
            two more passes over all pairs, and a search for each. "bound", a lower bound, costs nothing and is often 0.
        progress: called as progress(phase, done, total) up to 20 times a second.

    Raises:
        TypeError, ValueError: an unknown method or metric, options that the method does not have, or dictionaries,
            masks and prices that do not fit.
        RuntimeError: `verify` found a pair above its prices. That would be a defect of this library.

    Source: Gerasimov et al. 2026 (nearest); Paulo & Belrose 2025 (assignment).
    """
    check_method(method)
    with ops.torch_on_one_thread():
        left, right = same_space(side_of(a, dead[0], "a"), side_of(b, dead[1], "b"))
    if method == "nearest":
        if metric != "cosine" or verify or start is not None or margin != "bound":
            raise ValueError("method: metric, verify, start and margin are for 'assignment', got 'nearest'")
        return _nearest(left, right)
    if metric not in METRICS:
        raise ValueError(f"metric: expected one of {', '.join(METRICS)}, got {metric!r}")
    if margin not in ("bound", "exact"):
        raise ValueError(f"margin: expected 'bound' or 'exact', got {margin!r}")
    return _assign(left, right, metric, verify, start, margin == "exact", progress)


def _nearest(a: Side, b: Side) -> Matching:
    if not a.live.any() or not b.live.any():
        return expand(None, a, b, margin=a.rows.new_empty(0))
    rows_a, rows_b, _ = moderate(a, b, "cosine")
    cosine, index, _ = ops.nearest_top(rows_a, rows_b, min(2, len(rows_b)))
    margin = cosine[:, 0] - cosine[:, 1] if len(rows_b) > 1 else torch.full_like(cosine[:, 0], torch.nan)
    return expand((index[:, 0], cosine[:, 0]), a, b, margin)


def _assign(
    a: Side,
    b: Side,
    metric: Metric,
    verify: bool,
    start: Matching | Certificate | None,
    exact_margins: bool,
    progress: Progress | None,
) -> Matching:
    """From the side with fewer live latents, which the solver matches in full; turned round at the end."""
    turned = int(a.live.sum()) > int(b.live.sum())
    prices = None if start is None else _prices(start, turned, a.rows, b.rows)
    if turned:
        a, b = b, a
    device, dtype = a.rows.device, a.rows.dtype
    u, v = (torch.zeros(side.live.shape, dtype=torch.float64, device=device) for side in (a, b))
    if not a.live.any():
        none = torch.full(a.live.shape, torch.nan, dtype=dtype, device=device)
        proof = Certificate(True, 0.0, 0.0, 0.0, *((v, u) if turned else (u, v)), 0, verify)
        matching = Matching(torch.full(a.live.shape, -1, device=device), none, none, proof)
        return _turn(matching, b.live) if turned else matching
    with ops.torch_on_one_thread():  # its idle threads would go on spinning beside the solver's
        kept_a, kept_b, unit = moderate(a, b, metric)
        candidates = _candidates_of(kept_a, kept_b) if device.type == "cuda" and metric == "cosine" else None
        host_a, host_b = (kept.cpu().contiguous() for kept in (kept_a, kept_b))
        host_prices = None if prices is None else prices[b.live].cpu() / unit
        found = assign_vectors(
            host_a,
            host_b,
            metric,
            prices=host_prices,
            candidates=candidates,
            exact_margins=exact_margins,
            progress=progress,
        )
    if verify:
        worst = worst_violation(host_a, host_b, found.u, found.v, metric)
        if worst > _rounding(found):
            raise RuntimeError(
                f"assignment: a pair stands {worst:.3g} above its prices; please report the dictionaries"
            )
    found = _scaled(found, unit, metric)
    u[a.live], v[b.live] = found.u.to(device), found.v.to(device)
    primal = float(found.similarity.sum())
    gap = float(found.u.sum() + found.v.sum()) - primal
    proof = Certificate(
        abs(gap) <= _rounding(found) * len(found.u),
        primal,
        primal + gap,
        gap,
        *((v, u) if turned else (u, v)),
        found.rows_recomputed,
        verify,
    )
    margins = torch.where(found.margin.isinf(), torch.nan, found.margin)
    margins = _rounded_down(margins, dtype).to(device)
    matching = expand((found.partner.to(device), found.similarity.to(device, dtype)), a, b, margins)
    matching = replace(matching, certificate=proof)
    return _turn(matching, b.live) if turned else matching


def _rounding(found: VectorAssignment) -> float:
    """What float64 may lose in one price: each is a sum of differences of similarities along paths, and those of unit
    float32 rows are exact in float64."""
    return 2.0**-44 * max(float(x.abs().max()) for x in (found.u, found.v, found.similarity))


def _scaled(found: VectorAssignment, unit: float, metric: Metric) -> VectorAssignment:
    """What was found among dictionaries that `moderate` had changed."""
    dtype, similarity = found.similarity.dtype, found.similarity.double() * unit  # float32 might lose digits here
    found = found._replace(similarity=similarity, u=found.u * unit, v=found.v * unit, margin=found.margin * unit)
    if not all(bool(x.isfinite().all()) for x in (found.u, found.v, similarity.to(dtype))):
        raise ValueError(f"{metric}: the similarities exceed the largest number of their dtype; scale the dictionaries")
    return found


def _rounded_down(margin: Tensor, dtype: torch.dtype) -> Tensor:
    """A lower bound stays one."""
    rounded = margin.to(dtype)
    return torch.where(rounded > margin, torch.nextafter(rounded, torch.zeros_like(rounded)), rounded)


def _prices(start: Matching | Certificate, turned: bool, a: Tensor, b: Tensor) -> Tensor:
    """[Fb], or [Fa] where the sides are turned."""
    proof = start.certificate if isinstance(start, Matching) else start
    if proof is None:
        raise ValueError("start: expected an assignment with its certificate, got a Matching without one")
    if [*proof.u.shape, *proof.v.shape] != [a.shape[0], b.shape[0]]:
        got = f"{proof.u.shape[0]} and {proof.v.shape[0]}"
        raise ValueError(f"start: expected prices of {a.shape[0]} and {b.shape[0]} latents, got {got}")
    side = proof.u if turned else proof.v
    return (side - side.min()).to(a.device)


def _candidates_of(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """From the GPU. Its cosines are float32 sums in a fixed order, within (D + 8) 2⁻²⁴ of the float64 ones."""
    _, index, rest = ops.nearest_top(a, b, min(LISTED, b.shape[0]))
    return index.cpu(), rest.double().cpu() + (a.shape[1] + 8) * 2.0**-24


def _turn(matching: Matching, live_b: Tensor) -> Matching:
    """The same pairs from b's side."""
    matched = matching.index >= 0
    rows, columns = matched.nonzero()[:, 0], matching.index[matched]
    index = matching.index.new_full(live_b.shape, -1)
    cosine, margin = (matching.cosine.new_full(live_b.shape, torch.nan) for _ in range(2))
    index[columns] = rows
    cosine[columns] = matching.cosine[matched]
    if matching.margin is not None:
        margin[columns] = matching.margin[matched]
    return replace(matching, index=index, cosine=cosine, margin=margin)


def match_both(a: Side, b: Side, method: Method) -> tuple[Matching, Matching]:
    """Both directions, a → b and b → a, from one pass over the cosines (nearest) or one solution (assignment)."""
    if method == "assignment":
        forward = _assign(a, b, "cosine", False, None, False, None)
        forward = replace(forward, margin=None, certificate=None)
        return forward, _turn(forward, b.live)
    if not a.live.any() or not b.live.any():
        return expand(None, a, b), expand(None, b, a)
    rows_a, rows_b, _ = moderate(a, b, "cosine")
    pair = ops.nearest(rows_a, rows_b)
    return expand((pair.a_index, pair.a_cosine), a, b), expand((pair.b_index, pair.b_cosine), b, a)


def expand(found: tuple[Tensor, Tensor] | None, a: Side, b: Side, margin: Tensor | None = None) -> Matching:
    """A matching of a's live latents, written in the numbering of all latents. None: nobody has a partner."""
    index = torch.full(a.live.shape, -1, dtype=torch.int64, device=a.rows.device)
    cosine = torch.full(a.live.shape, torch.nan, dtype=a.rows.dtype, device=a.rows.device)
    full_margin = None if margin is None else torch.full_like(cosine, torch.nan)
    if found is not None:
        numbers = b.live.nonzero()[:, 0]
        index[a.live] = torch.where(found[0] >= 0, numbers[found[0].clamp(min=0)], -1)
        cosine[a.live] = found[1]
        if full_margin is not None and margin is not None:
            full_margin[a.live] = margin
    return Matching(index, cosine, full_margin)


def same_space(a: Side, b: Side) -> tuple[Side, Side]:
    if a.rows.shape[1] != b.rows.shape[1]:
        raise ValueError(f"b: expected shape [Fb, {a.rows.shape[1]}] like a's width, got {list(b.rows.shape)}")
    if a.rows.device != b.rows.device:
        raise ValueError(f"b: expected device {a.rows.device} like a, got {b.rows.device}")
    dtype = torch.promote_types(a.rows.dtype, b.rows.dtype)
    return a.to(dtype), b.to(dtype)


def check_method(method: str) -> None:
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
