"""Exact margins: scipy decides by forbidding each pair in turn."""

import numpy as np
import pytest
import scipy.optimize
import torch

from saekern.matching import match
from saekern.matching.verify import similarity


def matrix(a, b, metric):
    rows = [similarity(row.expand_as(b), b, metric) for row in a]
    return torch.stack(rows).to(a.dtype).double().numpy()  # rounded as the solver's are


def total(gain):
    return gain[scipy.optimize.linear_sum_assignment(gain, maximize=True)].sum()


@pytest.mark.parametrize("metric", ["cosine", "dot", "sqeuclidean"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (2, 2), (6, 6), (6, 9), (9, 4), (17, 18), (18, 17), (20, 20)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_forbidding_a_pair_costs(shape, metric, dtype):
    """A pair's margin is by how much the optimum falls without it: less, and it stays in; more, and it does not.

    Shapes: square; a little wider, with spare lines; much wider, with columns left over; turned round.
    Planted: columns left over taken for dead ends; caught. The own column not skipped; caught.
    """
    a, b = torch.randn(shape[0], 3, dtype=dtype), torch.randn(shape[1], 3, dtype=dtype)
    exact, bound = match(a, b, metric=metric, margin="exact"), match(a, b, metric=metric)
    assert torch.equal(exact.index, bound.index)
    gain = matrix(a, b, metric)
    best = total(gain)
    rounding = 2.0 ** (-23 if dtype == torch.float32 else -46) * max(shape) * np.abs(gain).max()
    for i in (exact.index >= 0).nonzero()[:, 0].tolist():
        without = gain.copy()
        without[i, exact.index[i]] = -1e9
        loss = best - total(without)
        if loss > 1e8:  # there is no other assignment
            assert exact.margin[i].isnan()
        else:
            assert abs(float(exact.margin[i]) - loss) <= rounding
            assert bound.margin[i].isnan() or float(bound.margin[i]) <= loss + rounding


@pytest.mark.parametrize("spread", [0.3, 0.05])
def test_lists_that_are_too_short_at_first(spread):
    """Clusters of 200 latents: 64 columns a line are not enough to know the second best assignment."""
    centre = torch.nn.functional.normalize(torch.randn(3, 16), dim=1)
    a, b = (centre[torch.arange(600) % 3] + spread * torch.randn(600, 16) for _ in range(2))
    found = match(a, b, margin="exact")
    assert found.certificate.exact
    assert found.certificate.rows_recomputed > 0
    gain = matrix(a, b, "cosine")
    best = total(gain)
    for i in range(0, 600, 60):
        without = gain.copy()
        without[i, found.index[i]] = -1e9
        assert abs(float(found.margin[i]) - (best - total(without))) <= 600 * 2.0**-24


def test_margins_do_not_depend_on_threads():
    a, b = torch.randn(150, 8), torch.randn(160, 8)
    threads = torch.get_num_threads()
    try:
        margins = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            margins.append(match(a, b, margin="exact").margin)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(margins[0], margins[1])
    assert torch.equal(margins[0], margins[2])


def test_errors():
    a = torch.randn(4, 3)
    with pytest.raises(ValueError, match=r"margin: expected 'bound' or 'exact', got 'tight'"):
        match(a, a, margin="tight")
