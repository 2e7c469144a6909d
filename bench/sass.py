"""`python -m saekern.bench.sass`: what the GPU kernels became in machine code, read on a machine without a GPU.

Every form that a kernel file in saekern.kernels says it is launched in is compiled ahead of time, and the instructions
are read back from the binary with the disassembler that Triton brings along. A spill, a missing tensor-core
instruction or a gather that loads 32 bits at a time costs a factor, passes every test of numbers, and shows here.

Refused (exit status 1): stack or local memory in use, more registers than the form states, `matrix` forms without a
tensor-core instruction, `gather` forms without 128-bit global loads, `nan` forms with a maximum that drops NaN, and
loads that need not see a store before them.
"""

import argparse
import importlib
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

ARCHITECTURES = (80, 90, 100)
# What one tile of `tl.dot` becomes: mma.sync, wgmma and tcgen05 in the disassembler's words.
MATRIX = {80: r"HMMA", 90: r"HGMMA", 100: r"(?:UTC\w*MMA|HMMA)"}


class Job(NamedTuple):
    module: str
    number: int  # of the form in the module's forms()
    arch: int


class Usage(NamedTuple):
    """What one form compiled to; the counts are of instructions in the code, not of executions."""

    kernel: str
    config: str
    arch: int
    registers: int
    stack: int  # bytes a thread
    local: int  # loads and stores of spilled registers
    matrix: int
    wide: int  # 128-bit global loads, through registers or straight to shared memory
    refused: tuple[str, ...]


def kernel_modules() -> list[str]:
    import saekern.kernels

    names = [f"saekern.kernels.{module.name}" for module in pkgutil.iter_modules(saekern.kernels.__path__)]
    return [name for name in names if hasattr(importlib.import_module(name), "forms")]


def compiled(form, arch: int) -> bytes:
    """The binary of one form. Only API that Triton 3.6 to 3.9 share."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = form.kernel.arg_names
    missing = set(names) - set(form.signature) - set(form.constants)
    if missing:
        raise ValueError(f"{form.kernel.__name__}: the form says nothing about {sorted(missing)}")
    blind = {p.name for p in form.kernel.params if p.do_not_specialize} & set(form.aligned)
    if blind:
        raise ValueError(f"{form.kernel.__name__}: the form aligns {sorted(blind)}, which a launch does not look at")
    source = ASTSource(
        form.kernel,
        signature={name: form.signature.get(name, "constexpr") for name in names},
        constexprs=form.constants,
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in form.aligned},
    )
    options = {"num_warps": form.num_warps, "num_stages": form.num_stages}
    if form.capped:
        options["maxnreg"] = form.registers
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options).asm["cubin"]


def disassembled(binary: bytes) -> tuple[str, str]:
    """Resource usage and instructions, as `cuobjdump` prints them."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(binary)
        tool = knobs.nvidia.cuobjdump.path
        usage, code = (
            subprocess.run([tool, option, path], capture_output=True, text=True, check=True).stdout
            for option in ("-res-usage", "-sass")
        )
    return usage, code


def inspect(job: Job) -> Usage:
    form = importlib.import_module(job.module).forms()[job.number]
    usage, code = disassembled(compiled(form, job.arch))
    registers, stack = (int(re.search(rf"{word}:(\d+)", usage)[1]) for word in ("REG", "STACK"))
    local, matrix, wide = (
        len(re.findall(pattern, code))
        for pattern in (r"\b(?:LDL|STL)\b", rf"\b{MATRIX[job.arch]}\b", r"\bLDG(?:STS)?\.[\w.]*128|\bUTMALDG\b")
    )
    refused = [
        reason
        for reason, bad in (
            (f"{stack} bytes of stack", stack > 0),
            (f"{local} spill instructions", local > 0),
            (f"{registers} registers, stated {form.registers}", registers > form.registers),
            ("no tensor-core instruction", form.matrix and matrix == 0),
            ("no 128-bit load", form.gather and wide == 0),
            ("a maximum that drops NaN", form.nan and re.search(r"\bFMNMX3?(?!\S*NAN)", code)),
            # What a kernel stores and loads again would come out of date from there.
            ("loads through the read-only cache", re.search(r"\bLDG\S*CONSTANT", code)),
        )
        if bad
    ]
    return Usage(form.kernel.__name__, config(form), job.arch, registers, stack, local, matrix, wide, tuple(refused))


def config(form) -> str:
    """Types of the pointers and the constants in short: "bf16 bf16 fp32 TILE=128 warps=4"."""
    types = dict.fromkeys(kind.lstrip("*") for kind in form.signature.values() if kind.startswith("*"))
    constants = (f"{name}={value}" for name, value in form.constants.items())
    return " ".join([*types, *constants, f"warps={form.num_warps}", f"stages={form.num_stages}"])


def inspect_all(modules: Iterable[str], architectures: Iterable[int], sample: bool = False) -> list[Usage]:
    """Every form of the modules for every architecture, on all CPUs: a compilation takes 1 to 5 s. With `sample` the
    first form of each kernel only."""
    jobs = []
    for module in modules:
        names = [form.kernel.fn.__name__ for form in importlib.import_module(module).forms()]
        chosen = [i for i, name in enumerate(names) if not sample or name not in names[:i]]
        jobs += [Job(module, number, arch) for number in chosen for arch in architectures]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(inspect, jobs))


def table(rows: Iterable[Usage]) -> str:
    head = f"{'kernel':28} {'sm':>4} {'regs':>4} {'stack':>5} {'spill':>5} {'mma':>4} {'128b':>4}  form"
    return "\n".join(
        [head]
        + [
            f"{r.kernel:28} {r.arch:4} {r.registers:4} {r.stack:5} {r.local:5} {r.matrix:4} {r.wide:4}  {r.config}"
            + "".join(f"\n    REFUSED: {reason}" for reason in r.refused)
            for r in rows
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m saekern.bench.sass", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--arch", default=",".join(map(str, ARCHITECTURES)), help="of %(default)s")
    parser.add_argument("--sample", action="store_true", help="one form of each kernel instead of all")
    parser.add_argument("modules", nargs="*", help="modules with forms(); default: all of saekern.kernels")
    options = parser.parse_args(arguments)
    if "TRITON_INTERPRET" in os.environ:  # read when triton is imported: kernels for the interpreter do not compile
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        command = [sys.executable, "-P", "-m", "saekern.bench.sass", "--arch", options.arch, *options.modules]
        command += ["--sample"] if options.sample else []
        return subprocess.run(command, env=environment, check=False).returncode
    architectures = [int(arch) for arch in options.arch.split(",")]
    rows = inspect_all(options.modules or kernel_modules(), architectures, options.sample)
    print(table(rows))
    return int(any(row.refused for row in rows))


if __name__ == "__main__":
    sys.exit(main())
