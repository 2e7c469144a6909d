"""scipy decides: the same total cost and the same refusals, on ties, rectangles, forbidden pairs and any layout."""

import itertools

import numpy as np
import pytest
import scipy.optimize
import torch

import saekern
from saekern.matching import assignment

INF = np.inf


def total(cost, pairs):
    """Σ cost over the pairs in float64; the pairs must be one-to-one, complete and sorted."""
    cost = np.asarray(cost)
    rows, columns = pairs
    assert rows.dtype == columns.dtype == np.int64
    assert len(rows) == len(columns) == min(cost.shape)
    assert (np.diff(rows) > 0).all()
    assert len(set(columns.tolist())) == len(columns)
    return cost[rows, columns].astype(np.float64).sum()


def rounding(cost):
    """What float64 additions along paths and over the total may lose: n² steps would be a wild overestimate."""
    finite = np.abs(np.asarray(cost, dtype=np.float64)[np.isfinite(cost)])
    return 1e-13 * max(cost.shape) * finite.max(initial=1.0)


def agree(cost, maximize=False):
    """Both solvers raise, or both find the same total. Returns whether there was an answer."""
    try:
        want = total(cost, scipy.optimize.linear_sum_assignment(cost, maximize))
    except ValueError as error:
        with pytest.raises(ValueError, match=str(error)):
            saekern.linear_sum_assignment(cost, maximize)
        return False
    got = total(cost, saekern.linear_sum_assignment(cost, maximize))
    assert abs(got - want) <= rounding(cost), f"{cost.shape} {cost.dtype}: total {got}, scipy's {want}"
    return True


def certify(cost, pairs):
    """Without scipy: prices exist under which no row would rather have another column. Bellman-Ford in float64.

    w[i, k] is what row i pays for taking row k's column, less what k pays for it now. The answer is optimal if and only
    if no cycle of w is negative, and then the shortest distances are the prices.
    """
    cost = np.asarray(cost, dtype=np.float64)
    rows, columns = pairs
    assert len(rows) == len(columns) == cost.shape[0] == cost.shape[1]
    taken = cost[:, columns]
    w = taken - np.diag(taken)[None, :]
    distance = np.zeros(len(rows))
    for _ in range(len(rows) + 1):
        shorter = np.minimum(distance, (distance[:, None] + w).min(0))
        if (shorter >= distance - rounding(cost)).all():
            return
        distance = shorter
    raise AssertionError("a cheaper cycle exists: the answer is not optimal")


CASES = [
    ([[400, 150, 400], [400, 450, 600], [300, 225, 300]], 850),
    ([[400, 150, 400, 1], [400, 450, 600, 2], [300, 225, 300, 3]], 452),
    ([[10, 10, 8], [9, 8, 1], [9, 7, 4]], 18),
    ([[10, 10, 8, 11], [9, 8, 1, 1], [9, 7, 4, 10]], 15),
    ([[10, INF, INF], [INF, INF, 1], [INF, 7, INF]], 18),
    ([[0, 1], [1, 0]], 0),
    ([[3]], 3),
    ([[2, 1, 3]], 1),
    ([[-5, -6], [-7, -1]], -13),
    ([[0.0, -0.0], [-0.0, 0.0]], 0),
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("cost", "want"), CASES)
def test_known_answers(cost, want, dtype):
    """Planted: maximize ignored; caught."""
    cost = np.array(cost, dtype=dtype)
    for matrix in (cost, cost.T):
        assert total(matrix, saekern.linear_sum_assignment(matrix)) == want
        assert total(-matrix, saekern.linear_sum_assignment(-matrix, maximize=True)) == -want


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0)])
def test_empty(shape):
    for cost in (np.empty(shape), np.empty(shape, np.float32), torch.empty(shape)):
        rows, columns = saekern.linear_sum_assignment(cost)
        assert rows.dtype == columns.dtype == np.int64
        assert len(rows) == len(columns) == 0


