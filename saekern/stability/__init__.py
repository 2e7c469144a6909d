"""The laboratory: which features reappear in independently trained dictionaries, and how much of that is chance."""

from saekern.stability.ablation import ArmResult, InitialisationAblation, initialisation_ablation
from saekern.stability.agreement import AssignmentIoU, PairAgreement, assignment_iou, pair_agreement, pw_mcc
from saekern.stability.arms import Arm, arm, initialisation_grid
from saekern.stability.classes import ClassBenchmark, class_benchmark, class_directions
from saekern.stability.collages import CollageBenchmark, collage_benchmark
from saekern.stability.contributions import activation_mass
from saekern.stability.convergence import Convergence, ecdf_convergence
from saekern.stability.dead_salmon import random_model
from saekern.stability.dictionaries import dictionary_stability
from saekern.stability.directions import Subspace, subspace
from saekern.stability.excess import NullExcess, null_excess
from saekern.stability.features import FeatureStability, feature_stability
from saekern.stability.geometries import stability_by_geometry
from saekern.stability.group_comparison import GroupComparison, compare_groups
from saekern.stability.histogram import CosineHistogram
from saekern.stability.initialisation import InitialDistance, dictionary_distance, initial_distance, stabilisation_index
from saekern.stability.jackknife import Estimate, over_pairs, over_runs
from saekern.stability.mask_plan import MaskPlan, mask_plan
from saekern.stability.masking import Masking, masking
from saekern.stability.means import MeanInterval, mean_interval
from saekern.stability.notebooks import beside_published, notebook_arms, notebook_config
from saekern.stability.nulls import (
    Control,
    permuted_control,
    random_null,
    random_rotation,
    rotated_copies,
    rotated_dictionaries,
    rotated_null,
)
from saekern.stability.phases import PhaseCell, PhaseDiagram, recovery_phases
from saekern.stability.pool import FeaturePool, feature_pool, pool_sae, random_pool
from saekern.stability.pool_splits import PoolSplits, pool_splits
from saekern.stability.pooling import Pooling, pooling
from saekern.stability.predictor import StabilityPredictor, predict_stability
from saekern.stability.recovery import Recovery, feature_recovery
from saekern.stability.replacement import Replacement, replacement, replacement_bases
from saekern.stability.roc import Auroc, auroc
from saekern.stability.share_intervals import ShareIntervals, share_intervals
from saekern.stability.shuffled import shuffled_rows
from saekern.stability.statistics import ActivationStatistics, activation_statistics
from saekern.stability.strict_rule import SharedLatents, encoders, shared_latents
from saekern.stability.subspaces import Subspaces, subspaces
from saekern.stability.sweep import StabilitySweep, stability_sweep
from saekern.stability.trajectories import trajectories
from saekern.stability.trajectory import Trajectories, Trajectory

__all__ = [
    "ActivationStatistics",
    "Arm",
    "ArmResult",
    "AssignmentIoU",
    "Auroc",
    "ClassBenchmark",
    "CollageBenchmark",
    "Control",
    "Convergence",
    "CosineHistogram",
    "Estimate",
    "FeaturePool",
    "FeatureStability",
    "GroupComparison",
    "InitialDistance",
    "InitialisationAblation",
    "MaskPlan",
    "Masking",
    "MeanInterval",
    "NullExcess",
    "PairAgreement",
    "PhaseCell",
    "PhaseDiagram",
    "PoolSplits",
    "Pooling",
    "Recovery",
    "Replacement",
    "ShareIntervals",
    "SharedLatents",
    "StabilityPredictor",
    "StabilitySweep",
    "Subspace",
    "Subspaces",
    "Trajectories",
    "Trajectory",
    "activation_mass",
    "activation_statistics",
    "arm",
    "assignment_iou",
    "auroc",
    "beside_published",
    "class_benchmark",
    "class_directions",
    "collage_benchmark",
    "compare_groups",
    "dictionary_distance",
    "dictionary_stability",
    "ecdf_convergence",
    "encoders",
    "feature_pool",
    "feature_recovery",
    "feature_stability",
    "initial_distance",
    "initialisation_ablation",
    "initialisation_grid",
    "mask_plan",
    "masking",
    "mean_interval",
    "notebook_arms",
    "notebook_config",
    "null_excess",
    "over_pairs",
    "over_runs",
    "pair_agreement",
    "permuted_control",
    "pool_sae",
    "pool_splits",
    "pooling",
    "predict_stability",
    "pw_mcc",
    "random_model",
    "random_null",
    "random_pool",
    "random_rotation",
    "recovery_phases",
    "replacement",
    "replacement_bases",
    "rotated_copies",
    "rotated_dictionaries",
    "rotated_null",
    "share_intervals",
    "shared_latents",
    "shuffled_rows",
    "stabilisation_index",
    "stability_by_geometry",
    "stability_sweep",
    "subspace",
    "subspaces",
    "trajectories",
]
