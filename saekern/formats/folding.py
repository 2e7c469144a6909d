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


def not_negative(threshold: Tensor, fold: bool, where: object, notes: list[str]) -> Tensor:
    """Thresholds of a JumpReLU that has a ReLU before it: those below 0 are 0, and ours has no such ReLU."""
    count = int((threshold < 0).sum())
    if not count:
        return threshold
    if not fold:
        raise ValueError(
            f"{where}: {count} thresholds below 0, where a JumpReLU is a ReLU; pass fold=True to have them raised to 0,"
            " which is the same function"
        )
    notes.append(f"{count} thresholds below 0 are raised to 0: there is a ReLU before them.")
    return threshold.clamp(min=0)


def without_pre_bias(b_enc: Tensor, b_dec: Tensor, w_enc: Tensor) -> Tensor:
    """(x − b_dec) W + b = x W + (b − b_dec W): the bias of an encoder that reads x itself."""
    return (b_enc.double() - b_dec.double() @ w_enc.double()).to(b_enc.dtype)
