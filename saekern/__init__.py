"""saekern: fast, exact and deterministic kernels, training and stability matching for sparse autoencoders."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from saekern.version import __version__

if TYPE_CHECKING:
    from saekern import activations, evaluation, formats, matching, ops, report, stability, training
    from saekern.acceleration import Handle, accelerate
    from saekern.formats import load, save
    from saekern.matching import Matching, PairStore, linear_sum_assignment, match, match_all
    from saekern.pipeline import Study, StudyConfig, study
    from saekern.sae import (
        SAE,
        ArchetypalSAE,
        BatchTopKSAE,
        GatedSAE,
        HierarchicalTopKSAE,
        JumpReLUSAE,
        KronSAE,
        MatryoshkaSAE,
        NormalizedSAE,
        ReLUSAE,
        SparseCodes,
        TopKSAE,
    )
    from saekern.training import TrainConfig, TrainResult, train

# Public name -> where it lives. Loaded on first use: torch takes a second that `saekern --help` should not.
_HOMES = {
    "Handle": "acceleration",
    "accelerate": "acceleration",
    "Matching": "matching",
    "PairStore": "matching",
    "linear_sum_assignment": "matching",
    "match": "matching",
    "match_all": "matching",
    "Study": "pipeline",
    "StudyConfig": "pipeline",
    "study": "pipeline",
    "SAE": "sae",
    "ArchetypalSAE": "sae",
    "BatchTopKSAE": "sae",
    "GatedSAE": "sae",
    "HierarchicalTopKSAE": "sae",
    "JumpReLUSAE": "sae",
    "KronSAE": "sae",
    "MatryoshkaSAE": "sae",
    "NormalizedSAE": "sae",
    "ReLUSAE": "sae",
    "SparseCodes": "sae",
    "TopKSAE": "sae",
    "load": "formats",
    "save": "formats",
    "TrainConfig": "training",
    "TrainResult": "training",
    "train": "training",
}
_ROOMS = ("activations", "evaluation", "formats", "matching", "ops", "report", "stability", "training")

__all__ = [
    "SAE",
    "ArchetypalSAE",
    "BatchTopKSAE",
    "GatedSAE",
    "Handle",
    "HierarchicalTopKSAE",
    "JumpReLUSAE",
    "KronSAE",
    "Matching",
    "MatryoshkaSAE",
    "NormalizedSAE",
    "PairStore",
    "ReLUSAE",
    "SparseCodes",
    "Study",
    "StudyConfig",
    "TopKSAE",
    "TrainConfig",
    "TrainResult",
    "__version__",
    "accelerate",
    "activations",
    "evaluation",
    "formats",
    "linear_sum_assignment",
    "load",
    "match",
    "match_all",
    "matching",
    "ops",
    "report",
    "save",
    "stability",
    "study",
    "train",
    "training",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"saekern.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'saekern' has no attribute {name!r}")
    value = getattr(import_module(f"saekern.{_HOMES[name]}"), name)
    globals()[name] = value  # found directly the next time
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
