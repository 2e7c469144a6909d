"""Points for archetypal SAEs: k-means centroids, or rows of the data."""

import logging
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saekern import ops

logger = logging.getLogger(__name__)
BLOCK = 8192  # rows at a time: 16 MB of them at D = 512 are passed over in half the time of 128 MB
# Mini-batches: every BETWEEN · n' rows, centres with less than RARE of their fair share of the rows move.
RARE, BETWEEN = 0.1, 10
INITS = ("k-means++", "data")
HOWS = ("kmeans", "data")


class KMeans(NamedTuple):
    """What `kmeans` found."""

    centers: Tensor  # [n', D], in the rows' dtype
    labels: Tensor  # [n] int64, each row's nearest centre, ties to the smaller index
    counts: Tensor  # [n'] int64, rows of each centre
    inertia: float  # Σ ‖x − its centre‖²
    iterations: int  # passes over the rows before the last assignment


def archetypal_points(rows: Any, count: int, how: str = "kmeans", *, seed: int, **options: Any) -> Tensor:
    """`count` points [n', D] for ArchetypalSAE: "kmeans" centroids (`options` go to `kmeans`), or distinct "data" rows.

    Runs that share `seed` share their points, and then agree before any training: two runs are independent only if
    their points are.

    Raises:
        ValueError: count outside 1 … n, an unknown `how`, or what `kmeans` refuses.
    """
    if how not in HOWS:
        raise ValueError(f"how: expected one of {', '.join(HOWS)}, got {how!r}")
    if how == "kmeans":
        return kmeans(rows, count, seed=seed, **options).centers
    _check(rows, count, "count")
    return _take(rows, _draw(len(rows), count, torch.Generator().manual_seed(seed)))


