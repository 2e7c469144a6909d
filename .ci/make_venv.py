"""Makes .venv: checks what the system must provide, then finds torch or installs it.

Run by `make` with the user's python3; standard library only. A torch that this python3 can import is used in place:
a .pth file puts its site-packages behind those of .venv. `--system-site-packages` would do the same for a system
Python, but from inside another virtual environment it shows the base installation, where torch is not.
Nothing is ever installed outside .venv, so that an externally managed Python (PEP 668) is no obstacle.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
OLDEST_TORCH = (2, 11)
OLDEST_COMPILER = {"clang": 14, "gcc": 11}
SHOW_TORCH = "import torch; print(torch.__version__)"


def say(text: str) -> None:
    print(text, flush=True)


def missing_from_system() -> list[str]:
    """One line for each thing to install first."""
    missing = []
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        missing.append(
            f"`{sys.executable} -m venv` does not work: Debian and Ubuntu have it in python3-venv, python{version}-venv"
        )
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        missing.append(
            f"Python.h is missing: Debian, Ubuntu have it in python3-dev, python{version}-dev, Fedora in python3-devel"
        )
    problem = compiler_problem(os.environ.get("CXX", "g++"))
    if problem:
        missing.append(f"{problem}: Debian and Ubuntu have g++ in build-essential, Fedora in gcc-c++")
    return missing


def compiler_problem(command: str) -> str | None:
    if shutil.which(command.split()[0]) is None:
        return "no C++ compiler (g++ 11 or newer, or clang++ 14 or newer)"
    run = subprocess.run([*command.split(), "-dumpversion"], capture_output=True, text=True)
    family = "clang" if "clang" in command else "gcc"
    found = re.match(r"\d+", run.stdout)
    if run.returncode or not found:
        return f"the C++ compiler {command} does not run: {run.stderr.strip() or run.stdout.strip()}"
    oldest = OLDEST_COMPILER[family]
    if int(found.group()) < oldest:
        return f"the C++ compiler {command} is version {run.stdout.strip()}, {oldest} or newer is needed"
    return None


def torch_of(python: Path | str) -> str | None:
    """The version of torch that this Python imports, or None. Started in /, so that no folder named torch is met."""
    run = subprocess.run([str(python), "-c", SHOW_TORCH], capture_output=True, text=True, cwd="/")
    return run.stdout.strip() if run.returncode == 0 else None


def pinned_torch() -> str:
    return re.search(r"^torch==\S+", (ROOT / "constraints.txt").read_text(), re.MULTILINE).group()


def borrow_torch() -> None:
    """Puts this Python's package folders behind those of .venv."""
    folders = [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages") and Path(p).is_dir()]
    own = VENV / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (own / "torch_of_python3.pth").write_text("\n".join(folders) + "\n")


def download_size(requirement: str) -> str:
    """What pip would fetch for `requirement`: the report of a dry run, then the length of each file."""
    command = [PYTHON, "-m", "pip", "install", "--dry-run", "--quiet", "--report", "-", requirement]
    try:
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        urls = [item["download_info"]["url"] for item in json.loads(report)["install"]]
        total = sum(length(url) for url in urls)
    except (subprocess.CalledProcessError, OSError, KeyError, TypeError, ValueError) as error:
        return f"of a size that could not be found out ({type(error).__name__})"
    return f"{total / 1e9:.1f} GB in {len(urls)} files"


def length(url: str) -> int:
    head = urllib.request.Request(url, method="GET" if url.startswith("file:") else "HEAD")
    with urllib.request.urlopen(head, timeout=20) as answer:
        return int(answer.headers["Content-Length"])


def install_torch() -> None:
    requirement = pinned_torch()
    say(
        f"No torch found: installing {requirement} into .venv from your pip index.\n"
        "PyTorch's default build for Linux carries CUDA (2.7 GB in 29 files when last measured). For the CPU build\n"
        "(0.2 GB) stop this now, and before the next `make` run, with the index that pytorch.org/get-started names:\n"
        f"  .venv/bin/python -m pip install {requirement} --index-url CPU_INDEX"
    )
    say(f"Your index: {download_size(requirement)} to download.")
    subprocess.run([PYTHON, "-m", "pip", "install", "--quiet", requirement], check=True)


def hold_torch(version: str) -> None:
    """Writes .venv/constraints.txt: no later installation may exchange the torch that is there."""
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    if not pinned_torch().endswith(f"=={version.split('+')[0]}"):
        pins = [line for line in pins if not line.startswith("triton==")]  # each torch has its own triton
    pins = [f"torch=={version}" if line.startswith("torch==") else line for line in pins]
    (VENV / "constraints.txt").write_text("\n".join(pins) + "\n")


def provide_torch() -> str:
    """The version of the torch that .venv imports in the end."""
    if torch_of(PYTHON) is None:
        version = torch_of(sys.executable)
        if version is not None and new_enough(version):
            say(f"Using torch {version} of {sys.executable}")
            borrow_torch()
        else:
            if version is not None:
                say(f"{sys.executable} has torch {version}, saekern needs 2.11 or newer.")
            install_torch()
    version = torch_of(PYTHON)
    if version is None:
        sys.exit(f"torch is installed, but does not import: see `{PYTHON} -c 'import torch'`")
    if not new_enough(version):
        sys.exit(f"torch in .venv is {version}, saekern needs 2.11 or newer: remove .venv, or update it there")
    return version


def new_enough(version: str) -> bool:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2]) >= OLDEST_TORCH


def main() -> None:
    missing = missing_from_system()
    if missing:
        sys.exit("saekern cannot be built on this machine yet:\n  " + "\n  ".join(missing))
    ready = VENV / "ready"
    moved = ready.exists() and ready.read_text().strip() != str(ROOT)
    if moved or not PYTHON.exists():
        say(f"Making .venv with {sys.executable} ({sys.version.split()[0]})")
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=True)
    hold_torch(provide_torch())


if __name__ == "__main__":
    main()
