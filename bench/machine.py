"""What a measurement ran on: the CPU's model, its instruction sets, threads, versions, commit. No host names."""

import math
import os
import platform
import re
import subprocess
import time
from pathlib import Path

import torch

from saekern.version import __version__

# The sets that choose a code path here or in oneDNN; the full list of a modern CPU has a hundred entries.
NOTED_SETS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "bf16")

QUIET = 0.15  # CPUs that others may keep busy before a run counts as disturbed


def cpu_model() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def instruction_sets() -> tuple[str, ...]:
    flags = set((_cpuinfo("flags") or _cpuinfo("Features")).split())
    return tuple(name for name in NOTED_SETS if name in flags)


BF16_SETS = {"avx512_bf16", "amx_bf16", "bf16"}


def used_sets(level: str) -> tuple[str, ...]:
    """The instruction sets that our code uses when it is held to a level; all of the processor's for ""."""
    kept = {"": NOTED_SETS, "avx512bf16": NOTED_SETS, "avx512": ("avx2", "avx512f"), "avx2": ("avx2",), "portable": ()}
    return tuple(name for name in instruction_sets() if name in kept[level])


def has_bf16(sets: tuple[str, ...]) -> bool:
    return bool(BF16_SETS & set(sets))


def machine_class(sets: tuple[str, ...]) -> str:
    """The name of the result file: alike machines share one, e.g. cpu-amd-epyc-avx512_bf16-2-threads."""
    model = re.sub(r"\(.*?\)|@.*|\b(cpu|processor|\d+-core)\b", " ", cpu_model().lower())
    words = [*re.findall(r"[a-z0-9]+", model), sets[-1] if sets else platform.machine()]
    return "-".join(["cpu", *words, str(torch.get_num_threads()), "threads"])


def facts(sets: tuple[str, ...]) -> dict[str, str]:
    """The columns that are the same for every row of a session."""
    return {
        "device": cpu_model(),
        "instruction_sets": " ".join(sets),
        "threads": str(torch.get_num_threads()),
        "saekern": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit(),
    }


class Others:
    """CPUs that other processes kept busy while the `with` block ran: `others.cpus`, NaN where it cannot be told.

    On a busy machine ratios lie too: libraries whose threads wait by spinning (OpenMP) lose far more than ours."""

    cpus = math.nan

    def __enter__(self) -> "Others":
        self._start = _busy_seconds()
        return self

    def __exit__(self, *_: object) -> None:
        busy, own, wall = (after - before for after, before in zip(_busy_seconds(), self._start, strict=True))
        self.cpus = max(0.0, busy - own) / wall


def _busy_seconds() -> tuple[float, float, float]:
    """All processes, this one, and the clock."""
    own, clock = time.process_time(), time.perf_counter()
    if not Path("/proc/stat").exists():
        return math.nan, own, clock
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = ticks
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK"), own, clock


def commit() -> str:
    """The short commit of this checkout, "+" where files differ from it; empty outside one."""
    folder = Path(__file__).resolve().parent
    if not (folder.parent / "pyproject.toml").exists():
        return ""
    name = _git(folder, "rev-parse", "--short=10", "HEAD")
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ":/csrc", ":/saekern", ":/bench/*.py")
    return name + ("+" if name and changed else "")


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()


def _cpuinfo(key: str) -> str:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return ""
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""
