"""The pictures of a study. Each is a plain function from results to a Matplotlib figure."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from saekern.report.drawing import BLUE, FAINT, GREY, INK, ORANGE, SCALE, Drawing
from saekern.report.pareto import comparable, pareto
from saekern.report.results import Results
from saekern.report.text import number

if TYPE_CHECKING:
    from matplotlib import figure as mpl
    from matplotlib.axes import Axes


def drawings(results: Results) -> list[Drawing]:
    """The figures of the study itself; those of experiments come with their sections."""
    chosen = FIGURES | (VARIANTS if comparable(results) else {})
    if results.evaluation is None:
        del chosen["frequency"]
    if results.saes:  # nobody knows where they started
        del chosen["distance"]
    return [
        Drawing(name, title, width, partial(_alone, make, results)) for name, (title, width, make) in chosen.items()
    ]


def _alone(
    make: "Callable[[Results, Axes], tuple[str, str]]", results: Results, figure: "mpl.Figure"
) -> tuple[str, str]:
    return make(results, figure.add_subplot())


def ecdf(results: Results, ax: "Axes") -> tuple[str, str]:
    arrays, stability = results.arrays, results.stability
    live = arrays["live"].astype(bool)
    comparisons = stability["seeds"] - 1
    for probability, alive in zip(arrays["probability"], live, strict=True):
        ax.step(*_steps(probability[alive]), where="post", color=BLUE, lw=0.7, alpha=0.35)
    ax.step(*_steps(arrays["probability"][live]), where="post", color=BLUE, lw=2.2, label="live latents, all seeds")
    ax.step(
        *_steps(arrays["probability_centred"][live]),
        where="post",
        color=ORANGE,
        lw=1.6,
        ls=(0, (4, 2)),
        label="centred",
    )
    ax.step(*_steps(arrays["null_probability"]), where="post", color=GREY, lw=1.8, ls=":", label="random dictionaries")
    ax.set(
        xlim=(-0.02, 1.02), ylim=(0, 1.03), xlabel="reappearance probability p", ylabel="share of latents at or below p"
    )
    ax.legend(loc="lower right", bbox_to_anchor=(1.0, 0.06))
    caption = (
        f"How often a latent reappears in the other {comparisons} seeds (a decoder row with cosine at least "
        f"{stability['threshold']:g}). Thin lines: each seed as the anchor. The dotted line is the same count among "
        "random dictionaries of the same size: what chance alone gives."
    )
    return caption, "Cumulative distribution of the reappearance probability, against random dictionaries."


def _steps(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x and y of an empirical CDF that starts at (0, 0)."""
    levels, counts = np.unique(values, return_counts=True)
    x = np.concatenate([[0.0], levels, [1.02]])
    share = np.cumsum(counts) / max(1, values.size)
    return x, np.concatenate([[0.0], share, [1.0]])


def composition(results: Results, ax: "Axes") -> tuple[str, str]:
    arrays, epsilon = results.arrays, results.stability["epsilon"]
    live, stable, unstable = (arrays[name].astype(bool) for name in ("live", "stable", "unstable"))
    parts = [
        ("stable", stable, BLUE),
        ("between", live & ~stable & ~unstable, "#9cc6ee"),
        ("unstable", unstable, ORANGE),
        ("dead", ~live, FAINT),
    ]
    seeds = np.arange(len(live))
    sizes = np.array(results.stability.get("sizes", [live.shape[1]]))  # where they differ, the smaller are padded
    bottom = np.zeros(len(live))
    for label, mask, colour in parts:
        share = (mask.sum(1) if label != "dead" else sizes - live.sum(1)) / sizes
        ax.bar(seeds, share, bottom=bottom, width=0.78, color=colour, label=label)
        bottom += share
    ax.set(xlabel="seed as the anchor", ylabel="share of latents", ylim=(0, 1))
    if len(live) <= 16:
        ax.set_xticks(seeds)
    ax.grid(False)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=4, columnspacing=1.2, handlelength=1.0)
    dead = "do not fire on the evaluated rows" if results.evaluation else "are those of no direction, as far as known"
    caption = (
        f"Every seed as the anchor in turn. Stable: p ≥ {1 - epsilon:g}. Unstable: p ≤ {epsilon:g}. Dead latents "
        f"{dead}: counted here, left out of the other figures."
    )
    return caption, "Stacked bars of stable, intermediate, unstable and dead latents for each seed."


