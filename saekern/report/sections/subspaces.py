"""Whether the unstable latents of different seeds lie in the same directions."""

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from saekern.report.drawing import BLUE, GREY, INK, ORANGE, Drawing
from saekern.report.results import Results
from saekern.report.section import Section, Table
from saekern.report.text import interval, number, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "Do unstable latents of different seeds share directions?"
CONTROLS = {
    "pca": "principal directions of the data",
    "stable": "another seed's stable latents",
    "random": "random directions",
    "gaussian": "Gaussian rows",
}
ARMS = {"own": "its own subspace", "cross": "another seed's subspace"} | CONTROLS
COLOURS = {"own": INK, "cross": BLUE, "pca": ORANGE, "stable": "#3d9a50", "random": GREY, "gaussian": "#b0478f"}
METRICS = {"ev": "loss of explained variance", "ce": "rise of cross-entropy, nats"}


def section(found: dict[str, Any], results: Results) -> Section:
    raw, replaced = found["raw"], found["replacement"]
    tables = [_shares(found, kind) for kind in ("raw", "centred")] + [_summary(found)]
    drawings = [
        Drawing("subspaces_energy", "Energy of unstable latents in subspaces", 9.5, partial(_energy, found)),
        Drawing("subspaces_excess", "What another seed's subspace has beyond controls", 9.5, partial(_excess, found)),
    ]
    if replaced is not None:
        tables += [_replacement(replaced, metric) for metric in _measured(replaced)]
        drawings.append(Drawing("subspaces_replacement", "What a subspace keeps", 9.5, partial(_losses, replaced)))
    notes = [
        f"Decoder rows of norm 1. Unstable latents a seed: {_range(raw['unstable'])}; stable ones in that control: "
        f"{_range(raw['stable_used'])}; {found['left_out']} seeds with fewer than two unstable ones left out. The "
        f"principal directions are of {found['sample']:,} training rows. Rank {found['rank']} was chosen before seeing "
        "results. The published experiment's details were not available: controls and intervals are ours.",
        f"Intervals are {raw['confidence']:.0%}, by leaving one seed out, since pairs share seeds; each by itself, "
        f"{raw['comparisons']} comparisons in each of the two tables are not corrected for their number. No difference "
        "is given where a rank is more than some seed has latents.",
        "Null: the principal directions. If unstable latents merely lie where activations vary, any seed's subspace "
        "holds any other's. A seed's own subspace is fitted to its rows: even Gaussian rows without structure have "
        "more energy in their own directions than the r/D of random ones, as the table shows.",
    ]
    return Section("subspaces", TITLE, _verdict(found), tuple(tables), tuple(drawings), tuple(notes))


def _verdict(found: dict[str, Any]) -> str:
    raw, rank = found["raw"], found["rank"]
    at = raw["ranks"].index(rank)
    cross = raw["share"]["cross"]
    said = [
        f"{rank} of {raw['width']} directions of another seed's unstable latents hold "
        f"{percent(*(cross[end][at] for end in ('mean', 'lower', 'upper')))} of the energy of a seed's own, and those "
        f"of its own hold {percent(raw['within'][at])} (for Gaussian rows {percent(raw['gaussian_within'][at])})."
    ]
    for control in ("pca", "random"):
        if control in raw["excess"]:
            ends = [raw["excess"][control][end][at] for end in ("mean", "lower", "upper")]
            said.append(f"That is {_compared(ends)} {CONTROLS[control]} hold{_points(ends)}.")
    if found["centred"]["excess"].get("pca") is not None:
        ends = [found["centred"]["excess"]["pca"][end][at] for end in ("mean", "lower", "upper")]
        said.append(f"Centred, it is {_compared(ends)} the principal directions hold{_points(ends)}.")
    replaced = found["replacement"]
    if replaced is not None and rank in replaced["ranks"]:
        at = replaced["ranks"].index(rank)
        for metric in _measured(replaced):
            ends = [replaced["differences"]["cross - pca"][metric][end][at] for end in ("mean", "lower", "upper")]
            word = _word(ends, "more than", "less than", "no measurably different amount from")
            said.append(
                f"Projecting what unstable latents add to the reconstruction on another seed's {rank} directions costs "
                f"{word} projecting it on the data's ({METRICS[metric]}, {_signed(ends, 4)})."
            )
    return " ".join(said)


