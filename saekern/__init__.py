"""saekern: fast, exact and deterministic kernels, training and stability matching for sparse autoencoders."""

from saekern import matching, ops
from saekern.matching import linear_sum_assignment
from saekern.sae import TopKSAE, load, save
from saekern.training import TrainConfig, train
from saekern.version import __version__

__all__ = [
    "TopKSAE",
    "TrainConfig",
    "__version__",
    "linear_sum_assignment",
    "load",
    "matching",
    "ops",
    "save",
    "train",
]
