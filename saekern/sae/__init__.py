"""Sparse autoencoders: thin modules over the ops, one architecture a file, and their native files."""

from saekern.sae.base import SAE, Loss, SparseCodes
from saekern.sae.batch_topk import BatchTopKSAE
from saekern.sae.dictionary import read_dictionary
from saekern.sae.files import load, save
from saekern.sae.gated import GatedSAE
from saekern.sae.jumprelu import JumpReLUSAE
from saekern.sae.relu import ReLUSAE
from saekern.sae.topk import TopKSAE

__all__ = [
    "SAE",
    "BatchTopKSAE",
    "GatedSAE",
    "JumpReLUSAE",
    "Loss",
    "ReLUSAE",
    "SparseCodes",
    "TopKSAE",
    "load",
    "read_dictionary",
    "save",
]