@torch.no_grad()
def kmeans(
    rows: Any,
    clusters: int,
    *,
    seed: int,
    init: str | Tensor = "k-means++",
    batch: int | None = None,
    iterations: int = 100,
    tolerance: float = 1e-4,
) -> KMeans:
    """Centres C that make Σ_b min_j ‖x_b − c_j‖² small: Lloyd's algorithm, or mini-batches of it.

    A row's centre is argmax_j ⟨x, c_j⟩ − ‖c_j‖²/2, which is `ops.topk_encode` with k = 1 and so never a [n, n'] matrix;
    sums over a cluster are `ops.decode`. Same seed, same bits, for any number of threads.

    A centre that no row of a pass chose moves to a row far from its own centre (the farthest, the next farthest, …),
    so none is ever NaN. Fewer distinct rows than clusters leave empty ones, at places of other centres.

    Args:
        rows: a tensor [n, D], or rows with `take(indices)`, `len` and `width`, which are read block by block.
        clusters: n', 1 … n.
        init: "k-means++" (greedy, on a sample of 4·n' rows), distinct "data" rows, or the first centres [n', D].
        batch: rows a step of mini-batch k-means; None is Lloyd's algorithm. A centre is then the mean of all batches'
            rows that chose it when their turn came. Every 10·n' rows, centres with less than a tenth of the mean number
            of rows move to rows of the next batch.
        iterations: passes over the rows, at most.
        tolerance: stops when a pass lowers the inertia by less than this share of it.

    Raises:
        ValueError: sizes out of range, an unknown init, rows or first centres that are not finite.

    Source: Lloyd 1982; Arthur & Vassilvitskii 2007 (k-means++); Sculley 2010 (mini-batches).
    """
    _check(rows, clusters, "clusters")
    if not isinstance(init, Tensor) and init not in INITS:
        raise ValueError(f"init: expected a tensor [n', D] or one of {', '.join(INITS)}, got {init!r}")
    if iterations < 0 or (batch is not None and batch < 1):
        raise ValueError(f"expected iterations >= 0 and batch >= 1, got {iterations} and {batch}")
    generator = torch.Generator().manual_seed(seed)
    with ops.torch_on_one_thread():
        # Distances are differences of squares: about a point among the rows they keep their digits.
        sample = _take(rows, torch.arange(min(len(rows), 4096)) * len(rows) // min(len(rows), 4096))
        origin = sample.double().mean(0).to(_wide(sample.dtype))
        fit = _Fit(rows, origin, _initial(rows, origin, clusters, init, generator))
        passes, before = 0, float("inf")
        while passes < iterations:
            passes += 1
            inertia = fit.lloyd() if batch is None else fit.minibatches(batch, generator)
            if inertia == 0 or before - inertia < tolerance * inertia:
                break
            before = inertia
        labels, inertia = fit.final()
    logger.info("k-means: %d clusters, %d passes, inertia %g", clusters, passes, inertia)
    centers = (fit.centers.double() + origin).to(fit.dtype)
    return KMeans(centers, labels, torch.bincount(labels, minlength=clusters), inertia, passes)


class _Fit:
    """Centres about an origin, and passes of rows over them."""

    def __init__(self, rows: Any, origin: Tensor, centers: Tensor) -> None:
        self.rows, self.origin, self.centers, self.dtype = rows, origin, centers, centers.dtype
        self.seen = self._no_counts()  # rows in each centre's mean, over all mini-batches
        self.since = 0  # rows since rare centres last moved

    def lloyd(self) -> float:
        """One pass; returns the inertia of the centres before it."""
        sums, counts = torch.zeros_like(self.centers, dtype=torch.float64), self._no_counts()
        distances = []
        for x in self._blocks(BLOCK):
            labels, distance = self._nearest(x)
            added, number = self._sums(x, labels)
            sums += added
            counts += number
            distances.append(distance)
        self.centers = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], self.centers)
        self.centers = self.centers.to(self.dtype)
        distance = torch.cat(distances)
        self._reseed(counts, distance, lambda where: _take(self.rows, where))
        return float(distance.double().sum())

    def minibatches(self, batch: int, generator: torch.Generator) -> float:
        """One pass in random order; returns the sum of what each batch found before it moved the centres."""
        counts, distances = self._no_counts(), []
        order = torch.randperm(len(self.rows), generator=generator)
        for part in order.split(batch):
            x = self._centred(_take(self.rows, part))
            self._move_rare(x, counts, generator)
            labels, distance = self._nearest(x)
            added, number = self._sums(x, labels)
            self.seen += number
            counts += number
            wide = self.centers.to(_wide(self.dtype))
            share = (number / self.seen.clamp(min=1)).to(wide.dtype)[:, None]
            mean = added.to(wide.dtype) / number.clamp(min=1)[:, None]
            self.centers = torch.lerp(wide, mean, share).to(self.dtype)
            distances.append(distance)
            self.since += len(x)
        distance = torch.cat(distances)
        self._reseed(counts, distance, lambda where: _take(self.rows, order[where.cpu()]))
        self.seen[counts == 0] = 0
        return float(distance.double().sum())

    def final(self) -> tuple[Tensor, float]:
        """Labels [n] and the inertia, from differences rather than from the scores."""
        labels, inertia = [], 0.0
        for x in self._blocks(BLOCK):
            labels.append(self._nearest(x)[0])
            apart = (x - self.centers[labels[-1]]).to(_wide(self.dtype))
            inertia += float(apart.square().sum(1).double().sum())
        return torch.cat(labels), inertia

    def _no_counts(self) -> Tensor:
        return torch.zeros(len(self.centers), dtype=torch.int64, device=self.centers.device)

    def _centred(self, x: Tensor) -> Tensor:
        return (x - self.origin).to(self.dtype)

    def _blocks(self, size: int) -> Iterator[Tensor]:
        for start in range(0, len(self.rows), size):
            stop = min(start + size, len(self.rows))
            whole = isinstance(self.rows, Tensor)
            yield self._centred(self.rows[start:stop] if whole else self.rows.take(torch.arange(start, stop)))

    def _nearest(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Each row's centre [b] and squared distance [b]."""
        half = self.centers.to(_wide(self.dtype)).square().sum(1) / 2
        score, index = ops.topk_encode(x, self.centers, -half.to(self.dtype), 1, relu=False)
        distance = x.square().sum(1) - 2 * score[:, 0]
        if not torch.isfinite(distance).all():
            raise ValueError("rows: expected finite values, got NaN or infinity")
        return index[:, 0], distance.clamp_(min=0)

    def _sums(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Sums [n', D] and numbers [n'] of the rows of each centre."""
        counts = torch.bincount(labels, minlength=len(self.centers))
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        rows = labels.argsort(stable=True)
        return ops.decode(x.new_ones(len(x)), rows, x, None, offsets), counts

    def _move_rare(self, x: Tensor, counts: Tensor, generator: torch.Generator) -> None:
        """To distinct rows of the batch, half of them at most, with the fewest rows that a centre which stays has; a
        pass then counts from 0 for them. Without it, centres that began at rows far from all others keep these alone:
        `bench/kmeans.py` then leaves 0.83 of the held-out variance unexplained, not 0.75. A share of the most chosen
        centre's rows, as in scikit-learn, would move nearly all where half of the rows are alike."""
        if self.since < BETWEEN * len(self.centers):
            return
        self.since = 0
        rare = (self.seen * len(self.seen) < RARE * self.seen.sum()).nonzero()[:, 0]
        rare = rare[self.seen[rare].argsort(stable=True)][: len(x) // 2]
        stays = torch.ones_like(self.seen, dtype=torch.bool).index_fill_(0, rare, False)
        self.centers[rare] = x[_draw(len(x), len(rare), generator).to(x.device)]
        self.seen[rare] = self.seen[stays].min()
        counts[rare] = 0

    def _reseed(self, counts: Tensor, distance: Tensor, take: Any) -> None:
        empty = (counts == 0).nonzero()[:, 0]
        if len(empty) == 0:
            return
        far = distance.sort(descending=True, stable=True).indices[: len(empty)]
        self.centers[empty[: len(far)]] = self._centred(take(far))


def _initial(rows: Any, origin: Tensor, clusters: int, init: str | Tensor, generator: torch.Generator) -> Tensor:
    if isinstance(init, Tensor):
        if init.shape != (clusters, len(origin)) or not torch.isfinite(init).all():
            raise ValueError(f"init: expected finite [{clusters}, {len(origin)}], got {init.dtype} {list(init.shape)}")
        return (init.to(origin.device).double() - origin).to(_take(rows, torch.arange(1)).dtype)
    sample = min(len(rows), clusters if init == "data" else 4 * clusters)
    x = _take(rows, _draw(len(rows), sample, generator))
    x = (x - origin).to(x.dtype)
    if init == "data":
        return x
    wide = x.to(_wide(x.dtype))
    square, trials = wide.square().sum(1), 2 + int(math.log(clusters))
    drawn = torch.randint(sample, (1,), generator=generator)
    chosen, distance = [], torch.full_like(square, torch.inf)
    for _ in range(clusters):
        # Of some rows drawn in proportion to their squared distance from what is chosen, the one that lowers Σ most.
        drawn = drawn.to(x.device)
        apart = (square[:, None] - 2 * (wide @ wide[drawn].T) + square[drawn]).clamp_(min=0)
        apart = torch.minimum(apart, distance[:, None])  # [sample, trials]
        best = int(apart.double().sum(0).argmin())
        chosen.append(int(drawn[best]))
        distance = apart[:, best].clone()
        ladder = distance.double().cumsum(0).cpu()
        draws = torch.rand(trials, generator=generator, dtype=torch.float64) * ladder[-1]
        drawn = torch.searchsorted(ladder, draws, right=True).clamp_(max=sample - 1)  # any row where all are 0
    return x[chosen]


def _draw(size: int, count: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(size, generator=generator)[:count].sort().values


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _take(rows: Any, index: Tensor) -> Tensor:
    return rows[index.to(rows.device)].detach() if isinstance(rows, Tensor) else rows.take(index)


def _check(rows: Any, count: int, name: str) -> None:
    if isinstance(rows, Tensor) and (rows.dim() != 2 or not rows.is_floating_point() or rows.shape[1] == 0):
        raise ValueError(f"rows: expected a floating-point tensor [n, D], got {rows.dtype} {list(rows.shape)}")
    if not 1 <= count <= len(rows):
        raise ValueError(f"{name}: expected 1 <= {name} <= {len(rows)}, the number of rows, got {count}")
