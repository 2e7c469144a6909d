"""The ops: checked, differentiable, dispatched by device to C++, Triton or the reference."""

from saekern.ops.adam_step import adam_step
from saekern.ops.batch_topk_encode import batch_topk_encode
from saekern.ops.decode import RowGradients, decode, decode_row_gradients
from saekern.ops.hierarchical_loss import HierarchicalLoss, hierarchical_loss
from saekern.ops.kron_encode import kron_encode
from saekern.ops.library import instruction_level, release_memory, torch_on_all_threads, torch_on_one_thread
from saekern.ops.nearest import NearestPair, NearestRows, nearest, nearest_pairs, nearest_prepare, nearest_top
from saekern.ops.ragged_encode import RaggedCodes, latent_gather
from saekern.ops.row_topk import row_topk
from saekern.ops.threshold_encode import threshold_encode
from saekern.ops.topk_encode import LatentOrder, topk_encode, topk_encode_aux
from saekern.ops.unexplained_variance import unexplained_variance, unexplained_variance_and_spread

__all__ = [
    "HierarchicalLoss",
    "LatentOrder",
    "NearestPair",
    "NearestRows",
    "RaggedCodes",
    "RowGradients",
    "adam_step",
    "batch_topk_encode",
    "decode",
    "decode_row_gradients",
    "hierarchical_loss",
    "instruction_level",
    "kron_encode",
    "latent_gather",
    "nearest",
    "nearest_pairs",
    "nearest_prepare",
    "nearest_top",
    "release_memory",
    "row_topk",
    "threshold_encode",
    "topk_encode",
    "topk_encode_aux",
    "torch_on_all_threads",
    "torch_on_one_thread",
    "unexplained_variance",
    "unexplained_variance_and_spread",
]
