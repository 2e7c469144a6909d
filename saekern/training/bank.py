"""Many SAEs over one stream of rows, each with the bits it would have alone.

What is paid once: reading rows, and the geometric median that starts b_dec. The rows of several steps are read together
and every member takes these steps in turn.

Turns of several steps, because a member's weights, moments and gradients leave the cache between two turns. Members in
parallel on one thread each were no faster: the encoder is half of a step and uses all cores already.
"""

import dataclasses
import json
import logging
import os
import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saekern import ops
from saekern.activations import ChosenRows, Rows
from saekern.sae import SAE
from saekern.training.config import TrainConfig
from saekern.training.feed import batches
from saekern.training.loop import Run, TrainResult, bar
from saekern.training.shuffle import Shuffle

logger = logging.getLogger(__name__)
TURN = 8  # steps that a member takes before the next member's turn
BLOCK = 256 << 20  # bytes of rows read at once, at most: with many orders of the rows turns are shorter
LOG = "bank.jsonl"


class Member:
    """A run, the stream it reads, and its own state of torch's random numbers."""

    def __init__(self, run: Run, stream: int, like: Run | None) -> None:
        self.run, self.stream = run, stream
        torch.manual_seed(run.config.data_seed)
        run.begin(like)
        self.random = _random(run.position.device)

    def steps(self, rows: Tensor, first: int) -> None:
        """The steps from `first` on, whose rows are [steps, B, D]; those that it has taken already are passed by."""
        position = self.run.position
        _set_random(self.random, position.device)
        for i in range(position.step - first, rows.shape[0]):
            self.run.advance(rows[i])
        self.random = _random(position.device)


def train_bank(
    saes: Sequence[SAE],
    rows: Rows,
    config: TrainConfig,
    *,
    out: str | os.PathLike | None = None,
    data_seeds: Sequence[int] | None = None,
    subsets: Sequence[Tensor | None] | None = None,
    snapshots: Sequence[int] | None = None,
    snapshot_dtype: torch.dtype | None = None,
    progress: bool = True,
    label: str = "bank",
) -> list[TrainResult]:
    """Trains every SAE in place; rows that several members see are read and converted once.

    Member i ends with the bits, the log and the files of

        train(saes[i], rows or ChosenRows(rows, subsets[i]), replace(config, data_seed=data_seeds[i]), out=out/"00i")

    and either continues what the other has begun. After a kill at any moment the same call continues each member from
    its own last checkpoint; members may be added to a finished bank. `<out>/bank.jsonl` has the rows per second (of all
    members together) and the seconds left at every logged step: times, and so no part of the results.

    Args:
        saes: SAEs on one device, each as `train` takes it.
        rows: n rows of the SAEs' width.
        data_seeds: the order of the rows for each member; None is config.data_seed for all, read once for all.
        subsets: row numbers int64 [m] for each member (see `bootstrap`, `disjoint`); None is all rows.
        snapshots: in place of config.snapshots, such as `doubling(config.steps)`.
        snapshot_dtype: as in `train`; torch.float16 halves what trajectories take on disk.

    Raises:
        ValueError: as `train`; also lengths that do not fit, or SAEs on several devices or in several dtypes.
        FloatingPointError: a loss that is not finite, with the member's number; all checkpoints are intact.
    """
    if not saes:
        return []
    if snapshots is not None:
        config = dataclasses.replace(config, snapshots=tuple(snapshots))
    seeds = [config.data_seed] * len(saes) if data_seeds is None else list(data_seeds)
    chosen = [None] * len(saes) if subsets is None else list(subsets)
    _check(saes, seeds, chosen)
    device = saes[0].b_dec.device
    streams = _Streams(rows, config.batch_size)
    members: list[Member] = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            for i, (sae, seed, subset) in enumerate(zip(saes, seeds, chosen, strict=True)):
                folder = None if out is None else Path(out) / f"{i:03d}"
                stream = streams.add(seed, subset)
                own = dataclasses.replace(config, data_seed=seed)
                run = Run(sae, streams.rows[stream], own, out=folder, snapshot_dtype=snapshot_dtype)
                same = (m.run for m in members if streams.keys[m.stream][1] is subset and m.run.position.step == 0)
                members.append(Member(run, stream, next(same, None)))
            with ops.torch_on_one_thread() if device.type == "cpu" else nullcontext():
                _follow(members, streams, config, None if out is None else Path(out), progress, label)
        finally:
            for member in members:
                member.run.close()
            ops.release_memory()
    return [member.run.result() for member in members]


