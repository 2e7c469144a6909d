"""The steps of a study: what each depends on, reads and leaves."""

import dataclasses
import platform
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch

import saekern.report
from saekern import training
from saekern.pipeline import measure
from saekern.pipeline.architectures import describe, make_sae
from saekern.pipeline.config import StudyConfig
from saekern.pipeline.experiments import EXPERIMENTS
from saekern.pipeline.harvests import harvest_step
from saekern.pipeline.lab import Lab
from saekern.pipeline.sources import Sources
from saekern.pipeline.steps import Step, StudyFolder, write_json
from saekern.pipeline.variants import variant_steps
from saekern.version import __version__

STAGES = ("harvest", "train", "evaluate", "match", "stability", "latents", "variants", *EXPERIMENTS, "report")


def steps(config: StudyConfig, folder: StudyFolder, progress: bool) -> list[Step]:
    """All steps in the order in which they run."""
    sources = Sources(config, folder.path)
    plain = config.to_json()
    external = sources.cache.fingerprint if sources.external else None
    splits = ("train", "heldout")
    made = [harvest_step(sources, plain, split, progress) for split in splits] if external is None else []
    rows = {"train": tuple(s.name for s in made if s.name == "harvest/train"), "heldout": tuple(s.name for s in made)}
    seeds = [f"{i:03d}" for i in range(config.seeds)]
    trained = tuple(f"train/{name}" for name in seeds)
    evaluated = tuple(f"evaluate/{name}" for name in seeds)
    device = {"device": config.device.split(":")[0]}  # one GPU of a kind computes the same bits as another
    judged = {"stability": plain["stability"], "evaluation": plain["evaluation"], **device}
    masks = {"min_firings": config.stability.min_firings, "assignment_seeds": config.stability.assignment_seeds}

    for i, name in enumerate(seeds):
        made.append(
            Step(
                name=f"train/{name}",
                settings=_training_settings(config, plain, i) | device,
                reads=rows["train"],
                outputs=(f"seeds/{name}",),
                run=partial(_train, sources, i, progress),
                external=external,
            )
        )
    evaluation = {"evaluation": plain["evaluation"], "k": config.sae.k, "hook": config.activations.hook}
    made.append(
        Step(
            name="evaluate/baseline",
            settings=evaluation,
            reads=rows["heldout"],
            outputs=("results/baseline.json",),
            run=lambda work: measure.baseline(sources, work),
            external=external,
        )
    )
    for i, name in enumerate(seeds):
        made.append(
            Step(
                name=f"evaluate/{name}",
                settings=evaluation | {"min_firings": config.stability.min_firings, **device},
                reads=(*rows["heldout"], f"train/{name}"),
                outputs=(f"results/seeds/{name}.json", f"results/seeds/{name}.safetensors"),
                run=partial(measure.evaluate, sources, i),
                external=external,
            )
        )
    made.append(
        Step(
            name="match",
            settings=masks | device,
            reads=(*trained, *evaluated),
            outputs=("pairs",),
            run=lambda work: _match(sources, progress),
        )
    )
    made.append(
        Step(
            name="stability",
            settings=judged | {"vary": config.vary},
            reads=("match", "evaluate/baseline", *evaluated, *trained),
            outputs=("results/stability.json", "results/stability.safetensors", "results/evaluation.json"),
            run=lambda work: measure.stabilities(sources, work),
        )
    )
    made.append(
        Step(
            name="latents",
            settings={name: plain["report"][name] for name in ("latents", "contexts", "before", "after")} | device,
            reads=(*rows["heldout"], "stability", "match", "train/000"),
            outputs=("results/latents.json",),
            run=lambda work: measure.latents(sources, work),
            external=external,
        )
    )
    variants = variant_steps(sources, plain, rows["heldout"], progress)
    made += variants
    gathered = tuple(step.name for step in variants[-1:])
    experiments = _experiments(sources, plain, ("stability", "match", *rows["heldout"], *trained), gathered)
    made += [dataclasses.replace(step, external=external) for step in experiments]
    made.append(
        Step(
            name="report",
            settings={"title": config.report.title},
            reads=("stability", "latents", *gathered, *(step.name for step in experiments)),
            outputs=("results/run.json", "figures", "tables", "report.html"),
            run=lambda work: _report(sources, folder, work),
        )
    )
    return made


def _training_settings(config: StudyConfig, plain: dict[str, Any], index: int) -> dict[str, Any]:
    seeds = {"init_seed": config.first_seed + index, "data_seed": measure.data_seed(config, index)}
    return {"sae": plain["sae"], "train": measure.run_settings(plain["train"]), **seeds}


