"""The ops: checked, differentiable, dispatched by device to C++, Triton or the reference."""

from saekern.ops.adam_step import adam_step
from saekern.ops.decode import RowGradients, decode, decode_row_gradients
from saekern.ops.hierarchical_loss import HierarchicalLoss, hierarchical_loss
from saekern.ops.library import instruction_level, release_memory, torch_on_one_thread
from saekern.ops.nearest import NearestPair, NearestRows, nearest, nearest_pairs, nearest_prepare, nearest_top
from saekern.ops.row_topk import row_topk
from saekern.ops.topk_encode import LatentOrder, topk_encode, topk_encode_aux
from saekern.ops.unexplained_variance import unexplained_variance

__all__ = [
    "HierarchicalLoss",
    "LatentOrder",
    "NearestPair",
    "NearestRows",
    "RowGradients",
    "adam_step",
    "decode",
    "decode_row_gradients",
    "hierarchical_loss",
    "instruction_level",
    "nearest",
    "nearest_pairs",
    "nearest_prepare",
    "nearest_top",
    "release_memory",
    "row_topk",
    "topk_encode",
    "topk_encode_aux",
    "torch_on_one_thread",
    "unexplained_variance",
]