def _word(ends: list[float | None], more: str, less: str, neither: str) -> str:
    mean, low, high = ends
    if mean is None or low is None or high is None:
        return neither
    return more if low > 0 else less if high < 0 else neither


def _compared(ends: list[float | None]) -> str:
    if ends[0] is None:
        return "not comparable (too few unstable latents) with what"
    if ends[1] is None:
        return "not known to differ (too few seeds for an interval) from what"
    return _word(ends, "more than", "less than", "not measurably different from what")


def _points(ends: list[float | None]) -> str:
    if ends[0] is None:
        return ""
    mean, *reach = (None if end is None else 100 * end for end in ends)
    span = "" if reach[0] is None or reach[1] is None else f", {reach[0]:+.1f} to {reach[1]:+.1f}"
    return f" ({mean:+.1f} percentage points{span})"


def _signed(ends: list[float | None], digits: int) -> str:
    mean, low, high = ends
    span = "" if low is None or high is None else f", {low:+.{digits}f} to {high:+.{digits}f}"
    return f"difference {mean:+.{digits}f}{span}"


def _range(counts: list[int]) -> str:
    return f"{min(counts):,}" if min(counts) == max(counts) else f"{min(counts):,} to {max(counts):,}"


def _measured(replaced: dict[str, Any]) -> list[str]:
    return [metric for metric in METRICS if replaced[metric] is not None]


def _shares(found: dict[str, Any], kind: str) -> Table:
    given = found[kind]
    controls = [name for name in CONTROLS if name in given["excess"]]
    header = ["rank", "another seed's", "its own", "own − another's"]
    header += [CONTROLS[name] for name in controls] + [f"another's − {CONTROLS[name]}" for name in controls]
    header += ["r/D", "own, Gaussian rows", "mean cos² of angles"]
    rows = []
    for i, rank in enumerate(given["ranks"]):
        cells = [_cell(given["share"]["cross"], i), number(given["within"][i], 3), _cell(given["gap"], i)]
        cells += [_cell(given["share"][name], i) for name in controls]
        cells += [_cell(given["excess"][name], i) for name in controls]
        cells += [number(given["chance"][i], 3), number(given["gaussian_within"][i], 3)]
        rows.append([f"{rank}", *cells, _cell(given["share"]["angles"], i)])
    title = "Share of the energy of a seed's unstable latents" + (", centred" if kind == "centred" else "")
    return Table(f"subspaces_{kind}", title, header, rows)


def _cell(ends: dict[str, list[float | None]], i: int, digits: int = 3) -> str:
    return interval(*(ends[end][i] for end in ("mean", "lower", "upper")), digits=digits)


def _summary(found: dict[str, Any]) -> Table:
    names = {"stable_rank": "stable rank", "effective_rank": "effective rank", "rank_at_90": "rank at 90 % of energy"}
    rows = []
    for kind in ("raw", "centred"):
        for name, label in names.items():
            values = found[kind][name]
            cells = (sum(values) / len(values), min(values), max(values))
            rows.append([f"{label}, {kind}", *(f"{value:.1f}" for value in cells)])
    return Table("subspaces_ranks", "Rank of a seed's unstable latents", ["", "mean", "least", "most"], rows)


def _replacement(replaced: dict[str, Any], metric: str) -> Table:
    arms = [arm for arm in ARMS if arm in replaced["arms"]]
    header = ["rank kept", *(ARMS[arm] for arm in arms), "another's − principal directions"]
    rows = []
    for i, rank in enumerate(replaced["ranks"]):
        cells = [_cell(replaced["arms"][arm][metric], i, 4) for arm in arms]
        rows.append([f"{rank}", *cells, _cell(replaced["differences"]["cross - pca"][metric], i, 4)])
    title = f"{METRICS[metric].capitalize()} if what unstable latents add is projected"
    return Table(f"subspaces_replacement_{metric}", title, header, rows)


def _line(ax: "Axes", ranks: list[int], ends: dict[str, list[float | None]], colour: str, label: str) -> None:
    at = [i for i, mean in enumerate(ends["mean"]) if mean is not None]
    mean = [ends["mean"][i] for i in at]
    ax.plot([ranks[i] for i in at], np.array(mean, dtype=float), color=colour, lw=1.7, marker="o", ms=2.5, label=label)
    at = [i for i in at if ends["lower"][i] is not None]
    low, high = ([ends[end][i] for i in at] for end in ("lower", "upper"))
    ax.fill_between([ranks[i] for i in at], low, high, color=colour, alpha=0.15, lw=0)  # type: ignore[arg-type]


