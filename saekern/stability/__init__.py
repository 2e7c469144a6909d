"""The laboratory: which features reappear in independently trained dictionaries, and how much of that is chance."""

from saekern.stability.agreement import AssignmentIoU, PairAgreement, assignment_iou, pair_agreement, pw_mcc
from saekern.stability.contributions import activation_mass
from saekern.stability.dictionaries import dictionary_stability
from saekern.stability.directions import Subspace, subspace
from saekern.stability.features import FeatureStability, feature_stability
from saekern.stability.geometries import stability_by_geometry
from saekern.stability.histogram import CosineHistogram
from saekern.stability.initialisation import (
    InitialDistance,
    dictionary_distance,
    initial_distance,
    stabilisation_index,
)
from saekern.stability.mask_plan import MaskPlan, mask_plan
from saekern.stability.masking import Masking, masking
from saekern.stability.nulls import Control, permuted_control, random_null, random_rotation, rotated_null
from saekern.stability.pool import FeaturePool, feature_pool, pool_sae, random_pool
from saekern.stability.pooling import Pooling, pooling
from saekern.stability.replacement import Replacement, replacement, replacement_bases
from saekern.stability.subspaces import Subspaces, subspaces

__all__ = [
    "AssignmentIoU",
    "Control",
    "CosineHistogram",
    "FeaturePool",
    "FeatureStability",
    "InitialDistance",
    "MaskPlan",
    "Masking",
    "PairAgreement",
    "Pooling",
    "Replacement",
    "Subspace",
    "Subspaces",
    "activation_mass",
    "assignment_iou",
    "dictionary_distance",
    "dictionary_stability",
    "feature_pool",
    "feature_stability",
    "initial_distance",
    "mask_plan",
    "masking",
    "pair_agreement",
    "permuted_control",
    "pool_sae",
    "pooling",
    "pw_mcc",
    "random_null",
    "random_pool",
    "random_rotation",
    "replacement",
    "replacement_bases",
    "rotated_null",
    "stabilisation_index",
    "stability_by_geometry",
    "subspace",
    "subspaces",
]
