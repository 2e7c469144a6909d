"""The harness: providers of one op at one shape, checked, then timed in turn.

A bench file holds `BENCHES`: a tuple of `Bench`, each with `inputs(shape)`, which makes the tensors and the float64
answer, and `setup(problem, provider)`, which returns a `Run`. Providers are called A B C A B C … so that a machine that
slows down slows them all; medians and 20/80 % quantiles are reported, and ratios are what counts.
"""

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

Shape = Mapping[str, int | str]


class Absent(Exception):
    """A provider that cannot run here, with the reason: reported as absent, never guessed."""


class WrongAnswer(Exception):
    """A provider whose answer at the timed shape is wrong: it gets no number."""


@dataclass(frozen=True)
class Run:
    """One provider at one shape, ready to call. Inputs, gradients and random numbers exist already."""

    call: Callable[[], Any]
    """The timed region."""
    check: Callable[[Any], None]
    """Raises WrongAnswer unless the result of `call` is right; it is called before any timing."""
    prepare: Callable[[], None] | None = None
    """Untimed, before every call: fresh weights, gradients set to None."""
    flops: float = 0.0
    """Multiplications and additions that the mathematics needs, 0 where that says nothing."""
    bytes: float = 0.0
    """Bytes that must move, 0 where that says nothing."""
    kept_bytes: int = 0
    """What the first call leaves on purpose beyond what `setup` made (gradients, optimiser state): not peak memory."""
    version: str = ""
    """The version of another library that did the work."""
    note: Callable[[Any], str] | None = None
    """What the result says about itself beside its time, for the result file; called with the verified result."""


UNITS = {"median_ms": "ms", "cpu_ms": "ms of CPU", "peak_mib": "MiB"}


class Goal(NamedTuple):
    """What `ours` is meant to reach against the fastest of `against`, in time or in peak memory.

    `faster=4`: against / ours is at least 4. `within=0.65`: ours / against is at most 0.65. `elsewhere` replaces
    `within` on CPUs without bf16 instructions, where the screening pass runs in fp32.
    """

    against: tuple[str, ...]
    faster: float | None = None
    within: float | None = None
    elsewhere: float | None = None
    ours: str = "saekern"
    only: Shape = {}  # noqa: RUF012  (applies to shapes that have these values)
    metric: str = "median_ms"  # or "cpu_ms", of work on one thread; or "peak_mib"
    needs_bf16: bool = False  # says nothing about CPUs without bf16 instructions
    at_most: float | None = None  # of `metric`, whatever others take; `against` is then empty
    plus: float = 0.0  # of `metric`, granted beyond `within` times the rival's

    def applies(self, shape: Shape, bf16: bool) -> bool:
        fits = all(str(shape.get(name)) == str(value) for name, value in self.only.items())
        return fits and (bf16 or not self.needs_bf16)

    def words(self, bf16: bool) -> str:
        if self.at_most is not None:
            return f"≤ {self.at_most:g}"
        if self.faster is not None:
            return f"≥ {self.faster:g} × faster"
        return f"≤ {self.limit(bf16):g} of it" + (f" + {self.plus:g} {UNITS[self.metric]}" if self.plus else "")

    def limit(self, bf16: bool) -> float | None:
        return self.within if bf16 or self.elsewhere is None else self.elsewhere

    def verdict(self, figures: Mapping[str, float], bf16: bool) -> "Verdict | None":
        """None where a side is missing. `figures` holds the metric of every provider that ran."""
        if self.at_most is not None:
            mine = figures.get(self.ours)
            return None if not mine else Verdict(mine, self.ours, mine <= self.at_most)
        rivals = {name: figures[name] for name in self.against if figures.get(name)}
        if not rivals or not figures.get(self.ours):
            return None
        best = min(rivals, key=lambda name: rivals[name])
        if self.faster is not None:
            ratio = rivals[best] / figures[self.ours]
            return Verdict(ratio, best, ratio >= self.faster)
        mine, limit = figures[self.ours], self.limit(bf16)
        return Verdict(mine / rivals[best], best, limit is not None and mine <= limit * rivals[best] + self.plus)


class Verdict(NamedTuple):
    ratio: float
    """Rival / ours for a `faster` goal, ours / rival for a `within` goal."""
    rival: str
    """The fastest, or smallest, of those that ran."""
    met: bool


