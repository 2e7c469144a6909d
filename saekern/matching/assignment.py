"""Exact linear sum assignment: scipy's call and answer over a solver that reads most of the matrix once."""

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from saekern import _C


def linear_sum_assignment(
    cost: ArrayLike | torch.Tensor, maximize: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The assignment min Σ_i cost[i, column(i)] over one-to-one pairs, exactly; the maximum with `maximize`.

    Equivalent to: `scipy.optimize.linear_sum_assignment(cost, maximize)`, to the same total cost; where several
    assignments are optimal the pairs may differ. A constant matrix gives the identity.

    float32 and float64 matrices, any strides, are read where they lie: no copy, transposed or negated. Lower precisions
    are widened to float32, integers and booleans converted to float64. Path lengths and prices are float64 whatever the
    input, so float32 costs are added up exactly as float64 costs would be. The result does not depend on the number of
    threads, `torch.get_num_threads()`, which divide the first pass over the matrix; the GIL is released.

    Args:
        cost: [n, m], array or tensor. +inf forbids a pair (−inf with `maximize`).
        maximize: look for the largest total instead.

    Returns:
        row_ind, col_ind: int64 [min(n, m)], row_ind ascending; cost[row_ind, col_ind].sum() is the optimum.

    Raises:
        ValueError: not two-dimensional, NaN or −inf (+inf with `maximize`) in it, or no assignment avoids the forbidden
            pairs; the message then names a set of rows with too few columns between them.
        TypeError: a dtype that does not convert to float64 safely.

    Source: shortest augmenting paths, Crouse 2016, over candidate lists with bounds; see csrc/linear_sum_assignment.h.
    """
    matrix = _as_matrix(cost)
    assignment = np.empty(matrix.shape[0], dtype=np.int64)
    _C.linear_sum_assignment(matrix, bool(maximize), torch.get_num_threads(), assignment)
    rows = np.flatnonzero(assignment >= 0)
    return rows, assignment[rows]


def _as_matrix(cost: ArrayLike | torch.Tensor) -> np.ndarray:
    if isinstance(cost, torch.Tensor):
        cost = cost.detach().cpu()
        cost = (cost.float() if cost.dtype in (torch.float16, torch.bfloat16) else cost).numpy()
    matrix = np.asarray(cost)
    if matrix.ndim != 2:
        raise ValueError(f"expected a matrix (2-D array), got a {matrix.ndim} array")
    if matrix.dtype == np.float16:
        matrix = matrix.astype(np.float32)
    elif matrix.dtype not in (np.float32, np.float64):
        matrix = matrix.astype(np.float64, casting="safe")
    usable = matrix.flags.aligned and matrix.dtype.isnative and all(s % matrix.itemsize == 0 for s in matrix.strides)
    return matrix if usable else np.ascontiguousarray(matrix, dtype=matrix.dtype.newbyteorder("="))
