"""The assignment benches: what their problems are, that other solvers answer them, that a wrong proof is refused."""

import dataclasses

import numpy as np
import pytest
import scipy.optimize
import torch

from saekern.bench import assignment_instances as instances
from saekern.bench import linear_sum_assignment as dense
from saekern.bench import match
from saekern.bench.assignment_peers import OTHERS
from saekern.bench.common import Absent, WrongAnswer, verify
from saekern.matching.result import Certificate, Matching


@pytest.mark.parametrize("kind", instances.DICTIONARIES)
def test_dictionaries_are_unit_rows_and_repeat(kind):
    a, b = instances.dictionaries(kind, 401, 96, seed=3)
    for side in (a, b):
        assert side.shape == (401, 96)
        torch.testing.assert_close(side.norm(dim=1), torch.ones(401), rtol=0, atol=1e-6)
    again = instances.dictionaries(kind, 401, 96, seed=3)
    assert torch.equal(a, again[0])
    assert torch.equal(b, again[1])
    assert not torch.equal(a, instances.dictionaries(kind, 401, 96, seed=4)[0])


@pytest.mark.parametrize(("kind", "share"), [("sae", 0.6), ("sae30", 0.3), ("dead", 0.6)])
def test_as_many_latents_are_shared_as_stated(kind, share):
    """At 768 dimensions a partner has 0.7 to 0.98, latents of the subspace stay below 0.6 of each other."""
    best = (1 - instances.cost_of(*instances.dictionaries(kind, 500))).max(1).values
    assert abs(float((best > 0.65).float().mean()) - share) < 0.01


@pytest.mark.parametrize("kind", instances.MATRICES)
def test_matrices(kind):
    cost = instances.matrix(kind, 40)
    assert cost.shape == (40, 40)
    assert cost.dtype == torch.float32
    assert cost.isfinite().all()
    assert torch.equal(cost, instances.matrix(kind, 40))


def test_constant_rows_and_copies():
    assert int((instances.matrix("zeros", 40) == 1).all(1).sum()) == 8
    assert len(instances.matrix("duplicates", 40).unique(dim=0)) == 35


@pytest.mark.parametrize("provider", OTHERS)
@pytest.mark.parametrize("kind", ["dupdead", "integers10", "products"])
def test_other_solvers_answer(provider, kind):
    try:
        run = dense.setup(dense.inputs({"n": 120, "cost": kind}), provider)
    except Absent as reason:
        pytest.skip(str(reason))
    verify(run)


def test_a_worse_permutation_is_refused():
    """Planted: only permutations checked; caught."""
    problem = dense.inputs({"n": 120, "cost": "sae"})
    columns = scipy.optimize.linear_sum_assignment(problem.costs[0])[1]
    dense.check(problem, "scipy", [columns])
    with pytest.raises(WrongAnswer, match=r"120 rows: total .* the optimum is"):
        dense.check(problem, "scipy", [columns[np.r_[1, 0, 2:120]]])


@pytest.fixture
def proven():
    """A problem and its matching with prices, from the dual linear program."""
    problem = match.inputs({"kind": "sae", "n": 40, "D": 64})
    cosine = (problem.a.double() @ problem.b.double().T).numpy()
    rows, columns = scipy.optimize.linear_sum_assignment(cosine, maximize=True)
    pairs = np.hstack([np.repeat(np.eye(40), 40, axis=0), np.tile(np.eye(40), (40, 1))])
    prices = scipy.optimize.linprog(np.ones(80), -pairs, -cosine.ravel(), bounds=(None, None)).x
    u, v = torch.tensor(prices[:40]), torch.tensor(prices[40:])
    primal, dual = float(cosine[rows, columns].sum()), float(prices.sum())
    proof = Certificate(True, primal, dual, dual - primal, u, v, 3)
    index = torch.tensor(columns)
    return problem, Matching(index, torch.tensor(cosine[rows, columns]).float(), certificate=proof)


def test_right_prices_are_a_proof(proven):
    problem, found = proven
    match.check(problem, found)
    assert match.note(problem, found).startswith("3 rows recomputed (7.5 %), gap ")


def test_prices_below_a_pair_prove_nothing(proven):
    """Moved between two rows, so that the sum stays. Planted: the pass over all pairs left out; caught."""
    problem, found = proven
    u = found.certificate.u.clone()
    u[0] -= 1e-5
    u[1] += 1e-5
    with pytest.raises(WrongAnswer, match="above its prices: not proven optimal"):
        match.check(problem, dataclasses.replace(found, certificate=found.certificate._replace(u=u)))


def test_prices_with_a_gap_prove_nothing(proven):
    """Planted: the sums not compared; caught."""
    problem, found = proven
    proof = found.certificate._replace(u=found.certificate.u + 1e-3)
    with pytest.raises(WrongAnswer, match="prices add up to"):
        match.check(problem, dataclasses.replace(found, certificate=proof))


def test_a_certificate_has_to_be_exact(proven):
    problem, found = proven
    with pytest.raises(WrongAnswer, match="does not say that it is exact"):
        match.check(problem, dataclasses.replace(found, certificate=found.certificate._replace(exact=False)))


def test_a_stated_cosine_is_looked_up(proven):
    """Planted: cosines believed; caught."""
    problem, found = proven
    with pytest.raises(WrongAnswer, match="a stated cosine is not the pair's"):
        match.check(problem, dataclasses.replace(found, cosine=found.cosine + 1e-3))


@pytest.mark.parametrize("make", [match.mm_blocks, match.packed_blocks])
def test_the_product_is_one(make):
    problem = match.inputs({"kind": "sae", "n": 1100, "D": 64})
    match.check_tile(problem, make(problem)())
    with pytest.raises(WrongAnswer, match="not float32-exact"):
        match.check_tile(problem, make(problem)().bfloat16().float())


def test_without_the_folder_a_real_pair_is_absent(tmp_path):
    with pytest.raises(Absent, match="--data FOLDER"):
        match.real_inputs({"pair": "0-1", "n": 8}, None)
    with pytest.raises(Absent, match=r"no seed0\.safetensors in"):
        match.real_inputs({"pair": "0-1", "n": 8}, tmp_path)
