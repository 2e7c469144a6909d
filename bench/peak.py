"""Peak memory of one provider at one shape, in a process of its own.

Method: the child first runs a small shape of the same bench, so that libraries, thread pools and compiled code are
loaded; then it makes the inputs, returns free heap to the kernel (malloc_trim), notes the resident size (VmRSS), resets
the kernel's high-water mark (writing 5 to /proc/self/clear_refs), makes two calls (or one long one) and reads the mark
(VmHWM). The difference, minus what the run keeps on purpose (gradients, optimiser state), is the peak. Linux only.
"""

import ctypes
import gc
import importlib
import json
import subprocess
import sys
from pathlib import Path

import torch

from saekern.bench.common import Absent, Bench, Shape, step

MIB = 2.0**20


def peak_mib(
    module: str, index: int, shape: Shape, provider: str, calls: int = 2, data: Path | None = None
) -> float | None:
    """None where the system offers no high-water mark, or the child failed (memory ran out, for instance)."""
    if not Path("/proc/self/clear_refs").exists():
        return None
    folder = None if data is None else str(data)
    request = json.dumps([module, index, dict(shape), provider, torch.get_num_threads(), calls, folder])
    done = subprocess.run([sys.executable, "-m", "saekern.bench.peak", request], capture_output=True, text=True)
    lines = done.stdout.split()
    return float(lines[-1]) if done.returncode == 0 and lines else None


def resident_bytes(field: str) -> int:
    """VmRSS or VmHWM of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status: no field {field}")


def measure(bench: Bench, shape: Shape, provider: str, calls: int = 2, data: Path | None = None) -> float:
    """MiB above inputs, parameters, gradients and optimiser state; for the child process."""
    for small in bench.quick[:1]:
        step(bench.setup(bench.problem(small, data), provider))
    run = bench.setup(bench.problem(shape, data), provider)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    for _ in range(calls):
        step(run)
    return (resident_bytes("VmHWM") - before - run.kept_bytes) / MIB


def main(request: str) -> int:
    module, index, shape, provider, threads, calls, folder = json.loads(request)
    torch.set_num_threads(threads)
    bench = importlib.import_module(f"saekern.bench.{module}").BENCHES[index]
    try:
        print(measure(bench, shape, provider, calls, folder and Path(folder)))
    except Absent:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
