"""The machine code of every kernel form: compiled for three GPUs without one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


def sass(*arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}  # planted_forms is found there
    command = [sys.executable, "-P", "-m", "saekern.bench.sass", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", [["--sample"], pytest.param([], marks=pytest.mark.slow)], ids=["sample", "all"])
def test_no_form_is_refused(arguments):
    """One form of each kernel; all of them, which takes minutes, in `.ci/run` and `make test-slow`."""
    run = sass(*arguments)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("\n") > 1, "no kernel was looked at"


@pytest.mark.parametrize("arch", ["80", "90", "100"])
def test_planted_faults_are_refused(arch):
    """A misaligned gather, a matrix kernel without tensor cores, too many registers, spills; and a sound copy."""
    run = sass("--arch", arch, "planted_forms")
    assert run.returncode == 1, run.stdout + run.stderr
    forms = ("\n" + run.stdout).split("\ncopy ")[1:]
    assert len(forms) == 4
    assert "REFUSED" not in forms[0]
    assert "REFUSED: no 128-bit load" in forms[1]
    assert "REFUSED: no tensor-core instruction" in forms[2]
    assert "registers, stated 8" in forms[3]
    spilled, largest = run.stdout.split("\nhold_everything ")[1].split("\nlargest ")
    assert "REFUSED: a maximum that drops NaN" in largest
    assert "bytes of stack" in spilled
    assert "spill instructions" in spilled


def test_integers_that_are_1_compile():
    """Planted: `.to(tl.int64)` of an argument; caught."""
    run = sass("--arch", "90", "forms_of_ones")
    assert run.returncode == 0, run.stdout + run.stderr


def test_forms_are_compiled_as_launchers_launch_them():
    """Every kernel has a form, and a form that names no number of stages has the one that Triton would take.

    Planted: two stages by default, as it was; no form of `fold_kernel`; both caught."""
    import importlib

    from triton.backends.nvidia.compiler import CUDAOptions
    from triton.runtime import JITFunction
    from triton.runtime.interpreter import InterpretedFunction

    from saekern.bench.sass import kernel_modules
    from saekern.kernels.form import Form

    assert Form._field_defaults["num_stages"] == CUDAOptions(num_warps=4).num_stages
    for name in kernel_modules():
        module = importlib.import_module(name)
        kernels = {
            value
            for label, value in vars(module).items()
            if isinstance(value, (JITFunction, InterpretedFunction)) and label.endswith("_kernel")
        }
        own = {kernel for kernel in kernels if kernel.fn.__module__ == name}
        assert own <= {form.kernel for form in module.forms()}, name  # and those that its launcher borrows
