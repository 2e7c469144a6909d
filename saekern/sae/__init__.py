"""Sparse autoencoders: thin modules over the ops, one architecture a file, and their native files."""

from saekern.sae.archetypal import ArchetypalSAE
from saekern.sae.base import SAE, Loss, SparseCodes
from saekern.sae.batch_topk import BatchTopKSAE
from saekern.sae.files import load, save
from saekern.sae.gated import GatedSAE
from saekern.sae.hierarchical import HierarchicalTopKSAE
from saekern.sae.jumprelu import JumpReLUSAE
from saekern.sae.kmeans import KMeans, archetypal_points, kmeans
from saekern.sae.kron import KronSAE
from saekern.sae.matryoshka import MatryoshkaSAE
from saekern.sae.normalized import NormalizedSAE
from saekern.sae.relu import ReLUSAE
from saekern.sae.topk import TopKSAE

__all__ = [
    "SAE",
    "ArchetypalSAE",
    "BatchTopKSAE",
    "GatedSAE",
    "HierarchicalTopKSAE",
    "JumpReLUSAE",
    "KMeans",
    "KronSAE",
    "Loss",
    "MatryoshkaSAE",
    "NormalizedSAE",
    "ReLUSAE",
    "SparseCodes",
    "TopKSAE",
    "archetypal_points",
    "kmeans",
    "load",
    "save",
]
