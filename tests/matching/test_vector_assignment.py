"""`match(..., "assignment")` against scipy on the dense matrix of similarities, and its proof against every pair.

`solve` checks each answer by itself: complete and one-to-one, u_i + v_j above every similarity, equality for the pairs
found, no price where a latent is left over, and primal and dual values. Nothing of it comes from the solver.
"""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment as scipy_assignment

from saekern import _C
from saekern.matching import match
from saekern.matching.verify import worst_violation
from saekern.ops import library

METRICS = ("cosine", "dot", "sqeuclidean")


def similarities(a, b, metric):
    """[Fa, Fb] float64, of float64 products: computed by NumPy, then rounded once to the dictionaries' dtype."""
    x, y = a.double().numpy(), b.double().numpy()
    match metric:
        case "dot":
            exact = x @ y.T
        case "sqeuclidean":
            exact = -np.stack([np.square(row - y).sum(1) for row in x])
        case "cosine":
            x, y = x / np.abs(x).max(1, keepdims=True), y / np.abs(y).max(1, keepdims=True)
            exact = (x @ y.T) / (np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(y, axis=1))
    return exact.astype(a.numpy().dtype).astype(np.float64)


def solve(a, b, metric="cosine", *, dead=(None, None), **options):
    """The matching, once its proof has been read; and that its total is scipy's."""
    found = match(a, b, "assignment", metric=metric, dead=dead, **options)
    live_a, live_b = (
        (rows != 0).any(1) & (torch.ones(len(rows), dtype=torch.bool) if mask is None else ~mask)
        for rows, mask in zip((a, b), dead, strict=True)
    )
    table = similarities(a[live_a], b[live_b], metric)
    proof, index = found.certificate, found.index
    u, v = proof.u[live_a].numpy(), proof.v[live_b].numpy()
    # Prices are sums of differences along paths: some 2^-52 of the largest, times their length. The table's own
    # rounding, where NumPy adds in another order than the solver, moves the last bit of single similarities.
    scale = max(np.abs(table).max(initial=0.0), np.abs(u).max(initial=0.0), np.abs(v).max(initial=0.0))
    one = 2.0**-44 * scale + np.finfo(a.numpy().dtype).eps * np.abs(table).max(initial=0.0)

    assert bool((index[~live_a] == -1).all())
    assert bool((proof.u[~live_a] == 0).all())
    assert bool((proof.v[~live_b] == 0).all())
    matched = index >= 0
    assert int(matched.sum()) == min(table.shape)
    assert len(set(index[matched].tolist())) == int(matched.sum())
    assert bool(live_b[index[matched]].all())
    assert torch.equal(matched, ~found.cosine.isnan())

    rows = (torch.cumsum(live_a, 0) - 1)[matched].numpy()
    columns = (torch.cumsum(live_b, 0) - 1)[index[matched]].numpy()
    assert (table <= u[:, None] + v + one).all(), "a pair stands above its prices"
    chosen = table[rows, columns]
    assert (np.abs(u[rows] + v[columns] - chosen) <= one).all(), "an assigned pair stands below its prices"
    assert (np.abs(found.cosine[matched].double().numpy() - chosen) <= one).all()
    if len(rows) < len(u):
        left = np.setdiff1d(np.arange(len(u)), rows)
        assert (np.abs(u[left]) <= one).all(), "a latent left over has a price"
        assert (u >= -one).all()
    if len(columns) < len(v):
        left = np.setdiff1d(np.arange(len(v)), columns)
        assert (np.abs(v[left]) <= one).all(), "a latent left over has a price"
        assert (v >= -one).all()

    many = one * max(len(rows), 1)
    assert proof.exact
    assert abs(proof.primal - chosen.sum()) <= many
    assert abs(proof.dual - (u.sum() + v.sum())) <= many
    assert abs(proof.gap) <= many
    assert proof.gap == pytest.approx(proof.dual - proof.primal, abs=many)
    best = table[scipy_assignment(table, maximize=True)].sum() if table.size else 0.0
    assert abs(best - chosen.sum()) <= many
    known = found.margin[matched]
    assert bool((known.isnan() | (known >= 0)).all())
    return found


