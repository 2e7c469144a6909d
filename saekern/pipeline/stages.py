"""The steps of a study: what each depends on, reads and leaves."""

import dataclasses
import platform
import shutil
import time
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy
import torch

import saekern.report
from saekern import training
from saekern.pipeline import existing, explorer, measure
from saekern.pipeline.architectures import describe, make_sae
from saekern.pipeline.config import StudyConfig
from saekern.pipeline.experiments import EXPERIMENTS
from saekern.pipeline.harvests import harvest_step
from saekern.pipeline.lab import Lab
from saekern.pipeline.snapshots import snapshot_steps, trajectory_steps
from saekern.pipeline.sources import Sources
from saekern.pipeline.steps import Step, StudyFolder, write_json
from saekern.pipeline.variants import variant_steps
from saekern.version import __version__

STAGES = ("harvest", "saes", "train", "evaluate", "match", "stability", "latents", "variants", *EXPERIMENTS, "report")


def steps(config: StudyConfig, folder: StudyFolder, progress: bool) -> list[Step]:
    """All steps in the order in which they run."""
    sources = Sources(config, folder.path)
    plain = config.to_json()
    external = sources.cache.fingerprint if sources.external else None
    made = [harvest_step(sources, plain, split, progress) for split in _splits(config)]
    rows = {"train": tuple(s.name for s in made if s.name == "harvest/train"), "heldout": tuple(s.name for s in made)}
    seeds = [f"{i:03d}" for i in range(config.seeds)]
    given = existing.sae_steps(config.saes, folder.path)
    trained = tuple(step.name for step in given) or tuple(f"train/{name}" for name in seeds)
    evaluated = tuple(f"evaluate/{name}" for name in seeds) if config.has_rows else ()
    baseline = ("evaluate/baseline",) if config.has_rows else ()
    device = {"device": config.device.split(":")[0]}  # one GPU of a kind computes the same bits as another
    judged = {"stability": plain["stability"], "evaluation": plain["evaluation"], **device}
    masks = {"min_firings": config.stability.min_firings, "assignment_seeds": config.stability.assignment_seeds}

    made += given
    for i, name in enumerate(seeds if not given else ()):
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
    for name in baseline:
        made.append(
            Step(
                name=name,
                settings=evaluation,
                reads=(*rows["heldout"], *trained[:1]) if given else rows["heldout"],
                outputs=("results/baseline.json",),
                run=lambda work: measure.baseline(sources, work),
                external=external,
            )
        )
    for i, name in enumerate(seeds if config.has_rows else ()):
        made.append(
            Step(
                name=f"evaluate/{name}",
                settings=evaluation | {"min_firings": config.stability.min_firings, **device},
                reads=(*rows["heldout"], trained[i]),
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
            reads=("match", *baseline, *evaluated, *trained),
            outputs=("results/stability.json", "results/stability.safetensors", "results/evaluation.json"),
            run=lambda work: measure.stabilities(sources, work),
        )
    )
    made.append(
        Step(
            name="latents",
            settings={name: value for name, value in plain["report"].items() if name != "title"} | device,
            reads=(*rows["heldout"], "stability", "match", *trained),
            outputs=("results/latents.json", "results/explorer.json", "results/explorer.safetensors"),
            run=lambda work: explorer.latents(sources, work),
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
            outputs=("results/run.json", "figures", "tables", "papers.md", "report.html"),
            run=lambda work: _report(sources, folder, work),
        )
    )
    return made


def _training_settings(config: StudyConfig, plain: dict[str, Any], index: int) -> dict[str, Any]:
    seeds = {"init_seed": config.first_seed + index, "data_seed": measure.data_seed(config, index)}
    train = measure.run_settings(plain["train"])
    if trajectory_steps(config, index):
        train["snapshots"] = list(snapshot_steps(config, index))
    return {"sae": plain["sae"], "train": train, **seeds}


def _train(sources: Sources, index: int, progress: bool, work: Path) -> None:
    config = sources.config
    centred = config.train.pre_bias_rows > 0
    sae = make_sae(config.sae, sources.rows, config.first_seed + index, config.device, centred=centred)
    snapshots = snapshot_steps(config, index)
    settings = dataclasses.replace(config.train, data_seed=measure.data_seed(config, index), snapshots=snapshots)
    label = f"seed {index + 1}/{config.seeds}"
    training.train(sae, sources.rows, settings, out=work / f"{index:03d}", progress=progress, label=label)


