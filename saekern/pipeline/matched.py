"""Stability of each variant within itself, and beside that of the study's own seeds.

Everything is live only, and every mean has the interval that a jackknife over runs gives: pairs share their runs.
"""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from scipy.special import stdtrit
from torch import Tensor

from saekern import matching, stability
from saekern.matching import PairStore
from saekern.pipeline import existing, measure
from saekern.pipeline.config import StabilityConfig, VariantConfig
from saekern.pipeline.sources import Sources
from saekern.pipeline.steps import write_json
from saekern.stability.jackknife import over_runs
from saekern.stability.lazy import Lazy

MAIN = "the study's"
NULL_RUNS = 4  # random dictionaries among each other: their p is a mean over 12 F comparisons
ORDERED = ("size", "k", "budget", "layer")
CONFIDENCE = 0.95
SHARES = ("mean_probability", "stable", "unstable")


def match_variant(sources: Sources, variant: VariantConfig, work: Path) -> None:
    """Its feature stability, raw and centred, the random null of its size, EV, L0 and dead latents over its seeds."""
    saes, folder = sources.variant_saes(variant.name), sources.folder / "results" / "variants"
    names = [f"{variant.name}-{i:03d}" for i in range(variant.seeds)]
    counts = [load_file(folder / f"{name}.safetensors")["firing_counts"] for name in names]
    live = [count >= sources.config.stability.min_firings for count in counts]
    points = [measure.read_json(folder / f"{name}.json")["points"][-1] for name in names]
    dictionaries = Lazy(variant.seeds, lambda i: saes[i].dictionary.detach())
    summary, arrays = judge(sources, dictionaries, live)
    source = sources.row_source(variant.name)
    found = {
        "variant": variant.name,
        "arch": variant.sae.arch,
        "d_sae": variant.sae.d_sae,
        "k": variant.sae.k,
        "rows_from": variant.rows_from,
        "model": source.model,
        "hook": source.hook,
        "train_rows": variant.train_rows or sources.config.train.rows,
        **summary,
        **quality(points),
    }
    save_file(arrays, work / f"{variant.name}.safetensors")
    write_json(work / f"{variant.name}.json", measure.finite(found))


