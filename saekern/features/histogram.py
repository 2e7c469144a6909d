"""Histograms of many latents' activations from one pass, though nobody knows the largest activation beforehand."""

import torch
from torch import Tensor

BINS = 64  # a power of two, so that every bin's edge and every merge of bins is exact


class Histograms:
    """For each of L latents the counts of its positive activations in BINS bins of equal width from 0.

    A width is a power of two, the smallest that holds the largest activation so far, which then lies in the upper half.
    A larger one doubles it and merges pairs of bins. No activation changes its bin by that: bin i holds i·w ≤ z <
    (i+1)·w exactly, and the result depends on neither the order of rows nor on batches.
    """

    def __init__(self, latents: int) -> None:
        self.counts = torch.zeros(latents, BINS, dtype=torch.int64)
        self._exponent = torch.full((latents,), -2000)  # below any float's

    def add(self, slots: Tensor, values: Tensor) -> None:
        """Activations > 0 of latents `slots`, both [m]."""
        values = values.double()
        largest = torch.zeros(len(self.counts), dtype=torch.float64).scatter_reduce(0, slots, values, "amax")
        needed = torch.frexp(largest).exponent.long() - (BINS.bit_length() - 1)  # z < 2^x, so z / 2^(x−6) < 64
        self._widen(torch.where(largest > 0, needed.maximum(self._exponent), self._exponent))
        bins = (values * torch.exp2(-self._exponent[slots].double())).long()
        self.counts.view(-1).index_add_(0, slots * BINS + bins, torch.ones_like(bins))

    def _widen(self, exponent: Tensor) -> None:
        wider = (exponent > self._exponent).nonzero()[:, 0]
        shift = (exponent - self._exponent)[wider].clamp(max=BINS.bit_length())
        merged = torch.arange(BINS)[None] >> shift[:, None]  # [wider, BINS]
        self.counts[wider] = torch.zeros_like(self.counts[wider]).scatter_add(1, merged, self.counts[wider])
        self._exponent = exponent

    @property
    def width(self) -> Tensor:
        """float64 [L]: of a bin; 0 for a latent without positive activations."""
        seen = self.counts.sum(1) > 0
        return torch.where(seen, torch.exp2(self._exponent.double()), 0.0)