@dataclass(frozen=True)
class Bench:
    """One op in one mode, over several shapes."""

    op: str
    mode: str
    shapes: tuple[Shape, ...]
    quick: tuple[Shape, ...]
    """Small shapes: for `--quick`, and to load libraries before peak memory is read."""
    providers: tuple[str, ...]
    """"saekern" first, then peers, then the machine's own roof."""
    inputs: Callable[[Shape], Any]
    setup: Callable[[Any, str], Run]
    goals: tuple[Goal, ...] = ()
    """For `shapes`; small ones have none."""
    dtype: str = "float32"
    rounds: tuple[int, int] = (7, 50)
    """The least and the most timed calls of each provider."""
    once_above: float = math.inf
    """A provider whose checked call took more seconds is not called again: that call is its figure, with rounds = 1."""
    threads: int | None = None
    """Of torch, whatever the command line says: for comparisons with what has no threads."""
    weighed: tuple[str, ...] = ()
    """Providers whose peak memory is measured, where one more call is minutes; () means all."""
    long: bool = False
    """Minutes a call: only with `--full`."""
    reads_data: bool = False
    """`inputs` takes the folder of `--data` as well, and raises Absent without it."""

    def problem(self, shape: Shape, data: Path | None) -> Any:
        return self.inputs(shape, data) if self.reads_data else self.inputs(shape)


class Times(NamedTuple):
    """Milliseconds."""

    median: float
    p20: float
    p80: float
    rounds: int
    cpu: float = math.nan
    """Median of what all threads of this process took together; NaN where the work is on another device."""


def quantiles(seconds: list[float], cpu_seconds: list[float] | None = None) -> Times:
    ms = sorted(1e3 * s for s in seconds)
    last = len(ms) - 1
    cpu = 1e3 * statistics.median(cpu_seconds) if cpu_seconds else math.nan
    return Times(statistics.median(ms), ms[round(0.2 * last)], ms[round(0.8 * last)], len(ms), cpu)


class Step(NamedTuple):
    """One call."""

    seconds: float
    result: Any
    cpu_seconds: float


def step(run: Run, clock: Callable[[], float] = time.perf_counter) -> Step:
    if run.prepare is not None:
        run.prepare()
    cpu, start = time.process_time(), clock()
    result = run.call()
    seconds = clock() - start
    return Step(seconds, result, time.process_time() - cpu)


def verify(run: Run) -> Step:
    """One call of `run` at this very shape. Raises WrongAnswer if it is wrong."""
    done = step(run)
    run.check(done.result)
    return done


# OpenMP threads spin for some milliseconds after a parallel region, on a core that the next provider needs: they sleep
# by then.
PAUSE = 0.02


def interleave(runs: Mapping[str, Run], *, budget: float, rounds: tuple[int, int]) -> dict[str, Times]:
    """Times every provider in turn, A B C A B C …, for about `budget` seconds but within `rounds` (least, most).

    A turn is a pause, a call that is not timed, and a timed one: what a call costs in a loop of calls, with the
    provider's threads awake and the caches as it leaves them itself. The answers must have been verified. One warm-up
    round is thrown away, and says how many rounds fit. The garbage collector runs between rounds and not inside them.
    """
    spent = 2 * sum(step(run).seconds for run in runs.values())
    count = max(rounds[0], min(rounds[1], int(budget / max(spent, 1e-6))))
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    enabled = gc.isenabled()
    gc.disable()
    try:
        for _ in range(count):
            gc.collect()
            for name, run in runs.items():
                time.sleep(PAUSE)
                step(run)
                seconds, _, cpu_seconds = step(run)
                samples[name].append((seconds, cpu_seconds))
    finally:
        if enabled:
            gc.enable()
    return {name: quantiles(*map(list, zip(*taken, strict=True))) for name, taken in samples.items()}


def sum_bound(want64: Tensor, magnitude: Tensor | float, terms: int) -> Tensor:
    """2 (terms + 2) 2⁻²⁴ Σ|products| + one rounding: what a float32 sum of `terms` products may be off by."""
    bound = 2 * ((terms + 2) * 2.0**-24 * torch.as_tensor(magnitude) + 2.0**-24 * want64.abs())
    return bound + torch.finfo(torch.float32).tiny


def expect_close(name: str, got: Tensor, want64: Tensor, bound: Tensor | float) -> None:
    """|got − want| ≤ bound, elementwise; NaN fails."""
    if got.shape != want64.shape:
        raise WrongAnswer(f"{name}: shape {list(got.shape)}, expected {list(want64.shape)}")
    error = (got.detach().to(torch.float64) - want64).abs()
    bad = ~(error <= bound)
    if bad.any():
        raise WrongAnswer(
            f"{name}: {int(bad.sum())} of {bad.numel()} elements beyond the bound, worst {error.max():.3g}"
        )


def expect_same(name: str, got: Tensor, want: Tensor) -> None:
    if not torch.equal(got, want):
        raise WrongAnswer(f"{name}: differs from the reference")


def words(shape: Shape) -> str:
    return " ".join(f"{name}={value}" for name, value in shape.items())


def generator(shape: Shape) -> torch.Generator:
    """Random numbers that depend on the shape alone."""
    return torch.Generator().manual_seed(sum(ord(letter) * 31**i for i, letter in enumerate(words(shape))) % 2**31)
