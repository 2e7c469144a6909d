"""saekern: fast, exact and deterministic kernels, training and stability matching for sparse autoencoders."""

from saekern import ops
from saekern.sae import TopKSAE, load, save
from saekern.training import TrainConfig, train
from saekern.version import __version__

__all__ = ["TopKSAE", "TrainConfig", "__version__", "load", "ops", "save", "train"]