@pytest.mark.parametrize("shape", [(1, 1), (7, 7), (5, 9), (9, 5), (100, 100), (300, 300), (40, 130), (130, 40)])
@pytest.mark.parametrize("value", [0.0, 1.0, -2.5])
def test_constant_matrix_gives_the_identity(shape, value):
    """Planted: ties listed from column 0 instead of from the row's own; caught."""
    for cost, maximize in itertools.product((np.full(shape, value), np.full(shape, value, np.float32)), (False, True)):
        rows, columns = saekern.linear_sum_assignment(cost, maximize)
        assert np.array_equal(rows, np.arange(min(shape)))
        assert np.array_equal(columns, rows)


def random_cost(random, kind, shape):
    match kind:
        case "uniform":
            return random.random(shape)
        case "ties":
            return random.integers(0, 3, shape).astype(np.float64)
        case "signed":
            return random.integers(-50, 50, shape).astype(np.float64)
        case "product":
            return np.outer(np.arange(1, shape[0] + 1), np.arange(1, shape[1] + 1)).astype(np.float64)
        case "low rank":
            return random.standard_normal((shape[0], 4)) @ random.standard_normal((4, shape[1]))
        case "copies":
            return random.random(shape)[random.integers(0, shape[0], shape[0])][
                :, random.integers(0, shape[1], shape[1])
            ]


KINDS = ("uniform", "ties", "signed", "product", "low rank", "copies")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("largest", "count"), [(9, 300), (70, 60), (180, 12)])
def test_same_total_as_scipy(kind, largest, count):
    """2232 instances. Planted: bound on unlisted columns ignored; columns nearer than the sink not repriced; the last
    column left out of the selection; infinite costs listed; a threshold that leaves candidates out;
    all caught."""
    random = np.random.default_rng(KINDS.index(kind) * 1000 + largest)
    answered = 0
    for trial in range(count):
        shape = tuple(random.integers(1, largest + 1, 2))
        cost = random_cost(random, kind, (shape[0], shape[0]) if trial % 3 == 0 else shape)
        cost = cost.astype((np.float32, np.float64)[trial % 2])
        maximize = bool(random.random() < 0.5)
        if random.random() < 0.5:
            cost[random.random(cost.shape) < random.random()] = -INF if maximize else INF
        layout = random.integers(4)
        if layout == 1:
            cost = np.asfortranarray(cost)
        elif layout == 2:
            cost = cost[::-1, ::-1]
        elif layout == 3:
            cost = np.repeat(np.repeat(cost, 2, axis=0), 3, axis=1)[::2, ::3]
        answered += agree(cost, maximize)
    assert count // 4 < answered, "the instances must not be infeasible as a rule"


@pytest.mark.parametrize("size", [31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 513])
def test_sizes_around_list_and_block_boundaries(size):
    """Planted: the elements after the last full group of 64 skipped; caught."""
    random = np.random.default_rng(size)
    for rows in (size, size // 3 + 1):
        cost = random.random((rows, size)).astype(np.float32)
        cost[:, -1] -= 0.5  # the last column is everybody's favourite
        assert agree(cost)
        assert agree(cost.T)
        assert agree(np.round(cost * 4))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(400, 400), (300, 400), (400, 300)])
def test_products_need_whole_lines(shape, dtype):
    """i·j makes every line's list useless, so the search over whole lines takes over (Machol and Wien 1976).

    Planted: prices left out of that search; caught.
    """
    cost = random_cost(None, "product", shape).astype(dtype)
    assert agree(cost)
    assert agree(cost, maximize=True)
    cost[::7, ::5] = INF
    assert agree(cost)
    short = cost if shape[0] <= shape[1] else cost.T
    short[:40, 30:] = INF  # 40 of the lines that must all be served have 30 partners
    assert not agree(cost)


