"""The k largest of each row of a matrix, descending, ties to the smaller index."""

import torch
from torch import Tensor


def row_topk(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`torch.topk` with a defined order among ties: a stable descending sort keeps the smaller index first.

    NaN sorts as the largest, as in `torch.topk`.
    """
    values, indices = torch.sort(scores, dim=1, descending=True, stable=True)
    return values[:, :k].contiguous(), indices[:, :k].contiguous()
