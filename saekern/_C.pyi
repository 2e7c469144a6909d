"""The extension's functions. Arrays are contiguous and row-major; outputs are filled in place."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Indices = NDArray[np.int64]
SmallIndices = NDArray[np.int32]

Real = TypeVar("Real", np.float32, np.float64)  # one of them throughout a call

LARGE_OUTPUT: int  # bytes

def adam_step(
    param: Floats,
    grad: Floats,
    exp_avg: Floats,
    exp_avg_sq: Floats,
    latents: Indices | None,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    project: bool,
    normalize: bool,
    threads: int,
) -> None: ...
def batch_topk_encode(
    x: Floats,
    weight: Floats,
    bias: Floats | None,
    pre_bias: Floats | None,
    values: Floats,
    indices: Indices,
    offsets: Indices,
    threads: int,
    isa: str = "",
) -> None: ...
def decode(
    values: Floats,
    indices: Indices,
    weight: Floats,
    bias: Floats | None,
    offsets: Indices | None,
    threads: int,
    out: Floats,
) -> None: ...
def decode_backward(
    grad: Floats,
    values: Floats,
    indices: Indices,
    weight: Floats,
    offsets: Indices | None,
    entries: SmallIndices | None,
    segments: SmallIndices | None,
    listed: Indices | None,
    threads: int,
    dvalues: Floats | None,
    dweight: Floats | None,
    dbias: Floats | None,
) -> None: ...
def hierarchical_loss(
    values: Floats,
    indices: Indices,
    weight: Floats,
    bias: Floats | None,
    target: Floats,
    cuts: Indices,
    weights: Floats,
    offsets: Indices | None,
    threads: int,
    x_hat: Floats,
) -> float: ...
def hierarchical_loss_backward(
    scale: float,
    values: Floats,
    indices: Indices,
    weight: Floats,
    bias: Floats | None,
    target: Floats,
    cuts: Indices,
    weights: Floats,
    offsets: Indices | None,
    threads: int,
    dvalues: Floats | None,
    dweight: Floats | None,
    dbias: Floats | None,
    dtarget: Floats | None,
) -> None: ...
def inverse_norms(rows: Floats, inverse: Floats, threads: int) -> None: ...
def isa() -> str: ...
def large_output(shape: Sequence[int]) -> Floats: ...
def kron_encode(
    x: Floats,
    weight_p: Floats,
    weight_q: Floats,
    bias_p: Floats | None,
    bias_q: Floats | None,
    pre_bias: Floats | None,
    activation: int,
    eps: float,
    values: Floats,
    indices: Indices,
    u: Floats,
    v: Floats,
    dead: Bools | None,
    aux_values: Floats,
    aux_indices: Indices,
    aux_u: Floats,
    aux_v: Floats,
    threads: int,
    isa: str = "",
) -> None: ...
def latent_order(
    indices: Indices, latents: int, threads: int, entries: SmallIndices, segments: SmallIndices
) -> None: ...
def linear_sum_assignment(cost: NDArray[Real], maximize: bool, threads: int, assignment: Indices) -> None: ...
def sparse_assignment(
    offsets: Indices,
    columns: SmallIndices,
    costs: NDArray[Real],
    length: int,
    transposed: bool,
    maximize: bool,
    assignment: Indices,
) -> None: ...
def vector_assignment(
    a: NDArray[Real],
    b: NDArray[Real],
    metric: int,
    start_prices: Doubles | None,
    start_index: Indices | None,
    start_rest: Doubles | None,
    assignment: Indices,
    similarity: NDArray[Real],
    u: Doubles,
    v: Doubles,
    margin: Doubles,
    exact_margins: bool,
    threads: int,
    isa: str = "",
    progress: Callable[[str, int, int], None] | None = None,
) -> int: ...
def nearest(
    a: Floats,
    b: Floats,
    a_cosine: Floats,
    a_index: Indices,
    b_cosine: Floats,
    b_index: Indices,
    threads: int,
    isa: str = "",
) -> None: ...
def release_memory() -> None: ...
def row_topk(scores: Floats, values: Floats, indices: Indices, threads: int, isa: str = "") -> None: ...
def threshold_encode(
    x: Floats,
    weight: Floats,
    bias: Floats | None,
    pre_bias: Floats | None,
    thresholds: Floats,
    offsets: Indices,
    threads: int,
    isa: str = "",
) -> tuple[Floats, Indices]: ...
def topk_encode(
    x: Floats,
    weight: Floats,
    bias: Floats | None,
    pre_bias: Floats | None,
    x_scale: Floats | None,
    weight_scale: Floats | None,
    values: Floats,
    indices: Indices,
    dead: Bools | None,
    aux_values: Floats,
    aux_indices: Indices,
    relu: bool,
    threads: int,
    isa: str = "",
) -> None: ...
def topk_encode_backward(
    grad: Floats,
    values: Floats,
    indices: Indices,
    x: Floats,
    weight: Floats,
    pre_bias: Floats | None,
    offsets: Indices | None,
    entries: SmallIndices | None,
    segments: SmallIndices | None,
    relu: bool,
    threads: int,
    dx: Floats | None,
    dweight: Floats | None,
    dbias: Floats | None,
    dpre_bias: Floats | None,
) -> None: ...
def unexplained_variance(target: Floats, estimate: Floats, threads: int) -> tuple[float, float]: ...
def scaled_difference(a: Floats, b: Floats, scale: float, threads: int, out: Floats) -> None: ...
