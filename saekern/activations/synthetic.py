"""Rows with a known answer: sparse non-negative combinations of unit directions, plus noise."""

from typing import NamedTuple

import torch
from torch import Tensor

from saekern.activations.rows import TensorRows


class SyntheticRows(NamedTuple):
    rows: TensorRows  # [count, width]
    dictionary: Tensor  # [features, width], unit rows: the directions that made them
    frequency: Tensor  # [features], the probability that a feature is active in a row


def synthetic_rows(
    count: int,
    width: int,
    features: int,
    active: float,
    *,
    decay: float = 0.0,
    noise: float = 0.0,
    seed: int = 0,
) -> SyntheticRows:
    """x = Σ_f s_f a_f d_f + noise · ε: s_f ~ Bernoulli(p_f) independent, a_f ~ |N(0, 1)|, ε ~ N(0, I/width).

    Args:
        count, width, features: rows, D, and the number of true directions d_f, uniform on the unit sphere.
        active: expected number of active features a row, Σ p_f.
        decay: p_f ∝ f^−decay; 0 makes all features equally frequent, 1 is Zipf's law.
        noise: expected norm of the noise.
        seed: decides everything.

    Raises:
        ValueError: sizes below 1, `active` outside (0, features], or so large with `decay` that some p_f exceeds 1.
    """
    if min(count, width, features) < 1 or not 0 < active <= features or noise < 0 or decay < 0:
        raise ValueError(
            f"expected count, width, features >= 1, 0 < active <= features, noise and decay >= 0, got {count}, {width},"
            f" {features}, {active}, {noise}, {decay}"
        )
    frequency = torch.arange(1, features + 1).float().pow(-decay)
    frequency *= active / frequency.sum()
    if frequency[0] > 1:
        raise ValueError(f"active: {active} with decay {decay} asks for a probability of {frequency[0]:.3g}")
    generator = torch.Generator().manual_seed(seed)
    dictionary = torch.nn.functional.normalize(torch.randn(features, width, generator=generator), dim=1)
    rows = torch.randn(count, width, generator=generator) * (noise / width**0.5)
    for part in rows.split(8192):  # [8192, features] at a time
        on = torch.rand(len(part), features, generator=generator) < frequency
        part += torch.randn(len(part), features, generator=generator).abs_().mul_(on) @ dictionary
    return SyntheticRows(TensorRows(rows), dictionary, frequency)
