"""Small files that the real libraries wrote, and their answers, which `make test` reads without the libraries.

`.venv-peers/bin/python -P tests/formats/make_golden.py [NAMES]`, the names of functions below; without, those of
libraries that pip installs. The others take a checkout: `openai=path/to/sparse_autoencoder`, `batchtopk=path/to/it`.

Each case is what the library's own code saved, a few numbers wide, in golden/<library>/<case>; with it lie rows `x`,
the library's codes and reconstructions of them, and for SAELens what the tolerance comes from (`same_function.py`).
Run again, the files stay the same.
"""

import json
import shutil
import sys
from copy import deepcopy
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

import foreign_saes

from saekern.sae.files import write_tensors

GOLDEN = Path(__file__).parent / "golden"
INSTALLED = ("dictionary_learning", "overcomplete", "saelens", "sparsify")


def batchtopk(checkout: str) -> None:
    _keep("batchtopk", Path(checkout))


def dictionary_learning() -> None:
    _keep("dictionary_learning")


def openai(checkout: str) -> None:
    _keep("openai", Path(checkout))


def overcomplete() -> None:
    _keep("overcomplete")


def saelens() -> None:
    import sae_lens_models as models

    folder = GOLDEN / "saelens"
    sizes = d, _, _, count = (4, 10, 3, 6)
    x = models.rows(d, count)

    def keep(name, sae, seen_as=None):
        """`seen_as`: the SAE whose outputs count, where SAELens itself transforms the saved one."""
        sae.save_model(folder / name)
        config = json.loads((folder / name / "cfg.json").read_text())  # SAELens' order of keys changes with each run
        (folder / name / "cfg.json").write_text(json.dumps(config, sort_keys=True) + "\n")
        seen = seen_as or sae
        with torch.no_grad():
            codes, x_hat = seen.encode(x), seen(x)
        scores, (decoder, bias, scale) = models.scores(seen, x), models.decoding(seen, x)
        named = {"x": x, "codes": codes, "x_hat": x_hat, "decoder": decoder, "bias": bias, "scale": scale}
        named |= {"score": scores.score, "cut": scores.cut, "magnitude": scores.magnitude}
        named |= {"gain": torch.as_tensor(scores.gain), "terms": torch.tensor(scores.terms)}
        write_tensors(folder / f"{name}.safetensors", named)

    for architecture in ("standard", "topk", "jumprelu", "gated"):
        keep(architecture, models.fill(models.made(sizes, architecture)))
    keep("layer_norm", models.fill(models.made(sizes, "topk", normalize_activations="layer_norm")))
    constant = {"normalize_activations": "constant_norm_rescale", "apply_b_dec_to_input": False}
    keep("constant_norm", models.fill(models.made(sizes, "jumprelu", **constant)))
    half = models.fill(models.made(sizes, "standard", dtype="bfloat16"))
    keep("bfloat16", half, deepcopy(half).to(torch.float32))
    for architecture in ("topk", "batchtopk", "matryoshka", "jumprelu"):
        sae, trainer = models.trained(sizes, architecture)
        trainer.fit()
        sae.save_inference_model(folder / "inference")
        keep(f"training_{architecture}", sae, models.sae_lens.SAE.load_from_disk(folder / "inference"))
        for file in (folder / "inference").iterdir():
            file.unlink()
        (folder / "inference").rmdir()


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
    for argument in sys.argv[1:] or INSTALLED:
        name, _, checkout = argument.partition("=")
        globals()[name](*([checkout] if checkout else []))
