"""saekern: fast, exact and deterministic kernels, training and stability matching for sparse autoencoders."""

from saekern import matching, ops
from saekern.matching import linear_sum_assignment
from saekern.version import __version__

__all__ = ["__version__", "linear_sum_assignment", "matching", "ops"]
