"""Numbers about one dictionary [F, D] alone, or beside rows or directions of its space.

Zero atoms have no direction: `zero_atoms` counts them, everything else leaves them out. Dictionaries are tensors or
anything with `.dictionary`. Metrics of the Archetypal SAE paper (Fel et al. 2025, arXiv 2502.12892) unless said
otherwise.
"""

from typing import Any

import torch
from torch import Tensor

from saekern import ops

BLOCK = 65_536  # rows at a time


def zero_atoms(dictionary: Any) -> int:
    """Atoms that are exactly zero."""
    return int((~_nonzero(_rows(dictionary, "dictionary"))).sum())


def stable_rank(dictionary: Any) -> float:
    """‖D‖_F² / ‖D‖₂², between 1 and rank D: how many directions carry the energy; NaN if all atoms are zero."""
    square = _singular_values(dictionary).square()
    return float(square.sum() / square[0])


def effective_rank(dictionary: Any) -> float:
    """exp(−Σ p_i log p_i), p_i = σ_i / Σσ, σ the singular values (Roy & Vetterli 2007); NaN if all atoms are zero."""
    sigma = _singular_values(dictionary)
    return float(torch.special.entr(sigma / sigma.sum()).sum().exp())


def coherence(dictionary: Any) -> float:
    """max_{i≠j} |cos(d_i, d_j)|: 1 where two atoms are parallel or opposed, 0 for orthogonal ones; NaN with fewer than
    two atoms that are not zero."""
    rows = _live(dictionary, "dictionary")
    if len(rows) < 2:
        return float("nan")
    cosine, index, _ = ops.nearest_top(rows, rows, 2)
    own = torch.arange(len(rows), device=rows.device)[:, None]
    alike = torch.where(index == own, -torch.inf, cosine).amax()
    opposed = ops.nearest_top(-rows, rows, 1)[0].amax()  # an atom is never its own opposite
    return min(1.0, float(torch.maximum(alike, opposed)))


def ood_score(dictionary: Any, rows: Any) -> float:
    """1 − (1/F) Σ_i max_b cos(d_i, x_b) over rows [n, D] of data: 0 where every atom points at a row of the data.

    Any rows with a large common mean look alike to atoms near it: centre both first (`matching.center`).
    """
    atoms, best = _live(dictionary, "dictionary"), None
    for x in _blocks(rows, atoms):
        cosine = ops.nearest_top(atoms, x, 1)[0][:, 0]
        best = cosine if best is None else torch.maximum(best, cosine)
    if best is None:
        raise ValueError("rows: expected at least one row that is not zero")
    return 1 - float(best.double().mean()) if len(atoms) else float("nan")


def plausibility(dictionary: Any, directions: Tensor) -> float:
    """(1/c) Σ_i max_j cos(v_i, d_j) over class directions v [c, D], such as the rows of a classifier's last layer: 1
    where every class has an atom that points its way. Zero directions are left out."""
    atoms, v = _live(dictionary, "dictionary"), _live(directions, "directions")
    if not len(atoms) or not len(v):
        return float("nan")
    return float(ops.nearest_top(v.to(atoms), atoms, 1)[0].double().mean())


def r2(x: Tensor, x_hat: Tensor, about: str = "mean") -> float:
    """Fraction of variance explained, in the definitions that papers use; they are not interchangeable. x, x̂ [n, D].

    about:
        "mean": 1 − Σ‖x_b − x̂_b‖² / Σ‖x_b − x̄‖², x̄ [D] the mean row. `evaluation.explained_variance`, 1 − FVU.
        "scalar": the same with the mean of all n·D numbers in place of x̄ (overcomplete, Ablating Archetypes). An offset
            of the data raises it.
        "dimensions": mean over d of 1 − Σ_b (x_bd − x̂_bd)² / Σ_b (x_bd − x̄_d)² (scikit-learn's r2_score); constant
            dimensions are left out.
        "rows": mean over b of 1 − ‖x_b − x̂_b‖² / ‖x_b − x̄‖² (SAELens' legacy figure, KronSAE's code); rows at the
            mean are left out.
        "residual": 1 − Σ‖e_b − ē‖² / Σ‖x_b − x̄‖², e = x − x̂: Var(e)/Var(x), never below "mean" (dictionary_learning).

    NaN where the denominator is 0.
    """
    if x.shape != x_hat.shape or x.dim() != 2 or x.numel() == 0:
        raise ValueError(f"x_hat: expected the shape of x, [n, D], got {list(x_hat.shape)} and {list(x.shape)}")
    x, error = x.detach().double(), (x.detach().double() - x_hat.detach().double())
    spread = (x - x.mean(0)).square()
    square = error.square()
    if about == "mean":
        return float(1 - square.sum() / spread.sum())
    if about == "scalar":
        return float(1 - square.sum() / (x - x.mean()).square().sum())
    if about == "dimensions":
        return float((1 - square.sum(0) / spread.sum(0))[spread.sum(0) > 0].mean())
    if about == "rows":
        return float((1 - square.sum(1) / spread.sum(1))[spread.sum(1) > 0].mean())
    if about == "residual":
        return float(1 - (error - error.mean(0)).square().sum() / spread.sum())
    raise ValueError(f'about: expected "mean", "scalar", "dimensions", "rows" or "residual", got {about!r}')


def _rows(source: Any, name: str) -> Tensor:
    rows = source if isinstance(source, Tensor) else getattr(source, "dictionary", None)
    if not isinstance(rows, Tensor) or rows.dim() != 2 or rows.numel() == 0 or not rows.is_floating_point():
        got = f"{rows.dtype} {list(rows.shape)}" if isinstance(rows, Tensor) else type(source).__name__
        raise ValueError(f"{name}: expected a floating-point [F, D] with F, D >= 1, got {got}")
    rows = rows.detach()
    if not torch.isfinite(rows).all():
        raise ValueError(f"{name}: expected finite entries, got NaN or infinity")
    return rows if rows.dtype == torch.float64 else rows.to(torch.float32)


def _nonzero(rows: Tensor) -> Tensor:
    return (rows != 0).any(1)


def _live(source: Any, name: str) -> Tensor:
    rows = _rows(source, name)
    kept = _nonzero(rows)
    return rows if kept.all() else rows[kept]


def _singular_values(dictionary: Any) -> Tensor:
    rows = _rows(dictionary, "dictionary").double()
    return torch.linalg.svdvals(rows)


def _blocks(rows: Any, like: Tensor) -> Any:
    """Blocks of a tensor or of Rows, without zero rows and without empty blocks."""
    for start in range(0, len(rows), BLOCK):
        stop = min(start + BLOCK, len(rows))
        x = rows[start:stop] if isinstance(rows, Tensor) else rows.take(torch.arange(start, stop))
        if x.dim() != 2 or x.shape[1] != like.shape[1]:
            raise ValueError(f"rows: expected shape [n, {like.shape[1]}], got {list(x.shape)}")
        x = x.detach().to(like)
        x = x[_nonzero(x)]
        if len(x):
            yield x
