"""What an op at one shape cannot avoid, and how far a launcher stays from it: bytes, time, launches, buffers."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._pytree import tree_leaves

from saekern.bench.common import Shape
from saekern.bench.kernel_costs import Cost, Roofs, size
from saekern.bench.kernel_formulas import cost
from saekern.bench.recorder import Record, recorded

SLACK = 1.3  # bytes moved / bytes of the lower bound


class Bound(NamedTuple):
    """What cannot be avoided."""

    bytes: float  # each input read once, each result written once
    matrix: float = 0.0  # tensor-core operations
    l2: float = 0.0  # rows that codes gather, at best from L2
    then: tuple["Bound", ...] = ()  # phases that cannot begin before

    def seconds(self, roofs: Roofs) -> float:
        own = max(self.bytes / roofs.memory, self.matrix / roofs.matrix, self.l2 / roofs.l2)
        return own + sum(phase.seconds(roofs) for phase in self.then)

    def moved(self) -> float:
        return self.bytes + sum(phase.moved() for phase in self.then)

    def timed(self, roofs: Roofs) -> bool:
        """Whether bytes can hide behind products, so that only the time says something."""
        return bool(self.then) or self.matrix / roofs.matrix == self.seconds(roofs)


@dataclass(frozen=True)
class Case:
    """One op at one shape."""

    op: str
    shape: Shape
    run: Callable[[], Any]
    """Calls the launchers on `meta` tensors; raises Absent where an op has no kernel."""
    bound: Bound
    launches: int
    """At most."""
    forbidden: int
    """Elements of the matrix that must never exist."""
    slack: float = SLACK
    """Bytes moved / bytes of the bound. Where the bound is the tensor cores' time, the estimated time / that instead:
    bytes that pass behind a product cost nothing."""
    extra: float | None = None
    """Bytes of all buffers but the results, at most."""
    moves: float | None = None
    """Bytes moved / bytes of the bound, at most, where `slack` is of the time."""


class Line(NamedTuple):
    """One row of the table."""

    case: Case
    record: Record
    costs: list[Cost]
    roofs: Roofs

    @property
    def moved(self) -> float:
        return sum(c.bytes for c in self.costs)

    @property
    def ratio(self) -> float:
        return self.moved / self.case.bound.moved()

    @property
    def launches(self) -> int:
        return sum(c.launches for c in self.costs)

    @property
    def extra(self) -> float:
        """Bytes of all buffers but the results, as if none were freed."""
        results = [leaf for leaf in tree_leaves(self.record.result) if isinstance(leaf, Tensor)]
        return size(*self.record.buffers) - size(*results)

    @property
    def seconds(self) -> float:
        return sum(max(c.seconds(self.roofs).values()) for c in self.costs)

    @property
    def roof(self) -> str:
        """Where most of the time goes."""
        spent: dict[str, float] = {}
        for c in self.costs:
            times = c.seconds(self.roofs)
            worst = max(times, key=lambda name: times[name])
            spent[worst] = spent.get(worst, 0.0) + times[worst]
        return max(spent, key=lambda name: spent[name])

    def faults(self) -> list[str]:
        """Why this is not a kernel to be proud of; empty if it is."""
        largest, found, slack = self.record.largest(), [], self.case.slack
        bound = self.case.bound.seconds(self.roofs)
        if self.case.bound.timed(self.roofs):
            if self.seconds > slack * bound:
                found.append(f"takes {self.seconds / bound:.2f} × the time of its bound, at most {slack:g}")
            slack = self.case.moves or math.inf
        if self.ratio > slack:
            found.append(f"moves {self.ratio:.2f} × the lower bound, at most {slack:g}")
        if self.case.extra is not None and self.extra > self.case.extra:
            found.append(f"allocates {self.extra / 1e6:.0f} MB beside its results, at most {self.case.extra / 1e6:.0f}")
        if self.launches > self.case.launches:
            found.append(f"{self.launches} launches, at most {self.case.launches}")
        if largest is not None and largest.numel() >= self.case.forbidden:
            found.append(f"allocates {list(largest.shape)}, {largest.nbytes / 1e6:.0f} MB")
        return found


def priced(case: Case, roofs: Roofs | None = None) -> Line:
    """Raises Absent for an op without a kernel, ValueError for a kernel without a formula."""
    roofs = roofs or Roofs()
    record = recorded(case.run)
    return Line(case, record, [cost(step, roofs) for step in record.steps], roofs)
