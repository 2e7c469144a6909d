"""The one source of the version: setuptools reads it at build time, `saekern.__version__` at run time."""

__version__ = "0.1.0"
