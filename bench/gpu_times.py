"""Times on a GPU, one bench in this process: `python -m saekern.bench.gpu_times OP`, which bench/gpu.py starts.

Every provider's answer is checked at the timed shape, then all are called in turn, L2 overwritten and the stream kept
busy before each call, so that the time between two events is that of the device and not of the host that feeds it. A
provider that fails becomes a row with the reason; rows are written shape by shape.
"""

import argparse
import datetime
import gc
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from saekern.bench import gpu_benches, machine, record
from saekern.bench.common import Absent, Run, Shape, Times, WrongAnswer, quantiles, words
from saekern.bench.gpu_shapes import BENCHES, GpuBench
from saekern.bench.kernel_costs import Roofs

FLUSH = 256 * 2**20  # bytes written between calls: four times an H200's L2
AHEAD = 2_000_000  # clock cycles that the device sleeps, about a millisecond, while the host enqueues the call
MIB = 2.0**20


class Clock:
    """Times calls on one device."""

    def __init__(self, device: torch.device) -> None:
        self.gpu = device.type == "cuda"
        self.cache = torch.empty(FLUSH, dtype=torch.int8, device=device) if self.gpu else None

    def start(self) -> Any:
        if self.cache is None:
            return time.perf_counter()
        self.cache.zero_()
        torch.cuda._sleep(AHEAD)
        return self._event()

    def stop(self, start: Any) -> Any:
        """What `seconds` takes."""
        return time.perf_counter() - start if self.cache is None else (start, self._event())

    def seconds(self, span: Any) -> float:
        """Waits for the device."""
        if self.cache is None:
            return span
        span[1].synchronize()
        return span[0].elapsed_time(span[1]) / 1e3

    @staticmethod
    def _event() -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def call(self, run: Run) -> tuple[Any, Any]:
        if run.prepare is not None:
            run.prepare()
        start = self.start()
        result = run.call()
        return self.stop(start), result


def interleave(runs: Mapping[str, Run], clock: Clock, budget: float, rounds: tuple[int, int]) -> dict[str, Times]:
    """A B C A B C …, for about `budget` seconds but within `rounds`, after one that says how many fit.
    A provider that fails now loses its own figures only: it is missing in what is returned."""
    spans: dict[str, list[Any]] = {name: [] for name in runs}

    def turn() -> None:
        for name in list(spans):
            try:
                spans[name].append(clock.call(runs[name])[0])
            except Exception:  # memory that other providers took, for instance
                del spans[name]

    begun = time.perf_counter()
    turn()
    for taken in spans.values():
        clock.seconds(taken.pop())
    spent = time.perf_counter() - begun
    for _ in range(max(rounds[0], min(rounds[1], int(budget / max(spent, 1e-6))))):
        turn()
    return {name: quantiles([clock.seconds(span) for span in taken]) for name, taken in spans.items()}


def peak_mib(run: Run, device: torch.device) -> float | None:
    """Above what exists before the call, and without what it leaves on purpose."""
    if device.type != "cuda":
        return None
    if run.prepare is not None:
        run.prepare()
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    result = run.call()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device)
    answer = sum(t.nbytes for t in _tensors(result))  # the result is not extra memory
    return max(0.0, peak - before - run.kept_bytes - answer) / MIB


def _tensors(result: Any) -> list[torch.Tensor]:
    from torch.utils._pytree import tree_leaves

    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor) and leaf.grad_fn is None]


def measured_roofs(device: torch.device) -> Roofs:
    """Of this machine: a copy of 2 GB and a bf16 product of random numbers; the rest are Roofs' estimates."""
    if device.type != "cuda":
        return Roofs()
    clock = Clock(device)
    source = torch.randn(2**29, device=device)  # 2 GiB
    target = torch.empty_like(source)
    a, b = (torch.randn(8192, 8192, device=device).bfloat16() for _ in range(2))
    runs = {"copy": Run(lambda: target.copy_(source), lambda _: None), "gemm": Run(lambda: a @ b, lambda _: None)}
    times = interleave(runs, clock, 1.0, (10, 30))
    l2 = torch.cuda.get_device_properties(device).L2_cache_size
    return Roofs()._replace(
        memory=2e3 * source.nbytes / times["copy"].median,
        matrix=2e3 * 8192**3 / times["gemm"].median,
        l2_usable=0.75 * l2,
    )


def reason(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200] if text else ''}"


def measure(chosen: GpuBench, shape: Shape, options: argparse.Namespace, roofs: Roofs) -> list[dict[str, Any]]:
    """A row a provider, with its times or with the reason why it has none."""
    device, bench = torch.device(options.device), chosen.bench
    problem = chosen.inputs(shape, device)
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    base = {"date": date, "op": bench.op, "mode": bench.mode, "shape": words(shape), "dtype": bench.dtype}
    runs: dict[str, Run] = {}
    rows: dict[str, dict[str, Any]] = {}
    clock = Clock(device)
    bound = chosen.bound(shape).seconds(roofs) * 1e3
    for provider in bench.providers:
        row = rows[provider] = base | {"provider": provider, "bound_ms": f"{bound:.4f}"}
        if provider == "torch.compile" and (options.no_compile or time.time() > options.until - 90):
            row["note"] = "left out: no time for compiling"
            continue
        try:
            run = bench.setup(problem, provider)
            run.check(clock.call(run)[1])
            peak = peak_mib(run, device)
            row |= {"version": run.version, "peak_mib": "" if peak is None else f"{peak:.1f}"}
            runs[provider] = run
            row["note"] = "failed while it was timed"  # until it has been
        except Absent as error:
            row["note"] = f"absent: {error}"
        except WrongAnswer as error:
            row["note"] = f"REFUSED, wrong answer: {error}"
        except Exception as error:  # a kernel that does not compile, memory that is not there: the others go on
            row["note"] = reason(error)
        if device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
    rounds = (1, 1) if shape in bench.quick else bench.rounds  # the interpreter takes seconds a call
    for provider, times in interleave(runs, clock, options.seconds, rounds).items():
        rows[provider].pop("note")
        rows[provider] |= figures(runs[provider], times) | {"roofline": f"{bound / times.median:.3f}"}
    rows["roofline"] = base | {"provider": "roofline", "bound_ms": f"{bound:.4f}", "note": "not a measurement"}
    rows["roofline"] |= dict.fromkeys(("median_ms", "p20_ms", "p80_ms"), f"{bound:.4f}")
    return list(rows.values())


