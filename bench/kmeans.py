"""k-means from given centres, beside scikit-learn's and the same in plain PyTorch: as many batches or passes each.

Every provider ends with one pass that assigns all rows. Rows are sums of a few directions and noise about a common
offset, as activations are.
"""

import importlib.metadata
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saekern.bench.common import Absent, Bench, Goal, Run, Shape, WrongAnswer, expect_close, generator
from saekern.bench.peers import load
from saekern.sae.kmeans import kmeans

PEERS = ("scikit-learn", "torch")
HELD_OUT = 8192  # rows
WORSE = 0.01  # batches come in other orders, and centres that lost their rows start again elsewhere
BLOCK = 4096  # rows whose distances to all centres exist at a time


class Found(NamedTuple):
    centers: Tensor  # [centres, D]
    labels: Tensor  # [n]
    inertia: float  # Σ ‖x − its centre‖²


class Problem:
    def __init__(self, shape: Shape) -> None:
        self.count, self.passes, self.batch = (int(shape.get(name, 0)) for name in ("centres", "passes", "batch"))
        n, width = int(shape["n"]), int(shape["D"])
        random = generator(shape)
        directions = torch.randn(2 * self.count, width, generator=random)
        rows = 0.5 * torch.randn(n + HELD_OUT, width, generator=random)
        for _ in range(4):
            picked = torch.randint(len(directions), (len(rows),), generator=random)
            rows += torch.rand(len(rows), 1, generator=random) * directions[picked]
        rows += 10 * torch.randn(width, generator=random)
        self.rows, self.held_out = rows[:n].clone(), rows[n:].double()
        self.first = self.rows[torch.randperm(n, generator=random)[: self.count]]  # [centres, D]

    def unexplained(self, centers: Tensor) -> float:
        """Σ ‖x − its nearest centre‖² / Σ ‖x − x̄‖² over rows that nothing was fitted to."""
        x, mean = self.held_out, self.held_out.mean(0)
        x, centers = x - mean, centers.double() - mean
        half, total = centers.square().sum(1) / 2, x.square().sum()
        best = sum((part @ centers.T - half).amax(1).sum() for part in x.split(BLOCK))
        return float((total - 2 * best) / total)

    @cached_property
    def reached(self) -> float:
        """What the best of those beside us leaves unexplained."""
        figures = []
        for provider in PEERS:
            try:
                figures.append(self.unexplained(fitted(self, provider).call().centers))
            except Absent:
                continue
        return min(figures)

    def check(self, found: Found) -> None:
        """The inertia is what it says."""
        own = (self.rows.double() - found.centers.double()[found.labels]).square().sum()
        expect_close("inertia", torch.tensor(found.inertia), own, 2e-5 * float(own))

    def check_ours(self, found: Found) -> None:
        self.check(found)
        got = self.unexplained(found.centers)
        if not got <= (1 + WORSE) * self.reached:
            raise WrongAnswer(f"{got:.4f} of the held-out variance unexplained, others reach {self.reached:.4f}")


def fitted(problem: Problem, provider: str) -> Run:
    call, version = {"saekern": ours, "scikit-learn": scikit_learn, "torch": plain}[provider](problem)
    n, width = problem.rows.shape
    work = 2.0 * (problem.passes + 1) * n * width * problem.count
    note = lambda found: f"{problem.unexplained(found.centers):.4f} of held-out variance unexplained"  # noqa: E731
    check = problem.check_ours if provider == "saekern" else problem.check
    return Run(call, check, flops=work, version=version, note=note)


def ours(problem: Problem) -> tuple[Any, str]:
    def call() -> Found:
        options = {"batch": problem.batch or None, "iterations": problem.passes, "tolerance": 0}
        found = kmeans(problem.rows, problem.count, seed=0, init=problem.first, **options)
        return Found(found.centers, found.labels, found.inertia)

    return call, ""


def scikit_learn(problem: Problem) -> tuple[Any, str]:
    """Never stopping early; its mini-batches are drawn with replacement."""
    cluster = load("sklearn.cluster", "scikit-learn")
    first, rows = problem.first.numpy(), problem.rows.numpy()
    options = {"n_clusters": problem.count, "init": first, "n_init": 1, "max_iter": problem.passes, "tol": 0.0}

    def call() -> Found:
        if problem.batch:
            model = cluster.MiniBatchKMeans(
                **options, batch_size=problem.batch, max_no_improvement=None, random_state=0
            )
        else:
            model = cluster.KMeans(**options, algorithm="lloyd", random_state=0)
        model.fit(rows)
        return Found(torch.from_numpy(model.cluster_centers_), torch.from_numpy(model.labels_).long(), model.inertia_)

    return call, importlib.metadata.version("scikit-learn")


def plain(problem: Problem) -> tuple[Any, str]:
    """Without moving centres that few rows choose: less work, and with mini-batches a worse answer."""
    rows = problem.rows

    def nearest(x: Tensor, centers: Tensor) -> Tensor:
        half = centers.square().sum(1) / 2
        return torch.cat([torch.addmm(-half, part, centers.T).argmax(1) for part in x.split(BLOCK)])

    def call() -> Found:
        origin = rows.mean(0)
        centers, seen = problem.first - origin, torch.zeros(problem.count)
        random = torch.Generator().manual_seed(0)
        for _ in range(problem.passes):
            order = torch.randperm(len(rows), generator=random) if problem.batch else None
            for part in order.split(problem.batch) if problem.batch else (slice(None),):
                x = rows[part] - origin
                labels = nearest(x, centers)
                number = torch.bincount(labels, minlength=problem.count)
                seen = seen + number if problem.batch else number
                # A step towards the batch's mean; with all rows in the batch, the mean.
                centers = (
                    centers
                    + (torch.zeros_like(centers).index_add_(0, labels, x) - number[:, None] * centers)
                    / seen.clamp(min=1)[:, None]
                )
        centers += origin
        labels = nearest(rows - origin, centers - origin)
        return Found(centers, labels, float((rows - centers[labels]).square().sum()))

    return call, ""


BENCHES = (
    Bench(
        op="kmeans",
        mode="mini-batches",
        shapes=(
            {"n": 32768, "D": 128, "centres": 1024, "batch": 1024, "passes": 5},
            {"n": 65536, "D": 512, "centres": 4096, "batch": 4096, "passes": 3},
        ),
        quick=({"n": 512, "D": 16, "centres": 32, "batch": 128, "passes": 3},),
        providers=("saekern", *PEERS),
        inputs=Problem,
        setup=fitted,
        goals=(Goal(PEERS, faster=1),),
        rounds=(3, 20),
    ),
    Bench(
        op="kmeans",
        mode="Lloyd",
        shapes=({"n": 32768, "D": 128, "centres": 1024, "passes": 10},),
        quick=({"n": 512, "D": 16, "centres": 32, "passes": 3},),
        providers=("saekern", *PEERS),
        inputs=Problem,
        setup=fitted,
        goals=(Goal(PEERS, faster=1),),
        rounds=(3, 20),
    ),
)
