"""Small files that the real libraries wrote, and their answers, which `make test` reads without the libraries.

`.venv-peers/bin/python -P tests/formats/make_golden.py [NAMES]`, the names of functions below; without, those of
libraries that pip installs. The others take a checkout: `openai=path/to/sparse_autoencoder`, `batchtopk=path/to/it`.
"""

import shutil
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

import foreign_saes

from saekern.sae.files import write_tensors

GOLDEN = Path(__file__).parent / "golden"


def batchtopk(checkout: str) -> None:
    _keep("batchtopk", Path(checkout))


def dictionary_learning() -> None:
    _keep("dictionary_learning")


def openai(checkout: str) -> None:
    _keep("openai", Path(checkout))


def overcomplete() -> None:
    _keep("overcomplete")


def sparsify() -> None:
    _keep("sparsify")


def _keep(library: str, *checkout: Path) -> None:
    write, answer = (getattr(foreign_saes, f"{verb}_{library}") for verb in ("write", "answers"))
    shutil.rmtree(GOLDEN / library, ignore_errors=True)
    for foreign in getattr(foreign_saes, library)(*checkout):
        folder = GOLDEN / library / foreign.name
        write(foreign, folder)
        x = foreign_saes.rows()
        with torch.no_grad():
            codes, x_hat = answer(foreign.model, x)
        # safetensors' own writer gives other bytes each time.
        write_tensors(folder / "answers.safetensors", {"x": x, "codes": codes, "x_hat": x_hat})


if __name__ == "__main__":
    for argument in sys.argv[1:] or ("dictionary_learning", "overcomplete", "sparsify"):
        name, _, checkout = argument.partition("=")
        globals()[name](*([checkout] if checkout else []))
