"""Numbers about codes Z [n, F]: how sparse rows are, which latents fire together, which tell classes.

Codes are dense [n, F], or anything with `values`, `indices` and `offsets` (SparseCodes of n rows, then `d_sae` is
needed). Only codes that are not zero count. Metrics of the Archetypal SAE paper (Fel et al. 2025, arXiv 2502.12892).
"""

from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

PAIRS = 1 << 22  # numbers at a time


def hoyer(codes: Any, d_sae: int | None = None) -> float:
    """Mean over rows of (√F − ‖z‖₁/‖z‖₂) / (√F − 1): 1 for one active latent, 0 for all equal (Hoyer 2004). Rows
    without an active latent are left out; NaN if F = 1."""
    z = _matrix(codes, d_sae)
    one = np.asarray(abs(z).sum(1)).ravel()
    two = np.sqrt(np.asarray(z.multiply(z).sum(1)).ravel())
    root, active = z.shape[1] ** 0.5, two > 0
    if z.shape[1] == 1 or not active.any():
        return float("nan")
    return float(((root - one[active] / two[active]) / (root - 1)).mean())


def connectivity(codes: Any, d_sae: int | None = None) -> float:
    """1 − ‖ZᵀZ‖₀ / F², of the indicator of active latents: the share of ordered pairs of latents, a latent with itself
    among them, that no row has active together. (Counting where codes are not zero, sums cannot cancel.)"""
    z = _matrix(codes, d_sae)
    return 1 - _together(z != 0).nnz / z.shape[1] ** 2


def negative_interference(codes: Any, dictionary: Any, d_sae: int | None = None) -> float:
    """‖ReLU(−(ZᵀZ) ⊙ (D Dᵀ))‖_F: latents that are active together and pull in opposite directions.

    D as it is, not normalised; the norm is taken over entries (the source does not say which it means). It grows with
    the number of rows: compare equal numbers.
    """
    atoms = dictionary if isinstance(dictionary, Tensor) else dictionary.dictionary
    z = _matrix(codes, len(atoms) if d_sae is None else d_sae)
    if atoms.dim() != 2 or len(atoms) != z.shape[1]:
        raise ValueError(f"dictionary: expected shape [{z.shape[1]}, D], got {list(atoms.shape)}")
    gram, d, total = _together(z).tocoo(), atoms.detach().cpu().double(), 0.0
    step = max(1, PAIRS // d.shape[1])
    for start in range(0, gram.nnz, step):
        i, j = (torch.from_numpy(side[start : start + step].astype(np.int64)) for side in (gram.row, gram.col))
        both = torch.from_numpy(gram.data[start : start + step])
        total += float((-both * (d[i] * d[j]).sum(1)).clamp(min=0).square().sum())
    return total**0.5


def soft_identifiability(codes: Any, labels: Tensor, d_sae: int | None = None) -> tuple[float, Tensor]:
    """Mean over classes of Acc_j = max_{λ, i} P(1[z_i > λ] = y_j), and Acc [c]: how well the best single latent with
    the best threshold tells each class.

    Args:
        labels: y [n, c] bool; a row may have several classes. Classes that no row has, or all, count too: they are told
            by a threshold above or below everything.
    """
    z = _matrix(codes, d_sae).tocsc()
    n = z.shape[0]
    if labels.dtype != torch.bool or labels.dim() != 2 or labels.shape[0] != n or labels.shape[1] == 0:
        raise ValueError(f"labels: expected bool [{n}, c], got {labels.dtype} {list(labels.shape)}")
    sign = 2.0 * labels.cpu().double() - 1  # [n, c]
    negative = (sign < 0).sum(0).double()
    best = torch.maximum(negative, n - negative)  # λ above all, below all
    for latent in range(z.shape[1]):
        span = slice(z.indptr[latent], z.indptr[latent + 1])
        rows, values = z.indices[span], z.data[span]
        if len(rows) == 0:
            continue
        order = np.argsort(-values, kind="stable")
        values, rows = values[order], torch.from_numpy(rows[order].astype(np.int64))
        first = int((values > 0).sum())  # before the zeros, which are not stored
        gained = negative + sign[rows[:first]].cumsum(0)  # right after calling the t largest positive
        cuts: Any = np.flatnonzero(np.append(values[1:first] != values[: first - 1], True)) if first else []
        if len(cuts):
            best = torch.maximum(best, gained[torch.from_numpy(cuts)].amax(0))
        if first < len(values):  # negative codes: everything else is positive first
            below, rows = values[first:], rows[first:]
            rest = n - negative - sign[rows].flip(0).cumsum(0).flip(0)  # all but rows[t:] called positive
            starts = np.flatnonzero(np.insert(below[1:] != below[:-1], 0, True))
            best = torch.maximum(best, rest[torch.from_numpy(starts)].amax(0))
    accuracy = best / n
    return float(accuracy.mean()), accuracy


def _together(z: Any) -> Any:
    z = z.astype(np.float64)
    return (z.T @ z).tocsr()


def _matrix(codes: Any, d_sae: int | None) -> Any:
    """Z as scipy's CSR matrix, float64, without stored zeros."""
    if isinstance(codes, Tensor):
        if codes.dim() != 2 or codes.numel() == 0:
            raise ValueError(f"codes: expected shape [n, F] with n, F >= 1, got {list(codes.shape)}")
        z = sparse.csr_array(codes.detach().cpu().double().numpy())
    else:
        if d_sae is None:
            raise ValueError("d_sae: expected the number of latents beside sparse codes")
        values, indices = codes.values.detach().cpu().double(), codes.indices.cpu()
        if codes.offsets is None:
            width = values.shape[-1]
            offsets = torch.arange(values.numel() // max(width, 1) + 1) * width
        else:
            offsets = codes.offsets.cpu()
        parts = (values.flatten().numpy(), indices.flatten().numpy(), offsets.numpy())
        z = sparse.csr_array(parts, shape=(len(parts[2]) - 1, d_sae), copy=True)  # it is sorted in place
        z.sum_duplicates()
    if not np.isfinite(z.data).all():
        raise ValueError("codes: expected finite values, got NaN or infinity")
    z.eliminate_zeros()
    return z
