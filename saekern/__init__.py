"""saekern: fast, exact and deterministic kernels, training and stability matching for sparse autoencoders."""

from saekern import ops
from saekern.version import __version__

__all__ = ["__version__", "ops"]
