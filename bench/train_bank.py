"""S SAEs over the same cached rows: `train_bank` against S runs of `train` one after another, members bit-equal.

Rows are mapped float16 shards in the page cache. "files": checkpoints, logs and float16 snapshots at steps 0, 1, 2, 4
and so on are written; "memory": nothing is. Every member is compared with its run alone, "files" byte by byte as well.

What limits it: a member's own arithmetic. Of a step without reading, eight members in turn (2.0 ms at B = 512, 6.1 ms
at B = 2048; two cores with bf16), the encoder is 46 % and 62 %, our other C++ 20 % and 24 %, Python and torch the
rest: a bank whose Python were free would gain 1.5 and 1.2 times, and only reading and the start come on top of that.
Tried and not kept, as gains of the whole step: two members at once on one thread each, 1.11 and 1.05 times (bits
equal); turns of 32 steps, 1.02 and 0.97 (bits equal). Timed alone, without a bank around them: two processes of one
thread each, 1.23 and 1.05 times; one Adam call over stacked decoders, 1 %; packing the rows once, at most 8 % and 10 %
(b_dec differs between members); one product with all encoders, at most 8 % and 12 %.
"""

import shutil
import tempfile
import weakref
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import saekern
from saekern.activations import open_shards
from saekern.bench.common import Bench, Goal, Run, Shape, WrongAnswer, generator
from saekern.training import TrainConfig, doubling, train_bank

SHARD = 65_536  # rows
FILES = ("sae.safetensors", "state.safetensors", "train.jsonl")


class Problem:
    def __init__(self, shape: Shape) -> None:
        self.seeds, self.width, self.latents, self.k = (int(shape[name]) for name in ("S", "D", "F", "K"))
        self.writes = shape["out"] == "files"
        self.config = TrainConfig(rows=int(shape["n"]), batch_size=int(shape["B"]), checkpoint_every=1000)
        self.snapshots = doubling(self.config.steps) if self.writes else ()
        self.folder = Path(tempfile.mkdtemp(prefix="saekern-bank-"))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self.rows = open_shards(self._shards(self.config.rows, generator(shape)))

    def _shards(self, count: int, random: torch.Generator) -> list[Path]:
        """Sums of a few of 1024 directions about a common offset, and noise."""
        directions = torch.randn(1024, self.width, generator=random)
        offset, paths = 3 * torch.randn(self.width, generator=random), []
        for start in range(0, count, SHARD):
            rows = 0.3 * torch.randn(min(SHARD, count - start), self.width, generator=random) + offset
            for _ in range(8):
                picked = torch.randint(len(directions), (len(rows),), generator=random)
                rows += torch.rand(len(rows), 1, generator=random) * directions[picked]
            paths.append(self.folder / f"shard-{start // SHARD:05d}.safetensors")
            save_file({"rows": rows.half()}, paths[-1])
        return paths

    def members(self) -> list[saekern.TopKSAE]:
        return [saekern.TopKSAE(self.width, self.latents, self.k, init_seed=seed) for seed in range(self.seeds)]

    def out(self, provider: str) -> Path | None:
        return self.folder / provider if self.writes else None

    @cached_property
    def alone(self) -> list[Tensor]:
        run = trained(self, "expected")
        assert run.prepare is not None
        run.prepare()
        return run.call()

    def check(self, provider: str, got: list[Tensor]) -> None:
        for number, (mine, wanted) in enumerate(zip(got, self.alone, strict=True)):
            if not torch.equal(mine, wanted):
                raise WrongAnswer(f"parameter {number} of all members' differs from the run alone")
        out = self.out(provider)
        if out is None:
            return
        for seed in range(self.seeds):
            for name in FILES:
                file = f"{seed:03d}/{name}"
                if (out / file).read_bytes() != (out.with_name("expected") / file).read_bytes():
                    raise WrongAnswer(f"{name} of member {seed} differs from the run alone")


def trained(problem: Problem, provider: str) -> Run:
    """ "saekern": the bank; "runs": one run after another."""
    saes: list[saekern.TopKSAE] = []
    out = problem.out(provider)
    options: dict[str, Any] = {"progress": False, "snapshot_dtype": torch.float16 if problem.writes else None}

    def prepare() -> None:
        saes[:] = problem.members()
        if out is not None:
            shutil.rmtree(out, ignore_errors=True)

    def bank() -> list[Tensor]:
        train_bank(saes, problem.rows, problem.config, out=out, snapshots=problem.snapshots, **options)
        return parameters()

    def runs() -> list[Tensor]:
        config = TrainConfig(**{**vars(problem.config), "snapshots": problem.snapshots})
        for seed, sae in enumerate(saes):
            saekern.train(sae, problem.rows, config, out=out and out / f"{seed:03d}", **options)
        return parameters()

    def parameters() -> list[Tensor]:
        return [parameter.detach() for sae in saes for parameter in sae.parameters()]

    return Run(
        bank if provider == "saekern" else runs,
        lambda got: problem.check(provider, got),
        prepare=prepare,
        flops=2.0 * problem.seeds * problem.config.rows * problem.width * problem.latents,  # of the encoders
    )


def shape(rows: int, batch: int, out: str) -> Shape:
    return {"S": 8, "n": rows, "B": batch, "D": 128, "F": 2048, "K": 16, "out": out}


BENCHES = (
    Bench(
        op="train_bank",
        mode="S seeds",
        shapes=(
            *(shape(n, b, "files") for n in (65_536, 262_144, 524_288) for b in (512, 2048)),
            *(shape(n, b, "memory") for n in (65_536, 262_144) for b in (512, 2048)),
        ),
        quick=(
            {"S": 2, "n": 512, "B": 128, "D": 16, "F": 64, "K": 4, "out": "files"},
            {"S": 2, "n": 512, "B": 128, "D": 16, "F": 64, "K": 4, "out": "memory"},
        ),
        providers=("saekern", "runs"),
        inputs=Problem,
        setup=trained,
        goals=(Goal(("runs",), faster=1.5),),
        rounds=(2, 9),
    ),
)
