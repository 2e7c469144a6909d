"""Sparse autoencoders: thin modules over the ops, one architecture a file, and their native files."""

from saekern.sae.base import SAE, Loss, SparseCodes
from saekern.sae.dictionary import read_dictionary
from saekern.sae.files import load, save
from saekern.sae.hierarchical import HierarchicalTopKSAE
from saekern.sae.topk import TopKSAE

__all__ = ["SAE", "HierarchicalTopKSAE", "Loss", "SparseCodes", "TopKSAE", "load", "read_dictionary", "save"]
