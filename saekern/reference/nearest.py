"""cos(i, j) = ⟨a_i, b_j⟩ / (‖a_i‖ ‖b_j‖), 0 where a norm is 0; the best partner in both directions."""

import torch
from torch import Tensor

from saekern.reference.precision import accumulation
from saekern.reference.row_topk import row_topk


def unit_rows(rows: Tensor) -> Tensor:
    rows = rows.to(accumulation(rows))
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return torch.where(norm == 0, 0, rows / norm)  # a NaN row stays NaN


def cosines(a: Tensor, b: Tensor) -> Tensor:
    return unit_rows(a) @ unit_rows(b).T  # [Fa, Fb]


def nearest(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """a_cosine [Fa], a_index [Fa], b_cosine [Fb], b_index [Fb]; ties to the smaller index."""
    cosine = cosines(a, b)
    a_cosine, a_index = row_topk(cosine, 1)
    b_cosine, b_index = row_topk(cosine.T, 1)
    return a_cosine[:, 0], a_index[:, 0], b_cosine[:, 0], b_index[:, 0]


def nearest_pairs(a: Tensor, b: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`nearest(a[i], b[j])` for every row of pairs [P, 2], stacked."""
    found = [nearest(a[i], b[j]) for i, j in pairs.tolist()]
    if not found:
        sizes, dtypes = (a.shape[1], a.shape[1], b.shape[1], b.shape[1]), 2 * (accumulation(a), torch.int64)
        empty = [a.new_empty(0, size, dtype=dtype) for size, dtype in zip(sizes, dtypes, strict=True)]
        return empty[0], empty[1], empty[2], empty[3]
    a_cosine, a_index, b_cosine, b_index = (torch.stack(parts) for parts in zip(*found, strict=True))
    return a_cosine, a_index, b_cosine, b_index


def nearest_top(a: Tensor, b: Tensor, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """The m best partners of each row of a, descending, and a bound on the cosine of all others (−inf if none)."""
    cosine = cosines(a, b)
    if m == b.shape[0]:
        values, indices = row_topk(cosine, m)
        return values, indices, torch.full_like(values[:, 0], -torch.inf)
    values, indices = row_topk(cosine, m + 1)
    return values[:, :m].contiguous(), indices[:, :m].contiguous(), values[:, m].clone()