def dictionaries(fa, fb, width, dtype=torch.float32):
    """Half shared under noise, a quarter in a small subspace, the rest independent; norms from 0.1 to 10."""
    a, b = torch.randn(fa, width, dtype=torch.float64), torch.randn(fb, width, dtype=torch.float64)
    shared, low = min(fa, fb) // 2, min(fa, fb) // 4
    b[:shared] = 0.8 * a[:shared] + 0.6 * b[:shared]
    basis = torch.randn(3, width, dtype=torch.float64)
    a[shared : shared + low], b[shared : shared + low] = (
        torch.randn(low, 3, dtype=torch.float64) @ basis for _ in "ab"
    )
    a, b = (rows * 10 ** (2 * torch.rand(len(rows), 1, dtype=torch.float64) - 1) for rows in (a, b))
    return a.to(dtype), b[torch.randperm(fb)].to(dtype)


SHAPES = [(1, 1), (2, 2), (1, 9), (31, 31), (64, 64), (257, 257)]
SHAPES += [(80, 81), (80, 90), (80, 91), (240, 269), (60, 130), (30, 400), (3, 700)]  # 90: the last with spare lines


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("metric", METRICS)
def test_same_total_as_scipy(metric, dtype):
    """Square, a little wider (spare lines fill up), much wider; from both sides."""
    for (fa, fb), width in zip(SHAPES, itertools.cycle((16, 1, 5, 33)), strict=False):
        a, b = dictionaries(fa, fb, width, dtype)
        solve(a, b, metric)
        if fa != fb:
            solve(b, a, metric)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shape", [(70, 70), (90, 100), (100, 90), (20, 110)])
def test_dead_and_zero_latents(shape, metric):
    a, b = dictionaries(*shape, 12)
    a[::7], b[3::9] = 0, 0
    dead_a, dead_b = torch.rand(shape[0]) < 0.2, torch.rand(shape[1]) < 0.1
    solve(a, b, metric, dead=(dead_a, dead_b))
    solve(a, b, metric, dead=(None, dead_b))
    solve(b, a, metric, dead=(dead_b, None))


def test_nothing_live():
    a, b = torch.randn(5, 3), torch.randn(8, 3)
    for x, y in ((a, 0 * b), (0 * a, b), (0 * a, 0 * b), (b, 0 * a)):
        found = match(x, y, "assignment", verify=True)
        assert found.index.tolist() == [-1] * len(x)
        assert found.margin.isnan().all()
        proof = found.certificate
        assert proof[:4] == (True, 0.0, 0.0, 0.0)
        assert proof.verified
        assert [len(proof.u), len(proof.v)] == [len(x), len(y)]


