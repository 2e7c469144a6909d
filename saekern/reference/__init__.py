"""Every op in plain PyTorch, a few lines each: the specification, the float64 oracle, the fallback on other devices."""

from saekern.reference.adam_step import adam_step
from saekern.reference.decode import decode, decode_backward, decode_row_gradients, latent_order
from saekern.reference.hierarchical_loss import hierarchical_loss, hierarchical_loss_backward
from saekern.reference.kron_encode import (
    kron_encode,
    kron_encode_backward,
    kron_factors,
    kron_places,
    kron_products,
    kron_slopes,
)
from saekern.reference.nearest import cosines, nearest, nearest_pairs, nearest_top
from saekern.reference.ragged_encode import batch_topk_encode, ragged_encode_backward, threshold_encode
from saekern.reference.row_topk import row_topk
from saekern.reference.topk_encode import topk_encode, topk_encode_aux, topk_encode_backward
from saekern.reference.unexplained_variance import unexplained_variance, unexplained_variance_backward

__all__ = [
    "adam_step",
    "batch_topk_encode",
    "cosines",
    "decode",
    "decode_backward",
    "decode_row_gradients",
    "hierarchical_loss",
    "hierarchical_loss_backward",
    "kron_encode",
    "kron_encode_backward",
    "kron_factors",
    "kron_places",
    "kron_products",
    "kron_slopes",
    "latent_order",
    "nearest",
    "nearest_pairs",
    "nearest_top",
    "ragged_encode_backward",
    "row_topk",
    "threshold_encode",
    "topk_encode",
    "topk_encode_aux",
    "topk_encode_backward",
    "unexplained_variance",
    "unexplained_variance_backward",
]
