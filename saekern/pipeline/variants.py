"""Other SAEs than the study's, each trained and evaluated on its own rows; with several seeds, matched within itself.

What a Pareto plot is drawn from, and the arms of the comparisons of stability (`matched`).
"""

import dataclasses
import inspect
import json
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

import saekern.sae
from saekern import evaluation, training
from saekern.pipeline import measure
from saekern.pipeline.architectures import make_sae
from saekern.pipeline.config import VariantConfig
from saekern.pipeline.harvests import harvest_step
from saekern.pipeline.matched import compare, match_variant
from saekern.pipeline.sources import Sources
from saekern.pipeline.steps import Step, write_json
from saekern.sae import SAE, SparseCodes


def variant_steps(sources: Sources, plain: dict[str, Any], rows: tuple[str, ...], progress: bool) -> list[Step]:
    """Harvests of other rows, a step for every seed of every variant, one that matches those with several seeds, and
    one that gathers what they found; none without variants.

    `rows`: the steps that make the study's rows.
    """
    config = sources.config
    external = sources.cache.fingerprint if sources.external else None
    made = _harvests(sources, plain, progress)
    finished: list[str] = []
    for variant in config.variants:
        seeds = [_seed_step(sources, plain, rows, variant, i, progress) for i in range(variant.seeds)]
        made += [dataclasses.replace(step, external=external) for step in seeds]
        finished += [step.name for step in seeds]
        if variant.seeds >= 2:
            made.append(_match_step(sources, plain, variant, tuple(step.name for step in seeds)))
            finished.append(made[-1].name)
    if not config.variants:
        return []
    matched = any(variant.seeds >= 2 for variant in config.variants)
    made.append(
        Step(
            name="variants",
            settings={"axes": {variant.name: variant.axis for variant in config.variants}} if matched else {},
            reads=(*finished, *(("stability",) if matched else ())),
            outputs=("results/variants.json", *(("results/arms.json",) if matched else ())),
            run=partial(_gather, sources, matched),
        )
    )
    return made


def _harvests(sources: Sources, plain: dict[str, Any], progress: bool) -> list[Step]:
    """One a source and split, however many variants share it."""
    found = (sources.row_source(variant.name)._replace(shuffled=None) for variant in sources.config.variants)
    distinct = {source.harvested: source for source in found if source.harvested is not None}
    return [
        harvest_step(sources, plain, split, progress, source)
        for source in distinct.values()
        for split in ("train", "heldout")
    ]


def _seed_step(
    sources: Sources, plain: dict[str, Any], rows: tuple[str, ...], variant: VariantConfig, index: int, progress: bool
) -> Step:
    config, source = sources.config, sources.row_source(variant.name)
    own_train = _train(sources, variant, index)
    settings = {
        "sae": dataclasses.asdict(variant.sae),
        "train": measure.run_settings(plain["train"] | {"lr": own_train.lr, "rows": own_train.rows}),
        "init_seed": config.first_seed + index,
        "data_seed": own_train.data_seed,
        "evaluation": plain["evaluation"],
        "min_firings": config.stability.min_firings,
        "hook": source.hook,
        "device": config.device.split(":")[0],
        "leaves": "firing_counts",  # a record of before they were kept is remade
    }
    if not source.own:
        settings["rows"] = source._asdict()
    if source.shuffled:
        settings["shuffle_seed"] = config.stability.null_seed
    results = f"results/variants/{variant.name}-{index:03d}"
    return Step(
        name=f"variants/{variant.name}/{index:03d}",
        settings=settings,
        reads=source.steps or rows,
        outputs=(f"variants/{variant.name}/{index:03d}", f"{results}.json", f"{results}.safetensors"),
        run=partial(_run, sources, variant, index, progress),
    )


def _match_step(sources: Sources, plain: dict[str, Any], variant: VariantConfig, seeds: tuple[str, ...]) -> Step:
    judged = {name: plain["stability"][name] for name in ("threshold", "epsilon", "min_firings", "null_seed")}
    results = f"results/variants/matched/{variant.name}"
    return Step(
        name=f"variants/{variant.name}",
        settings=judged | {"device": sources.config.device.split(":")[0]},
        reads=seeds,
        outputs=(f"{results}.json", f"{results}.safetensors"),
        run=partial(match_variant, sources, variant),
    )


def _train(sources: Sources, variant: VariantConfig, index: int) -> training.TrainConfig:
    settings = sources.config.train
    return dataclasses.replace(
        settings,
        lr=settings.lr if variant.lr is None else variant.lr,
        rows=settings.rows if variant.train_rows is None else variant.train_rows,
        data_seed=measure.data_seed(sources.config, index),
        snapshots=(),
    )


def _run(sources: Sources, variant: VariantConfig, index: int, progress: bool, work: Path) -> None:
    config, source = sources.config, sources.row_source(variant.name)
    folder, rows = work / f"{index:03d}", sources.variant_rows(variant.name)
    centred = config.train.pre_bias_rows > 0
    sae = make_sae(variant.sae, rows, config.first_seed + index, config.device, centred=centred)
    label = f"{variant.name} {index + 1}/{variant.seeds}"
    training.train(sae, rows, _train(sources, variant, index), out=folder, progress=progress, label=label)
    sae = saekern.sae.load(folder, device=config.device)
    measured = [_point(sources, variant, sae, k) for k in _sparsities(sae)]
    found = {
        "variant": variant.name,
        "seed": index,
        "arch": variant.sae.arch,
        "d_sae": variant.sae.d_sae,
        "options": variant.sae.options,
        "parameters": sum(parameter.numel() for parameter in sae.parameters()),
        # Same rows in the same order: what the table of architectures compares.
        "comparable": source.own and variant.train_rows is None,
        "points": [point for point, _ in measured],
    }
    write_json(work / f"{variant.name}-{index:03d}.json", found)
    save_file({"firing_counts": measured[-1][1]}, work / f"{variant.name}-{index:03d}.safetensors")


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


def _point(sources: Sources, variant: VariantConfig, sae: SAE, k: int | None) -> tuple[dict[str, Any], Tensor]:
    """EV, L0, dead latents and cross-entropy at one sparsity; and how often each latent fires.

    The cross-entropy is that of the study's model: shuffled rows, a random model or another have none to compare."""
    source, settings = sources.row_source(variant.name), sources.config.activations
    shown: Any = sae if k is None else AtK(sae, k)
    metrics = evaluation.measure(shown, sources.variant_heldout(variant.name))
    dead = float((metrics.counts < sources.config.stability.min_firings).double().mean())
    point = {"k": k, "ev": metrics.explained_variance, "l0": metrics.l0, "dead": dead}
    comparable = source.model == settings.model and not source.random and source.shuffled is None
    if comparable and measure.has_cross_entropy(sources):
        point["ce_sae"] = measure.cross_entropy(sources, shown, source.hook)
    return point, metrics.counts


def _gather(sources: Sources, matched: bool, work: Path) -> None:
    folder = sources.folder / "results" / "variants"
    names = [f"{v.name}-{i:03d}.json" for v in sources.config.variants for i in range(v.seeds)]
    write_json(work / "variants.json", [json.loads((folder / name).read_text(encoding="utf-8")) for name in names])
    if matched:
        write_json(work / "arms.json", measure.finite(compare(sources)))
    else:  # of a study that had some
        (sources.folder / "results" / "arms.json").unlink(missing_ok=True)
