"""The point with the smallest sum of distances to a sample: a centre that outliers do not move."""

import logging

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


def geometric_median(rows: Tensor, *, tolerance: float = 1e-9, iterations: int = 1000) -> Tensor:
    """argmin_y Σ‖x_i − y‖ over rows [n, D], as float64 [D].

    Weiszfeld's iteration in the form of Vardi & Zhang 2000, which is also right where y meets a row; it stops when a
    step is shorter than `tolerance` times the mean distance.

    Raises:
        ValueError: no rows, or rows that are not finite.
    """
    if rows.dim() != 2 or rows.shape[0] == 0:
        raise ValueError(f"rows: expected shape [n, D] with n >= 1, got {list(rows.shape)}")
    points = rows.detach().to(torch.float64)
    if not torch.isfinite(points).all():
        raise ValueError("rows: expected finite values, got NaN or infinity")
    median = points.mean(0)
    for _ in range(iterations):
        distance = torch.linalg.vector_norm(points - median, dim=1)
        apart = distance > 0
        if not apart.any():
            return median
        weight = torch.where(apart, 1 / distance, 0)
        pull = weight @ (points - median)  # the sum of unit vectors towards the other rows
        here = (~apart).sum()  # rows at the present point resist with one unit each
        step = pull / weight.sum() * (1 - here / torch.linalg.vector_norm(pull).clamp_min(1e-300)).clamp_min(0)
        median = median + step
        if torch.linalg.vector_norm(step) <= tolerance * distance.mean():
            return median
    logger.warning("geometric median: not converged to %g after %d iterations", tolerance, iterations)
    return median
