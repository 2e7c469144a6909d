"""Scores of two SAEs side by side, such as one on a trained model and one on a model that has learnt nothing."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from scipy.special import stdtrit
from torch import Tensor

from saekern.interpretation.scores import NAMES, InterpretationScores
from saekern.stability.roc import Auroc, auroc


class Difference(NamedTuple):
    """Of two groups of latents."""

    first: float
    """Mean of the first group."""
    second: float
    """Mean of the second."""
    difference: float
    """first − second."""
    lower: float
    """End of its interval: Welch's t over latents. NaN where a group has fewer than two."""
    upper: float
    effect: Auroc
    """P(first > second) + ½ P(equal) with DeLong's interval: 0.5 where the number does not tell the groups apart."""


@dataclass(frozen=True, eq=False)
class InterpretationComparison:
    """Made by `compare_scores`. Intervals are over latents, each by itself; the SAEs are one pair."""

    differences: dict[str, Difference]
    """"detection", "fuzzing", their nulls where known, and "probability" (p̂) where given."""
    latents: dict[str, tuple[int, int]]
    """How many of each SAE stand behind each difference."""
    confidence: float
    """Coverage of the intervals."""

    def to_json(self) -> dict[str, Any]:
        """Plain numbers; None for NaN."""
        lines = {}
        for name, found in self.differences.items():
            line: dict[str, Any] = {key: _finite(value) for key, value in found._asdict().items() if key != "effect"}
            line["effect"] = {key: _finite(value) for key, value in found.effect._asdict().items()}
            lines[name] = line | {"latents": list(self.latents[name])}
        return {"confidence": self.confidence, "interval": "Welch's t; effect: DeLong; over latents", "lines": lines}


def compare_scores(
    first: InterpretationScores,
    second: InterpretationScores,
    probabilities: tuple[Tensor, Tensor] | None = None,
    confidence: float = 0.95,
) -> InterpretationComparison:
    """Differences of detection, fuzzing and p̂ between two SAEs, with intervals over latents.

    Args:
        probabilities: p̂ of each SAE's latents, [n] and [m]; NaN (dead) is left out. Latents of one SAE share their
            comparison runs, so that p̂'s interval says nothing of other runs.

    Raises:
        ValueError: an SAE without a scored latent.
    """
    pairs = {name: (_scores(first, name), _scores(second, name)) for name in NAMES}
    if probabilities is not None:
        pairs["probability"] = probabilities
    differences, latents = {}, {}
    for name, given in pairs.items():
        a, b = (values[~values.isnan()].double() for values in given)
        if not len(a) or not len(b):
            if name.startswith("null"):
                continue
            raise ValueError(f"{name}: expected latents in both, got {len(a)} and {len(b)}")
        differences[name] = Difference(*_welch(a, b, confidence), auroc(a, b, confidence))
        latents[name] = (len(a), len(b))
    return InterpretationComparison(differences, latents, confidence)


def _scores(scores: InterpretationScores, name: str) -> Tensor:
    values = getattr(scores, name)
    return values if values.dim() == 1 else values[:, 0]


def _welch(a: Tensor, b: Tensor, confidence: float) -> tuple[float, float, float, float, float]:
    first, second = float(a.mean()), float(b.mean())
    if min(len(a), len(b)) < 2:
        return first, second, first - second, float("nan"), float("nan")
    parts = [(float(values.var()) / len(values), len(values) - 1) for values in (a, b)]
    variance = sum(part for part, _ in parts)
    spread = sum(part**2 / freedom for part, freedom in parts)
    freedom = variance**2 / spread if spread else 1.0
    half = variance**0.5 * float(stdtrit(freedom, (1 + confidence) / 2))
    return first, second, first - second, first - second - half, first - second + half


def _finite(value: float) -> float | None:
    return None if value != value else value
