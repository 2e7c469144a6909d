"""What chosen latents add to a reconstruction, from one encoding of the rows.

x̂ is affine in the codes, so that masking latents after the selection takes their contribution from x̂, and any number of
masks costs one encoding and their own latents' products. Nothing is selected anew in the place of a masked latent.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saekern.activations import Rows
from saekern.evaluation.rows import Variance, batches, encode, reconstruction
from saekern.sae import SparseCodes


class Entries(NamedTuple):
    """The non-zero codes of B rows, ascending by row."""

    values: Tensor  # [n]
    latents: Tensor  # [n] int64
    rows: Tensor  # [n] int64, 0 … B − 1
    batch: int  # B

    def of(self, chosen: Tensor) -> "Entries":
        """Those where `chosen` [n] (bool) holds."""
        return Entries(self.values[chosen], self.latents[chosen], self.rows[chosen], self.batch)


class Reconstructed(NamedTuple):
    """A batch of rows with its codes; what `reconstructions` gives."""

    x: Tensor  # [B, D] as the SAE takes it
    x_hat: Tensor  # [B, D] float64
    entries: Entries
    start: int  # the number of the first row
    base: Tensor  # [B, D] float64: x̂ without any latent, b_dec in most architectures

    def part(self, sae: Any, entries: Entries) -> Tensor:
        """What these codes contribute to x̂, [B, D] float64."""
        return _decode(sae, entries, self.x) - self.base


def entries_of(codes: Any) -> Entries:
    """The non-zero codes of a batch, fixed in number or ragged."""
    values = codes.values.reshape(-1)
    if codes.offsets is None:
        count = codes.values.shape[0]
        rows = torch.arange(count, device=values.device).repeat_interleave(codes.values.shape[1])
    else:
        count = len(codes.offsets) - 1
        rows = torch.arange(count, device=values.device).repeat_interleave(codes.offsets.diff().to(values.device))
    return Entries(values, codes.indices.reshape(-1), rows, count).of(values != 0)


@torch.no_grad()
def reconstructed(sae: Any, x: Tensor, start: int = 0) -> Reconstructed:
    """Rows [B, D], encoded once."""
    dictionary = sae.dictionary
    x = x.to(dictionary.device, dictionary.dtype)
    codes = encode(sae, x)
    entries = entries_of(codes)
    base = _decode(sae, entries.of(torch.zeros_like(entries.rows, dtype=torch.bool)), x)
    return Reconstructed(x, reconstruction(sae, codes, x).double(), entries, start, base)


def reconstructions(sae: Any, rows: Rows, batch: int) -> Iterator[Reconstructed]:
    """All rows in order, a batch at a time.

    Raises:
        ValueError: no rows, or a width that is not the SAE's.
    """
    _check_width(sae, rows)
    start = 0
    for x in batches(rows, batch):
        yield reconstructed(sae, x, start)
        start += len(x)


def nested(sae: Any, given: Reconstructed, when: Tensor, levels: int) -> Iterator[Tensor]:
    """c_0 … c_{levels−1} [B, D] float64: what the latents masked at level l or before contribute to x̂.

    Args:
        when: [F] the level at which each latent is masked; `levels` for never.
    """
    place = when.to(given.entries.latents.device)[given.entries.latents]
    total = torch.zeros_like(given.x_hat)
    present = set(place.unique().tolist())
    for level in range(levels):
        if level in present:
            total = total + given.part(sae, given.entries.of(place == level))
        yield total


@torch.no_grad()
def activation_mass(sae: Any, rows: Rows, batch: int = 4096) -> tuple[Tensor, Tensor]:
    """Mean |z_i| over all rows, float64 [F], zeros included, and the rows on which each latent fires, int64 [F]."""
    _check_width(sae, rows)
    latents = sae.dictionary.shape[0]
    mass, counts = torch.zeros(latents, dtype=torch.float64), torch.zeros(latents, dtype=torch.int64)
    for x in batches(rows, batch):
        entries = entries_of(encode(sae, x))
        index = entries.latents.cpu()
        mass += torch.bincount(index, entries.values.abs().double().cpu(), minlength=latents)
        counts += torch.bincount(index, minlength=latents)
    return mass / len(rows), counts


class Blocks:
    """Squared errors of a stream of n rows, summed in blocks of consecutive rows: the units of intervals over rows.
    Consecutive, because the rows of one text resemble each other."""

    def __init__(self, rows: int, blocks: int) -> None:
        if not 2 <= blocks <= rows:
            raise ValueError(f"blocks: expected 2 to {rows} (the rows), got {blocks}")
        self.rows, self.count = rows, blocks

    def sums(self, error: Tensor, start: int) -> Tensor:
        """[..., blocks] float64 from ‖error‖² of consecutive rows [..., B] beginning with row `start`."""
        number = (torch.arange(start, start + error.shape[-1]) * self.count) // self.rows
        out = torch.zeros(*error.shape[:-1], self.count, dtype=torch.float64)
        return out.index_add_(-1, number, error.double().cpu())


@torch.no_grad()
def block_errors(sae: Any, rows: Rows, blocks: int, batch: int = 4096) -> tuple[Tensor, float]:
    """Σ‖x − x̂‖² of each block [blocks], and Σ‖x − x̄‖² of all rows."""
    units, variance = Blocks(len(rows), blocks), Variance(rows.width)
    errors = torch.zeros(blocks, dtype=torch.float64)
    for given in reconstructions(sae, rows, batch):
        variance.add(given.x.cpu())
        errors += units.sums((given.x.double() - given.x_hat).square().sum(1), given.start)
    return errors, variance.total()


def _decode(sae: Any, entries: Entries, x: Tensor) -> Tensor:
    offsets = torch.zeros(entries.batch + 1, dtype=torch.int64, device=entries.rows.device)
    offsets[1:] = torch.bincount(entries.rows, minlength=entries.batch).cumsum(0)
    return reconstruction(sae, SparseCodes(entries.values, entries.latents, offsets), x).double()


def _check_width(sae: Any, rows: Rows) -> None:
    width = sae.dictionary.shape[1]
    if rows.width != width:
        raise ValueError(f"rows: expected the SAE's width {width}, got {rows.width}")
