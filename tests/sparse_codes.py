"""Sparse codes of awkward shapes for the tests of the decoder and the encoder's gradients."""

import numpy as np
import torch
from torch import Tensor

# (B, K, D, F): ones, primes, powers of two and their neighbours, K = F, nothing to do.
SHAPES = [
    (1, 1, 1, 1),
    (3, 2, 5, 7),
    (5, 13, 31, 13),
    (7, 5, 17, 3),
    (16, 8, 64, 64),
    (33, 9, 127, 257),
    (65, 31, 33, 40),
    (0, 3, 8, 5),
    (4, 0, 8, 5),
]


def indices_with_hot_latent(batch: int, k: int, num_latents: int) -> Tensor:
    """Random latents with repetitions, [B, K]; the last latent is in every row (several chunks of codes)."""
    indices = torch.randint(num_latents, (batch, k))
    if k:
        indices[:, k // 2] = num_latents - 1
    return indices


def ragged_offsets(batch: int, longest: int) -> Tensor:
    """[B+1]: rows of 0 to `longest` codes, the first and the last row empty."""
    lengths = torch.randint(longest + 1, (batch,))
    lengths[:1] = lengths[-1:] = 0
    return torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])


def lazy_zeros(*shape: int) -> Tensor:
    """Zeros whose memory the system only provides where it is touched: for sizes that would not fit."""
    return torch.from_numpy(np.zeros(shape, dtype=np.float32))
