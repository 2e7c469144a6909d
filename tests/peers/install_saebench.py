"""`python tests/peers/install_saebench.py`: SAEBench into .venv-saebench/, over the packages of .venv-peers.

SAEBench 0.6 wants numpy < 2, datasets < 4 and torchvision, so it has an environment of its own, dependencies are not
followed, and torchvision is never installed: its default build breaks a CPU torch, and nothing of it is used.
"""

import subprocess
import sys
import venv
from pathlib import Path

FOLDER = Path(".venv-saebench")
BELOW = Path(".venv-peers")  # SAELens and TransformerLens 3.9 are there
# numpy 1.26 needs older pandas and pyarrow than those of .venv.
LIBRARIES = ("sae-bench==0.6.0", "numpy==1.26.4", "datasets==3.6.0", "pandas==2.3.3", "pyarrow==21.0.0")
NEEDED = ("pytz==2025.2", "tabulate==0.9.0")  # what importing it asks for beyond; found by importing, not from metadata


def main() -> int:
    below = next((BELOW / "lib").glob("python*/site-packages"), None)
    if below is None:
        sys.exit(f"{BELOW} does not exist: make it with `make bench-peers`")
    venv.create(FOLDER, with_pip=False)
    # As a .pth file: its packages come after the folder's own, so that the older numpy hides the newer one there alone.
    own = FOLDER / "lib" / below.parent.name / "site-packages"
    (own / "_shared.pth").write_text(f"import site; site.addsitedir({str(below.resolve())!r})\n")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(FOLDER / "bin" / "python")]
    return subprocess.run([*pip, "install", "--quiet", "--no-deps", *LIBRARIES, *NEEDED], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
