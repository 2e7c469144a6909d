"""How good an SAE is: explained variance, sparsity, dead latents, what the language model loses, top activations."""

from saekern.evaluation.rows import RowMetrics, density, explained_variance, l0, measure, pca_explained_variance
from saekern.evaluation.splice import CrossEntropyRecovered, ce_recovered, cross_entropy
from saekern.evaluation.top_activations import top_activations

__all__ = [
    "CrossEntropyRecovered",
    "RowMetrics",
    "ce_recovered",
    "cross_entropy",
    "density",
    "explained_variance",
    "l0",
    "measure",
    "pca_explained_variance",
    "top_activations",
]
