"""The C++ under AddressSanitizer and UndefinedBehaviorSanitizer: the tests that drive it, in an instrumented build. The
assignments under ThreadSanitizer, without Python."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g"


@pytest.mark.slow
def test_address_and_undefined_behaviour(tmp_path):
    """Planted: one column too many read in csrc/decode.cpp; caught. It found a signed overflow in csrc/select.cpp."""
    compiler = os.environ.get("CXX", "g++")
    # libstdc++ too: otherwise the sanitizer cannot find the real __cxa_throw and aborts at the first exception.
    libraries = [
        run([compiler, f"-print-file-name={name}"], tmp_path).strip() for name in ("libasan.so", "libstdc++.so")
    ]
    if not all(Path(library).is_absolute() for library in libraries):
        pytest.skip(f"{compiler} has no shared libasan and libstdc++")
    for folder in ("csrc", "saekern", "kernels", "bench", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    installed = tmp_path / "installed"
    build = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(installed), "."]
    run(build, tmp_path, CFLAGS=FLAGS, CXXFLAGS=FLAGS, LDFLAGS=FLAGS)

    # PYTHONPATH puts the instrumented copy before the editable install. Python itself leaks by design.
    tests = [str(Path(sys.executable).with_name("pytest")), "-q", "-x", "-s", "tests/ops", "tests/matching"]
    environment = {"PYTHONPATH": str(installed), "LD_PRELOAD": " ".join(libraries), "ASAN_OPTIONS": "detect_leaks=0"}
    where = run([sys.executable, "-c", "import saekern._C as c; print(c.__file__)"], tmp_path.parent, **environment)
    assert where.startswith(str(installed))
    found = run(tests, tmp_path, **environment)
    assert " passed" in found


@pytest.mark.slow
def test_threads_of_the_assignments(tmp_path):
    """Planted: the counter of scored blocks in csrc/linear_sum_assignment/vector_candidates.cpp not atomic; caught."""
    compiler, program = os.environ.get("CXX", "g++"), str(tmp_path / "threads")
    if not Path(run([compiler, "-print-file-name=libtsan.so"], tmp_path).strip()).is_absolute():
        pytest.skip(f"{compiler} has no libtsan")
    sources = [str(path) for path in sorted((ROOT / "csrc").rglob("*.cpp")) if path.name != "bindings.cpp"]
    flags = ["-std=c++17", "-O1", "-g", "-fsanitize=thread", "-fno-math-errno", "-pthread"]
    driver = str(ROOT / "tests" / "matching" / "assignment_threads.cpp")
    run([compiler, *flags, f"-I{ROOT / 'csrc'}", *sources, driver, "-o", program], tmp_path)
    assert run([program], tmp_path) == "same\n"


def run(command: list[str], cwd: Path, **environment: str) -> str:
    done = subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout
