"""`python -m saekern.bench.gpu`, or `python bench/gpu.py` in a fresh checkout: everything about one GPU in one command.

Builds the C++ extension where it is missing; checks answers, determinism and resume on the device; times ours, plain
torch and the peers that are installed, goal shapes first; prints goals and appends rows to bench/results/gpu-*.csv as
they come. Each part runs in a process of its own, so that one that crashes takes nothing else with it. It ends within
its budget, and lists what it had no time for. `--dry-run` does it all on the CPU, tiny, through Triton's interpreter.
"""

import argparse
import datetime
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Part(NamedTuple):
    """One process."""

    name: str
    module: str  # of saekern.bench
    arguments: tuple[str, ...]
    most: float  # seconds


# In order of worth: is it right, how fast is it where it must be fast, is it right everywhere, how fast elsewhere.
PARTS = (
    Part("fresh inputs", "gpu_checks", ("fresh",), 100),
    Part("train and resume", "gpu_checks", ("train", "--timeout", "50"), 60),
    *(
        Part(f"{op}, goal shapes", "gpu_times", (op,), 90)
        for op in ("topk_encode", "decode", "train_step", "nearest", "kron_encode", "adam_step")
    ),
    Part("sanitizer", "gpu_checks", ("sanitizer", "--timeout", "80"), 90),
    Part("tests on the device", "gpu_checks", ("tests", "--timeout", "120"), 125),
    Part("other shapes", "gpu_times", ("--part", "rest"), 400),
)
DRY = (
    Part("checks", "gpu_checks", ("fresh", "train", "sanitizer", "tests", "--small"), 200),  # each process takes 3 s
    Part("small shapes", "gpu_times", ("--part", "quick", "--seconds", "0", "--no-compile"), 100),
)


def main(arguments: list[str] | None = None) -> int:
    """0; 1 if an answer was wrong or a part failed; 2 without a GPU."""
    parse = argparse.ArgumentParser(prog="python -m saekern.bench.gpu", description=__doc__.split("\n", 1)[0])
    parse.add_argument("--budget", type=float, default=500, help="seconds for everything (default %(default)g)")
    parse.add_argument("--flex-sae", type=Path, help="a clone of flex-sae, to be timed beside ours")
    parse.add_argument("--no-compile", action="store_true", help="leave torch.compile out, which takes half a minute")
    parse.add_argument("--dry-run", action="store_true", help="on the CPU, tiny; keeps no figures")
    parse.add_argument("--csv", type=Path, help="result file (default bench/results/gpu-<name>.csv)")
    options = parse.parse_args(arguments)
    begun = time.time()
    build()
    import torch

    if not options.dry_run and not torch.cuda.is_available():
        print("no GPU that this PyTorch can use; --dry-run checks this script without one", file=sys.stderr)
        return 2
    device = "cpu" if options.dry_run else "cuda"
    csv = None if options.dry_run else options.csv or default_csv(torch.cuda.get_device_name())
    print(machine_words(device), flush=True)
    environment = dict(os.environ, **({"TRITON_INTERPRET": "1"} if options.dry_run else {}))
    end, failed, skipped = begun + options.budget, [], []
    for part in DRY if options.dry_run else PARTS:
        left = end - time.time()
        if left < 15:
            skipped.append(part.name)
            continue
        print(f"\n=== {part.name} ({left:.0f} s left)", flush=True)
        command = [sys.executable, "-P", "-m", f"saekern.bench.{part.module}", *part.arguments, "--device", device]
        if part.module == "gpu_times":
            command += ["--until", str(time.time() + min(left, part.most) - 10)]
            command += ["--csv", str(csv)] if csv else []
            command += ["--flex-sae", str(options.flex_sae)] if options.flex_sae else []
            command += ["--no-compile"] if options.no_compile and "--no-compile" not in command else []
        code, checks = 0, []
        for kind, value in watched(command, environment, min(left, part.most)):
            if kind == "code":
                code = value
            elif kind == "skipped":
                skipped += value
            elif kind == "check":
                checks.append(value)
        if code:
            failed.append(f"{part.name} ({'stopped: out of time' if code < 0 else f'exit code {code}'})")
        if csv:
            keep(csv, part, checks, code, device)
    print(f"\n{time.time() - begun:.0f} s. " + (f"Figures: {csv}" if csv else "Dry run: no figures kept."))
    print("Skipped for want of time: " + ("; ".join(skipped) or "nothing"))
    print("Failed: " + ("; ".join(failed) or "nothing"))
    return int(bool(failed))


def build() -> None:
    """Installs the checkout in place if the package or its extension is missing, and starts again from there."""
    found = importlib.util.find_spec("saekern")
    if found is None or importlib.util.find_spec("saekern._C") is None:
        command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--editable", str(ROOT)]
        print("building the extension: " + " ".join(command[1:]), flush=True)
        subprocess.run(command, check=True, cwd=ROOT)
    elif not __package__:  # run as a file: bench/ would be in front of sys.path
        pass
    else:
        return
    os.execv(sys.executable, [sys.executable, "-P", "-m", "saekern.bench.gpu", *sys.argv[1:]])


def watched(command: list[str], environment: dict[str, str], most: float) -> Iterator[tuple[str, Any]]:
    """Runs a part: prints its lines as they come, yields what they mean, ends it after `most` seconds."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=ROOT
    )
    timer = threading.Timer(most, process.kill)
    timer.start()
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith("SKIPPED "):
                yield "skipped", json.loads(line.removeprefix("SKIPPED "))
            elif line.startswith('{"check"'):
                check = json.loads(line)
                print(f"  {check['result']:<10} {check['check']}: {check['note']}", flush=True)
                yield "check", check
            else:
                print("  " + line.rstrip(), flush=True)
        yield "code", process.wait()
    finally:
        timer.cancel()
        process.kill()
        process.wait()
        process.stdout.close()


def keep(csv: Path, part: Part, checks: list[dict[str, str]], code: int, device: str) -> None:
    """Checks, and a part that failed, as rows of the result file."""
    import torch

    from saekern.bench import record
    from saekern.bench.gpu_times import facts

    lines = [(check["check"], f"{check['result']}: {check['note']}") for check in checks]
    if code and not checks:
        lines.append((part.name, f"exit code {code}"))
    base = {"date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"), "op": "check"}
    same = facts(torch.device(device))
    record.append(csv, [same | base | {"mode": name, "note": note} for name, note in lines], record.GPU_COLUMNS)


def default_csv(name: str) -> Path:
    from saekern.bench.record import default_path

    return default_path("gpu-" + "-".join(re.findall(r"[a-z0-9]+", name.lower())))


def machine_words(device: str) -> str:
    import torch

    from saekern.bench.gpu_times import facts

    same = facts(torch.device(device))
    names = ("device", "instruction_sets", "driver", "torch", "triton", "python", "saekern", "commit")
    text = ", ".join(f"{name} {same[name]}" for name in names if same[name])
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        text += f", {properties.total_memory / 1e9:.0f} GB, L2 {properties.L2_cache_size / 1e6:.0f} MB"
        text += f", {properties.multi_processor_count} multiprocessors, CUDA {torch.version.cuda}"
    return text


if __name__ == "__main__":
    sys.exit(main())
