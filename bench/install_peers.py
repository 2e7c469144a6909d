"""`python -m saekern.bench.install_peers`: the other libraries, into .venv-peers/, over this environment's packages.

Their pins conflict with each other and with ours (SAELens wants transformer-lens < 4; dictionary_learning and
overcomplete pull torchvision, whose default build breaks a CPU torch), so each version is named here and dependencies
are not followed. `.venv-peers/bin/python -m saekern.bench layer train_step` then finds them. 60 MB.

The assignment solvers lapx and lap are both imported as `lap`: lap goes into a folder of its own (`assignment_peers.py`
loads it). lapjv has no wheel and is compiled, with its own options.
"""

import site
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

FOLDER = Path(".venv-peers")
LIBRARIES = ("eai-sparsify==1.3.3", "sae-lens==6.54.12", "dictionary-learning==0.1.0", "overcomplete==0.3.0")
SOLVERS = ("lapx==0.11.1", "lapjv==1.3.29")
KMEANS = ("scikit-learn==1.9.1", "joblib", "threadpoolctl")
APART = ("lap==0.5.13",)
# What importing them asks for beyond transformer-lens 4's own dependencies; found by importing, not from metadata.
NEEDED = (
    "transformer-lens==3.9.0",
    "babe==0.0.7",
    "better-abc==0.0.3",
    "docstring-parser",
    "narwhals",
    "natsort",
    "nltk",
    "plotly",
    "plotly-express",
    "python-dotenv",
    "schedulefree",
    "simple-parsing==0.1.9",
    "tenacity",
)


def main() -> int:
    venv.create(FOLDER, with_pip=False)
    python = FOLDER / "bin" / "python"
    shared = [*site.getsitepackages(), sysconfig.get_path("purelib")]
    # As a .pth file: its packages come after the folder's own, so that transformer-lens 3.9 hides 4.x there alone.
    lines = [f"import site; site.addsitedir({path!r})" for path in dict.fromkeys(shared)]
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (FOLDER / "lib" / version / "site-packages" / "_shared.pth").write_text("\n".join(lines) + "\n")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python), "install", "--quiet"]
    failed = [
        subprocess.run([*pip, "--no-deps", *what], check=False).returncode
        for what in ((*LIBRARIES, *NEEDED), SOLVERS, KMEANS, ("--target", str(FOLDER / "apart"), "--upgrade", *APART))
    ]
    return max(failed)


if __name__ == "__main__":
    sys.exit(main())
