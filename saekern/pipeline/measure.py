"""The numbers of a study, from trained SAEs to plain JSON values and arrays."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from saekern import evaluation, matching, stability
from saekern.matching import PairStore
from saekern.pipeline import existing
from saekern.pipeline.sources import Part, Sources
from saekern.pipeline.steps import write_json
from saekern.sae import load
from saekern.stability.lazy import Lazy

FIRST = "snapshots/00000000.safetensors"
HISTOGRAM_BINS = 200


def baseline(sources: Sources, work: Path) -> None:
    """What does not depend on the seed: PCA's EV, and the cross-entropy untouched and with the activation at zero."""
    config, rows = sources.config, sources.evaluated()
    k = _given_k(sources) if config.saes else config.sae.k
    result: dict[str, Any] = {"rows": len(rows), "k": k}
    result["pca_ev"] = float(evaluation.pca_explained_variance(rows, k))
    if has_cross_entropy(sources):
        tokens = sources.sequences("heldout")[: config.evaluation.ce_sequences]
        result["ce_tokens"] = tokens[:, 1:].numel()
        result["ce_clean"] = cross_entropy(sources, None)
        result["ce_zero"] = cross_entropy(sources, "zero")
    write_json(work / "baseline.json", result)


def _given_k(sources: Sources) -> int:
    """Of SAEs that exist already: how many latents are active in the first one, on the first 4096 rows."""
    rows = sources.evaluated()
    few = Part(rows, 0, min(4096, len(rows)))
    return min(rows.width, max(1, round(evaluation.measure(_reads(sources, 0), few).l0)))


def _reads(sources: Sources, index: int) -> Any:
    """An SAE that reads these rows, which one that was given need not."""
    sae, width = sources.sae(index), sources.heldout.width
    if sae.dictionary.shape[1] != width:
        raise ValueError(
            f"saes: {sources.config.saes[index]} reads activations of width {sae.dictionary.shape[1]}, the rows have "
            f"{width}; activations.model null studies dictionaries alone"
        )
    return sae


def evaluate(sources: Sources, index: int, work: Path) -> None:
    """EV, L0, firing counts and cross-entropy of one seed."""
    config, rows = sources.config, sources.evaluated()
    sae = _reads(sources, index)
    metrics = evaluation.measure(sae, rows)
    result: dict[str, Any] = {"seed": index}
    if not config.saes:
        result |= {"init_seed": config.first_seed + index, "data_seed": data_seed(config, index)}
    result["ev"], result["l0"] = metrics.explained_variance, metrics.l0
    result["dead"] = float((metrics.counts < config.stability.min_firings).double().mean())
    if has_cross_entropy(sources):
        result["ce_sae"] = cross_entropy(sources, sae)
    write_json(work / f"{index:03d}.json", result)
    save_file({"firing_counts": metrics.counts}, work / f"{index:03d}.safetensors")


def data_seed(config: Any, index: int) -> int:
    return config.train.data_seed + (index if config.vary == "init+data" else 0)


def run_settings(train: dict[str, Any]) -> dict[str, Any]:
    """The settings of a training run that its result depends on, but for the seed of its data."""
    return {k: v for k, v in train.items() if k not in ("data_seed", "log_every", "checkpoint_every")}


def has_cross_entropy(sources: Sources) -> bool:
    return sources.config.has_rows and not sources.external and sources.config.evaluation.ce_sequences > 0


def cross_entropy(sources: Sources, sae: Any, hook: str | None = None) -> float:
    """`hook`: another one of the study's model."""
    settings = sources.config.activations
    tokens = sources.sequences("heldout")[: sources.config.evaluation.ce_sequences]
    return evaluation.cross_entropy(
        sources.model, hook or settings.hook, tokens, sae, batch=settings.batch, exclude_bos=settings.exclude_bos
    )


def firing_counts(sources: Sources) -> list[Tensor]:
    """[F] int64 for each seed: held-out rows on which the latent fires."""
    folder = sources.folder / "results" / "seeds"
    return [load_file(folder / f"{i:03d}.safetensors")["firing_counts"] for i in range(sources.config.seeds)]


