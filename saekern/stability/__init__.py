"""The laboratory: which features reappear in independently trained dictionaries, and how much of that is chance."""

from saekern.stability.ablation import ArmResult, InitialisationAblation, initialisation_ablation
from saekern.stability.agreement import AssignmentIoU, PairAgreement, assignment_iou, pair_agreement, pw_mcc
from saekern.stability.arms import Arm, arm, initialisation_grid
from saekern.stability.dictionaries import dictionary_stability
from saekern.stability.features import FeatureStability, feature_stability
from saekern.stability.geometries import stability_by_geometry
from saekern.stability.histogram import CosineHistogram
from saekern.stability.initialisation import (
    InitialDistance,
    dictionary_distance,
    initial_distance,
    stabilisation_index,
)
from saekern.stability.jackknife import Estimate, over_pairs, over_runs
from saekern.stability.notebooks import beside_published, notebook_arms, notebook_config
from saekern.stability.nulls import Control, permuted_control, random_null, random_rotation, rotated_null
from saekern.stability.trajectories import trajectories
from saekern.stability.trajectory import Trajectories, Trajectory

__all__ = [
    "Arm",
    "ArmResult",
    "AssignmentIoU",
    "Control",
    "CosineHistogram",
    "Estimate",
    "FeatureStability",
    "InitialDistance",
    "InitialisationAblation",
    "PairAgreement",
    "Trajectories",
    "Trajectory",
    "arm",
    "assignment_iou",
    "beside_published",
    "dictionary_distance",
    "dictionary_stability",
    "feature_stability",
    "initial_distance",
    "initialisation_ablation",
    "initialisation_grid",
    "notebook_arms",
    "notebook_config",
    "over_pairs",
    "over_runs",
    "pair_agreement",
    "permuted_control",
    "pw_mcc",
    "random_null",
    "random_rotation",
    "rotated_null",
    "stabilisation_index",
    "stability_by_geometry",
    "trajectories",
]
