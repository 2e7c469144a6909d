"""Paulo and Belrose's rule: a latent is shared when encoder and decoder choose the same partner, both closely."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saekern.matching import PairStore
from saekern.matching.all_pairs import AllPairs
from saekern.stability.lazy import Lazy


@dataclass(frozen=True, eq=False)
class SharedLatents:
    """Shares of the anchor's live latents for every ordered pair of runs, row the anchor. Made by `shared_latents`."""

    shared: Tensor
    """[S, S] float64: the same partner by encoder and by decoder, both cosines ≥ θ; NaN on the diagonal."""
    same_partner: Tensor
    """[S, S]: the same partner, whatever the cosines."""
    encoder: Tensor
    """[S, S]: the encoder's partner reaches θ."""
    decoder: Tensor
    """[S, S]: the decoder's partner reaches θ."""
    chance: Tensor
    """[S, S]: the null of `same_partner`, 1 / live latents of the other run: partners chosen independently. Of `shared`
    it is an upper bound."""
    probability: Tensor
    """[S, F] float64: share of the other runs in which the latent is shared; NaN for dead latents and padding."""
    threshold: float
    """θ."""
    method: str
    """"assignment" (one-to-one, as in the source) or "nearest"."""

    def to_json(self) -> dict[str, Any]:
        """Mean and standard deviation over ordered pairs as plain numbers."""
        out: dict[str, Any] = {"threshold": self.threshold, "method": self.method}
        for name in ("shared", "same_partner", "encoder", "decoder", "chance"):
            known = getattr(self, name)
            known = known[known.isfinite()]
            mean, sd = known.mean().item(), known.std().item() if len(known) > 1 else None
            out[name] = {"mean": mean if len(known) else None, "sd": sd}
        return out


def encoders(saes: Sequence[Any]) -> Sequence[Tensor]:
    """The encoders [F, D] of SAEs as dictionaries, made when they are asked for."""
    return Lazy(len(saes), lambda i: saes[i].W_enc.detach().T)


def shared_latents(
    encoder: PairStore | AllPairs, decoder: PairStore | AllPairs, threshold: float = 0.7
) -> SharedLatents:
    """A latent is shared iff π_enc(i) = π_dec(i), cos_enc ≥ θ and cos_dec ≥ θ. Dead latents are left out: of the
    matchings by their masks, and of the shares.

        saes = [...]
        shared_latents(match_all(encoders(saes), dead=dead, method="assignment"), match_all(saes, ..., dead=dead))

    Raises:
        ValueError: pairs made by different methods, or of runs that do not fit.

    Source: Paulo & Belrose 2025, arXiv 2501.16615 (30 % shared at 131k latents there, 42 % at 32k).
    """
    if encoder.method != decoder.method:
        raise ValueError(f"decoder: expected the method of encoder, {encoder.method!r}, got {decoder.method!r}")
    if encoder.sizes != decoder.sizes:
        raise ValueError(f"decoder: expected the sizes of encoder, {encoder.sizes}, got {decoder.sizes}")
    if not -1 <= threshold <= 1:
        raise ValueError(f"threshold: expected a cosine in -1..1, got {threshold}")
    runs = len(encoder.sizes)
    live = [encoder.live(i).cpu() & decoder.live(i).cpu() for i in range(runs)]
    tables = torch.full((5, runs, runs), torch.nan, dtype=torch.float64)
    hits = torch.zeros(runs, max(encoder.sizes), dtype=torch.int64)
    for enc, dec in zip(encoder, decoder, strict=True):
        if (enc.i, enc.j) != (dec.i, dec.j):
            raise ValueError(f"decoder: expected pair {enc.i}, {enc.j} next, got {dec.i}, {dec.j}; match into stores")
        i, j = enc.i, enc.j
        for row, column, a, b in ((i, j, enc.forward, dec.forward), (j, i, enc.backward, dec.backward)):
            same = (a.index == b.index).cpu() & (a.index >= 0).cpu() & live[row]
            close_a, close_b = ((m.cosine >= threshold).cpu() & live[row] for m in (a, b))
            both = same & close_a & close_b
            hits[row, : len(both)] += both
            counts = torch.stack([mask.sum() for mask in (both, same, close_a, close_b)]).double()
            tables[:4, row, column] = counts / live[row].sum()
            tables[4, row, column] = 1 / live[column].sum().double()
    probability = torch.full(hits.shape, torch.nan, dtype=torch.float64)
    for run, mask in enumerate(live):
        probability[run, : len(mask)][mask] = hits[run, : len(mask)][mask].double() / (runs - 1)
    return SharedLatents(tables[0], tables[1], tables[2], tables[3], tables[4], probability, threshold, encoder.method)
