"""`python -m saekern.bench NAME …`: runs benches, prints ratios beside their goals, appends to the result file."""

import argparse
import datetime
import importlib
import math
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from saekern.bench import machine, peak, record
from saekern.bench.common import (
    Absent,
    Bench,
    Run,
    Shape,
    Times,
    WrongAnswer,
    interleave,
    quantiles,
    verify,
    words,
)
from saekern.ops import instruction_level

NAMES = (
    "row_topk",
    "topk_encode",
    "decode",
    "classics",
    "hierarchical_loss",
    "kron_encode",
    "kmeans",
    "layer",
    "train_bank",
    "train_step",
    "accelerate",
    "adam_step",
    "nearest",
    "all_pairs",
    "linear_sum_assignment",
    "match",
    "memory",
)


def main(argv: list[str] | None = None) -> int:
    """0 if all ran, 1 if a provider's answer was wrong, 2 for a wrong command line."""
    options = parser().parse_args(argv)
    for name in options.names:
        if name not in NAMES:
            parser().error(f"no bench is called {name!r}; there are {', '.join(NAMES)}")
    if options.threads:
        torch.set_num_threads(options.threads)
    sets = machine.used_sets(options.isa)
    threads = torch.get_num_threads()
    wrong = 0
    for name in options.names or NAMES:
        benches = importlib.import_module(f"saekern.bench.{name}").BENCHES
        for index, bench in enumerate(benches):
            if bench.long and not (options.full or options.quick):
                continue
            torch.set_num_threads(bench.threads or threads)
            facts, path = machine.facts(sets), options.csv or record.default_path(machine.machine_class(sets))
            for shape in chosen_shapes(bench.quick if options.quick else bench.shapes, options.where):
                with instruction_level(options.isa):
                    rows, notes, failures = measure(name, index, bench, shape, options)
                wrong += failures
                print(table(bench, shape, rows, notes, machine.has_bf16(sets)), flush=True)
                if rows and not options.dry:
                    record.append(path, [facts | row for row in rows])
    torch.set_num_threads(threads)
    return 1 if wrong else 0


def parser() -> argparse.ArgumentParser:
    parse = argparse.ArgumentParser(prog="saekern bench", description=__doc__)
    parse.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; none means all")
    parse.add_argument("--quick", action="store_true", help="small shapes: seconds, not minutes")
    parse.add_argument("--full", action="store_true", help="also what takes minutes a call: match at 65k and 131k")
    parse.add_argument("--where", default="", help="only shapes with these values, such as 'n=8192 cost=sae'")
    parse.add_argument("--data", type=Path, help="folder of real dictionaries, seed0.safetensors …; without it none")
    parse.add_argument("--budget", type=float, default=20.0, help="seconds of timing a shape (default 20)")
    parse.add_argument("--threads", type=int, default=0, help="default: torch's own choice")
    parse.add_argument(
        "--isa",
        default="",
        choices=("avx512bf16", "avx512", "avx2", "portable"),
        help="hold our screening and selection to a lesser instruction level; no peak memory then",
    )
    parse.add_argument("--providers", default="", help="comma-separated; default all")
    parse.add_argument("--no-memory", action="store_true", help="skip peak memory (one process a provider)")
    parse.add_argument("--dry", action="store_true", help="print, but append nothing to the result file")
    parse.add_argument("--csv", type=Path, help="result file (default bench/results/<machine class>.csv)")
    return parse


def chosen_shapes(shapes: tuple[Shape, ...], where: str) -> list[Shape]:
    return [shape for shape in shapes if set(where.split()) <= set(words(shape).split())]


def measure(
    name: str, index: int, bench: Bench, shape: Shape, options: argparse.Namespace
) -> tuple[list[dict[str, Any]], list[str], int]:
    """Rows for the result file, remarks for the reader, and the number of wrong answers."""
    try:
        problem = bench.problem(shape, options.data)
    except Absent as reason:
        return [], [f"not measured: {reason}"], 0
    chosen = options.providers.split(",") if options.providers else ()
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    with machine.Others() as others:
        runs, checked, remarks, notes, failures = verified(bench, problem, chosen)
        once = {provider for provider, times in checked.items() if times.median > 1e3 * bench.once_above}
        again = {provider: run for provider, run in runs.items() if provider not in once}
        taken = interleave(again, budget=options.budget, rounds=bench.rounds)
    if others.cpus > machine.QUIET:
        notes.append(f"other processes kept {others.cpus:.1f} CPUs busy: not a quiet machine, ratios are off")
    taken |= {provider: checked[provider] for provider in once}
    rows = [row(bench, shape, provider, run, taken[provider], date) for provider, run in runs.items()]
    for line in rows:
        line["others"] = f"{others.cpus:.2f}"
        line["note"] = remarks[line["provider"]]
    if not (options.no_memory or options.isa):
        del problem, runs, again  # so that the children have the memory to themselves
        for line in rows:
            if bench.weighed and line["provider"] not in bench.weighed:
                continue
            calls = 1 if line["provider"] in once else 2
            mib = peak.peak_mib(name, index, shape, line["provider"], calls, options.data)
            line["peak_mib"] = "" if mib is None else f"{mib:.1f}"
    return rows, notes, failures


