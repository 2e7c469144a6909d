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
from saekern.evaluation.language_model import (
    CrossEntropyRecovered,
    LanguageModelMetrics,
    ce_recovered,
    cross_entropy,
    language_model_metrics,
    losses_by_sequence,
)
from saekern.evaluation.library_metrics import library_metrics
from saekern.evaluation.rows import (
    DensityHistogram,
    RowMetrics,
    density,
    density_histogram,
    explained_variance,
    l0,
    measure,
    pca_explained_variance,
)
from saekern.evaluation.splice import Splice, splice
from saekern.evaluation.top_activations import top_activations

__all__ = [
    "CrossEntropyRecovered",
    "DensityHistogram",
    "LanguageModelMetrics",
    "RowMetrics",
    "Splice",
    "ce_recovered",
    "coherence",
    "connectivity",
    "cross_entropy",
    "density",
    "density_histogram",
    "effective_rank",
    "explained_variance",
    "hoyer",
    "l0",
    "language_model_metrics",
    "library_metrics",
    "losses_by_sequence",
    "measure",
    "negative_interference",
    "ood_score",
    "pca_explained_variance",
    "plausibility",
    "r2",
    "soft_identifiability",
    "splice",
    "stable_rank",
    "top_activations",
    "zero_atoms",
]
