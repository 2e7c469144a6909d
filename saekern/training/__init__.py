"""Training: one loop for every architecture, exact resume, one seed or many on the same rows."""

from saekern.training.bank import bootstrap, disjoint, doubling, train_bank
from saekern.training.config import TrainConfig, parse_config
from saekern.training.loop import TrainResult, train
from saekern.training.seeds import train_seeds
from saekern.training.shuffle import Shuffle

__all__ = [
    "Shuffle",
    "TrainConfig",
    "TrainResult",
    "bootstrap",
    "disjoint",
    "doubling",
    "parse_config",
    "train",
    "train_bank",
    "train_seeds",
]
