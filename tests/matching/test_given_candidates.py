"""A first pass made elsewhere: what a GPU would hand to the solver, from the same op on the CPU."""

import pytest
import torch

from saekern.matching import match
from saekern.matching.assignment import assign_vectors
from saekern.matching.pair import _candidates_of
from saekern.matching.verify import worst_violation


@pytest.mark.parametrize("shape", [(1, 1), (40, 40), (90, 95), (60, 200), (400, 400)])
def test_given_candidates_lead_to_the_same_total(shape):
    """(400, 400) has more columns than are listed."""
    a, b = torch.randn(shape[0], 24), torch.randn(shape[1], 24)
    want = match(a, b)
    found = assign_vectors(a, b, candidates=_candidates_of(a, b))
    assert float(found.similarity.double().sum()) == pytest.approx(want.certificate.primal, abs=1e-9)
    assert worst_violation(a, b, found.u, found.v) <= 2.0**-44


def test_the_bound_holds_for_float64_cosines():
    """Planted: (D + 8) 2⁻²⁴ left out; caught, since float32 rounds some of 60,000 cosines down."""
    a, b = torch.randn(300, 700), torch.randn(200, 700)
    index, rest = _candidates_of(a, b)
    unit_a, unit_b = (torch.nn.functional.normalize(rows.double(), dim=1) for rows in (a, b))
    cosine = unit_a @ unit_b.T
    cosine.scatter_(1, index, -2.0)
    assert bool((cosine.amax(1) <= rest).all())