def frequency(results: Results, ax: "Axes") -> tuple[str, str]:
    from matplotlib.colors import LinearSegmentedColormap

    arrays = results.arrays
    live = arrays["live"].astype(bool) & (arrays["firing"] > 0)
    p, rate = arrays["probability"][live], np.log10(arrays["firing"][live])
    levels = min(results.stability["seeds"], 21)
    if rate.size == 0:
        ax.text(0.5, 0.5, "no live latents", ha="center", transform=ax.transAxes)
        return "No latent fires on the evaluated rows.", "Empty figure."
    low, high = rate.min(), max(rate.max(), rate.min() + 0.1)
    columns = int(np.clip(rate.size // 40, 4, 28))
    counts, x_edges, y_edges = np.histogram2d(
        rate, p, bins=(columns, levels), range=((low, high), (-0.5 / levels, 1 + 0.5 / levels))
    )
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    shown = np.ma.masked_less_equal(shares, 0)
    colours = LinearSegmentedColormap.from_list("blues", SCALE)
    mesh = ax.pcolormesh(10**x_edges, y_edges, shown.T, cmap=colours, vmin=0, vmax=1, linewidth=0)
    filled = counts.sum(1) >= 5  # a mean of fewer latents is noise
    centres = 10 ** ((x_edges[1:] + x_edges[:-1]) / 2)
    sums, _ = np.histogram(rate, bins=x_edges, weights=p)
    ax.plot(
        centres[filled], sums[filled] / counts.sum(1)[filled], color=ORANGE, lw=2.2, marker="o", ms=3.5, label="mean"
    )
    ax.set(xscale="log", xlabel="firing frequency (share of rows)", ylabel="reappearance probability p")
    ax.grid(False)
    ax.legend(loc="upper left")
    ax.figure.colorbar(mesh, ax=ax, label="share of the latents in a column", pad=0.02).outline.set_visible(False)
    caption = (
        "Latents grouped by how often they fire; each column shows how their p is distributed, the line their mean. "
        "Rare latents are usually the ones that do not come back."
    )
    return caption, "Heat map of stability against firing frequency, with the mean as a line."


def cosine(results: Results, ax: "Axes") -> tuple[str, str]:
    arrays, stability = results.arrays, results.stability
    edges = arrays["histogram_edges"]
    series = (
        ("random dictionaries", arrays["null_histogram"], GREY, 0.3),
        ("rotated dictionaries", arrays["rotated_histogram"], ORANGE, 0.0),
        ("pairs of seeds", arrays["cosine_histogram"], BLUE, 0.3),
    )
    for label, counts, colour, opacity in series:
        density = counts / max(1, counts.sum())
        if opacity:
            ax.stairs(density, edges, fill=True, color=colour, alpha=opacity)
        ax.stairs(density, edges, color=colour, lw=1.6 if opacity else 1.0, label=label)
    ax.axvline(stability["threshold"], color=INK, lw=1, ls=(0, (3, 3)))
    ax.text(
        stability["threshold"], 0.98, f" θ = {stability['threshold']:g}", transform=ax.get_xaxis_transform(), va="top"
    )
    occupied = np.flatnonzero(arrays["cosine_histogram"] + arrays["null_histogram"])
    left = edges[occupied[0]] if occupied.size else 0.0
    ax.set(xlim=(min(0.0, left), 1.0), xlabel="best cosine in another seed", ylabel="share of latents")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=3, columnspacing=1.2, handlelength=1.4)
    caption = (
        "For every live latent and every other seed, the largest cosine with a decoder row there. "
        f"The median is {number(stability['raw']['cosine_quantiles']['0.5'], 3)} between seeds and "
        f"{number(stability['null']['random']['cosine_quantiles']['0.5']['mean'], 3)} between random ones of the same "
        "size. Thin line: every dictionary rotated by itself, which keeps its inner angles."
    )
    return caption, "Histogram of best cosines between seeds, against random dictionaries."


def pairs(results: Results, ax: "Axes") -> tuple[str, str]:
    from matplotlib.colors import LinearSegmentedColormap

    matched = results.arrays["pair_matched"].astype(float).copy()
    count = len(matched)
    np.fill_diagonal(matched, np.nan)
    off = matched[~np.isnan(matched)]
    low, high = (off.min(), off.max()) if off.size else (0.0, 1.0)
    high = max(high, low + 0.02)  # equal pairs still need a scale
    image = ax.imshow(
        matched, cmap=LinearSegmentedColormap.from_list("blues", SCALE), vmin=low, vmax=high, interpolation="nearest"
    )
    if count <= 10:
        for i, j in np.argwhere(~np.isnan(matched)):
            colour = "white" if matched[i, j] > (low + high) / 2 else "#10305c"
            ax.text(j, i, f"{100 * matched[i, j]:.0f}", ha="center", va="center", color=colour, fontsize=8)
    if count <= 16:
        ax.set(xticks=range(count), yticks=range(count))
    ax.set(xlabel="found in seed", ylabel="latents of seed")
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.figure.colorbar(image, ax=ax, label="share matched", pad=0.02).outline.set_visible(False)
    caption = (
        f"Share of the row seed's live latents that have a counterpart in the column seed (percent; "
        f"{low:.1%} to {high:.1%}). An outlying row or column is a run that went its own way."
    )
    return caption, "Heat map of matched shares for all pairs of seeds."


def distance(results: Results, ax: "Axes") -> tuple[str, str]:
    stability = results.stability
    kinds = [kind for kind in ("raw", "centred") if kind in stability["distance"]]
    if not kinds:
        ax.text(0.5, 0.5, "no pairs were matched one to one", ha="center", transform=ax.transAxes)
    for row, kind in enumerate(kinds):
        start, end = (stability["distance"][kind][time]["mean"] for time in ("initial", "final"))
        ax.annotate("", (end, row), (start, row), arrowprops={"arrowstyle": "-|>", "color": BLUE, "lw": 2})
        ax.plot(start, row, "o", ms=9, mfc="none", mec=GREY, mew=2)
        ax.plot(end, row, "o", ms=9, color=BLUE)
        ax.text(start, row + 0.2, f"D(0) = {start:.3f}", ha="center", va="center")  # below: the two may be close
        ax.text(end, row - 0.2, f"D(end) = {end:.3f}", ha="center", va="center")
    ax.set(yticks=range(len(kinds)), yticklabels=kinds, ylim=(len(kinds) - 0.5, -0.6), xlim=(-0.08, 1.08))
    ax.set_xlabel("mean cosine distance between matched latents")
    caption = (
        "Distance between independently initialised dictionaries before and after training, matched one to one. "
        "A small D(end) means something only if D(0) was large: runs that start together stay together."
    )
    if any(stability["distance"][kind]["shared_init"] for kind in kinds):
        caption += " Here runs share their initialisation (D(0) = 0), so nothing counts as stable."
    return caption, "Distances between dictionaries at the start and at the end of training."


Figure = tuple[str, float, Callable[[Results, "Axes"], tuple[str, str]]]  # title, width in inches, what draws it
FIGURES: dict[str, Figure] = {
    "ecdf": ("Stability against chance", 6.2, ecdf),
    "composition": ("Stable and unstable latents by seed", 6.2, composition),
    "frequency": ("Stability and firing frequency", 6.2, frequency),
    "cosine": ("Best cosine in another seed", 6.2, cosine),
    "pairs": ("Agreement of every pair of seeds", 6.2, pairs),
    "distance": ("From initialisation to the end", 6.2, distance),
}
VARIANTS: dict[str, Figure] = {"pareto": ("Explained variance against sparsity", 8.4, pareto)}