class _Streams:
    """The different orders of rows that members ask for, read together."""

    def __init__(self, rows: Rows, batch_size: int) -> None:
        self.source, self.size = rows, batch_size
        self.keys: list[tuple[int, Tensor | None]] = []
        self.rows: list[Rows] = []
        self.orders: list[Shuffle] = []

    def add(self, seed: int, subset: Tensor | None) -> int:
        """The number of a stream, an earlier one where it is the same."""
        for number, (known, indices) in enumerate(self.keys):
            same = indices is subset or (indices is not None and subset is not None and torch.equal(indices, subset))
            if known == seed and same:
                return number
        self.keys.append((seed, subset))
        self.rows.append(self.source if subset is None else ChosenRows(self.source, subset))
        self.orders.append(Shuffle(len(self.rows[-1]), seed))
        return len(self.keys) - 1

    def read(self, first: int, steps: int) -> Tensor:
        """[streams * steps * B, D], one after the other."""
        parts = []
        for (_, subset), order in zip(self.keys, self.orders, strict=True):
            places = order.take(first * self.size, steps * self.size)
            parts.append(places if subset is None else subset[places])
        return self.source.take(parts[0] if len(parts) == 1 else torch.cat(parts))


def _follow(
    members: list[Member], streams: _Streams, config: TrainConfig, out: Path | None, progress: bool, label: str
) -> None:
    start = min(member.run.position.step for member in members)
    step_bytes = 4 * len(streams.keys) * config.batch_size * streams.source.width
    turns = range(start, config.steps, max(1, min(TURN, BLOCK // step_bytes)))

    def read(turn: int) -> Tensor:
        return streams.read(turns[turn], min(turns.step, config.steps - turns[turn]))

    feed = batches(read, range(len(turns)), members[0].run.position.sae.b_dec)
    clock = _Clock(members, config, out)
    with bar(config, start, label, progress) as shown, closing(feed):
        for first, together in zip(turns, feed, strict=True):
            blocks = together.reshape(len(streams.keys), -1, config.batch_size, together.shape[1])
            for number, member in enumerate(members):
                try:
                    member.steps(blocks[member.stream], first)
                except FloatingPointError as error:
                    raise FloatingPointError(f"member {number}: {error}") from error
            done = first + blocks.shape[1]
            if any(step % config.log_every == 0 for step in range(first + 1, done + 1)) or done == config.steps:
                line = clock.tell(done)
                shown.set_postfix({"rows/s of all": f"{line['rows_per_second']:.4g}"}, refresh=False)
            shown.update(blocks.shape[1] * config.batch_size)


class _Clock:
    """How fast the members go together, and how long they will take."""

    def __init__(self, members: list[Member], config: TrainConfig, out: Path | None) -> None:
        self.members, self.config, self.out = members, config, out
        self.start, self.done = time.monotonic(), self._steps()

    def _steps(self) -> int:
        return sum(member.run.position.step for member in self.members)

    def tell(self, step: int) -> dict[str, Any]:
        done = self._steps()
        rate = (done - self.done) * self.config.batch_size / max(time.monotonic() - self.start, 1e-9)
        left = (self.config.steps * len(self.members) - done) * self.config.batch_size
        line = {
            "step": step,
            "members": len(self.members),
            "rows_per_second": float(f"{rate:.4g}"),
            "seconds_left": float(f"{left / rate:.4g}") if rate else None,
        }
        logger.info("step %(step)d of %(members)d members: %(rows_per_second)g rows/s, %(seconds_left)s s left", line)
        if self.out is not None:
            with open(self.out / LOG, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        return line


def doubling(steps: int) -> tuple[int, ...]:
    """0, 1, 2, 4, 8, … and `steps` itself: snapshots for a trajectory."""
    return (0, *(1 << i for i in range(steps.bit_length()) if 1 << i < steps), *([steps] if steps else []))


def bootstrap(count: int, seed: int) -> Tensor:
    """`count` row numbers drawn with replacement: as many as there are rows. int64 [count]."""
    return torch.randint(count, (count,), generator=torch.Generator().manual_seed(seed))


def disjoint(count: int, parts: int, seed: int) -> list[Tensor]:
    """All row numbers dealt to `parts` subsets of count // parts rows (the rest is left out), each ascending."""
    if not 1 <= parts <= count:
        raise ValueError(f"parts: expected 1 to {count}, as many as there are rows, got {parts}")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    size = count // parts
    return [order[i * size : (i + 1) * size].sort().values for i in range(parts)]


def _check(saes: Sequence[SAE], seeds: Sequence[int], subsets: Sequence[Tensor | None]) -> None:
    for name, values in (("data_seeds", seeds), ("subsets", subsets)):
        if len(values) != len(saes):
            raise ValueError(f"{name}: expected {len(saes)}, one for each SAE, got {len(values)}")
    if len({id(sae) for sae in saes}) != len(saes):
        raise ValueError("saes: expected every SAE once, got one of them twice")
    first = saes[0].b_dec
    for i, sae in enumerate(saes):
        if (sae.b_dec.device, sae.b_dec.dtype) != (first.device, first.dtype):
            raise ValueError(
                f"saes[{i}]: expected {first.dtype} on {first.device} like saes[0], "
                f"got {sae.b_dec.dtype} on {sae.b_dec.device}"
            )


def _random(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
