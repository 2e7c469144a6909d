"""overcomplete's two dictionaries: when the stored one is what a forward pass makes of it, and what it makes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saekern.formats.state_dict import off_unit

NORMALIZATIONS = {  # name -> order of the norm, and whether the largest row's is meant
    "l2": (2, False),
    "max_l2": (2, True),
    "l1": (1, False),
    "max_l1": (1, True),
    "identity": (None, False),
}
EPS = 1e-8  # which theirs adds to what it divides by


def row_norms(weights: Tensor, normalization: str) -> Tensor:
    """[F, 1] in float64: what the library divides by, before its ε."""
    order, largest = NORMALIZATIONS[normalization]
    if order is None:
        return torch.ones(weights.shape[0], 1, dtype=torch.float64)
    norms = torch.linalg.vector_norm(weights.double(), ord=order, dim=1, keepdim=True)
    return norms.amax().expand_as(norms) if largest else norms


def atoms(weights: Tensor, multiplier: Tensor, normalization: str, fold: bool, where: Path) -> tuple[Tensor, list[str]]:
    """W_dec of `_weights` and `multiplier`, and notes.

    Raises:
        ValueError: it is not `_weights` itself, and fold is not allowed.
    """
    norms = row_norms(weights, normalization)
    off = int((off_unit(norms, weights.shape[1]) & (norms != 0)).sum())
    scale = float(multiplier.double().exp())
    if not off and scale == 1:
        return weights, []
    if not fold:
        why = [f"{off} rows are not yet of {normalization} norm 1"] if off else []
        why += [f"it is multiplied by exp(multiplier) = {scale:g}"] if scale != 1 else []
        raise ValueError(
            f"{where}: the dictionary is not the stored one: {' and '.join(why)}; fold=True computes it as the"
            " library's next forward pass would"
        )
    _, largest = NORMALIZATIONS[normalization]
    made = (
        weights.double() * scale
        if normalization == "identity"
        else (weights.double() / (norms + (0 if largest else EPS)) * scale)
    )
    return made.to(weights.dtype), [
        f"Dictionary computed: {normalization}-normalised, times exp(multiplier) = {scale:g}."
    ]


def split_atoms(decoder: Tensor, normalization: str, fold: bool) -> tuple[Tensor, float]:
    """`_weights` and `multiplier` for a W_dec.

    Raises:
        ValueError: the norms differ, so that there are none; or they are not 1, and fold is not allowed.
    """
    norms = row_norms(decoder, normalization)
    there = norms[norms != 0]
    if not off_unit(there, decoder.shape[1]).any():
        return decoder, 0.0
    common = float(there.mean())
    if not (0 < common < float("inf")) or off_unit(there, decoder.shape[1], common).any():
        raise ValueError(
            f"overcomplete's dictionary is {normalization}-normalised, and these decoder rows have norms from"
            f" {float(there.min()):g} to {float(there.max()):g}: pass options={{'normalization': 'identity'}} and make"
            " the model with dictionary_params={'normalization': 'identity'}"
        )
    if not fold:
        raise ValueError(
            f"overcomplete's dictionary is {normalization}-normalised, and these decoder rows have norm {common:g}:"
            " fold=True makes that its multiplier; or pass options={'normalization': 'identity'}"
        )
    multiplier = torch.tensor(common, dtype=torch.float64).log().float()
    return (decoder.double() / multiplier.double().exp()).to(decoder.dtype), float(multiplier)


def off_mixture(weights: Tensor, offset: Tensor, delta: float) -> tuple[Tensor, Tensor]:
    """Which rows of W and of Relax the library's projection would change."""
    totals, lengths = weights.double().sum(1), torch.linalg.vector_norm(offset.double(), dim=1)
    off = (weights < 0).any(1) | (off_unit(totals, weights.shape[1]) & (weights != 0).any(1)) | weights.isnan().any(1)
    return off, ~(lengths <= delta * (1 + (offset.shape[1] + 4) * 2.0**-24))


def mixture(state: Mapping[str, Tensor], delta: float, fold: bool, where: Path) -> tuple[dict[str, Tensor], list[str]]:
    """W, Λ, points and multiplier of an archetypal SAE, and notes.

    Raises:
        ValueError: shapes that do not fit; rows off the constraints, and fold is not allowed.
    """
    weights, offset, points = (state[f"dictionary.{name}"] for name in ("W", "Relax", "C"))
    fits = weights.dim() == offset.dim() == points.dim() == 2 and (
        weights.shape == (offset.shape[0], points.shape[0]) and offset.shape[1] == points.shape[1]
    )
    if not fits:
        shapes = ", ".join(f"{n} {list(t.shape)}" for n, t in (("W", weights), ("C", points), ("Relax", offset)))
        raise ValueError(f"{where}: expected W [F, n], C [n, D] and Relax [F, D], got {shapes}")
    off, long = off_mixture(weights, offset, delta)
    notes = []
    if (off.any() or long.any()) and not fold:
        raise ValueError(
            f"{where}: {int(off.sum())} rows of W are not yet >= 0 with sum 1, and {int(long.sum())} of Relax longer"
            f" than delta = {delta:g}: fold=True projects them as the library's next forward pass would"
        )
    if off.any():
        positive = weights.double().clamp(min=0)
        projected = (positive / (positive.sum(1, keepdim=True) + EPS)).to(weights.dtype)
        weights = torch.where(off[:, None], projected, weights)
        notes.append(f"{int(off.sum())} rows of W projected: max(w, 0) / sum.")
    if long.any():
        wide = offset.double()
        shorter = (wide * (delta / torch.linalg.vector_norm(wide, dim=1, keepdim=True))).to(offset.dtype)
        offset = torch.where(long[:, None], shorter, offset)
        notes.append(f"{int(long.sum())} rows of Relax shortened to delta.")
    made = {"W": weights, "Lambda": offset, "points": points, "multiplier": state["dictionary.multiplier"].reshape(1)}
    return made, notes


def check_number(options: Mapping[str, Any], name: str, where: Path, what: str, whole: bool = False) -> Any:
    """An option that has to be there and be a positive number."""
    value = options.get(name)
    if value is None:
        raise ValueError(f"{where}: the state dict does not hold {name}: pass options={{'{name}': {what}}}")
    right = isinstance(value, int) if whole else isinstance(value, (int, float))
    if isinstance(value, bool) or not right or not 0 < value < float("inf"):
        kind = "a positive whole number" if whole else "a positive number"
        raise ValueError(f"options: {name}: expected {kind}, got {value!r}")
    return value
