"""SAEs of the real libraries with weights away from where they start, their files as they write them, their answers.

Needs the libraries (`make bench-peers`); `formats/make_golden.py` keeps some of it for tests without them."""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from saekern.bench.peers import load, os_environ, stand_ins

D, F, K, B = 12, 20, 3, 9


class Foreign(NamedTuple):
    name: str
    """Of the case; a file name."""
    model: nn.Module
    path: str
    """Below the case's folder: what `saekern.load` is given."""
    options: dict[str, Any]
    fold: bool = False
    """Its files can only be read with it."""
    config: dict[str, Any] | None = None


def rows(count: int = B, width: int = D) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(3))


def moved(model: nn.Module, scale: float = 0.3, seed: int = 5) -> nn.Module:
    """Zero biases and tied weights hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "threshold" not in name and "multiplier" not in name:
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def write_state_dict(file: Path, model: nn.Module) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({name: value.cpu() for name, value in model.state_dict().items()}, file)


# dictionary_learning


def dictionary_learning_modules() -> tuple[Any, ...]:
    with stand_ins("nnsight", "zstandard", "datasets"):
        load("dictionary_learning", "dictionary-learning")
        names = ("dictionary", "trainers.top_k", "trainers.batch_top_k", "trainers.matryoshka_batch_top_k", "utils")
        return tuple(importlib.import_module(f"dictionary_learning.{name}") for name in names)


def dictionary_learning() -> Iterator[Foreign]:
    plain, top_k, batch_top_k, matryoshka, _ = dictionary_learning_modules()
    torch.manual_seed(0)
    for cls, more in (
        (plain.AutoEncoder, {"l1_penalty": 0.1}),
        (plain.AutoEncoderNew, {}),
        (plain.GatedAutoEncoder, {}),
        (plain.JumpReluAutoEncoder, {"bandwidth": 0.001, "target_l0": 20.0}),
        (top_k.AutoEncoderTopK, {"k": K}),
        (batch_top_k.BatchTopKSAE, {"k": K}),
        (matryoshka.MatryoshkaBatchTopKSAE, {"k": K, "group_sizes": [4, 6, 10], "group_weights": [0.2, 0.3, 0.5]}),
    ):
        arguments = {name: more[name] for name in ("k", "group_sizes") if name in more}
        model = moved(cls(D, F, **arguments))
        if hasattr(model, "threshold"):
            with torch.no_grad():
                start = torch.rand(F) if model.threshold.dim() else torch.tensor(0.7310585786300049)
                model.threshold.copy_(0.5 * start)
        trainer = {"trainer_class": "Theirs", "dict_class": cls.__name__, "activation_dim": D, "dict_size": F} | more
        trainer |= {
            "lr": 7e-05,
            "seed": None,
            "device": "cuda:0",
            "layer": 3,
            "lm_name": "pythia",
            "submodule_name": "r",
        }
        config = {"trainer": trainer, "buffer": {"ctx_len": 128, "d_submodule": D}}
        yield Foreign(cls.__name__, model, "", {}, config=config)


def write_dictionary_learning(foreign: Foreign, folder: Path) -> None:
    write_state_dict(folder / "ae.pt", foreign.model)
    (folder / "config.json").write_text(json.dumps(foreign.config, indent=4))


def answers_dictionary_learning(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [B, F] and x̂ [B, D]."""
    return model.encode(x), model(x)


# sparsify


def sparsify_module() -> Any:
    with os_environ("SPARSIFY_DISABLE_TRITON", "1"):
        return load("sparsify", "eai-sparsify")


def sparsify() -> Iterator[Foreign]:
    library = sparsify_module()
    torch.manual_seed(0)
    for name, config in (
        ("expansion", library.SparseCoderConfig(expansion_factor=2, k=K)),
        ("latents", library.SparseCoderConfig(num_latents=F, k=K, normalize_decoder=False, multi_topk=True)),
    ):
        yield Foreign(name, moved(library.SparseCoder(D, config)), "layers.3", {})


def write_sparsify(foreign: Foreign, folder: Path) -> None:
    foreign.model.save_to_disk(folder / foreign.path)


