"""`.ci/make_venv.py`: what is missing on the machine is named, and a torch that is there is used."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent.parent
PRETEND = {
    "venv": "import sys; sys.modules['ensurepip'] = None",
    "headers": "import sysconfig; sysconfig.get_path = lambda name: '/nowhere'",
    "nothing": "",
}


@pytest.fixture
def clone(tmp_path):
    target = tmp_path / "clone"
    (target / ".ci").mkdir(parents=True)
    for name in (".ci/make_venv.py", "constraints.txt", "Makefile"):
        shutil.copy(ROOT / name, target / name)
    return target


def make_venv(clone: Path, missing: str = "nothing", **environment: str) -> subprocess.CompletedProcess:
    """Runs the script in a Python that `missing` has been taken from."""
    code = f"{PRETEND[missing]}\nimport runpy; runpy.run_path('.ci/make_venv.py', run_name='__main__')"
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=clone, env=os.environ | environment, capture_output=True, text=True)


def fake_compiler(folder: Path, version: str) -> str:
    compiler = folder / "g++"
    compiler.write_text(f"#!/bin/sh\necho {version}\n")
    compiler.chmod(0o755)
    return str(compiler)


@pytest.mark.parametrize(
    ("missing", "compiler", "words"),
    [
        ("venv", "g++", ("-m venv` does not work", "python3-venv")),
        ("headers", "g++", ("Python.h is missing", "python3-dev")),
        ("nothing", "g++-of-nowhere", ("no C++ compiler", "g++ 11 or newer", "build-essential")),
    ],
)
def test_what_is_missing_is_named(clone, missing, compiler, words):
    """Planted: the check of the headers turned round; caught."""
    done = make_venv(clone, missing, CXX=compiler)
    assert done.returncode == 1
    for word in words:
        assert word in done.stderr
    assert not (clone / ".venv").exists()


def test_old_compiler_is_refused(clone, tmp_path):
    done = make_venv(clone, CXX=fake_compiler(tmp_path, "9"))
    assert done.returncode == 1
    assert "is version 9, 11 or newer is needed" in done.stderr


def test_old_or_missing_python_is_named_by_make(clone, tmp_path):
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo Python 3.8.1\nexit 1\n')
    old.chmod(0o755)
    for python, words in ((str(old), "needs Python 3.10 or newer"), ("python-of-nowhere", "not found")):
        done = subprocess.run(["make", f"PYTHON={python}", "build"], cwd=clone, capture_output=True, text=True)
        assert done.returncode == 2
        assert words in done.stderr


@pytest.mark.slow  # makes an environment
def test_importable_torch_is_used_and_held(clone):
    """Planted: the .pth file not written; caught."""
    done = make_venv(clone, PIP_NO_INDEX="1", PIP_FIND_LINKS="")
    assert done.returncode == 0, done.stderr
    assert f"Using torch {torch.__version__}" in done.stdout
    python = clone / ".venv" / "bin" / "python"
    place = subprocess.run([python, "-c", "import torch; print(torch.__file__)"], capture_output=True, text=True)
    assert place.stdout.strip() == torch.__file__
    assert f"torch=={torch.__version__}" in (clone / ".venv" / "constraints.txt").read_text().splitlines()
    assert "Making .venv" not in make_venv(clone, PIP_NO_INDEX="1").stdout  # the second time nothing is made


@pytest.mark.slow  # makes an environment
def test_old_torch_is_refused(clone, tmp_path):
    (tmp_path / "torch.py").write_text('__version__ = "2.4.1"\n')
    done = make_venv(clone, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "torch in .venv is 2.4.1, saekern needs 2.11 or newer" in done.stderr
