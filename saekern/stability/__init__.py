"""The laboratory: which features reappear in independently trained dictionaries, and how much of that is chance."""

from saekern.stability.agreement import AssignmentIoU, PairAgreement, assignment_iou, pair_agreement, pw_mcc
from saekern.stability.classes import ClassBenchmark, class_benchmark, class_directions
from saekern.stability.collages import CollageBenchmark, collage_benchmark
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
from saekern.stability.means import MeanInterval, mean_interval
from saekern.stability.nulls import Control, permuted_control, random_null, random_rotation, rotated_null
from saekern.stability.phases import PhaseCell, PhaseDiagram, recovery_phases
from saekern.stability.recovery import Recovery, feature_recovery

__all__ = [
    "AssignmentIoU",
    "ClassBenchmark",
    "CollageBenchmark",
    "Control",
    "CosineHistogram",
    "FeatureStability",
    "InitialDistance",
    "MeanInterval",
    "PairAgreement",
    "PhaseCell",
    "PhaseDiagram",
    "Recovery",
    "assignment_iou",
    "class_benchmark",
    "class_directions",
    "collage_benchmark",
    "dictionary_distance",
    "dictionary_stability",
    "feature_recovery",
    "feature_stability",
    "initial_distance",
    "mean_interval",
    "pair_agreement",
    "permuted_control",
    "pw_mcc",
    "random_null",
    "random_rotation",
    "recovery_phases",
    "rotated_null",
    "stabilisation_index",
    "stability_by_geometry",
]