def answers_sparsify(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    acts, indices, _ = model.encode(x)
    codes = x.new_zeros(x.shape[0], model.num_latents).scatter(1, indices, acts)
    # With multi_topk its forward pass returns what 4 k latents make.
    return codes, model.decode(acts, indices) if model.cfg.multi_topk else model(x).sae_out


# overcomplete


def overcomplete_modules() -> Any:
    with stand_ins("overcomplete.models", "overcomplete.visualization", "overcomplete.optimization"):
        load("overcomplete", "overcomplete")
        return importlib.import_module("overcomplete.sae")


def overcomplete() -> Iterator[Foreign]:
    """Dictionaries on their constraints, as one forward pass leaves them, and one of each kind off them."""
    library = overcomplete_modules()
    torch.manual_seed(0)
    points = torch.randn(15, D, generator=torch.Generator().manual_seed(8))
    l2 = {"normalization": "l2"}
    batch = {"top_k": K * B, "batch_size": B, "threshold": 0.4000000059604645}
    relaxed = {"delta": 0.5}
    cases = [
        Foreign("SAE", library.SAE(D, F), "sae.pt", l2 | {"class": "SAE"}),
        Foreign("TopKSAE", library.TopKSAE(D, F, top_k=K), "sae.pt", l2 | {"class": "TopKSAE", "top_k": K}),
        Foreign(
            "BatchTopKSAE", library.BatchTopKSAE(D, F, top_k=K * B), "sae.pt", l2 | {"class": "BatchTopKSAE"} | batch
        ),
        Foreign("JumpSAE", library.JumpSAE(D, F), "sae.pt", l2),
        Foreign(
            "RATopKSAE",
            library.RATopKSAE(D, F, points, top_k=K, **relaxed),
            "sae.pt",
            relaxed | {"class": "RATopKSAE", "top_k": K},
        ),
        Foreign("RAJumpSAE", library.RAJumpSAE(D, F, points, **relaxed), "sae.pt", relaxed),
        Foreign("untied", library.TopKSAE(D, F, top_k=K).untied(), "sae.pt", l2 | {"class": "TopKSAE", "top_k": K}),
    ]
    for name in ("max_l2", "l1", "max_l1", "identity"):
        model = library.TopKSAE(D, F, top_k=K, dictionary_params={"normalization": name})
        cases.append(Foreign(name, model, "sae.pt", {"class": "TopKSAE", "top_k": K, "normalization": name}))
    for case in cases:
        yield case._replace(model=_overcomplete_state(case.model, project=True))
    off = library.TopKSAE(D, F, top_k=K, dictionary_params={"use_multiplier": True})
    yield Foreign("off", _overcomplete_state(off, project=False), "sae.pt", l2 | {"class": "TopKSAE", "top_k": K}, True)
    off = library.RAJumpSAE(D, F, points, **relaxed)
    yield Foreign("RA_off", _overcomplete_state(off, project=False), "sae.pt", relaxed, True)


def _overcomplete_state(model: nn.Module, project: bool) -> nn.Module:
    moved(model)
    with torch.no_grad():
        if hasattr(model, "thresholds"):
            model.thresholds.copy_(torch.linspace(-6, 0.5, F))
        if not project or hasattr(model.dictionary, "Relax"):
            model.dictionary.multiplier.fill_(0.37)
        if project:
            model.train()
            model.dictionary.get_dictionary()
    if hasattr(model, "running_threshold"):
        model.running_threshold = torch.tensor(0.4000000059604645)
    return model


def write_overcomplete(foreign: Foreign, folder: Path) -> None:
    write_state_dict(folder / foreign.path, foreign.model)


def answers_overcomplete(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    model.train()
    model.eval()  # which computes the dictionary that it then uses
    with torch.no_grad():
        _, codes, x_hat = model(x)
    return codes, x_hat


# Repositories without a package: the module of a checkout.


def module_of(file: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"checkout_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def openai(checkout: Path) -> Iterator[Foreign]:
    """github.com/openai/sparse_autoencoder."""
    library = module_of(checkout / "sparse_autoencoder" / "model.py")
    torch.manual_seed(0)
    for name, activation, normalize in (("ReLU", nn.ReLU(), False), ("TopK", library.TopK(K), True)):
        model = moved(library.Autoencoder(F, D, activation, normalize=normalize))
        for count in (4, 7):  # which moves its statistics
            model(rows(count))
        model.latents_mean_square.copy_(torch.rand(F))
        yield Foreign(name, model, "sae.pt", {})


def write_openai(foreign: Foreign, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(foreign.model.state_dict(), folder / foreign.path)


def answers_openai(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    codes, info = model.encode(x)
    return codes, model.decode(codes, info)


def batchtopk(checkout: Path) -> Iterator[Foreign]:
    """github.com/bartbussmann/BatchTopK. Its logs.py writes the config; only its model is run here."""
    library = module_of(checkout / "sae.py")
    classes = {"vanilla": "VanillaSAE", "topk": "TopKSAE", "batchtopk": "BatchTopKSAE", "jumprelu": "JumpReLUSAE"}
    for kind, name in classes.items():
        for normalised in (False, True):
            config = {
                "seed": 49,
                "l1_coeff": 0,
                "dtype": torch.float32,
                "model_name": "gpt2-small",
                "hook_point": "blocks.8.hook_resid_pre",
                "act_size": D,
                "dict_size": F,
                "device": "cpu",
                "input_unit_norm": normalised,
                "sae_type": kind,
                "n_batches_to_dead": 5,
                "top_k": K,
                "top_k_aux": 4,
                "aux_penalty": 1 / 32,
                "bandwidth": 0.001,
            }
            model = moved(getattr(library, name)(config))
            with torch.no_grad():
                if kind in ("topk", "batchtopk"):
                    model.b_enc.zero_()  # never trained there
                if kind == "jumprelu":
                    model.jumprelu.log_threshold.copy_(torch.linspace(-6, 0.5, F))
            json_config = config | {"dtype": str(config["dtype"])}
            options = {"threshold": 0.25} if kind == "batchtopk" else {}
            yield Foreign(f"{kind}_normalised" if normalised else kind, model, "sae", options, config=json_config)


def write_batchtopk(foreign: Foreign, folder: Path) -> None:
    (folder / foreign.path).mkdir(parents=True, exist_ok=True)
    torch.save(foreign.model.state_dict(), folder / foreign.path / "sae.pt")
    (folder / foreign.path / "config.json").write_text(json.dumps(foreign.config, indent=4))


def answers_batchtopk(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    out = model(x)
    return out["feature_acts"], out["sae_out"]
