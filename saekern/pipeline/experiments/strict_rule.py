"""Latents whose encoder and decoder agree on their partner, beside those that the decoder alone finds."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from saekern import matching, stability
from saekern.pipeline.check import require
from saekern.stability.jackknife import over_ordered_pairs

if TYPE_CHECKING:
    from saekern.pipeline.lab import Lab


@dataclass(frozen=True)
class StrictRuleSettings:
    """Encoder and decoder must agree on the partner."""

    seeds: int = 6
    """The first seeds, whose pairs are assigned by encoder and by decoder: two assignments a pair."""

    null_seeds: int = 3
    """Of these, how many are rotated for the null."""

    seed: int = 0
    """Of the rotations."""

    def __post_init__(self) -> None:
        for name in ("seeds", "null_seeds"):
            require(getattr(self, name) >= 2, f"strict_rule.{name}", "at least 2", getattr(self, name))


def run(lab: "Lab", settings: StrictRuleSettings, work: Path) -> dict[str, Any]:
    """`shared_latents` of the first seeds by assignment; assigned pairs are kept in `work`."""
    count = min(settings.seeds, lab.seeds)
    saes, decoders = lab.saes[:count], lab.dictionaries[:count]
    if not hasattr(saes[0], "W_enc"):
        return {"skipped": f"{type(saes[0]).__name__} has no encoder matrix"}
    dead = [~mask for mask in lab.live[:count]]
    encoders = stability.encoders(saes)
    by_encoder = matching.match_all(encoders, "assignment", work / "encoder", False, dead=dead)
    by_decoder = matching.match_all(decoders, "assignment", work / "decoder", False, dead=dead)
    nearest = matching.match_all(decoders, "nearest", None, False, dead=dead)
    strict = stability.shared_latents(by_encoder, by_decoder, lab.threshold)
    argmax = stability.pair_agreement(nearest, lab.threshold).match_rate

    few = min(settings.null_seeds, count)
    turned = [stability.rotated_dictionaries(d[:few], seed=settings.seed) for d in (encoders, decoders)]
    null = [matching.match_all(d, "assignment", None, False, dead=dead[:few]) for d in turned]
    chance = stability.shared_latents(null[0], null[1], lab.threshold)
    by_chance = matching.match_all(turned[1], "nearest", None, False, dead=dead[:few])
    rates = {
        "shared": (strict.shared, chance.shared),
        "same_partner": (strict.same_partner, chance.same_partner),
        "encoder": (strict.encoder, chance.encoder),
        "decoder": (strict.decoder, chance.decoder),
        "argmax": (argmax, stability.pair_agreement(by_chance, lab.threshold).match_rate),
    }
    hits = {
        "shared": strict.probability.nan_to_num(0) * (count - 1),
        "decoder": stability.feature_stability(by_decoder, lab.threshold).hits,
        "argmax": stability.feature_stability(nearest, lab.threshold).hits,
    }
    live = int(lab.live[:count].sum())
    return {
        "runs": count,
        "null_runs": few,
        "threshold": lab.threshold,
        "confidence": 0.95,
        "rates": {name: over_ordered_pairs(values).to_json() for name, (values, _) in rates.items()},
        "null": {name: float(values.nanmean()) for name, (_, values) in rates.items()},
        "independent": float(strict.chance.nanmean()),
        "argmax - shared": over_ordered_pairs(argmax - strict.shared).to_json(),
        "both_of_two": {name: _both(values, count - 1, live) for name, values in hits.items()} if count > 2 else None,
    }


def _both(hits: Tensor, others: int, live: int) -> float:
    """Share of live latents found in both of two other runs, the mean over all choices of the two: h (h − 1) of the
    N (N − 1) ordered choices."""
    hits = hits.double().round()
    return float((hits * (hits - 1)).sum() / (others * (others - 1) * live))
