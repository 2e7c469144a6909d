"""Do latents correspond to classes that are known? Plausibility and soft identifiability beside what chance gives."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saekern.activations import Rows
from saekern.evaluation import plausibility, soft_identifiability
from saekern.evaluation.rows import batches, encode
from saekern.matching import center, match
from saekern.matching.geometry import as_dictionary, live_rows
from saekern.sae import SparseCodes
from saekern.stability.nulls import random_rotation


@dataclass(frozen=True, eq=False)
class ClassBenchmark:
    """One SAE beside the classes of its rows. Made by `class_benchmark`. c classes that some rows have and some not."""

    plausibility: float
    """Mean over classes of the cosine of the class's direction with the nearest live latent."""
    plausibility_centered: float
    """The same of d − x̄ in place of each latent d, x̄ the mean row: for atoms that lie in data space, which a common
    offset makes alike. Where a bias carries the mean, look at `plausibility`."""
    plausibility_all: float
    """With dead latents, which describe nothing but may point anywhere."""
    plausibility_rotated: list[float]
    """Of randomly rotated copies of the live latents, one a draw: what chance gives."""
    identifiability: float
    """Mean over classes of the accuracy of the best single latent at its best threshold."""
    identifiability_shuffled: list[float]
    """With labels dealt to rows at random, one a draw: what choosing the best of F latents gives by chance. Never below
    `majority`."""
    majority: float
    """Mean over classes of max(p, 1 − p): the accuracy of a constant answer. With 4 of 20 objects a row it is 0.8."""
    cosine: Tensor
    """[c] cosine of each class's direction with its nearest live latent; NaN where the direction is zero."""
    latent: Tensor
    """[c] int64, that latent; −1 where there is none."""
    accuracy: Tensor
    """[c] float64 accuracy of the best latent for each class."""
    classes: Tensor
    """[c] int64: columns of the labels that are judged."""
    constant: int
    """Columns left out, because no row or every row has them."""
    support: Tensor
    """[c] int64 rows of each class."""
    rows: int
    """Rows evaluated."""
    live: Tensor
    """[F] bool: latents that were active in some row."""

    @property
    def excess(self) -> float:
        """(a − a₀) / (1 − a₀), a the identifiability and a₀ the mean of `identifiability_shuffled` (`majority` without
        draws): 0 by chance, 1 when a latent tells every class."""
        return _excess(self.identifiability, self.identifiability_shuffled or [self.majority])

    @property
    def plausibility_excess(self) -> float:
        """The same of plausibility, over `plausibility_rotated`; NaN without draws."""
        return _excess(self.plausibility, self.plausibility_rotated)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, each beside its null; None where there is none."""
        return {
            "classes": len(self.classes),
            "constant_classes": self.constant,
            "rows": self.rows,
            "latents": {"live": int(self.live.sum()), "dead": int((~self.live).sum())},
            "plausibility": {
                "value": _known(self.plausibility),
                "all_latents": _known(self.plausibility_all),
                "centered": _known(self.plausibility_centered),
                "rotated": _spread(self.plausibility_rotated),
                "excess": _known(self.plausibility_excess),
            },
            "identifiability": {
                "value": _known(self.identifiability),
                "majority": _known(self.majority),
                "shuffled": _spread(self.identifiability_shuffled),
                "excess": _known(self.excess),
            },
        }

    def table(self) -> list[dict[str, Any]]:
        """One flat dict a class."""
        columns = (self.classes, self.support, self.cosine, self.latent, self.accuracy)
        names = ("class", "rows", "cosine", "latent", "accuracy")
        lines = zip(*(column.tolist() for column in columns), strict=True)
        return [{name: _known(value) for name, value in zip(names, line, strict=True)} for line in lines]


def class_benchmark(
    sae: Any,
    rows: Rows,
    labels: Tensor,
    directions: Tensor | None = None,
    *,
    draws: int = 3,
    seed: int = 0,
    batch: int = 4096,
) -> ClassBenchmark:
    """Plausibility and soft identifiability of an SAE on rows whose classes are known, with their nulls.

    For language models a class can be what the current byte is (letter, digit, space …); for images what they show.
    Codes of all rows are held sparse: time grows with active codes × classes, once for each draw more.

    Args:
        sae: has `encode_sparse(x)` and `dictionary` [F, D].
        rows: [n, D], other rows than it was trained on.
        labels: [n] int64, the class of each row, −1 for none; or [n, c] bool, where a row may have several.
        directions: [c, D], such as the rows of a classifier's last layer, or the truth; None takes `class_directions`.
        draws: of each null.
        seed: decides the nulls.
        batch: rows at a time.

    Raises:
        ValueError: labels or directions that do not fit, or no class that tells rows apart.

    Source: the metrics of Fel et al. 2025 (arXiv 2502.12892); the nulls are ours.
    """
    known = _indicator(labels, len(rows))
    directions = class_directions(rows, known, batch=batch) if directions is None else directions.detach().cpu()
    dictionary = as_dictionary(sae).cpu()
    if list(directions.shape) != [known.shape[1], dictionary.shape[1]]:
        wanted = [known.shape[1], dictionary.shape[1]]
        raise ValueError(f"directions: expected shape {wanted}, got {list(directions.shape)}")
    if draws < 0:
        raise ValueError(f"draws: expected draws >= 0, got {draws}")
    support = known.sum(0)
    told = (support > 0) & (support < len(rows))
    if not told.any():
        raise ValueError("labels: expected a class that some rows have and some not, got none")
    classes, known = told.nonzero()[:, 0], known[:, told]
    directions, support = directions[told], support[told]

    codes, mean = _codes(sae, rows, batch)
    fired = torch.bincount(codes.indices[codes.values != 0], minlength=len(dictionary)) > 0
    live = fired & live_rows(dictionary, None)
    atoms = dictionary[live]
    rotated, shuffled = [], []
    for draw in range(draws):
        state = np.random.SeedSequence([seed, draw]).generate_state(1)
        generator = torch.Generator().manual_seed(int(state[0]))
        turned = atoms.double() @ random_rotation(atoms.shape[1], generator)
        rotated.append(_plausibility(turned, directions))
        order = torch.randperm(len(rows), generator=generator)
        shuffled.append(soft_identifiability(codes, known[order], len(dictionary))[0])
    partner = match(directions, dictionary, "nearest", dead=(None, ~live))
    identifiability, accuracy = soft_identifiability(codes, known, len(dictionary))
    share = support.double() / len(rows)
    return ClassBenchmark(
        _plausibility(atoms, directions),
        _plausibility(center(atoms, mean) if len(atoms) else atoms, directions),
        _plausibility(dictionary, directions),
        rotated,
        identifiability,
        shuffled,
        float(torch.maximum(share, 1 - share).mean()),
        partner.cosine,
        partner.index,
        accuracy,
        classes,
        int((~told).sum()),
        support,
        len(rows),
        live,
    )


def class_directions(rows: Rows, labels: Tensor, *, batch: int = 4096) -> Tensor:
    """[c, D]: the mean row of each class less the mean of all rows, in float64 sums; zero for a class without rows.

    Args:
        labels: [n] int64 (−1: no class) or [n, c] bool.
    """
    known = _indicator(labels, len(rows))
    total = torch.zeros(known.shape[1], rows.width, dtype=torch.float64)
    everything = torch.zeros(rows.width, dtype=torch.float64)
    start = 0
    for x in batches(rows, batch):
        total += known[start : start + len(x)].double().T @ x.cpu().double()
        everything += x.cpu().double().sum(0)
        start += len(x)
    count = known.sum(0)[:, None]
    return torch.where(count > 0, total / count.clamp(min=1) - everything / start, 0).float()


def _indicator(labels: Tensor, count: int) -> Tensor:
    """[n, c] bool."""
    labels = labels.cpu()
    if labels.dtype == torch.bool and labels.dim() == 2 and len(labels) == count and labels.shape[1]:
        return labels
    if labels.dtype != torch.int64 or list(labels.shape) != [count] or count == 0 or labels.min() < -1:
        raise ValueError(
            f"labels: expected bool [{count}, c] or int64 [{count}] of classes (-1: none), got {labels.dtype}"
            f" {list(labels.shape)}"
        )
    return labels[:, None] == torch.arange(max(1, int(labels.max()) + 1))


@torch.no_grad()
def _codes(sae: Any, rows: Rows, batch: int) -> tuple[SparseCodes, Tensor]:
    """The codes of all rows as CSR without zeros, on the CPU, and the mean row [D]."""
    values, indices, counts = [], [], []
    mean = torch.zeros(rows.width, dtype=torch.float64)
    for x in batches(rows, batch):
        codes = encode(sae, x)
        mean += x.cpu().double().sum(0) / len(rows)
        value, index = codes.values.cpu(), codes.indices.cpu()
        active = value != 0
        if codes.offsets is None:
            counts.append(active.sum(1))
        else:
            before = torch.cat([active.new_zeros(1, dtype=torch.int64), active.cumsum(0)])
            counts.append(before[codes.offsets.cpu()].diff())
        values.append(value[active])
        indices.append(index[active])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), torch.cat(counts).cumsum(0)])
    return SparseCodes(torch.cat(values), torch.cat(indices), offsets), mean.float()


def _plausibility(atoms: Tensor, directions: Tensor) -> float:
    return plausibility(atoms, directions) if len(atoms) else float("nan")


def _excess(value: float, null: list[float]) -> float:
    if not null:
        return float("nan")
    chance = sum(null) / len(null)
    return (value - chance) / (1 - chance) if chance < 1 else float("nan")


def _spread(draws: list[float]) -> dict[str, float | None]:
    known = [value for value in draws if value == value]
    if not known:
        return {"mean": None, "min": None, "max": None}
    return {"mean": sum(known) / len(known), "min": min(known), "max": max(known)}


def _known(value: float) -> float | None:
    return value if value == value else None
