"""Scales and norms, folded into weights: the same function up to one rounding of each weight."""

import torch
from torch import Tensor


def times(tensor: Tensor, factor: Tensor | float) -> Tensor:
    """The product in float64, rounded once to the tensor's type."""
    return (tensor.to(torch.float64) * factor).to(tensor.dtype)


def row_norms(rows: Tensor) -> Tensor:
    """‖row‖ [R] in float64."""
    return torch.linalg.vector_norm(rows.to(torch.float64), dim=1)


def are_unit(norms: Tensor, rows: Tensor) -> bool:
    """Whether these norms are 1 but for rounding, as of rows that were divided by their norms in their own type.

    Each entry was rounded once (relative error u), and so was the norm, whose sum of D squares was off by (D + 2)/2 u
    in float32 at most; types narrower than float32 sum in float32.
    """
    unit = torch.finfo(rows.dtype).eps / 2
    bound = 2 * unit + (rows.shape[1] / 2 + 2) * max(unit if rows.dtype == torch.float64 else 0, 2.0**-24)
    return bool(((norms - 1).abs() <= bound).all())


def fold_norms(
    tensors: dict[str, Tensor], norms: Tensor, decoder: str, encoder: str, *biases: str
) -> dict[str, Tensor]:
    """Unit decoder rows [F, D]; the encoder [D, F] and biases [F] take their norms. ReLU, a cut among scores that the
    norms multiplied, and thresholds of such scores stay the same."""
    folded = {name: times(tensors[name], norms) for name in (encoder, *biases)}
    return {**tensors, **folded, decoder: times(tensors[decoder], 1 / norms[:, None])}
