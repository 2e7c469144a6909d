"""saekern: fast, exact and deterministic kernels, training and stability matching for sparse autoencoders."""

from saekern import matching, ops
from saekern.matching import Matching, linear_sum_assignment, match, match_all
from saekern.sae import TopKSAE, load, save
from saekern.training import TrainConfig, train
from saekern.version import __version__

__all__ = [
    "Matching",
    "TopKSAE",
    "TrainConfig",
    "__version__",
    "linear_sum_assignment",
    "load",
    "match",
    "match_all",
    "matching",
    "ops",
    "save",
    "train",
]