def dead_masks(sources: Sources) -> list[Tensor]:
    """[F] bool for each seed; without rows only latents of no direction are known to be dead."""
    if not sources.config.has_rows:
        return [existing.zero_rows(rows) for rows in sources.dictionaries]
    return [counts < sources.config.stability.min_firings for counts in firing_counts(sources)]


def match_pairs(sources: Sources, progress: bool) -> None:
    """All pairs by nearest neighbour, and the pairs of the first seeds by assignment as well. Resumes by itself."""
    config, dead = sources.config, dead_masks(sources)
    first = 0 if config.saes else config.first_seed
    seeds = range(first, first + config.seeds)
    store = sources.folder / "pairs"
    matching.match_all(sources.dictionaries, "nearest", store, progress, dead=dead, seeds=seeds)
    few = assigned_seeds(config)
    of: dict[str, Any] = {"dead": dead[:few], "seeds": seeds[:few]}
    if few:
        matching.match_all(sources.dictionaries[:few], "assignment", store / "assignment", progress, **of)
    if strict_seeds(sources):
        matching.match_all(sources.encoders[:few], "assignment", store / "encoders", progress, **of)


def strict_seeds(sources: Sources) -> int:
    """SAEs, the first ones, whose encoders are matched as well: given ones that have them."""
    few = assigned_seeds(sources.config)
    return few if sources.config.saes and all(one["encoder"] for one in sources.described()[:few]) else 0


def assigned_seeds(config: Any) -> int:
    count = min(config.stability.assignment_seeds, config.seeds)
    return count if count >= 2 else 0


def stabilities(sources: Sources, work: Path) -> None:
    """Stability raw and centred, its nulls, distances at the start and the end, IoU: every number of the report."""
    config, settings = sources.config, sources.config.stability
    limits: dict[str, Any] = {"threshold": settings.threshold, "epsilon": settings.epsilon}
    dead = dead_masks(sources)
    live = [~mask for mask in dead]
    store = PairStore.open(sources.folder / "pairs")
    distances = _distances(sources, dead)
    raw = stability.feature_stability(store, **limits, initial=distances.get("raw"))
    mean = mean_atom(sources.dictionaries, live)
    centred_dictionaries = _centred(sources.dictionaries, mean)
    centred = stability.feature_stability(centred_dictionaries, live=live, **limits, initial=distances.get("centred"))
    runs = min(settings.null_seeds, config.seeds)
    shapes = [tuple(d.shape) for d in sources.dictionaries[:runs]]
    random = stability.random_null(shapes, draws=1, seed=settings.null_seed, device=sources.config.device, **limits)
    rotated = stability.rotated_null(sources.dictionaries[:runs], seed=settings.null_seed, live=live[:runs], **limits)
    agreement = stability.pair_agreement(store, settings.threshold)
    summary = {
        "seeds": config.seeds,
        "latents": max(raw.sizes),
        "sizes": raw.sizes,
        "varied": "unknown" if config.saes else config.vary,
        "threshold": settings.threshold,
        "epsilon": settings.epsilon,
        "vacuous": raw.vacuous,
        "raw": raw.to_json(),
        "centred": centred.to_json(),
        "intervals": stability.share_intervals(store, **limits).to_json(),
        "null": {"random": random.to_json(), "rotated": rotated.to_json()},
        "excess": _excess(raw, (random, rotated)),
        "agreement": agreement.to_json(),
        "distance": {kind: distance.to_json() for kind, distance in distances.items()},
        "iou": _iou(sources, dead, limits["threshold"]),
        "strict": _strict(sources, limits["threshold"]),
        "mean_atom_norm": float(mean.norm()),
    }
    cosines, edges = raw.cosines.coarse(HISTOGRAM_BINS)
    arrays = {
        "probability": raw.probability,
        "probability_centred": centred.probability,
        "null_probability": random.draws[0].probability.flatten(),
        "live": raw.live,
        "stable": raw.stable,
        "unstable": raw.unstable,
        "lower": raw.lower,
        "upper": raw.upper,
        "histogram_edges": edges,
        "cosine_histogram": cosines,
        "null_histogram": random.cosines.coarse(HISTOGRAM_BINS)[0],
        "rotated_histogram": rotated.cosines.coarse(HISTOGRAM_BINS)[0],
        "pair_matched": agreement.match_rate,
        "pair_cosine": agreement.mean_cosine,
    }
    if config.has_rows:
        rates = [counts.double() / len(sources.evaluated()) for counts in firing_counts(sources)]
        arrays["firing"] = torch.nn.utils.rnn.pad_sequence(rates, batch_first=True)
    save_file({name: tensor.contiguous() for name, tensor in arrays.items()}, work / "stability.safetensors")
    write_json(work / "stability.json", finite(summary))
    write_json(work / "evaluation.json", _evaluation_table(sources) if config.has_rows else None)