def figures(run: Run, times: Times) -> dict[str, Any]:
    made: dict[str, Any] = {"median_ms": f"{times.median:.4f}", "p20_ms": f"{times.p20:.4f}"}
    made |= {"p80_ms": f"{times.p80:.4f}", "rounds": times.rounds}
    if run.flops:
        made |= {"rate": f"{run.flops / times.median / 1e9:.1f}", "rate_unit": "TFLOP/s"}
    return made


def table(chosen: GpuBench, shape: Shape, rows: list[dict[str, Any]]) -> str:
    """Providers, then every goal of the shape with what was reached."""
    bench = chosen.bench
    ours = next(
        (float(row["median_ms"]) for row in rows if row["provider"] == "saekern" and row.get("median_ms")), None
    )
    lines = [f"\n{bench.op} {bench.mode}  {words(shape)}  {bench.dtype}"]
    lines.append(
        f"  {'provider':<20}{'median ms':>10}{'20 %':>10}{'80 %':>10}{'peak MiB':>10}{'/ ours':>8}{'roofline':>9}"
    )
    for row in rows:
        if not row.get("median_ms"):
            lines.append(f"  {row['provider']:<20}{row.get('note', '')}")
            continue
        median, p20, p80 = (float(row[name]) for name in ("median_ms", "p20_ms", "p80_ms"))
        ratio = f"{median / ours:.2f}" if ours else ""
        text = f"  {row['provider']:<20}{median:>10.3f}{p20:>10.3f}{p80:>10.3f}{row.get('peak_mib', ''):>10}{ratio:>8}"
        lines.append(f"{text}{row.get('roofline', ''):>9}  {row.get('rate', '')} {row.get('rate_unit', '')}".rstrip())
    if shape not in bench.shapes[: chosen.goals_at]:
        return "\n".join(lines)
    for goal in bench.goals:
        if goal.applies(shape, True):
            found = {row["provider"]: float(row[goal.metric]) for row in rows if row.get(goal.metric)}
            verdict = goal.verdict(found, True)
            rival = "" if goal.at_most is not None else f" of {verdict.rival if verdict else ' / '.join(goal.against)}"
            result = "not measured" if verdict is None else f"{verdict.ratio:.3g}, {'met' if verdict.met else 'MISSED'}"
            lines.append(f"  goal {goal.words(True)}, {goal.metric}{rival}: {result}")
    return "\n".join(lines)


def facts(device: torch.device) -> dict[str, str]:
    """The columns that are the same in every row."""
    import triton

    made = machine.facts(()) | {"threads": "", "others": "", "triton": triton.__version__, "driver": ""}
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        made |= {"device": torch.cuda.get_device_name(device), "instruction_sets": f"sm_{major}{minor}"}
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", f"--id={device.index or 0}"]
        try:
            made["driver"] = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
        except OSError:
            made["driver"] = "unknown"
    return made


def main(arguments: list[str] | None = None) -> int:
    """0; what was left out for want of time is printed as one JSON line at the end, after SKIPPED."""
    parse = argparse.ArgumentParser(prog="python -m saekern.bench.gpu_times", description=__doc__.split("\n", 1)[0])
    parse.add_argument("ops", nargs="*", help=f"of {', '.join(b.bench.op for b in BENCHES)}; none means all")
    parse.add_argument("--device", default="cuda")
    parse.add_argument("--part", choices=("goals", "rest", "quick"), default="goals")
    parse.add_argument("--until", type=float, default=time.time() + 500, help="Unix time after which nothing starts")
    parse.add_argument("--seconds", type=float, default=1.5, help="of timing a shape")
    parse.add_argument("--csv", type=Path, help="append rows here")
    parse.add_argument("--flex-sae", type=Path, help="a clone of flex-sae")
    parse.add_argument("--no-compile", action="store_true")
    options = parse.parse_args(arguments)
    gpu_benches.FLEX_SAE[:] = [options.flex_sae] if options.flex_sae else []
    roofs, same = measured_roofs(torch.device(options.device)), facts(torch.device(options.device))
    print(f"roofs: {roofs.memory / 1e12:.2f} TB/s copied, {roofs.matrix / 1e12:.0f} TFLOP/s bf16", flush=True)
    skipped = []
    for chosen in BENCHES:
        bench, at = chosen.bench, chosen.goals_at
        if options.ops and bench.op not in options.ops:
            continue
        for shape in {"goals": bench.shapes[:at], "rest": bench.shapes[at:], "quick": bench.quick}[options.part]:
            if time.time() > options.until:
                skipped.append(f"{bench.op} {words(shape)}")
                continue
            try:
                rows = measure(chosen, shape, options, roofs)
            except Exception as error:  # the inputs themselves do not fit, or the device is gone
                rows = [
                    {"op": bench.op, "mode": bench.mode, "shape": words(shape), "provider": "", "note": reason(error)}
                ]
            print(table(chosen, shape, rows), flush=True)
            if options.csv:
                record.append(options.csv, [same | row for row in rows], record.GPU_COLUMNS)
    print(f"SKIPPED {json.dumps(skipped)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
