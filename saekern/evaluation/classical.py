"""Classical dictionary learning, to compare with: X [n, D] -> codes Z [n, k] and dictionary D [k, D] with X ≈ Z D.

They hold X in memory, in float64, and convex_nmf its [n, n] Gram matrix.
"""

import importlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saekern.sae.kmeans import kmeans

TINY = 1e-300


class Factors(NamedTuple):
    """X ≈ codes @ dictionary."""

    codes: Tensor  # [n, k]
    dictionary: Tensor  # [k, D]
    objective: list[float]  # ‖X − Z D‖_F² after each iteration, where we iterate ourselves


def k_means(x: Tensor, k: int, *, seed: int, **options: Any) -> Factors:
    """One atom a row: D the centroids, Z one 1 in each row."""
    found = kmeans(x, k, seed=seed, **options)
    codes = torch.zeros(len(x), k, dtype=found.centers.dtype).scatter_(1, found.labels[:, None].cpu(), 1)
    return Factors(codes, found.centers, [found.inertia])


def semi_nmf(x: Tensor, k: int, *, seed: int, iterations: int = 200) -> Factors:
    """min ‖X − Z D‖_F² with Z ≥ 0, D free; no step raises it.

    D ← (ZᵀZ)⁺ ZᵀX;  Z ← Z ⊙ √( ([X Dᵀ]₊ + Z [D Dᵀ]₋) / ([X Dᵀ]₋ + Z [D Dᵀ]₊) ), [a]₊ = max(a, 0), [a]₋ = max(−a, 0).
    Starts at k-means' codes plus 0.2. Source: Ding, Li & Jordan 2010, section II.
    """
    x = _matrix(x, k)
    codes = k_means(x, k, seed=seed).codes + 0.2
    objective = []
    for _ in range(iterations):
        dictionary = torch.linalg.lstsq(codes, x, driver="gelsd").solution
        objective.append(_objective(x, codes, dictionary))
        cross, gram = x @ dictionary.T, dictionary @ dictionary.T
        above = cross.clamp(min=0) + codes @ (-gram).clamp(min=0)
        below = (-cross).clamp(min=0) + codes @ gram.clamp(min=0)
        codes = codes * (above / below.clamp(min=TINY)).sqrt()
    dictionary = torch.linalg.lstsq(codes, x, driver="gelsd").solution
    return Factors(codes, dictionary, [*objective, _objective(x, codes, dictionary)])


def convex_nmf(x: Tensor, k: int, *, seed: int, iterations: int = 200) -> Factors:
    """min ‖X − Z W X‖_F² with Z, W ≥ 0: atoms D = W X in the data's cone; no step raises it.

    With K = X Xᵀ and G = Wᵀ:  Z ← Z ⊙ √( (K₊G + Z Gᵀ K₋ G) / (K₋G + Z Gᵀ K₊ G) ),
    G ← G ⊙ √( (K₊Z + K₋G ZᵀZ) / (K₋Z + K₊G ZᵀZ) ). At the end rows of W are scaled to sum 1 and Z with them, so atoms
    lie in the convex hull of the data. Source: Ding, Li & Jordan 2010, section III.
    """
    x = _matrix(x, k)
    gram = x @ x.T
    plus, minus = gram.clamp(min=0), (-gram).clamp(min=0)
    start = k_means(x, k, seed=seed).codes
    codes = start + 0.2
    mixing = codes / start.sum(0).clamp(min=1)  # [n, k]
    objective = []
    for _ in range(iterations):
        above = plus @ mixing + codes @ (mixing.T @ (minus @ mixing))
        below = minus @ mixing + codes @ (mixing.T @ (plus @ mixing))
        codes = codes * (above / below.clamp(min=TINY)).sqrt()
        square = codes.T @ codes
        above = plus @ codes + minus @ (mixing @ square)
        below = minus @ codes + plus @ (mixing @ square)
        mixing = mixing * (above / below.clamp(min=TINY)).sqrt()
        objective.append(_objective(x, codes, mixing.T @ x))
    total = mixing.sum(0).clamp(min=TINY)
    return Factors(codes * total, (mixing / total).T @ x, objective)


def nmf(x: Tensor, k: int, *, seed: int, iterations: int = 200, **options: Any) -> Factors:
    """min ‖X − Z D‖_F² with Z, D ≥ 0, for X ≥ 0: scikit-learn's NMF."""
    x = _matrix(x, k)
    if float(x.min()) < 0:
        raise ValueError(f"x: expected entries >= 0, got {float(x.min()):g}")
    return _fitted("NMF", x, k, {"random_state": seed, "max_iter": iterations} | options)


def sparse_pca(x: Tensor, k: int, *, seed: int, iterations: int = 200, **options: Any) -> Factors:
    """Sparse components of X − x̄: scikit-learn's SparsePCA. X ≈ Z D + x̄."""
    return _fitted("SparsePCA", _matrix(x, k), k, {"random_state": seed, "max_iter": iterations} | options)


def _fitted(name: str, x: Tensor, k: int, options: dict[str, Any]) -> Factors:
    try:
        decomposition = importlib.import_module("sklearn.decomposition")
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError(f"{name} needs scikit-learn: pip install 'saekern[classical]'") from missing
    model = getattr(decomposition, name)(n_components=k, **options)
    codes = torch.from_numpy(model.fit_transform(x.numpy()))
    dictionary = torch.from_numpy(model.components_)
    centred = x - torch.from_numpy(model.mean_) if hasattr(model, "mean_") else x
    return Factors(codes, dictionary, [_objective(centred, codes, dictionary)])


def _objective(x: Tensor, codes: Tensor, dictionary: Tensor) -> float:
    return float((x - codes @ dictionary).square().sum())


def _matrix(x: Tensor, k: int) -> Tensor:
    if x.dim() != 2 or not x.is_floating_point() or not torch.isfinite(x).all():
        raise ValueError(f"x: expected finite floating-point numbers [n, D], got {x.dtype} {list(x.shape)}")
    if not 1 <= k <= len(x):
        raise ValueError(f"k: expected 1 <= k <= {len(x)}, the number of rows, got {k}")
    return x.detach().cpu().double()
