"""A second opinion on an assignment: every pair against the prices, with products that the solver has not seen."""

from torch import Tensor

from saekern.matching.assignment import Metric

TILE = 2048  # rows on either side: 16 MB of float32 products at a time


def worst_violation(a: Tensor, b: Tensor, u: Tensor, v: Tensor, metric: Metric = "cosine") -> float:
    """The largest similarity(i, j) − u_i − v_j over all pairs of rows of a [Fa, D] and b [Fb, D], or 0 if none is
    positive. Similarities are float64, rounded to the rows' dtype as the assignment's are.

    torch's float32 products pick the pairs that could be positive: a sum of D products is off by at most (D + 8) 2⁻²⁴
    of the product of the norms, scaling included; prices and squared norms subtracted from it round by 2⁻²⁴ each.
    """
    a_norm, b_norm = a.double().norm(dim=1), b.double().norm(dim=1)
    factor = 2.0 if metric == "sqeuclidean" else 1.0  # −‖a − b‖² = 2⟨a, b⟩ − ‖a‖² − ‖b‖²
    a_limit, b_limit = (u + a_norm.square(), v + b_norm.square()) if metric == "sqeuclidean" else (u, v)
    largest = 1.0 if metric == "cosine" else float(a_norm.max() * b_norm.max())
    slack = factor * (a.shape[1] + 8) * 2.0**-23 * largest
    slack += 2.0**-22 * float(a_limit.abs().max() + b_limit.abs().max())
    a_limit = (a_limit - slack).float()
    b_limit = b_limit.float()
    worst = 0.0
    for right in range(0, b.shape[0], TILE):
        columns = slice(right, right + TILE)
        scaled = factor * _scaled(b[columns], b_norm[columns], metric).T
        for left in range(0, a.shape[0], TILE):
            rows = slice(left, left + TILE)
            product = _scaled(a[rows], a_norm[rows], metric) @ scaled
            product.sub_(a_limit[rows, None]).sub_(b_limit[columns])
            if not (product > 0).any():
                continue
            i, j = (product > 0).nonzero(as_tuple=True)
            for at, to in zip(i.split(2**14), j.split(2**14), strict=True):
                exact = similarity(a[left + at], b[right + to], metric).to(a.dtype).double()
                worst = max(worst, float((exact - u[left + at] - v[right + to]).max()))
    return worst


def _scaled(rows: Tensor, norm: Tensor, metric: Metric) -> Tensor:
    return (rows.double() / norm.clamp(min=1e-300)[:, None]).float() if metric == "cosine" else rows.float()


def similarity(x: Tensor, y: Tensor, metric: Metric) -> Tensor:
    """Row by row, float64."""
    x, y = x.double(), y.double()
    if metric == "sqeuclidean":
        return -(x - y).square().sum(1)
    dot = (x * y).sum(1)
    return dot if metric == "dot" else dot / (x.norm(dim=1) * y.norm(dim=1)).clamp(min=1e-300)
