"""Detection and fuzzing scores of one seed's latents, and of SAEs on a model that has learnt nothing."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saekern.interpretation import (
    Explainer,
    InterpretationScores,
    Judge,
    LanguageModelExplainer,
    LanguageModelJudge,
    RuleExplainer,
    RuleJudge,
    compare_scores,
    interpretation_scores,
)
from saekern.pipeline.check import require
from saekern.stability import auroc

if TYPE_CHECKING:
    from saekern.pipeline.lab import Lab


@dataclass(frozen=True)
class InterpretationSettings:
    """Explanations of latents, judged on text that their author has not seen."""

    anchor: int = 0
    """The seed whose latents are explained."""

    latents: int = 200
    """Live latents drawn at random from each SAE."""

    least: int = 16
    """Windows of text with and without a firing that a latent needs to be scored."""

    size: int = 31
    """Tokens of a window."""

    judge: str | None = None
    """A causal language model that explains and judges: a folder or a name of the Hugging Face hub; null: rules."""

    seed: int = 0
    """Of all random choices."""

    def __post_init__(self) -> None:
        for name, least in (("anchor", 0), ("latents", 2), ("least", 3), ("size", 2)):
            require(getattr(self, name) >= least, f"interpretation.{name}", f"at least {least}", getattr(self, name))


def run(lab: "Lab", settings: InterpretationSettings, work: Path) -> dict[str, Any]:
    """One seed of the study, beside the first seed of a variant on a random model if there is one (the dead salmon)."""
    explainer, judge = _judges(settings, lab.config.device)
    anchor, p = settings.anchor, lab.probability
    scores = _scored(lab.saes[anchor], lab.sources.heldout, lab.live[anchor], settings, explainer, judge)
    found: dict[str, Any] = {
        "anchor": anchor,
        "judge": settings.judge,
        "trained": scores.to_json() | {"probability": _numbers(p[anchor][scores.latents])},
        "stable": _groups(scores, lab.stable[anchor], lab.unstable[anchor]),
        "salmon": None,
    }
    name = next((variant.name for variant in lab.config.variants if variant.rows_from == "random_model"), None)
    if name is None or len(scores.latents) == 0:
        return found
    arrays = lab.sources.variant_stability(name)[1]
    other = _scored(
        lab.sources.variant_saes(name)[0],
        lab.sources.variant_cache(name),
        arrays["live"][0].bool(),
        settings,
        explainer,
        judge,
    )
    q = arrays["probability"][0][other.latents]
    found["salmon"] = other.to_json() | {"name": name, "probability": _numbers(q)}
    if len(other.latents):
        found["comparison"] = compare_scores(scores, other, (p[anchor][scores.latents], q)).to_json()
    return found


def _judges(settings: InterpretationSettings, device: str) -> tuple[Explainer, Judge]:
    if settings.judge is None:
        return RuleExplainer(), RuleJudge()
    from saekern.activations import load_hugging_face

    model = load_hugging_face(settings.judge, device)
    return LanguageModelExplainer(model), LanguageModelJudge(model)


def _scored(
    sae: Any, cache: Any, live: Tensor, settings: InterpretationSettings, explainer: Explainer, judge: Judge
) -> InterpretationScores:
    candidates = live.nonzero()[:, 0]
    order = torch.randperm(len(candidates), generator=torch.Generator().manual_seed(settings.seed))
    chosen = candidates[order[: settings.latents]].sort().values
    return interpretation_scores(
        sae,
        cache,
        chosen,
        explainer,
        judge,
        seed=settings.seed,
        size=settings.size,
        lead=min(8, settings.size),
        least=settings.least,
    )


def _groups(scores: InterpretationScores, stable: Tensor, unstable: Tensor) -> dict[str, Any] | None:
    """Detection of stable against unstable latents: P(stable > unstable) with DeLong's interval."""
    detection = scores.detection[:, 0]
    groups = [detection[mask[scores.latents]] for mask in (stable, unstable)]
    if min(len(group) for group in groups) < 2:
        return None
    effect = auroc(groups[0], groups[1])
    return {
        "latents": [len(group) for group in groups],
        "mean": [float(group.mean()) for group in groups],
        "effect": effect._asdict(),
    }


def _numbers(values: Tensor) -> list[float | None]:
    return [None if value != value else value for value in values.tolist()]
