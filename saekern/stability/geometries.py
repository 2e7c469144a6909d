"""The same question in other geometries: where the origin lies, and which directions weigh how much."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from saekern.matching import center, whiten
from saekern.stability.features import FeatureStability, feature_stability
from saekern.stability.lazy import Lazy


def stability_by_geometry(
    dictionaries: Sequence[Any], mean: Tensor, covariance: Tensor | None = None, **options: Any
) -> dict[str, FeatureStability]:
    """`feature_stability` in the geometries "raw", "centered" (the data mean subtracted from every atom) and, given the
    covariance, "whitened" (centred, then Σ^(−1/2)). A result that holds in "raw" alone is an offset, not agreement.

    Args:
        mean: [D] of the activations; covariance: [D, D] or None; options: as for `feature_stability`.
    """

    def moved(change: Callable[[Any], Tensor]) -> Lazy:
        return Lazy(len(dictionaries), lambda i: change(dictionaries[i]))

    spaces: dict[str, Sequence[Any]] = {"raw": dictionaries, "centered": moved(lambda d: center(d, mean))}
    if covariance is not None:
        spaces["whitened"] = moved(lambda d: whiten(center(d, mean), covariance))
    return {name: feature_stability(space, **options) for name, space in spaces.items()}