def _train(sources: Sources, index: int, progress: bool, work: Path) -> None:
    config = sources.config
    centred = config.train.pre_bias_rows > 0
    sae = make_sae(config.sae, sources.rows, config.first_seed + index, config.device, centred=centred)
    snapshots = tuple(sorted({0, *config.train.snapshots}))  # step 0 is what D(0) is measured on
    settings = dataclasses.replace(config.train, data_seed=measure.data_seed(config, index), snapshots=snapshots)
    label = f"seed {index + 1}/{config.seeds}"
    training.train(sae, sources.rows, settings, out=work / f"{index:03d}", progress=progress, label=label)


def _experiments(
    sources: Sources, plain: dict[str, Any], reads: tuple[str, ...], variants: tuple[str, ...]
) -> list[Step]:
    """One step an experiment. Each reads all of the trained seeds and the data."""
    lab, config = Lab(sources), sources.config
    lacking = ["text"] if sources.external and getattr(sources.cache, "tokens", None) is None else []
    steps = []
    for name, experiment in EXPERIMENTS.items():
        if name not in config.experiments.run:
            continue
        for need in experiment.needs:
            if need in lacking:
                raise ValueError(f"experiments.run: {name} needs {need}, which {sources.cache.path} does not have")

        def run(work: Path, name: str = name, experiment: Any = experiment) -> None:
            found = experiment.run(lab, getattr(config.experiments, name), work)
            write_json(work / f"{name}.json", measure.finite(found))

        steps.append(
            Step(
                name=name,
                settings=plain["experiments"][name] | {part: plain[part] for part in experiment.config},
                reads=reads + (variants if experiment.variants else ()),
                outputs=(f"results/{name}.json",),
                run=run,
            )
        )
    return steps


def _match(sources: Sources, progress: bool) -> None:
    store, kept = sources.folder / "pairs", {f"{i:03d}-{j:03d}.safetensors" for i, j in _pairs(sources.config.seeds)}
    few = {f"{i:03d}-{j:03d}.safetensors" for i, j in _pairs(measure.assigned_seeds(sources.config))}
    for folder, names in ((store, kept), (store / "assignment", few)):
        for path in folder.glob("*-*.safetensors"):  # of a study with more seeds
            if path.name not in names:
                path.unlink()
    if not few:
        shutil.rmtree(store / "assignment", ignore_errors=True)
    measure.match_pairs(sources, progress)


def _pairs(count: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(count) for j in range(i + 1, count)]


def _report(sources: Sources, folder: StudyFolder, work: Path) -> None:
    if not sources.config.variants:  # of a study that had some
        (sources.folder / "results" / "variants.json").unlink(missing_ok=True)
        (sources.folder / "results" / "arms.json").unlink(missing_ok=True)
    write_json(sources.folder / "results" / "run.json", run_facts(sources, folder))
    saekern.report.write(sources.folder, work)


def run_facts(sources: Sources, folder: StudyFolder) -> dict[str, Any]:
    """The report's header: what was run, on what, with which versions, and how long each stage took."""
    config = sources.config
    seconds: dict[str, float] = {}
    for name, record in folder.records.items():
        stage = name.split("/")[0]
        seconds[stage] = round(seconds.get(stage, 0.0) + record["seconds"], 1)
    source = config.activations
    facts: dict[str, Any] = {}
    if sources.external:
        facts["Rows from"] = str(source.cache)
    else:
        facts |= {
            "Model": source.model,
            "Hook": source.hook,
            "Text": source.tokens or "Python's standard library, as bytes",
        }
    varied = "initialisation" if config.vary == "init" else "initialisation and order of rows"
    facts |= {
        "Rows": f"{len(sources.rows):,} for training, {len(sources.evaluated()):,} held out; D = {sources.rows.width}",
        "SAE": describe(config.sae),
        "Training": f"{config.train.rows:,} rows a seed, {config.train.batch_size:,} a step",
        "Seeds": f"{config.seeds}, differing in {varied}",
        "Matching": f"cosine of decoder rows, θ = {config.stability.threshold:g}, ε = {config.stability.epsilon:g}",
    }
    if config.device != "cpu":
        facts["Device"] = torch.cuda.get_device_name(config.device)
    versions = {"saekern": __version__, "torch": torch.__version__, "numpy": numpy.__version__}
    return {
        "title": config.report.title,
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "facts": facts,
        "versions": versions | {"Python": platform.python_version()},
        "seconds": {name: seconds[name] for name in STAGES if name in seconds},
        "config": config.to_json(),
    }
