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
    spilled = run.stdout.split("\nhold_everything ")[1]
    assert "bytes of stack" in spilled
    assert "spill instructions" in spilled
