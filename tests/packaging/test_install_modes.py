"""Each way to install, in an environment of its own that borrows torch from this one: it imports and computes.

Every mode compiles the C++ extension in pip's isolated build environment, a minute or so each."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
PROBE = """
from importlib.metadata import version
import torch
import saekern, saekern.kernels, saekern.bench, saekern._C
assert saekern.__version__ == version("saekern")
values, indices = saekern.ops.topk_encode(torch.eye(3), torch.diag(torch.tensor([1.0, 2.0, 3.0])), None, 1)
assert indices.flatten().tolist() == [0, 1, 2] and values.flatten().tolist() == [1.0, 2.0, 3.0]
print(*saekern.__path__, *saekern.kernels.__path__, saekern._C.__file__, sep="\\n")
"""


def run(*command: str | Path, cwd: Path) -> str:
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "TRITON_INTERPRET")}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def tracked_files() -> list[str]:
    return run("git", "ls-files", cwd=ROOT).splitlines()


@pytest.fixture
def checkout(tmp_path):
    """A clean copy of the tracked files."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout to know which files belong to it")
    target = tmp_path / "checkout"
    for name in tracked_files():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name)
    return target


@pytest.fixture
def bare_python(tmp_path):
    """A new environment's python. A .pth shows it the packages of this one (torch), but no editable install."""
    environment = tmp_path / "environment"
    run(sys.executable, "-m", "venv", environment, cwd=tmp_path)
    packages = next((environment / "lib").glob("python*")) / "site-packages"
    (packages / "borrowed.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
    return environment / "bin" / "python"


def pip_install(python: Path, *arguments: str | Path, cwd: Path) -> None:
    # --ignore-installed: this environment's own saekern is visible to pip there, and must not count.
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--ignore-installed", *arguments, cwd=cwd)


def probe(python: Path, tmp_path: Path) -> list[str]:
    """The places that saekern, saekern.kernels and saekern._C come from, after one op has run; from another folder."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    return run(python, "-c", PROBE, cwd=elsewhere).splitlines()


def test_regular_install_ships_nothing_stale(checkout, bare_python, tmp_path):
    """Planted: setup.py without FreshBuild; the file left in build/ was installed, caught."""
    stale = checkout / "build" / "lib" / "saekern" / "stale.py"
    stale.parent.mkdir(parents=True)
    stale.write_text("raise RuntimeError")
    for platform_folder in ("lib.linux-x86_64-cpython-{}{}".format(*sys.version_info[:2]),):
        shutil.copytree(checkout / "build" / "lib", checkout / "build" / platform_folder)
    pip_install(bare_python, ".", cwd=checkout)
    package, *others = probe(bare_python, tmp_path)
    assert all(str(tmp_path / "environment") in place for place in (package, *others))
    assert not Path(package, "stale.py").exists()


def test_editable_install_is_live(checkout, bare_python, tmp_path):
    pip_install(bare_python, "--editable", ".", cwd=checkout)
    places = probe(bare_python, tmp_path)
    assert places[:2] == [str(checkout / "saekern"), str(checkout / "kernels")]
    (checkout / "kernels" / "added_later.py").write_text("ANSWER = 42\n")
    seen = run(bare_python, "-c", "import saekern.kernels.added_later as m; print(m.ANSWER)", cwd=tmp_path)
    assert seen == "42\n"


def test_wheel_from_sdist(checkout, bare_python, tmp_path):
    """Planted: `depends` without the headers, the tiny model left out of package_data; both caught."""
    run(sys.executable, "-m", "build", "--sdist", "--outdir", tmp_path, checkout, cwd=tmp_path)
    (sdist,) = tmp_path.glob("saekern-*.tar.gz")
    with tarfile.open(sdist) as archive:
        inside = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    sources = [name for name in tracked_files() if name.startswith(("saekern/", "kernels/", "bench/", "csrc/"))]
    shipped = [name for name in sources if not name.startswith("bench/results/")]
    assert sorted(set(shipped) - inside) == []
    assert {"LICENSE", "README.md", "pyproject.toml", "setup.py"} <= inside

    shutil.rmtree(checkout)  # from here on only the archive counts
    run(bare_python, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, sdist, cwd=tmp_path)
    (wheel,) = tmp_path.glob("saekern-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    for name in shipped:
        if not name.startswith("csrc/"):
            installed = name if name.startswith("saekern/") else f"saekern/{name}"
            assert installed in inside, f"{name} is not in the wheel"
    assert not [name for name in inside if name.startswith(("kernels/", "bench/", "tests/"))]

    pip_install(bare_python, wheel, cwd=tmp_path)
    assert all(str(tmp_path / "environment") in place for place in probe(bare_python, tmp_path))
    script = bare_python.parent / "saekern"
    assert script.exists()
