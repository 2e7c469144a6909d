"""Is what the GPU computes right? `python -m saekern.bench.gpu_checks`, which bench/gpu.py starts.

fresh        random inputs against the float64 reference, memory poisoned, ten runs equal bit for bit, in a CUDA graph
tests        the tests of tests/kernels and tests/ops on the device
sanitizer    `fresh` at small shapes under compute-sanitizer, where that tool exists
train        `saekern train --device`, whole, and killed and resumed: the same bytes
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from saekern.bench.gpu_fresh import fresh

ROOT = Path(__file__).resolve().parent.parent


def line(check: str, command: list[str], timeout: float, environment: dict[str, str] | None = None) -> dict[str, str]:
    """A command's exit code as a line; its last words where it failed."""
    start = time.time()
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=max(timeout, 1), env=environment, cwd=ROOT, check=False
        )
    except subprocess.TimeoutExpired:
        return {"check": check, "result": "unfinished", "note": f"stopped after {time.time() - start:.0f} s"}
    except OSError as error:
        return {"check": check, "result": "absent", "note": str(error)}
    words = (done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or [""])[-1]
    return {"check": check, "result": "FAILED" if done.returncode else "ok", "note": words[:200]}


def sanitizer(timeout: float) -> list[dict[str, str]]:
    tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if tool is None:
        return [{"check": "sanitizer", "result": "absent", "note": "compute-sanitizer is not installed"}]
    small = [sys.executable, "-P", "-m", "saekern.bench.gpu_checks", "fresh", "--small"]
    return [
        line(f"sanitizer {name}", [tool, "--tool", name, "--error-exitcode", "9", *small], timeout / 2)
        for name in ("memcheck", "racecheck")
    ]


def train(device: str, timeout: float) -> list[dict[str, str]]:
    """On rows made here; the second run is killed once it has a checkpoint, and started again."""
    with tempfile.TemporaryDirectory() as name:
        folder, end = Path(name), time.time() + timeout
        write_cache(folder / "cache", rows=4096, width=64)
        command = [sys.executable, "-P", "-m", "saekern", "train", str(folder / "cache"), "--device", device, "--quiet"]
        command += ["--sae.d-sae", "512", "--sae.k", "8", "--train.rows", "51200", "--train.batch-size", "256"]
        command += ["--train.checkpoint-every", "10", "--train.dead-after", "5000", "--train.bf16", "--out"]
        whole = line("train whole", [*command, str(folder / "whole")], timeout)
        if whole["result"] != "ok":
            return [whole]
        process = subprocess.Popen([*command, str(folder / "killed")])
        while process.poll() is None and not (folder / "killed" / "state.safetensors").exists() and time.time() < end:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        killed = process.wait() == -signal.SIGKILL
        resumed = line("train resumed", [*command, str(folder / "killed")], end - time.time())
        if resumed["result"] != "ok":
            return [whole, resumed]
        files = ("state.safetensors", "sae.safetensors", "train.jsonl", "config.json")
        differ = [f for f in files if (folder / "whole" / f).read_bytes() != (folder / "killed" / f).read_bytes()]
        note = "the same bytes as the whole run" if killed else "it had ended before it could be killed"
        result = {"result": "FAILED" if differ else "ok", "note": ", ".join(differ) + " differ" if differ else note}
        return [whole, {"check": "train killed and resumed", **result}]


def write_cache(folder: Path, rows: int, width: int) -> None:
    """A harvest's folder, with rows that are sums of a few directions."""
    from saekern.activations.cache import FORMAT, VERSION, shard_name

    folder.mkdir()
    random = torch.Generator().manual_seed(0)
    codes = (torch.rand(rows, 300, generator=random) - 0.9).relu()
    save_file({"rows": codes @ torch.randn(300, width, generator=random)}, folder / shard_name(0))
    manifest = {"format": FORMAT, "version": VERSION, "shards": [rows], "width": width, "dtype": "float32"}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def tests(timeout: float, interpreter: bool) -> list[dict[str, str]]:
    if not (ROOT / "tests" / "kernels").is_dir():
        return [{"check": "tests", "result": "absent", "note": "not a checkout"}]
    chosen = ["tests/kernels/test_unexplained_variance.py"] if interpreter else ["tests/kernels"]
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider", *chosen]
    return [line("tests", command, timeout, dict(os.environ))]


def main(arguments: list[str] | None = None) -> int:
    """1 if a check failed. One JSON line a check on stdout."""
    parse = argparse.ArgumentParser(prog="python -m saekern.bench.gpu_checks", description=__doc__.split("\n", 1)[0])
    parse.add_argument("checks", nargs="*", help="of fresh, tests, sanitizer, train; none means all")
    parse.add_argument("--device", default="cuda")
    parse.add_argument("--small", action="store_true", help="small shapes, two runs")
    parse.add_argument("--timeout", type=float, default=150, help="seconds a check")
    options = parse.parse_args(arguments)
    device = torch.device(options.device)
    os.environ.setdefault(
        "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
    )  # before CUDA starts: poisoning needs deterministic mode
    checks: dict[str, Callable[[], list[dict[str, str]]]] = {
        "fresh": lambda: fresh(device, options.small, 2 if options.small else 10),
        "train": lambda: train(options.device, options.timeout),
        "sanitizer": lambda: sanitizer(options.timeout),
        "tests": lambda: tests(options.timeout, device.type == "cpu"),
    }
    failed = False
    for name in options.checks or checks:
        for result in checks[name]():
            failed |= result["result"] == "FAILED"
            print(json.dumps(result), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
