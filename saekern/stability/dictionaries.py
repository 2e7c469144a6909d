"""The stability score of archetypal SAEs: how alike dictionaries are as wholes."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F

from saekern.matching import linear_sum_assignment, match
from saekern.matching.geometry import as_dictionary, live_rows


def dictionary_stability(dictionaries: Sequence[Any], *, absolute: bool = False) -> float:
    """Mean over pairs of dictionaries of max_π (1/k) Σ_i cos(d_i, d'_π(i)), π one-to-one; 1 for permuted copies.

    Zero atoms are left out; k is then the smaller number of atoms that are left. By chance it is far from 0, and with a
    common offset of the atoms near 1: `random_null` and `matching.center`.

    Args:
        absolute: |cos| in place of cos, as texts that allow signed permutations have it. Dense: F² float64.

    Raises:
        ValueError: fewer than two dictionaries, or different widths.

    Source: Fel et al. 2025 (arXiv 2502.12892); their code takes the signed cosine.
    """
    if len(dictionaries) < 2:
        raise ValueError(f"dictionaries: expected at least 2, got {len(dictionaries)}")
    pair = _absolute if absolute else _signed
    scores = [pair(dictionaries[i], dictionaries[j]) for i, j in combinations(range(len(dictionaries)), 2)]
    return sum(scores) / len(scores)


def _signed(a: Any, b: Any) -> float:
    return match(a, b, "assignment").cosine.double().nanmean().item()


def _absolute(a: Any, b: Any) -> float:
    a, b = (as_dictionary(source) for source in (a, b))
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"dictionaries: expected equal widths, got {list(a.shape)} and {list(b.shape)}")
    a, b = (F.normalize(rows[live_rows(rows, None)].double(), dim=1) for rows in (a, b))
    if not len(a) or not len(b):
        return float("nan")
    cosine = (a @ b.T.to(a.device)).abs().cpu().numpy()
    row, column = linear_sum_assignment(cosine, maximize=True)
    return min(1.0, float(torch.from_numpy(cosine[row, column]).mean()))
