"""Other SAEs on the rows of a study: each trained and evaluated, none matched. What a Pareto plot is drawn from."""

import dataclasses
import inspect
import json
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

import saekern.sae
from saekern import evaluation, training
from saekern.pipeline import measure
from saekern.pipeline.architectures import make_sae
from saekern.pipeline.config import VariantConfig
from saekern.pipeline.sources import Sources
from saekern.pipeline.steps import Step, write_json
from saekern.sae import SAE, SparseCodes


def variant_steps(sources: Sources, plain: dict[str, Any], rows: tuple[str, ...], progress: bool) -> list[Step]:
    """A step for every seed of every variant, and one that gathers what they found; none without variants.

    `rows`: the steps that make the rows.
    """
    config = sources.config
    device = {"device": config.device.split(":")[0]}
    external = sources.cache.fingerprint if sources.external else None
    made = []
    for variant in config.variants:
        settings = measure.run_settings(plain["train"] | {"lr": _train(sources, variant).lr})
        for i in range(variant.seeds):
            made.append(
                Step(
                    name=f"variants/{variant.name}/{i:03d}",
                    settings={
                        "sae": dataclasses.asdict(variant.sae),
                        "train": settings,
                        "init_seed": config.first_seed + i,
                        "data_seed": config.train.data_seed,
                        "evaluation": plain["evaluation"],
                        "min_firings": config.stability.min_firings,
                        "hook": config.activations.hook,
                        **device,
                    },
                    reads=rows,
                    outputs=(f"variants/{variant.name}/{i:03d}", f"results/variants/{variant.name}-{i:03d}.json"),
                    run=partial(_run, sources, variant, i, progress),
                    external=external,
                )
            )
    if made:
        made.append(
            Step(
                name="variants",
                settings={},
                reads=tuple(step.name for step in made),
                outputs=("results/variants.json",),
                run=partial(_gather, sources),
            )
        )
    return made


def _train(sources: Sources, variant: VariantConfig) -> training.TrainConfig:
    lr = sources.config.train.lr if variant.lr is None else variant.lr
    return dataclasses.replace(sources.config.train, lr=lr, snapshots=())


def _run(sources: Sources, variant: VariantConfig, index: int, progress: bool, work: Path) -> None:
    config = sources.config
    folder = work / f"{index:03d}"
    centred = config.train.pre_bias_rows > 0
    sae = make_sae(variant.sae, sources.rows, config.first_seed + index, config.device, centred=centred)
    label = f"{variant.name} {index + 1}/{variant.seeds}"
    training.train(sae, sources.rows, _train(sources, variant), out=folder, progress=progress, label=label)
    sae = saekern.sae.load(folder, device=config.device)
    found = {
        "variant": variant.name,
        "seed": index,
        "arch": variant.sae.arch,
        "d_sae": variant.sae.d_sae,
        "options": variant.sae.options,
        "parameters": sum(parameter.numel() for parameter in sae.parameters()),
        "points": [_point(sources, sae, k) for k in _sparsities(sae)],
    }
    write_json(work / f"{variant.name}-{index:03d}.json", found)


class AtK:
    """A nested SAE at fewer active latents than it was trained for."""

    def __init__(self, sae: Any, k: int) -> None:
        self.sae, self.k, self.dictionary = sae, k, sae.dictionary

    def encode_sparse(self, x: Tensor) -> SparseCodes:
        return self.sae.encode_sparse(x, k=self.k)

    def decode(self, codes: SparseCodes) -> Tensor:
        return self.sae.decode(codes)


def _sparsities(sae: SAE) -> list[int | None]:
    """Powers of two up to K for an SAE that encodes at any k; else only what it is."""
    if "k" not in inspect.signature(sae.encode_sparse).parameters:
        return [None]
    k: int = sae.k  # type: ignore[assignment]
    return sorted({k, *(2**i for i in range(2, k.bit_length()))})


def _point(sources: Sources, sae: SAE, k: int | None) -> dict[str, Any]:
    """EV, L0, dead latents and cross-entropy at one sparsity."""
    shown: Any = sae if k is None else AtK(sae, k)
    metrics = evaluation.measure(shown, sources.evaluated())
    dead = float((metrics.counts < sources.config.stability.min_firings).double().mean())
    point = {"k": k, "ev": metrics.explained_variance, "l0": metrics.l0, "dead": dead}
    if measure.has_cross_entropy(sources):
        point["ce_sae"] = measure.cross_entropy(sources, shown)
    return point


def _gather(sources: Sources, work: Path) -> None:
    folder = sources.folder / "results" / "variants"
    names = [f"{v.name}-{i:03d}.json" for v in sources.config.variants for i in range(v.seeds)]
    write_json(work / "variants.json", [json.loads((folder / name).read_text(encoding="utf-8")) for name in names])