def signs(rows, width, dtype=torch.float32):
    return torch.randint(0, 2, (rows, width), dtype=dtype) * 2 - 1


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shape", [(200, 200), (200, 220), (150, 400), (220, 200)])
def test_ties(shape, metric):
    """Sign vectors have 9 different products; exact duplicates and equal rows tie everywhere."""
    a, b = signs(shape[0], 8), signs(shape[1], 8)
    solve(a, b, metric)
    a, b = dictionaries(shape[0] // 4, shape[1] // 4, 6)
    solve(a.repeat(4, 1), b.repeat(4, 1), metric)
    solve(torch.ones(shape[0], 5), torch.ones(shape[1], 5), metric)
    solve(torch.ones(shape[0], 5), -torch.ones(shape[1], 5), metric)
    solve(torch.ones(shape[0], 5), dictionaries(9, shape[1], 5)[1], metric)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("magnitude", [1e-38, 1e-25, 1e-22, 1e-12, 1e12, 1e18, 1e25, 1e36])
def test_magnitudes_for_cosines(magnitude, dtype):
    """Planted: rows counted as zero by the float32 norm; caught."""
    a, b = dictionaries(90, 100, 40, torch.float64)
    scale = magnitude ** torch.rand(90, 1, dtype=torch.float64)  # in each dictionary all magnitudes in between
    solve((a * magnitude).to(dtype), b.to(dtype), verify=True)
    solve((a * scale).to(dtype), (b * magnitude).to(dtype), verify=True)


@pytest.mark.parametrize("magnitude", [1e-300, 1e-170, 1e-25, 1e25, 1e150, 1e300])
def test_magnitudes_of_float64(magnitude):
    """Planted: `moderate` left out; caught at 1e-300, 1e-170 and 1e300."""
    a, b = dictionaries(80, 85, 9, torch.float64)
    solve(a * magnitude, b * magnitude, verify=True)
    solve(a * magnitude, b / magnitude, "dot", verify=True)
    if 1e-150 < magnitude < 1e150:
        solve(a * magnitude, b * magnitude, "dot", verify=True)
        solve(a * magnitude, b * magnitude, "sqeuclidean", verify=True)


def test_products_of_float32_that_underflow():
    """Float32 holds fewer digits of what is below 1e-38: the answer is that of the same dictionaries times 2^80."""
    a, b = dictionaries(80, 85, 9)
    for metric in ("dot", "sqeuclidean"):
        want = match(a, b, metric=metric)
        got = match(a * 2.0**-70, b * 2.0**-70, metric=metric)
        assert torch.equal(got.index, want.index)
        assert got.certificate.exact
        assert got.certificate.primal == want.certificate.primal * 2.0**-140


@pytest.mark.parametrize("metric", ["dot", "sqeuclidean"])
def test_similarities_that_overflow(metric):
    """Planted: the search's exception not translated; caught."""
    a, b = (rows * 1e25 for rows in dictionaries(30, 33, 4))
    with pytest.raises(ValueError, match=rf"{metric}: the similarities exceed the largest number of their dtype"):
        match(a, b, metric=metric)
    with pytest.raises(ValueError, match=rf"{metric}: the similarities exceed the largest number of their dtype"):
        match(a.double() * 1e140, b.double() * 1e140, metric=metric)


def direct(a, b, metric):
    """The solver itself, without what `match` does before."""
    lines, columns = len(a), len(b)
    index, value = np.empty(lines, np.int64), np.empty(lines, a.numpy().dtype)
    u, v, margin = np.empty(lines), np.empty(columns), np.empty(lines)
    start = (None, None, None)
    metric = METRICS.index(metric)
    return (
        _C.vector_assignment(a.numpy(), b.numpy(), metric, *start, index, value, u, v, margin, False, 2),
        index,
        value,
    )


@pytest.mark.parametrize("metric", ["dot", "sqeuclidean"])
def test_the_solver_alone_refuses_what_overflows(metric):
    a, b = (rows * 1e25 for rows in dictionaries(30, 30, 4))
    with pytest.raises(ValueError, match=r"vector_assignment: the similarities exceed the largest number"):
        direct(a, b, metric)


def clustered(rows, clusters, spread, width=24):
    """Both sides crowd round the same centres, twice as many of one side as of the other: nobody has a clear partner,
    and every line's first list holds columns that others need more."""
    centre = torch.nn.functional.normalize(torch.randn(clusters, width), dim=1)
    left = torch.arange(rows) % clusters
    right = torch.where(torch.arange(rows) % 3 == 0, (left + 1) % clusters, left)
    return tuple(centre[which] + spread * torch.randn(rows, width) for which in (left, right))


@pytest.mark.parametrize(("rows", "clusters", "spread"), [(600, 2, 0.01), (900, 3, 0.01), (1000, 5, 0.003)])
def test_lists_are_made_longer(rows, clusters, spread):
    a, b = clustered(rows, clusters, spread)
    assert solve(a, b, verify=True).certificate.rows_recomputed > 0
    assert solve(a[: rows * 9 // 10], b).certificate.rows_recomputed > 0  # spare lines
    solve(a[: rows // 2], b)


def test_lists_are_cut_again():
    """Points closer than what float32 products tell apart: all 2200 columns of 2100 lines are asked for, more than the
    4 M entries that are kept. Planted: cut lists keep the bounds of higher prices, and are not looked at again in the
    end; caught by the gap."""
    a, b = dictionaries(2100, 2200, 4)
    assert solve(a * 1e-6, b * 1e-6 + 1, "sqeuclidean").certificate.rows_recomputed > 4000


def test_more_candidates_tie_than_a_list_sorts():
    """2048 is where a list that cannot be told apart by the screen is settled by exact scores."""
    a, b = torch.ones(2500, 3), torch.ones(2300, 3)
    a[:40], b[:30] = dictionaries(40, 30, 3)
    solve(a, b, "dot")


def test_margins_are_lower_bounds():
    """A pair stays in an optimal assignment while its similarity falls by less than its margin: scipy, on matrices with
    one entry lowered. Planted: margins larger by 0.001; caught."""
    told = 0
    for seed in range(40):
        torch.manual_seed(seed)
        a, b = dictionaries(*((12, 12), (9, 10), (5, 12), (12, 7))[seed % 4], 3, torch.float64)
        found = solve(a, b)
        table = similarities(a, b, "cosine")
        best = table[scipy_assignment(table, maximize=True)].sum()
        for i in (found.index >= 0).nonzero()[:, 0].tolist():
            lowered, fall = table.copy(), found.margin[i].item()
            if fall != fall:
                continue
            told += fall > 1e-6
            lowered[i, found.index[i]] -= fall
            best_now = lowered[scipy_assignment(lowered, maximize=True)].sum()
            assert abs(best_now - (best - fall)) <= 1e-12
    assert told > 20


def test_verify_sees_wrong_prices():
    for metric in METRICS:
        a, b = dictionaries(70, 80, 11)
        proof = solve(a, b, metric, verify=True).certificate
        assert proof.verified
        assert worst_violation(a, b, proof.u, proof.v, metric) <= 1e-9
        u = proof.u.clone()
        u[17] -= 0.01
        assert worst_violation(a, b, u, proof.v, metric) == pytest.approx(0.01, abs=1e-6)


def test_verify_raises_for_a_wrong_answer(monkeypatch):
    from saekern.matching import pair

    def wrong(*args, **options):
        found = assign(*args, **options)
        return found._replace(u=found.u - 1e-3)

    assign = pair.assign_vectors
    monkeypatch.setattr(pair, "assign_vectors", wrong)
    a, b = dictionaries(20, 20, 5)
    with pytest.raises(RuntimeError, match=r"assignment: a pair stands 0\.001 above its prices"):
        match(a, b, verify=True)
    assert not match(a, b).certificate.exact


@pytest.mark.parametrize("shape", [(150, 150), (150, 160), (160, 150), (60, 150)])
def test_start_changes_nothing_but_the_way(shape):
    a, b = dictionaries(*shape, 10)
    before = solve(a, b)
    moved = a + 0.01 * torch.randn_like(a)
    want = solve(moved, b).certificate.primal
    for start in (before, before.certificate, before.certificate._replace(u=torch.randn(shape[0]).double())):
        assert solve(moved, b, start=start).certificate.primal == pytest.approx(want, rel=1e-12)
    noise = before.certificate._replace(u=torch.randn(shape[0]).double(), v=5 * torch.randn(shape[1]).double())
    assert solve(moved, b, start=noise).certificate.primal == pytest.approx(want, rel=1e-12)
    with pytest.raises(ValueError, match=rf"start: expected prices of {shape[0] - 1} and {shape[1]} latents, got"):
        match(a[1:], b, start=before)
    with pytest.raises(ValueError, match=r"start: expected an assignment with its certificate, got a Matching without"):
        match(a, b, start=replace(before, certificate=None))


@pytest.mark.parametrize("shape", [(301, 301), (283, 301), (100, 301)])
def test_same_bits_for_any_number_of_threads(shape):
    for a, b in (dictionaries(*shape, 33), (signs(shape[0], 7), signs(shape[1], 7)), clustered(301, 2, 0.01)):
        before, results = torch.get_num_threads(), []
        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                results.append(match(a, b))
        finally:
            torch.set_num_threads(before)
        for other in results[1:]:
            proof, want = other.certificate, results[0].certificate
            assert torch.equal(other.index, results[0].index)
            assert torch.equal(proof.u, want.u)
            assert torch.equal(proof.v, want.v)
            assert torch.equal(other.margin.nan_to_num(7), results[0].margin.nan_to_num(7))
            assert proof.rows_recomputed == want.rows_recomputed


def test_same_total_at_every_instruction_level():
    levels = ("portable", "avx2", "avx512", "avx512bf16")
    for a, b in (dictionaries(200, 210, 40), (signs(200, 9), signs(200, 9))):
        want = solve(a, b).certificate.primal
        for level in levels[: levels.index(_C.isa()) + 1]:
            with library.instruction_level(level):
                assert solve(a, b).certificate.primal == pytest.approx(want, rel=1e-13)


def test_total_does_not_depend_on_the_order_of_latents():
    a, b = dictionaries(200, 215, 20)
    want = solve(a, b).certificate.primal
    for _ in range(3):
        assert solve(a[torch.randperm(200)], b[torch.randperm(215)]).certificate.primal == pytest.approx(
            want, rel=1e-13
        )


def test_progress_and_what_it_raises():
    a, b = clustered(900, 3, 0.001)
    calls = []
    match(a, b, progress=lambda *call: calls.append(call))
    assert calls
    assert {phase for phase, _, _ in calls} <= {"candidates", "auction", "search"}
    assert all(0 <= done <= total for _, done, total in calls)

    def stop(*call):
        raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        match(a, b, progress=stop)
    solve(a, b)


def test_errors():
    a = torch.randn(4, 3)
    with pytest.raises(ValueError, match=r"metric: expected one of cosine, dot, sqeuclidean, got 'l2'"):
        match(a, a, metric="l2")
    for option in ({"metric": "dot"}, {"verify": True}, {"start": match(a, a)}):
        with pytest.raises(
            ValueError, match=r"method: metric, verify, start and margin are for 'assignment', got 'nearest'"
        ):
            match(a, a, "nearest", **option)


def test_the_door_refuses_arrays_that_do_not_fit():
    """What the solver writes into has to be as long as it says."""
    a, b = np.ones((3, 2), np.float32), np.ones((4, 2), np.float32)

    def call(a, b, metric=0, prices=None, index=None, rest=None, margin=3):
        outputs = np.empty(3, np.int64), np.empty(3, np.float32), np.empty(3), np.empty(4), np.empty(margin)
        return _C.vector_assignment(a, b, metric, prices, index, rest, *outputs, False, 1)

    assert call(a, b) == 0
    for wrong in ((b, a), (a, b[:, :1].copy()), (a[:0], b), (a, b, 3)):
        with pytest.raises(ValueError, match=r"vector_assignment: expected a \[lines, width\], b \[columns, width\]"):
            call(*wrong)
    for wrong in (
        {"margin": 2},
        {"prices": np.zeros(3)},
        {"index": np.zeros((2, 1), np.int64), "rest": np.ones(3)},
        {"index": np.zeros((3, 1), np.int64)},
    ):
        with pytest.raises(ValueError, match=r"vector_assignment: expected outputs and beginnings"):
            call(a, b, **wrong)
