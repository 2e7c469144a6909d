"""Rows with a known answer: sparse non-negative combinations of unit directions, plus noise."""

from typing import NamedTuple

import numpy as np
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
    frequency = _frequencies(features, active, decay)
    generator = _generator(seed)
    dictionary = _unit(features, width, generator)
    rows = torch.randn(count, width, generator=generator) * (noise / width**0.5)
    _add_features(rows, dictionary, frequency, generator)
    return SyntheticRows(TensorRows(rows), dictionary, frequency)


class LowRankRows(NamedTuple):
    """Two groups of true features, in random order: isolated directions, and many that share few dimensions."""

    rows: TensorRows  # [count, width]
    dictionary: Tensor  # [features, width], unit rows
    identifiable: Tensor  # [features] bool: an isolated direction; the others lie in the block
    basis: Tensor  # [rank, width], orthonormal rows: the block
    frequency: Tensor  # [features], the probability that a feature is active in a row


def low_rank_rows(
    count: int,
    width: int,
    *,
    identifiable: int = 128,
    low_rank: int = 64,
    rank: int = 8,
    active: float = 8.0,
    decay: float = 0.5,
    noise: float = 0.0,
    seed: int = 0,
) -> LowRankRows:
    """x = Σ_{i ∈ S} s_i a_i g_i + Σ_{i ∈ L} s_i a_i B h_i + noise · ε, with s, a, ε as in `synthetic_rows`.

    g_i are uniform unit vectors of the whole space, h_i of a block B of `rank` dimensions, which |L| > rank of them
    crowd: the block can be found while its single directions are hard to tell apart. A model of ours: the paper
    (Gerasimov et al. 2026, arXiv 2606.12138) publishes that it has such a model, not its parameters.

    Features, codes and noise come from separate generators: for one `seed`, other `noise`, `active` or `rank` leave the
    isolated features as they are, so that runs over a grid are paired.

    Args:
        count, width: rows and D.
        identifiable, low_rank: |S| and |L|.
        rank: dimensions of the block, at most D.
        active: expected number of active features a row.
        decay: p ∝ place^−decay, places dealt to both groups at random. 1 is Zipf's law, which with few features asks
            for probabilities above 1.
        noise: expected norm of the noise.
        seed: decides everything.

    Raises:
        ValueError: sizes below 1 (either group may be empty), a rank above D, or a probability above 1.
    """
    features = identifiable + low_rank
    if min(count, width, features) < 1 or min(identifiable, low_rank) < 0 or not 1 <= rank <= width:
        raise ValueError(
            "expected count, width, identifiable + low_rank >= 1 and 1 <= rank <= width, got"
            f" {count}, {width}, {identifiable}, {low_rank}, {rank}"
        )
    if not 0 < active <= features or noise < 0 or decay < 0:
        raise ValueError(f"expected 0 < active <= {features}, noise and decay >= 0, got {active}, {noise}, {decay}")
    generators = [torch.Generator().manual_seed(int(state)) for state in np.random.SeedSequence(seed).generate_state(4)]
    order = torch.randperm(features, generator=generators[0])
    isolated = _unit(identifiable, width, generators[0])
    basis = torch.linalg.qr(torch.randn(width, rank, dtype=torch.float64, generator=generators[1]))[0].T.float()
    block = torch.nn.functional.normalize(_unit(low_rank, rank, generators[1]) @ basis, dim=1)
    dictionary = torch.cat([isolated, block])[order]
    frequency = _frequencies(features, active, decay)
    rows = torch.randn(count, width, generator=generators[3]) * (noise / width**0.5)
    _add_features(rows, dictionary, frequency, generators[2])
    return LowRankRows(TensorRows(rows), dictionary, order < identifiable, basis.contiguous(), frequency)


class Collages(NamedTuple):
    rows: TensorRows  # [count, width]
    labels: Tensor  # [count, objects] bool: the objects of each collage
    directions: Tensor  # [objects, width], unit rows
    mean: Tensor  # [width], what all rows have in common


def collages(
    count: int,
    width: int,
    objects: int,
    *,
    parts: int = 4,
    noise: float = 0.0,
    offset: float = 0.0,
    seed: int = 0,
) -> Collages:
    """x = offset · m + Σ_{c of the collage} a_c v_c + noise · ε: each row shows `parts` different objects out of all.

    Stands for the pooled activations of an image that is a collage of objects, without a vision model: pooling adds up
    what the parts give. v_c and m are uniform unit vectors, a_c uniform in [½, 1½], ε ~ N(0, I/width). A model of ours
    after the benchmark of Fel et al. 2025 (arXiv 2502.12892: 12 sets of collages of 4 objects).

    Args:
        parts: objects a row.
        noise: expected norm of the noise.
        offset: norm of what all rows share.
        seed: decides everything.

    Raises:
        ValueError: sizes below 1, fewer objects than parts, a negative noise or offset.
    """
    if min(count, width, parts) < 1 or objects < parts or noise < 0 or offset < 0:
        raise ValueError(
            "expected count, width, parts >= 1, objects >= parts, noise and offset >= 0, got"
            f" {count}, {width}, {parts}, {objects}, {noise}, {offset}"
        )
    generator = _generator(seed)
    directions, mean = _unit(objects, width, generator), _unit(1, width, generator)[0] * offset
    rows = torch.randn(count, width, generator=generator) * (noise / width**0.5) + mean
    labels = torch.zeros(count, objects, dtype=torch.bool)
    for part, shown in zip(rows.split(8192), labels.split(8192), strict=True):
        chosen = torch.rand(len(part), objects, generator=generator).topk(parts, dim=1).indices
        strength = torch.zeros(len(part), objects).scatter_(
            1, chosen, 0.5 + torch.rand(chosen.shape, generator=generator)
        )
        part += strength @ directions
        shown.scatter_(1, chosen, True)
    return Collages(TensorRows(rows), labels, directions, mean)


def _frequencies(features: int, active: float, decay: float) -> Tensor:
    frequency = torch.arange(1, features + 1).float().pow(-decay)
    frequency *= active / frequency.sum()
    if frequency[0] > 1:
        raise ValueError(f"active: {active} with decay {decay} asks for a probability of {frequency[0]:.3g}")
    return frequency


def _generator(seed: int) -> torch.Generator:
    """Not manual_seed(seed): an SAE with init_seed = seed and as many latents would begin at these very directions."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))


def _unit(count: int, width: int, generator: torch.Generator) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(count, width, generator=generator), dim=1)


def _add_features(rows: Tensor, dictionary: Tensor, frequency: Tensor, generator: torch.Generator) -> None:
    for part in rows.split(8192):  # [8192, features] at a time
        on = torch.rand(len(part), len(dictionary), generator=generator) < frequency
        part += torch.randn(len(part), len(dictionary), generator=generator).abs_().mul_(on) @ dictionary