def judge(sources: Sources, dictionaries: Lazy, live: list[Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Summary and arrays [S, F] of the stability of some dictionaries among each other."""
    settings, runs = sources.config.stability, len(dictionaries)
    limits: dict[str, Any] = {"threshold": settings.threshold, "epsilon": settings.epsilon}
    mean, dead = measure.mean_atom(dictionaries, live), [~mask for mask in live]
    centred_rows = Lazy(runs, lambda i: matching.center(dictionaries[i], mean))
    pairs = {
        kind: matching.match_all(rows, "nearest", None, False, dead=dead)
        for kind, rows in (("raw", dictionaries), ("centred", centred_rows))
    }
    raw, centred = (stability.feature_stability(pairs[kind], **limits) for kind in ("raw", "centred"))
    shapes = [tuple(dictionaries[0].shape)] * min(NULL_RUNS, runs)
    device = sources.config.device
    random = stability.random_null(shapes, draws=1, seed=settings.null_seed, device=device, **limits)
    summary = {
        "seeds": runs,
        "raw": raw.to_json(),
        "centred": centred.to_json(),
        "null": random.to_json(),
        "estimates": {kind: shares(of, settings) for kind, of in pairs.items()},
        "mean_atom_norm": float(mean.norm()),
    }
    arrays = {
        "probability": raw.probability,
        "probability_centred": centred.probability,
        "live": raw.live,
        "stable": raw.stable,
        "unstable": raw.unstable,
    }
    return summary, {name: tensor.contiguous() for name, tensor in arrays.items()}


def shares(pairs: Any, settings: StabilityConfig) -> dict[str, Any]:
    """`stability.share_intervals`, each estimate with its number of runs."""
    found = stability.share_intervals(pairs, settings.threshold, settings.epsilon, confidence=CONFIDENCE)
    runs = len(pairs.sizes)
    return {name: getattr(found, name).to_json() | {"runs": runs} for name in SHARES}


def quality(points: list[dict[str, Any]]) -> dict[str, Any]:
    """EV, L0 and the share of dead latents: mean over seeds, interval, spread."""
    found = {}
    for name in ("ev", "l0", "dead"):
        values = torch.tensor([point[name] for point in points], dtype=torch.float64)
        mean, low, high = (float(part) for part in over_runs(values, CONFIDENCE))
        found[name] = _estimate(mean, low, high, len(points)) | {"sd": float(values.std())}
    return found


def compare(sources: Sources) -> dict[str, Any]:
    """The variants of several seeds beside the study's own seeds, and the axes along which they lie.

    Differences are of independent arms: Welch's interval over seeds, each by itself, uncorrected."""
    config = sources.config
    chosen = [variant for variant in config.variants if variant.seeds >= 2]
    arms = [sources.variant_stability(v.name)[0] | {"axis": v.axis} for v in chosen]
    main = _main(sources, max(arm["seeds"] for arm in arms))
    for arm in arms:
        arm["difference"] = {
            "mean_probability": difference(_p(main), _p(arm)),
            "ev": difference(main["ev"], arm["ev"]),
        }
    axes: dict[str, dict[str, Any]] = {}
    for axis in dict.fromkeys(arm["axis"] for arm in arms):
        members = [main, *(arm for arm in arms if arm["axis"] == axis)]
        if axis in ORDERED:
            members = [arm for arm in members if place(axis, arm) is not None]  # what is not known of given SAEs
            members.sort(key=lambda arm: place(axis, arm))
        axes[axis] = {"arms": [arm["variant"] for arm in members]}
        if axis in ORDERED and place(axis, members[0]) != place(axis, members[-1]):
            axes[axis]["ends"] = {
                "mean_probability": difference(_p(members[0]), _p(members[-1])),
                "ev": difference(members[0]["ev"], members[-1]["ev"]),
            }
    settings = config.stability
    limits = {"threshold": settings.threshold, "epsilon": settings.epsilon, "confidence": CONFIDENCE}
    return {**limits, "main": main, "variants": arms, "axes": axes}


def _main(sources: Sources, most: int) -> dict[str, Any]:
    """The study's own seeds as an arm. Raw mean p and EV are of all of them; the shares, which depend on the number of
    comparisons, and what is centred are of as many as the largest variant has."""
    config, folder, given = sources.config, sources.folder / "results", sources.described()
    existing.check_equal("latents", given, config.saes)
    live = [~mask for mask in measure.dead_masks(sources)]
    few = min(most, config.seeds)
    summary, _ = judge(sources, sources.dictionaries[:few], live[:few])
    if few < config.seeds:
        every = shares(PairStore.open(sources.folder / "pairs"), config.stability)
        summary["estimates"]["raw"]["mean_probability"] = every["mean_probability"]
    summary |= {"seeds": config.seeds, "share_seeds": few}
    rotated = measure.read_json(folder / "stability.json")["null"]["rotated"]
    points = measure.read_json(folder / "evaluation.json")["seeds"]
    return {
        "variant": MAIN,
        "arch": given[0]["architecture"] if given else config.sae.arch,
        "d_sae": len(live[0]),
        "k": given[0]["k"] if given else config.sae.k,
        "rows_from": "model",
        "model": config.activations.model,
        "hook": config.activations.hook,
        "train_rows": None if given else config.train.rows,
        "axis": None,
        "rotated": rotated,
        **summary,
        **quality(points),
    }


def place(axis: str, arm: dict[str, Any]) -> Any:
    """Where an arm lies on an ordered axis; layers by the numbers in their names."""
    if axis == "layer":
        return tuple((int(n), "") if n.isdigit() else (-1, n) for n in re.split(r"(\d+)", arm["hook"]))
    return arm[{"size": "d_sae", "k": "k", "budget": "train_rows"}[axis]]


def difference(first: dict[str, Any], second: dict[str, Any]) -> dict[str, float | None]:
    """second − first of two independent arms, and Welch's interval of it from theirs."""
    if first["mean"] is None or second["mean"] is None:
        return {"mean": None, "low": None, "high": None}
    mean = second["mean"] - first["mean"]
    if first["low"] is None or second["low"] is None:
        return {"mean": mean, "low": None, "high": None}
    parts = []
    for arm in (first, second):
        free = arm["runs"] - 1
        parts.append((((arm["high"] - arm["mean"]) / float(stdtrit(free, 0.5 + CONFIDENCE / 2))) ** 2, free))
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return {"mean": mean, "low": mean, "high": mean}
    freedom = variance**2 / sum(part**2 / free for part, free in parts)
    half = variance**0.5 * float(stdtrit(freedom, 0.5 + CONFIDENCE / 2))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def _p(arm: dict[str, Any]) -> dict[str, Any]:
    return arm["estimates"]["raw"]["mean_probability"]


def _estimate(mean: float, low: float | None, high: float | None, runs: int) -> dict[str, Any]:
    return measure.finite({"mean": mean, "low": low, "high": high, "runs": runs})