def _experiments(
    sources: Sources, plain: dict[str, Any], reads: tuple[str, ...], variants: tuple[str, ...]
) -> list[Step]:
    """One step an experiment. Each reads all of the trained seeds and the data."""
    lab, config = Lab(sources), sources.config
    lacking = {
        "rows": "there are no rows (activations.model is null)" if not config.has_rows else "",
        "text": _without_text(sources),
        "training": "the SAEs are given (`saes`)" if config.saes else "",
    }
    steps = []
    for name, experiment in EXPERIMENTS.items():
        if name not in config.experiments.run:
            continue
        for need in experiment.needs:
            if lacking[need]:
                raise ValueError(f"experiments.run: {name} needs {need}, but {lacking[need]}")

        def run(work: Path, name: str = name, experiment: Any = experiment) -> None:
            existing.check_equal("latents", sources.described(), config.saes)
            found = experiment.run(lab, getattr(config.experiments, name), work)
            write_json(work / f"{name}.json", measure.finite(found))

        steps.append(
            Step(
                name=name,
                settings=plain["experiments"][name] | {part: plain[part] for part in experiment.config},
                reads=() if experiment.alone else reads + (variants if experiment.variants else ()),
                outputs=(f"results/{name}.json",),
                run=run,
            )
        )
    return steps


def _without_text(sources: Sources) -> str:
    if not sources.config.has_rows:
        return "there are no rows (activations.model is null)"
    without = sources.external and getattr(sources.cache, "tokens", None) is None
    return f"{sources.cache.path} has none" if without else ""


def _splits(config: StudyConfig) -> tuple[str, ...]:
    """What is harvested: nothing that exists or is not wanted, no rows for training where nothing reads them."""
    if config.activations.cache is not None or not config.has_rows:
        return ()
    unread = config.saes and not config.experiments.run and not config.variants
    return ("heldout",) if unread else ("train", "heldout")


def _match(sources: Sources, progress: bool) -> None:
    if sources.config.saes:
        existing.check_equal("width", sources.described(), sources.config.saes)
    measure.match_pairs(sources, progress)
    store, few = sources.folder / "pairs", measure.assigned_seeds(sources.config)
    counts = {store: sources.config.seeds, store / "assignment": few, store / "encoders": measure.strict_seeds(sources)}
    for folder, count in counts.items():
        if not count:
            shutil.rmtree(folder, ignore_errors=True)
        names = {f"{i:03d}-{j:03d}.safetensors" for i, j in combinations(range(count), 2)}
        for path in folder.glob("*-*.safetensors"):  # of a study with more seeds; after the pairs that only moved
            if path.name not in names:
                path.unlink()


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
    if not config.has_rows:
        facts["Rows"] = "none: dictionaries alone"
    elif sources.external:
        facts["Rows from"] = str(source.cache)
    else:
        facts |= {
            "Model": source.model,
            "Hook": source.hook,
            "Text": source.tokens or "Python's standard library, as bytes",
        }
    given = sources.described()
    if given:
        if config.has_rows:
            facts["Rows"] = f"{len(sources.evaluated()):,}; D = {given[0]['width']}"
        facts["SAEs"] = f"{len(given)} that existed already, in the order in which they were given"
    else:
        varied = "initialisation" if config.vary == "init" else "initialisation and order of rows"
        held = f"{len(sources.evaluated()):,} held out; D = {sources.rows.width}"
        facts |= {
            "Rows": f"{len(sources.rows):,} for training, {held}",
            "SAE": describe(config.sae),
            "Training": f"{config.train.rows:,} rows a seed, {config.train.batch_size:,} a step",
            "Seeds": f"{config.seeds}, differing in {varied}",
        }
    limits = config.stability
    facts["Matching"] = f"cosine of decoder rows, θ = {limits.threshold:g}, ε = {limits.epsilon:g}"
    if config.device != "cpu":
        facts["Device"] = torch.cuda.get_device_name(config.device)
    versions = {"saekern": __version__, "torch": torch.__version__, "numpy": numpy.__version__}
    return {
        "title": config.report.title,
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "facts": facts,
        "versions": versions | {"Python": platform.python_version()},
        "seconds": {name: seconds[name] for name in STAGES if name in seconds},
        "saes": [{"path": path} | one for path, one in zip(config.saes, given, strict=True)],
        "config": config.to_json(),
    }