def planted_cosines(rows, width, random):
    """1 − cosines of two dictionaries: half shared under noise, a quarter in a small subspace, dead (zero) rows."""
    a, b = random.standard_normal((2, rows, width))
    b[: rows // 2] = 0.8 * a[: rows // 2] + 0.6 * b[: rows // 2]
    low = slice(rows // 2, rows // 2 + rows // 4)
    basis = random.standard_normal((8, width))
    a[low], b[low] = (random.standard_normal((2, rows // 4, 8))) @ basis
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    a[-rows // 10 :] = b[-rows // 10 :] = 0
    return (1 - a @ b[random.permutation(rows)].T).astype(np.float32)


@pytest.mark.parametrize("kind", [*KINDS, "dictionaries"])
def test_optimality_certificate(kind):
    """Planted: a path ended at the first free column it met, not the nearest; caught."""
    random = np.random.default_rng(3)
    cost = planted_cosines(240, 32, random) if kind == "dictionaries" else random_cost(random, kind, (240, 240))
    certify(cost, saekern.linear_sum_assignment(cost))
    certify(-cost, saekern.linear_sum_assignment(cost, maximize=True))


def test_certificate_rejects_a_worse_answer():
    random = np.random.default_rng(4)
    cost = random.random((30, 30))
    rows, columns = saekern.linear_sum_assignment(cost)
    with pytest.raises(AssertionError, match="cheaper cycle"):
        certify(cost, (rows, np.roll(columns, 1)))


def test_total_does_not_depend_on_the_order_of_rows_and_columns():
    random = np.random.default_rng(5)
    cost = planted_cosines(300, 32, random)
    want = total(cost, saekern.linear_sum_assignment(cost))
    for _ in range(5):
        shuffled = cost[random.permutation(300)][:, random.permutation(300)]
        assert abs(total(shuffled, saekern.linear_sum_assignment(shuffled)) - want) <= rounding(cost)


@pytest.mark.parametrize("kind", ["ties", "dictionaries", "copies"])
def test_same_pairs_for_any_number_of_threads(kind):
    """Planted: ties turned by the thread's number; caught."""
    random = np.random.default_rng(6)
    cost = planted_cosines(500, 16, random) if kind == "dictionaries" else random_cost(random, kind, (500, 700))
    before = torch.get_num_threads()
    try:
        answers = []
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            answers.append(saekern.linear_sum_assignment(cost)[1])
    finally:
        torch.set_num_threads(before)
    assert all(np.array_equal(answers[0], answer) for answer in answers)


def test_float64_is_solved_in_float64():
    """Planted: float64 input narrowed to float32; caught."""
    cost = 1e4 + np.random.default_rng(7).random((300, 300)) * 1e-2
    certify(cost - 1e4, saekern.linear_sum_assignment(cost))
    assert agree(cost)


def test_float32_costs_add_up_exactly():
    """Path lengths in float32 would lose the second term of these costs."""
    random = np.random.default_rng(8)
    cost = (random.integers(0, 2**12, (200, 200)) * 2**12 + random.integers(0, 2**12, (200, 200))).astype(np.float32)
    want = total(cost, scipy.optimize.linear_sum_assignment(cost))
    assert total(cost, saekern.linear_sum_assignment(cost)) == want


@pytest.mark.parametrize("maximize", [False, True])
def test_other_types(maximize):
    random = np.random.default_rng(9)
    integers = random.integers(0, 100, (12, 17))
    want = total(integers, scipy.optimize.linear_sum_assignment(integers, maximize))
    for dtype in (np.int8, np.int64, np.uint8, np.float16, ">f8", ">f4"):
        assert total(integers, saekern.linear_sum_assignment(integers.astype(dtype), maximize)) == want
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int32):
        assert total(integers, saekern.linear_sum_assignment(torch.tensor(integers).to(dtype), maximize)) == want
    differentiable = torch.tensor(integers, dtype=torch.float32, requires_grad=True)
    assert total(integers, saekern.linear_sum_assignment(differentiable, maximize)) == want
    assert total(integers, saekern.linear_sum_assignment(integers.tolist(), maximize)) == want
    assert agree(integers > 50, maximize)


def test_views_are_read_where_they_lie():
    """A copy of a 16 384 x 16 384 matrix is 1 GB. Planted: ascontiguousarray; caught."""
    base = np.random.default_rng(10).random((40, 60)).astype(np.float32)
    tensor = torch.from_numpy(base)
    for view in (base, base.T, base[::2, ::-3], base[5:, 7:], tensor, tensor.T):
        assert np.shares_memory(assignment._as_matrix(view), base)
    kept = base.copy()
    saekern.linear_sum_assignment(base.T, maximize=True)
    assert np.array_equal(base, kept)


def test_one_column_shared_by_all_rows_of_a_broadcast_view():
    cost = np.broadcast_to(np.arange(5.0)[:, None], (5, 8))
    assert total(cost, saekern.linear_sum_assignment(cost)) == 10


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        ([[np.nan, 1], [1, 2]], r"invalid numeric entries: -inf or NaN at \[0, 0\]"),
        ([[0, 1], [1, 2], [-INF, 3]], r"invalid numeric entries: -inf or NaN at \[2, 0\]"),
        ([[1, INF, 0], [1, INF, 2], [0, INF, 3]], r"cost matrix is infeasible: rows 0, 1, 2 \(3 of them\) have finite"),
        ([[1, 2], [INF, INF]], r"cost matrix is infeasible: row 1 has no finite cost"),
        ([[INF] * 3], r"cost matrix is infeasible: row 0 has no finite cost"),
        ([[INF]] * 3, r"cost matrix is infeasible: column 0 has no finite cost"),
        (np.arange(3.0), r"expected a matrix \(2-D array\), got a 1 array"),
        (np.zeros((2, 2, 2)), r"expected a matrix \(2-D array\), got a 3 array"),
    ],
)
def test_refusals(cost, message):
    with pytest.raises(ValueError, match=message):
        saekern.linear_sum_assignment(cost)


def test_refusals_read_the_other_way_with_maximize():
    with pytest.raises(ValueError, match=r"invalid numeric entries: \+inf or NaN at \[1, 0\]"):
        saekern.linear_sum_assignment([[-INF, 1], [INF, 2]], maximize=True)
    assert agree(np.array([[-INF, 1.0], [1.0, 2.0]]), maximize=True)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", [np.nan, -INF])
@pytest.mark.parametrize("shape", [(70, 333), (333, 70), (130, 130)])
def test_an_invalid_entry_is_found_wherever_it_is(value, shape, dtype):
    """Planted: tail elements not checked; caught at the last column."""
    for at in ((0, 0), (shape[0] - 1, shape[1] - 1), (shape[0] // 2, shape[1] - 1), (shape[0] - 1, 66)):
        cost = np.random.default_rng(11).random(shape).astype(dtype)
        cost[at] = value
        with pytest.raises(ValueError, match=rf"NaN at \[{at[0]}, {at[1]}\]"):
            saekern.linear_sum_assignment(cost)


def test_the_infeasible_set_named_is_infeasible():
    """Rows 3, 60 and 61 have only columns 7 and 90 between them: exactly they are named."""
    cost = np.random.default_rng(12).random((100, 120))
    cost[np.ix_([3, 60, 61], [j for j in range(120) if j not in (7, 90)])] = INF
    message = r"rows 3, 60, 61 \(3 of them\) have finite costs in 2 columns only: 7, 90"
    with pytest.raises(ValueError, match=message):
        saekern.linear_sum_assignment(cost)
    with pytest.raises(ValueError, match=message.replace("rows", "columns").replace("2 columns", "2 rows")):
        saekern.linear_sum_assignment(cost.T)


@pytest.mark.parametrize("dtype", [np.complex64, np.longdouble, object])
def test_unsafe_types(dtype):
    with pytest.raises(TypeError, match="according to the rule 'safe'"):
        saekern.linear_sum_assignment(np.eye(3).astype(dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_huge_and_tiny_costs(dtype):
    """Denormals, the largest floats of half the range and both zeros are costs like any other."""
    random = np.random.default_rng(13)
    info = np.finfo(dtype)
    for scale in (info.smallest_subnormal * 64, info.tiny, info.max / 1024):
        assert agree((random.integers(-8, 9, (60, 60)) * scale / 16).astype(dtype))
    assert agree(np.where(random.random((60, 60)) < 0.5, dtype(0.0), dtype(-0.0)))
