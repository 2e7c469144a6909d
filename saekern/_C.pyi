"""The extension's functions. Arrays are contiguous and row-major, outputs are filled in place."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]

def isa() -> str: ...
def topk_encode(
    x: Floats,
    weight: Floats,
    bias: Floats | None,
    pre_bias: Floats | None,
    x_scale: Floats | None,
    weight_scale: Floats | None,
    values: Floats,
    indices: Indices,
    dead: NDArray[np.bool_] | None,
    aux_values: Floats,
    aux_indices: Indices,
    relu: bool,
    threads: int,
    isa: str = "",
) -> None: ...
def row_topk(scores: Floats, values: Floats, indices: Indices, threads: int, isa: str = "") -> None: ...