def verified(
    bench: Bench, problem: Any, chosen: Collection[str]
) -> tuple[dict[str, Run], dict[str, Times], dict[str, str], list[str], int]:
    """The providers that run here and answer rightly, what the call that showed it took, and what its result says; then
    remarks on the other providers, and how many were wrong."""
    runs, checked, remarks, notes, failures = {}, {}, {}, [], 0
    for provider in bench.providers:
        if chosen and provider not in chosen:
            continue
        try:
            run = bench.setup(problem, provider)
            done = verify(run)
            runs[provider] = run
            checked[provider] = quantiles([done.seconds], [done.cpu_seconds])
            remarks[provider] = "" if run.note is None else run.note(done.result)
            del done  # results are not kept: some are large
        except Absent as reason:
            notes.append(f"{provider}: absent ({reason})")
        except WrongAnswer as reason:
            notes.append(f"{provider}: REFUSED, wrong answer at this shape: {reason}")
            failures += 1
    return runs, checked, remarks, notes, failures


def row(bench: Bench, shape: Shape, provider: str, run: Run, times: Times, date: str) -> dict[str, Any]:
    rate, unit = "", ""
    if run.flops:
        rate, unit = f"{run.flops / times.median / 1e6:.1f}", "GFLOP/s"
    elif run.bytes:
        rate, unit = f"{run.bytes / times.median / 1e6:.2f}", "GB/s"
    return {
        "date": date,
        "op": bench.op,
        "mode": bench.mode,
        "shape": words(shape),
        "dtype": bench.dtype,
        "provider": provider,
        "version": run.version,
        "median_ms": f"{times.median:.4f}",
        "p20_ms": f"{times.p20:.4f}",
        "p80_ms": f"{times.p80:.4f}",
        "cpu_ms": "" if math.isnan(times.cpu) else f"{times.cpu:.4f}",
        "rounds": times.rounds,
        "peak_mib": "",
        "rate": rate,
        "rate_unit": unit,
        "note": "",
    }


def table(bench: Bench, shape: Shape, rows: list[dict[str, Any]], notes: list[str], bf16: bool) -> str:
    """Providers with their ratio to ours, then every goal with the measured ratio."""
    ours = {line["provider"]: float(line["median_ms"]) for line in rows}.get("saekern")
    lines = [f"\n{bench.op} {bench.mode}  {words(shape)}  {bench.dtype}, {torch.get_num_threads()} threads"]
    heads = f"{'median ms':>11}{'20 %':>10}{'80 %':>10}{'CPU ms':>11}{'n':>4}{'peak MiB':>10}{'/ ours':>8}  rate"
    lines.append(f"  {'provider':<22}{heads}")
    for line in rows:
        median, p20, p80 = (float(line[name]) for name in ("median_ms", "p20_ms", "p80_ms"))
        ratio = f"{median / ours:.2f}" if ours else ""
        cpu = f"{float(line['cpu_ms']):.3f}" if line["cpu_ms"] else ""
        text = f"  {line['provider']:<22}{median:>11.3f}{p20:>10.3f}{p80:>10.3f}{cpu:>11}{line['rounds']:>4}"
        text += f"{line['peak_mib']:>10}{ratio:>8}  {line['rate']} {line['rate_unit']}"
        lines.append(text.rstrip())
        lines += [f"    {line['note']}"] if line["note"] else []
    lines += [f"  {note}" for note in notes]
    for goal in bench.goals:
        if shape in bench.shapes and goal.applies(shape, bf16):
            figures = {line["provider"]: float(line[goal.metric] or 0) for line in rows}
            verdict, wanted = goal.verdict(figures, bf16), goal.words(bf16)
            if verdict is None:
                lines.append(f"  goal {wanted}, {goal.metric}: not measured")
            else:
                met = "met" if verdict.met else "MISSED"
                lines.append(f"  goal {wanted}, {goal.metric} of {verdict.rival}: {verdict.ratio:.2f}, {met}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