def _excess(found: stability.FeatureStability, controls: tuple[stability.Control, ...]) -> dict[str, Any]:
    """By control; none where nothing is live."""
    if not found.live.any():
        return {}
    return {control.kind: stability.null_excess(found, control).to_json() for control in controls}


def mean_atom(dictionaries: Any, live: list[Tensor]) -> Tensor:
    """[D] float64: the mean of all live decoder rows of all seeds. Decoder rows have norm 1 and no data units, so this,
    not the mean activation, is the offset that they may share."""
    total, count = torch.zeros(dictionaries[0].shape[1], dtype=torch.float64), 0
    for i, mask in enumerate(live):
        rows = dictionaries[i]
        total += rows[mask.to(rows.device)].double().sum(0).cpu()
        count += int(mask.sum())
    return total / max(1, count)


def _centred(dictionaries: Any, mean: Tensor) -> Lazy:
    return Lazy(len(dictionaries), lambda i: matching.center(dictionaries[i], mean))


def _distances(sources: Sources, dead: list[Tensor]) -> dict[str, Any]:
    """D(0) and D(end) by assignment between the first seeds, raw and centred (each end on its own mean)."""
    few = assigned_seeds(sources.config)
    if not few or sources.config.saes:  # where others started is not known
        return {}
    paths, device = sources.sae_paths(), sources.config.device
    start = Lazy(few, lambda i: load(paths[i], weights=FIRST).dictionary.to(device))
    end = sources.dictionaries[:few]
    everything = [torch.ones_like(mask) for mask in dead[:few]]
    start_mean, end_mean = mean_atom(start, everything), mean_atom(end, [~mask for mask in dead[:few]])
    return {
        "raw": stability.initial_distance(start, end, dead=dead[:few]),
        "centred": stability.initial_distance(_centred(start, start_mean), _centred(end, end_mean), dead=dead[:few]),
    }


def _iou(sources: Sources, dead: list[Tensor], threshold: float) -> dict[str, Any] | None:
    """Nearest against assignment on the pairs of the first seeds."""
    few = assigned_seeds(sources.config)
    if not few:
        return None
    nearest = matching.match_all(sources.dictionaries[:few], "nearest", None, False, dead=dead[:few])
    assignment = PairStore.open(sources.folder / "pairs" / "assignment")
    iou = stability.assignment_iou(nearest, assignment, threshold)
    return iou.to_json() | {"pairs_compared": len(assignment), "pw_mcc": stability.pw_mcc(assignment)}


def _strict(sources: Sources, threshold: float) -> dict[str, Any] | None:
    """Encoder and decoder choose the same partner, both closely: of given SAEs that have encoders."""
    if not strict_seeds(sources):
        return None
    decoder, encoder = (PairStore.open(sources.folder / "pairs" / name) for name in ("assignment", "encoders"))
    return stability.shared_latents(encoder, decoder, threshold).to_json() | {"pairs_compared": len(decoder)}


def _evaluation_table(sources: Sources) -> dict[str, Any]:
    """The baseline and one line a seed. Recovered = (CE_zero − CE_sae) / (CE_zero − CE_clean)."""
    results = sources.folder / "results"
    table = read_json(results / "baseline.json")
    table["seeds"] = [read_json(results / "seeds" / f"{i:03d}.json") for i in range(sources.config.seeds)]
    if table.get("ce_clean") is not None:
        span = table["ce_zero"] - table["ce_clean"]
        for seed in table["seeds"]:
            seed["recovered"] = (table["ce_zero"] - seed["ce_sae"]) / span if span > 0 else None
    return finite(table)


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not readable JSON, probably cut short ({error})") from error


def finite(value: Any) -> Any:
    """NaN and infinities as None: JSON has no word for them."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