def _axis(ax: "Axes", xlabel: str) -> None:
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.set_xlabel(xlabel)


def _fair(found: dict[str, Any], kind: str, name: str) -> dict[str, list[float | None]]:
    """A line as far as the seeds have stable latents for it."""
    most = min(found[kind]["stable_used"]) if name == "stable" else found[kind]["width"]
    keep = [rank <= most for rank in found[kind]["ranks"]]
    return {
        end: [value if kept else None for value, kept in zip(values, keep, strict=True)]
        for end, values in found[kind]["share"][name].items()
    }


def _energy(found: dict[str, Any], figure: "Figure") -> tuple[str, str]:
    axes = figure.subplots(1, 2, sharey=True)
    for ax, kind in zip(axes, ("raw", "centred"), strict=True):
        given = found[kind]
        ranks = given["ranks"]
        ax.plot(ranks, given["within"], color=COLOURS["own"], lw=1.4, ls="--", label=ARMS["own"])
        ax.plot(ranks, given["gaussian_within"], color=GREY, lw=1.2, ls="--", label="own, Gaussian rows")
        for name in ("cross", *(name for name in CONTROLS if name in given["share"])):
            _line(ax, ranks, _fair(found, kind, name), COLOURS[name], ARMS[name])
        ax.axvline(found["rank"], color=GREY, lw=0.8, ls=":")
        ax.set_title(kind, fontsize=9)
        _axis(ax, "r, dimensions")
    axes[0].set_ylabel("share of energy of unstable latents")
    axes[0].legend(loc="upper left", fontsize=7.5)
    caption = (
        "How much of the energy of one seed's unstable decoder rows r directions hold. Blue: the directions are those "
        "of another seed's unstable rows. Dashed: its own, which are fitted to it. The vertical line is the rank of "
        "the verdict."
    )
    return caption, "Lines of captured energy against rank, raw and centred, with controls."


def _excess(found: dict[str, Any], figure: "Figure") -> tuple[str, str]:
    axes = figure.subplots(1, 2, sharey=True)
    for ax, kind in zip(axes, ("raw", "centred"), strict=True):
        given = found[kind]
        for name in (name for name in CONTROLS if name in given["excess"]):
            _line(ax, given["ranks"], given["excess"][name], COLOURS[name], CONTROLS[name])
        ax.axhline(0, color=INK, lw=0.8)
        ax.axvline(found["rank"], color=GREY, lw=0.8, ls=":")
        ax.set_title(kind, fontsize=9)
        _axis(ax, "r, dimensions")
    axes[0].set_ylabel("share of another seed's less the control's")
    axes[0].legend(loc="upper left", fontsize=7.5)
    caption = (
        f"Another seed's subspace less each control, {found['raw']['confidence']:.0%} intervals. Above 0 against the "
        "principal directions: unstable latents share more than that they lie where activations vary. Below: less."
    )
    return caption, "Lines of the excess over controls against rank, raw and centred."


def _losses(replaced: dict[str, Any], figure: "Figure") -> tuple[str, str]:
    metrics = _measured(replaced)
    axes = figure.subplots(1, len(metrics), squeeze=False)[0]
    for ax, metric in zip(axes, metrics, strict=True):
        for arm in (arm for arm in ARMS if arm in replaced["arms"]):
            _line(ax, replaced["ranks"], replaced["arms"][arm][metric], COLOURS[arm], ARMS[arm])
        _axis(ax, "r, dimensions kept")
        ax.set_xscale("symlog", base=2, linthresh=1)
        ticks = [rank for rank in replaced["ranks"] if rank & (rank - 1) == 0 or rank == 0]
        ax.set_xticks(ticks, [f"{rank}" for rank in ticks])
        ax.set_ylim(bottom=0)
        ax.set_ylabel(METRICS[metric])
    axes[0].legend(loc="lower left", fontsize=7.5)
    caption = (
        f"What seed {replaced['anchor']}'s {replaced['latents']} unstable latents add to a reconstruction, projected "
        f"on r directions ({replaced['rows']:,} rows). At 0 it is removed. Lower is better. "
        f"{replaced['confidence']:.0%} intervals over subspaces and rows (or texts). A line is flat where there are no "
        "more directions."
    )
    return caption, "Lines of the loss against the dimensions kept, for own, other seeds' and control subspaces."
