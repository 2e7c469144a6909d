"""How good an SAE is: explained variance, sparsity, dead latents, what the language model loses, top activations."""

from saekern.evaluation.code_metrics import connectivity, hoyer, negative_interference, soft_identifiability
from saekern.evaluation.dictionary_metrics import (
    coherence,
    effective_rank,
    ood_score,
    plausibility,
    r2,
    stable_rank,
    zero_atoms,
)
from saekern.evaluation.rows import RowMetrics, density, explained_variance, l0, measure, pca_explained_variance
from saekern.evaluation.splice import CrossEntropyRecovered, ce_recovered, cross_entropy
from saekern.evaluation.top_activations import top_activations

__all__ = [
    "CrossEntropyRecovered",
    "RowMetrics",
    "ce_recovered",
    "coherence",
    "connectivity",
    "cross_entropy",
    "density",
    "effective_rank",
    "explained_variance",
    "hoyer",
    "l0",
    "measure",
    "negative_interference",
    "ood_score",
    "pca_explained_variance",
    "plausibility",
    "r2",
    "soft_identifiability",
    "stable_rank",
    "top_activations",
    "zero_atoms",
]
