"""One matching, or all of a store, in sentences and one picture."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saekern.matching import Certificate, Matching, PairStore
from saekern.report.drawing import BLUE, INK, STYLE, need_matplotlib
from saekern.sae.files import replace
from saekern.stability import pair_agreement
from saekern.stability.histogram import CosineHistogram

BINS = 200  # on [−1, 1]


def describe(found: Matching, aside: tuple[int, int], threshold: float) -> list[str]:
    """Counts, cosines, the proof and the margins of a matching, a sentence a line.

    Args:
        aside: how many latents of either side took no part.
    """
    cosine, live = found.cosine[~found.cosine.isnan()], len(found.index) - aside[0]
    lines = [_aside(aside)]
    if len(cosine) < live:
        lines.append(f"left over, since the other side has fewer: {live - len(cosine):,}")
    matched = int((cosine >= threshold).sum())
    lines.append(f"cosine ≥ {threshold:g}: {matched:,} ({matched / max(1, live):.1%})")
    if len(cosine):
        lines.append(f"cosine: mean {cosine.double().mean():.4f}, median {cosine.median():.4f}")
    if found.certificate is not None:
        lines += _proof(found.certificate)
    if found.margin is not None:
        lines += _margins(found.margin, found.certificate is not None)
    return lines


def _aside(aside: tuple[int, int]) -> str:
    return f"set aside, having no direction: {aside[0]:,} of A, {aside[1]:,} of B"


def _proof(proof: Certificate) -> list[str]:
    total = f"{proof.primal:.9g}"
    if not proof.exact:
        return [f"NOT PROVED optimal: the sum of cosines is {total}, the prices allow {proof.gap:.3g} more"]
    line = f"optimal: no one-to-one map has a larger sum of cosines than {total} (gap to the bound: {proof.gap:.1g})"
    checked = ["verified: a second look at all pairs found none above its prices"] if proof.verified else []
    return [line, *checked, f"rows of cosines looked at again: {proof.rows_recomputed:,}"]


def _margins(margin: Tensor, assigned: bool) -> list[str]:
    known = margin[~margin.isnan()].double()
    if not len(known):
        return []
    low, middle, high = known.quantile(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64, device=known.device))
    meaning = "the pair stays while its cosine falls by less" if assigned else "to the second best"
    return [f"margin: 10 % below {low:.4f}, half below {middle:.4f}, 90 % below {high:.4f} ({meaning})"]


def describe_all(store: PairStore, threshold: float) -> list[str]:
    """What the pairs of a store have in common, and which of them do not."""
    agreement = pair_agreement(store, threshold)
    sizes = sorted({f"{size:,}" for size in store.sizes})
    lines = [f"{len(store)} pairs of {len(store.sizes)} dictionaries ({' or '.join(sizes)} latents), {store.method}"]
    lines.append(f"set aside, dead or without direction: {sum(asides(store)):,} of {sum(store.sizes):,} latents")
    rate = agreement.match_rate
    if rate.isfinite().any():
        least, most = (_position(rate.nan_to_num(fill), largest) for fill, largest in ((2.0, False), (-1.0, True)))
        lines.append(f"cosine ≥ {threshold:g}: {rate[rate.isfinite()].mean():.1%} of the live latents on average")
        lines += [
            f"{word}: {rate[i, j]:.1%}, {i:03d} in {j:03d}" for word, (i, j) in (("least", least), ("most", most))
        ]
        name = ", the PW-MCC" if store.method == "assignment" else ""
        lines.append(f"mean cosine{name}: {agreement.mean_cosine.nanmean():.4f}")
    return lines


def _position(values: Tensor, largest: bool) -> tuple[int, int]:
    where = int(values.argmax() if largest else values.argmin())
    return divmod(where, values.shape[1])


def asides(store: PairStore) -> list[int]:
    """[S] how many latents of each run took no part."""
    return [int((~store.live(i)).sum()) for i in range(len(store.sizes))]


def histogram(cosines: Iterable[Tensor]) -> CosineHistogram:
    counts = CosineHistogram()
    for cosine in cosines:
        counts.add(cosine)
    return counts


def draw_cosines(path: Path, counts: CosineHistogram, title: str, note: str, threshold: float) -> None:
    """A PNG: how many of the matched latents have which cosine.

    Args:
        note: a line under the title: what was set aside.

    Raises:
        ImportError: Matplotlib is missing. OSError: the file cannot be written.
    """
    need_matplotlib("the picture needs")
    import matplotlib
    from matplotlib.figure import Figure

    columns, edges = (tensor.numpy() for tensor in counts.coarse(BINS))
    filled = columns.nonzero()[0]
    left = float(edges[filled[0]]) if len(filled) else 0.0
    style: Any = STYLE
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(6.2, 3.5), layout="constrained")
        ax = figure.add_subplot()
        ax.stairs(columns, edges, fill=True, color=BLUE, alpha=0.3)
        ax.stairs(columns, edges, color=BLUE, lw=1.4)
        ax.axvline(threshold, color=INK, lw=1, ls=(0, (3, 3)))
        ax.text(threshold, 0.98, f" θ = {threshold:g}", transform=ax.get_xaxis_transform(), va="top")
        ax.set(xlim=(min(left, threshold, 0.0), 1.0), xlabel="cosine with the partner", ylabel="matched latents")
        ax.set_title(title, loc="left", fontsize=10, fontweight="bold", pad=18)
        ax.text(0, 1.03, note, transform=ax.transAxes)
        replace(path, lambda temporary: figure.savefig(temporary, format="png", dpi=160, facecolor="white"))
