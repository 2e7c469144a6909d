"""The door to the C++ solver: matrices in memory, dense or sparse, and vectors whose matrix is never formed."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from saekern import _C
from saekern.ops import library

Metric = Literal["cosine", "dot", "sqeuclidean"]
METRICS = ("cosine", "dot", "sqeuclidean")  # in the order of csrc/linear_sum_assignment/similarity.h
Progress = Callable[[str, int, int], None]


def linear_sum_assignment(
    cost: ArrayLike | Tensor | Any, maximize: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The assignment min Σ_i cost[i, column(i)] over one-to-one pairs, exactly; the maximum with `maximize`.

    Equivalent to: `scipy.optimize.linear_sum_assignment(cost, maximize)`, to the same total cost; where several
    assignments are optimal the pairs may differ. A constant matrix gives the identity.

    float32 and float64 matrices, any strides, are read where they lie: no copy, transposed or negated. Lower precisions
    are widened to float32, integers and booleans converted to float64. Path lengths and prices are float64 whatever the
    input, so float32 costs are added up exactly as float64 costs would be. The result does not depend on the number of
    threads, `torch.get_num_threads()`, which divide the first pass over the matrix; the GIL is released, and Ctrl-C
    is answered.

    Args:
        cost: [n, m], array or tensor. +inf forbids a pair (−inf with `maximize`). Or a matrix or array of scipy.sparse:
            what it does not store is forbidden, and a stored 0 is a cost of 0.
        maximize: look for the largest total instead.

    Returns:
        row_ind, col_ind: int64 [min(n, m)], row_ind ascending; cost[row_ind, col_ind].sum() is the optimum.

    Raises:
        ValueError: not two-dimensional, NaN or −inf (+inf with `maximize`) in it, or no assignment avoids the forbidden
            pairs; the message then names a set of rows with too few columns between them.
        TypeError: a dtype that does not convert to float64 safely.

    Source: shortest augmenting paths, Crouse 2016, over candidate lists with bounds; see csrc/linear_sum_assignment.h.
    """
    if hasattr(cost, "tocsr"):
        assignment = _solve_sparse(cost, bool(maximize))
    else:
        matrix = _as_matrix(cost)
        assignment = np.empty(matrix.shape[0], dtype=np.int64)
        _C.linear_sum_assignment(matrix, bool(maximize), library.threads(), assignment)
    rows = np.flatnonzero(assignment >= 0)
    return rows, assignment[rows]


def _solve_sparse(cost: Any, maximize: bool) -> NDArray[np.int64]:
    if len(cost.shape) != 2:
        raise ValueError(f"expected a matrix (2-D array), got a {len(cost.shape)} array")
    rows, columns = cost.shape
    if max(rows, columns) >= 2**31:
        raise ValueError(f"linear_sum_assignment: at most 2^31 - 1 rows and columns, got {rows} and {columns}")
    if hasattr(cost, "check_format"):
        cost.check_format(full_check=True)  # conversions of scipy write through indices that nobody has checked
    lines = (cost.T if rows > columns else cost).tocsr(copy=True)
    lines.sum_duplicates()
    costs = _supported(lines.data)
    assignment = np.empty(rows, dtype=np.int64)
    offsets, indices = lines.indptr.astype(np.int64), lines.indices.astype(np.int32)
    _C.sparse_assignment(offsets, indices, costs, max(rows, columns), rows > columns, maximize, assignment)
    return assignment


class VectorAssignment(NamedTuple):
    """Optimal pairs of `a` and `b`, and duals that prove it: u_i + v_j ≥ similarity(i, j) for all i, j, v ≥ 0."""

    partner: Tensor  # [Fa] int64
    similarity: Tensor  # [Fa]
    u: Tensor  # [Fa] float64
    v: Tensor  # [Fb] float64, 0 where b's row is left over
    margin: Tensor  # [Fa] float64
    rows_recomputed: int


def assign_vectors(
    a: Tensor,
    b: Tensor,
    metric: Metric = "cosine",
    *,
    prices: Tensor | None = None,
    candidates: tuple[Tensor, Tensor] | None = None,
    exact_margins: bool = False,
    progress: Progress | None = None,
) -> VectorAssignment:
    """The one-to-one map of a's rows [Fa, D] into b's [Fb, D], Fa ≤ Fb, of largest total similarity.

    Exact for the similarities of the given rows in float64, rounded once to their own dtype. The [Fa, Fb] matrix is
    never formed; see csrc/vector_assignment.h.

    Args:
        a, b: contiguous float32 or float64 on the CPU, finite.
        metric: cosine; dot, ⟨a, b⟩; or sqeuclidean, −‖a − b‖².
        prices: [Fb] float64, v of an earlier solution: a better beginning where little has changed. Not used where Fb
            is more than an eighth larger than Fa.
        candidates: index [Fa, m] int64, and rest [Fa] float64 that no similarity outside the list exceeds: a first pass
            made elsewhere.
        exact_margins: how much each similarity can fall before another assignment is better, in place of a lower bound
            from the prices: two more passes over all pairs, and a search a row.
        progress: called as progress(phase, done, total) about 20 times a second.
    """
    lines, columns = a.shape[0], b.shape[0]
    index, similarity = torch.empty(lines, dtype=torch.int64), torch.empty(lines, dtype=a.dtype)
    u, v, margin = (torch.empty(n, dtype=torch.float64) for n in (lines, columns, lines))
    start = None if prices is None else (-prices.clamp(min=0)).to(torch.float64).contiguous()
    listed = (None, None) if candidates is None else candidates
    recomputed = _C.vector_assignment(
        _view(a),
        _view(b),
        METRICS.index(metric),
        _view(start),
        _view(listed[0]),
        _view(listed[1]),
        _view(index),
        _view(similarity),
        _view(u),
        _view(v),
        _view(margin),
        exact_margins,
        library.threads(),
        library.isa(),
        progress,
    )
    return VectorAssignment(index, similarity, u, v, margin, recomputed)


def _view(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.contiguous().numpy()


def _as_matrix(cost: ArrayLike | torch.Tensor) -> np.ndarray:
    if isinstance(cost, torch.Tensor):
        cost = cost.detach().cpu()
        cost = (cost.float() if cost.dtype in (torch.float16, torch.bfloat16) else cost).numpy()
    matrix = np.asarray(cost)
    if matrix.ndim != 2:
        raise ValueError(f"expected a matrix (2-D array), got a {matrix.ndim} array")
    matrix = _supported(matrix)
    usable = matrix.flags.aligned and matrix.dtype.isnative and all(s % matrix.itemsize == 0 for s in matrix.strides)
    return matrix if usable else np.ascontiguousarray(matrix, dtype=matrix.dtype.newbyteorder("="))


def _supported(values: np.ndarray) -> np.ndarray:
    if values.dtype == np.float16:
        return values.astype(np.float32)
    return values if values.dtype in (np.float32, np.float64) else values.astype(np.float64, casting="safe")
