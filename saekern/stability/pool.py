"""A dictionary of the latents that most seeds found, each once; and what it is worth beside one seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from saekern.matching.geometry import as_dictionary, live_rows
from saekern.sae import SAE, HierarchicalTopKSAE, TopKSAE
from saekern.sae.base import latent_rows

BLOCK = 1024  # candidates at a time: cosines [1024, F] against the pool


@dataclass(frozen=True, eq=False)
class FeaturePool:
    """Latents chosen from several runs, by run and number. Made by `feature_pool` or `random_pool`. P latents."""

    run: Tensor
    """[P] int64: which run each comes from."""
    latent: Tensor
    """[P] int64: its number there."""
    probability: Tensor
    """[P] float64: its p̂; NaN in a random pool."""
    filled: int
    """Latents that came only with the looser threshold."""
    short: int
    """How many fewer than asked for there are."""
    candidates: int
    """Live latents of all runs."""
    dead: int
    """Latents of all runs that were no candidates."""

    def to_json(self) -> dict[str, Any]:
        """The summary as plain numbers."""
        known = self.probability[self.probability.isfinite()]
        return {
            "size": len(self.latent),
            "filled": self.filled,
            "short": self.short,
            "candidates": self.candidates,
            "dead": self.dead,
            "by_run": torch.bincount(self.run).tolist(),
            "mean_probability": float(known.mean()) if len(known) else None,
            "least_probability": float(known.min()) if len(known) else None,
        }


def feature_pool(
    dictionaries: Sequence[Any],
    probability: Tensor,
    mass: Sequence[Tensor],
    size: int,
    *,
    threshold: float = 0.7,
    loose: float = 0.9,
) -> FeaturePool:
    """Candidates by p̂, the larger mass first among equals; one joins the pool if its cosine with all in it is below
    θ. If that ends short of `size`, the rest is filled by mass with latents whose cosine with all is below `loose`.

    The pool is ordered by run and number, so that a pool of identical runs is the first of them. Candidates are
    compared with the pool in blocks; nothing of size F² S exists.

    Args:
        dictionaries: S dictionaries [F, D] or SAEs.
        probability: [S, F], `FeatureStability.probability` of the same runs; NaN for latents that are no candidates.
        mass: S tensors [F], the mean |z| of each latent (`activation_mass`).
        size: latents wanted.

    Raises:
        ValueError: shapes that do not fit, no candidate, or thresholds that are not θ ≤ loose ≤ 1.

    Source: the feature pool of Gerasimov et al. 2026 (arXiv 2606.12138); the algorithm was not available, this is ours.
    """
    if not -1 <= threshold <= loose <= 1:
        raise ValueError(f"threshold and loose: expected -1 <= threshold <= loose <= 1, got {threshold} and {loose}")
    if size < 1:
        raise ValueError(f"size: expected size >= 1, got {size}")
    run, latent, rows, dead = _candidates(dictionaries, [row.isfinite() for row in probability], "probability")
    p = torch.cat([probability[s, latent[run == s]] for s in range(len(dictionaries))]).double().cpu()
    weight = torch.cat([mass[s].cpu().double()[latent[run == s]] for s in range(len(dictionaries))])
    by_mass = weight.argsort(descending=True, stable=True)
    order = by_mass[p[by_mass].argsort(descending=True, stable=True)]
    chosen = _greedy(rows, order, [], size, threshold)
    first = len(chosen)
    if first < size:
        taken = torch.zeros(len(rows), dtype=torch.bool)
        taken[chosen] = True
        chosen = _greedy(rows, by_mass[~taken[by_mass]], chosen, size, loose)
    picked = torch.tensor(sorted(chosen))
    return FeaturePool(run[picked], latent[picked], p[picked], len(chosen) - first, size - len(chosen), len(rows), dead)


def random_pool(dictionaries: Sequence[Any], live: Sequence[Tensor], size: int, *, seed: int = 0) -> FeaturePool:
    """`size` live latents of all runs, drawn without regard to p̂ or to each other: what a pool is compared with.

    Raises:
        ValueError: shapes that do not fit, or no live latent.
    """
    run, latent, rows, dead = _candidates(dictionaries, live, "live")
    drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:size].sort().values
    nothing = torch.full((len(drawn),), torch.nan, dtype=torch.float64)
    return FeaturePool(run[drawn], latent[drawn], nothing, 0, size - len(drawn), len(rows), dead)


@torch.no_grad()
def pool_sae(saes: Sequence[SAE], pool: FeaturePool) -> SAE:
    """A TopK SAE of the pool's latents with their encoder and decoder rows, as it is before training.

    b_dec is the mean over all runs. A latent's encoder bias takes up the difference of its run's b_dec to that, so that
    every latent reads the same pre-activation from a row as it did; what changes is whom it competes with. Decoder rows
    get norm 1 as everywhere in such SAEs, their encoder rows the factor.

    Raises:
        TypeError: SAEs that are no TopKSAE, or of different kinds.
        ValueError: SAEs whose k is larger than the pool, or of different width or k.
    """
    kind = type(saes[0])
    if kind not in (TopKSAE, HierarchicalTopKSAE) or any(type(sae) is not kind for sae in saes):
        names = sorted({type(sae).__name__ for sae in saes})
        raise TypeError(f"saes: expected TopKSAEs, all of one kind, got {', '.join(names)}")
    first = saes[0]
    others = ("d_in", "d_sae", "init_seed", "k_start", "k_steps")  # the seeds' annealing of k is over
    given = {name: value for name, value in first.config().items() if name not in others}
    for s, sae in enumerate(saes):
        if (sae.d_in, sae.config()["k"], sae.subtract_b_dec) != (first.d_in, given["k"], first.subtract_b_dec):
            raise ValueError(f"saes[{s}]: expected the d_in, k and subtract_b_dec of the first")
    size = len(pool.latent)
    if given["k"] > size:
        raise ValueError(f"pool: expected at least k = {given['k']} latents, got {size}")
    if given.get("k_aux") is not None:
        given["k_aux"] = min(given["k_aux"], size)
    dtype, device = first.b_dec.dtype, first.b_dec.device
    made = kind(first.d_in, size, **given, init_seed=0, dtype=dtype, device=device)
    center = torch.stack([sae.b_dec.double() for sae in saes]).mean(0)
    encoder, decoder = (torch.empty(size, first.d_in, dtype=torch.float64, device=device) for _ in range(2))
    bias = torch.empty(size, dtype=torch.float64, device=device)
    for s, sae in enumerate(saes):
        here = pool.run == s
        number = pool.latent[here].to(device)
        here = here.to(device)
        encoder[here], decoder[here] = sae.W_enc.T[number].double(), sae.W_dec[number].double()
        bias[here] = sae.b_enc[number].double()
        if sae.subtract_b_dec:
            bias[here] -= encoder[here] @ (sae.b_dec.double() - center)
    norm = torch.linalg.vector_norm(decoder, dim=1, keepdim=True)
    norm = torch.where((norm - 1).abs() < 1e-5, 1, norm)  # rounding of unit rows is left as it is
    made.W_enc = latent_rows((encoder * norm).to(dtype))
    made.W_dec.copy_(decoder / norm)
    made.b_enc.copy_(bias * norm[:, 0])
    made.b_dec.copy_(center)
    return made


def _candidates(dictionaries: Sequence[Any], live: Sequence[Tensor], name: str) -> tuple[Tensor, Tensor, Tensor, int]:
    """run, latent and unit rows [n, D] of the live latents of all runs, and how many are left out."""
    if len(live) != len(dictionaries) or not len(dictionaries):
        raise ValueError(
            f"{name}: expected one mask for each of {len(dictionaries)} runs (at least 1), got {len(live)}"
        )
    runs, latents, rows, dead = [], [], [], 0
    for s, source in enumerate(dictionaries):
        dictionary = as_dictionary(source, f"dictionaries[{s}]")
        mask = live[s][: len(dictionary)].to(dictionary.device)
        if mask.dtype != torch.bool or len(mask) != len(dictionary):
            raise ValueError(f"{name}[{s}]: expected {len(dictionary)} entries, got {list(mask.shape)} {mask.dtype}")
        mask = mask & live_rows(dictionary, None)
        dead += int((~mask).sum())
        rows.append(F.normalize(dictionary[mask], dim=1))
        latents.append(mask.nonzero()[:, 0].cpu())
        runs.append(torch.full_like(latents[-1], s))
    if not sum(map(len, rows)):
        raise ValueError(f"{name}: expected at least one live latent, got none")
    return torch.cat(runs), torch.cat(latents), torch.cat(rows), dead


def _greedy(rows: Tensor, order: Tensor, chosen: list[int], size: int, threshold: float) -> list[int]:
    """Adds to `chosen`, in order, each candidate whose cosine with all before it is below the threshold."""
    pool = torch.empty(size, rows.shape[1], dtype=rows.dtype, device=rows.device)
    pool[: len(chosen)] = rows[torch.tensor(chosen, dtype=torch.int64, device=rows.device)]
    chosen = list(chosen)
    for block in order.split(BLOCK):
        if len(chosen) == size:
            break
        vectors = rows[block.to(rows.device)]
        if chosen:
            fits = (vectors @ pool[: len(chosen)].T).amax(1) < threshold
            block, vectors = block[fits.cpu()], vectors[fits]
        alike = (vectors @ vectors.T >= threshold).cpu()
        free = torch.ones(len(block), dtype=torch.bool)
        start = len(chosen)
        kept = []
        for i in range(len(block)):
            if len(chosen) == size:
                break
            if free[i]:
                free &= ~alike[i]
                kept.append(i)
                chosen.append(int(block[i]))
        pool[start : len(chosen)] = vectors[torch.tensor(kept, dtype=torch.int64, device=rows.device)]
    return chosen
