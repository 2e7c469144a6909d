"""k-means: it converges to what Lloyd's algorithm converges to, for any seed's bits and any number of threads."""

from itertools import pairwise

import pytest
import torch

import saekern
from saekern.sae.kmeans import archetypal_points, kmeans


def blobs(count=40, size=50, width=16, spread=0.1, offset=0.0):
    generator = torch.Generator().manual_seed(3)
    centers = 4 * torch.randn(count, width, generator=generator)
    rows = centers.repeat_interleave(size, 0) + spread * torch.randn(count * size, width, generator=generator)
    return rows[torch.randperm(len(rows), generator=generator)] + offset, centers + offset


def distances(rows, centers):
    return torch.cdist(rows.double(), centers.double()).square()


@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_a_fixed_point_of_lloyd(offset):
    """Every row at its nearest centre, every centre the mean of its rows. An offset must not eat the distances.

    Planted: ‖c‖² in place of ‖c‖²/2; the offset not taken away; sums divided by one more row. Each was caught."""
    rows, truth = blobs(spread=1.0, offset=offset)
    found = kmeans(rows, 40, seed=0, iterations=300, tolerance=0)
    d = distances(rows, found.centers)
    own = d.gather(1, found.labels[:, None])[:, 0]
    slack = 1e-4 * own.mean()
    assert (own <= d.amin(1) + slack).all()
    assert abs(found.inertia - float(own.sum())) <= 1e-4 * found.inertia
    assert torch.equal(found.counts, torch.bincount(found.labels, minlength=40))
    means = torch.stack([rows[found.labels == j].double().mean(0) for j in range(40)])
    torch.testing.assert_close(found.centers.double(), means, rtol=0, atol=2e-5 * (1 + abs(offset) / 30))
    assert found.inertia < 1.3 * float(distances(rows, truth).amin(1).sum())


@pytest.mark.parametrize("batch", [None, 256])
def test_well_separated_clusters_are_found(batch):
    rows, truth = blobs()
    found = kmeans(rows, 40, seed=1, batch=batch)
    best = distances(found.centers, truth).amin(0)
    assert int((best < 0.1).sum()) >= 38
    assert found.inertia < 3 * float(distances(rows, truth).amin(1).sum()) or int((best > 0.1).sum()) <= 2


def test_given_first_centres():
    """They are where it begins, and a fixed point stays one. Planted: the origin not taken from them; caught."""
    rows, _ = blobs(spread=1.0, offset=300.0)
    first = kmeans(rows, 40, seed=0, init=rows[:40].double(), iterations=0).centers
    torch.testing.assert_close(first, rows[:40], rtol=0, atol=1e-4)
    found = kmeans(rows, 40, seed=0, iterations=300, tolerance=0)
    again = kmeans(rows, 40, seed=1, init=found.centers)
    assert again.iterations <= 2
    assert torch.equal(again.labels, found.labels)


def test_rare_centres_move():
    """Among noise a centre that began at a far row keeps it alone. Planted: none move; a pass goes on counting for
    those that moved; both caught."""
    rows = torch.randn(4000, 32, generator=torch.Generator().manual_seed(1))
    options = {"seed": 0, "init": rows[:100], "iterations": 10, "tolerance": 0}
    found = kmeans(rows, 100, batch=200, **options)
    assert found.inertia < 1.02 * kmeans(rows, 100, **options).inertia, "1.012; without moving 1.040"
    equal = torch.cat([rows[:400], torch.zeros(3600, 32)])
    assert (kmeans(equal, 100, batch=200, **options).counts > 0).all()


def test_no_step_raises_the_inertia():
    rows, _ = blobs(spread=2.0)
    inertia = [kmeans(rows, 30, seed=4, init="data", iterations=n, tolerance=0).inertia for n in range(8)]
    assert all(b <= a * (1 + 1e-5) for a, b in pairwise(inertia)), inertia


@pytest.mark.parametrize("batch", [None, 300])
def test_seeds_and_threads(batch):
    """Planted: a draw from the global generator; caught."""
    rows, _ = blobs(spread=1.0)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    try:
        got = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            got.append(kmeans(rows, 37, seed=5, batch=batch).centers)
            assert torch.get_num_threads() == count
        assert torch.equal(got[0], got[1])
        assert torch.equal(got[0], got[2])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), state), "the global generator was used"
    assert not torch.equal(kmeans(rows, 37, seed=6, batch=batch).centers, got[0])


@pytest.mark.parametrize("batch", [None, 16])
def test_empty_clusters_move_and_are_never_nan(batch):
    """Planted: no move; caught (empty clusters stay although rows are far from their centres)."""
    rows = torch.cat([torch.zeros(90, 4), torch.arange(10.0)[:, None].expand(10, 4) + 5])
    found = kmeans(rows, 8, seed=0, init="data", batch=batch, iterations=50, tolerance=0)
    assert torch.isfinite(found.centers).all()
    assert (found.counts > 0).all(), "9 of 10 starts are equal rows, and yet every centre has some in the end"
    few = kmeans(torch.ones(20, 3), 5, seed=0, batch=batch)
    assert torch.equal(few.centers, torch.ones(5, 3))
    assert few.inertia == 0


def test_rows_of_other_kinds():
    rows, _ = blobs(count=10)

    class Rows:
        width = rows.shape[1]

        def __len__(self):
            return len(rows)

        def take(self, index):
            return rows[index]

    assert torch.equal(kmeans(Rows(), 12, seed=0).centers, kmeans(rows, 12, seed=0).centers)
    assert kmeans(rows.double(), 12, seed=0).centers.dtype == torch.float64
    assert kmeans(rows.bfloat16(), 12, seed=0).centers.dtype == torch.bfloat16
    one = kmeans(rows, 1, seed=0)
    torch.testing.assert_close(one.centers[0], rows.mean(0))
    every = kmeans(rows, len(rows), seed=0, init="data")
    assert every.inertia < 1e-3


def test_archetypal_points():
    rows, _ = blobs(count=10)
    data = archetypal_points(rows, 30, "data", seed=2)
    assert data.shape == (30, 16)
    assert (data[:, None] == rows).all(2).any(1).all()
    assert len(data.unique(dim=0)) == 30
    assert torch.equal(archetypal_points(rows, 9, seed=2, iterations=3), kmeans(rows, 9, seed=2, iterations=3).centers)
    sae = saekern.ArchetypalSAE(16, 64, points=data, base_args={"k": 4})
    assert sae(rows).shape == rows.shape


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: kmeans(x, 0, seed=0), "clusters: expected 1 <= clusters <= 20, the number of rows, got 0"),
        (lambda x: kmeans(x, 21, seed=0), "clusters: expected 1 <= clusters <= 20, the number of rows, got 21"),
        (lambda x: kmeans(x, 2, seed=0, init="random"), r"init: expected .* k-means\+\+, data, got 'random'"),
        (lambda x: kmeans(x, 2, seed=0, init=x[:3]), r"init: expected finite \[2, 3\], got torch.float32 \[3, 3\]"),
        (lambda x: kmeans(x, 2, seed=0, batch=0), "batch >= 1, got 100 and 0"),
        (lambda x: kmeans(x.long(), 2, seed=0), "rows: expected a floating-point tensor"),
        (lambda x: kmeans(x * torch.inf, 2, seed=0), "rows: expected finite values"),
        (lambda x: archetypal_points(x, 3, "median", seed=0), "how: expected one of kmeans, data, got 'median'"),
        (lambda x: archetypal_points(x, 21, "data", seed=0), "count: expected 1 <= count <= 20"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.randn(20, 3))
