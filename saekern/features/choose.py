"""Which latents to look at."""

import torch
from torch import Tensor


def densest(counts: Tensor, n: int) -> Tensor:
    """The n latents that are active in most rows, int64, most first; ties to the smaller number.

    Raises:
        ValueError: n is not between 1 and their number.
    """
    _check("top", n, len(counts))
    return counts.argsort(descending=True, stable=True)[:n]


def drawn(count: int, n: int, seed: int) -> Tensor:
    """n of `count` latents at random, ascending: dead ones have the same chance.

    Raises:
        ValueError: n is not between 1 and count.
    """
    _check("random", n, count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:n].sort().values


def _check(name: str, n: int, count: int) -> None:
    if not 1 <= n <= count:
        raise ValueError(f"{name}: expected 1 to {count}, the latents of this SAE, got {n}")
