"""SAEs of the latents that most seeds found, beside single seeds and random pools."""

from functools import partial
from typing import TYPE_CHECKING, Any

from saekern.report.drawing import BLUE, GREY, ORANGE, Drawing
from saekern.report.results import Results
from saekern.report.section import Section, Table
from saekern.report.text import interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Is an SAE of the latents that most seeds found more stable?"
ARMS = {"pool": "pool", "single": "single seed", "random": "random pool"}
COLOURS = {"pool": BLUE, "single": ORANGE, "random": GREY}
# Label and digits of each measure.
MEASURES = {
    "ev_before": ("explained variance before", 4),
    "ev": ("explained variance", 4),
    "ce": ("cross-entropy, nats", 4),
    "recovered": ("cross-entropy recovered", 4),
    "l0": ("active latents a row", 2),
    "dead": ("dead latents", 1),
    "mass_covered": ("mass of the other half's seeds that it covers, before", 3),
    "match_rate_before": ("match rate of the two, before", 3),
    "match_rate": ("match rate of the two", 3),
    "mean_cosine": ("mean cosine of the two, one to one", 3),
    "reappearance": ("share of latents in the other half's seeds (p̂)", 3),
}
SHOWN = ("match_rate", "reappearance", "ev")


def section(found: dict[str, Any], results: Results) -> Section:
    pools = [pool for one in found["runs"] for pool in one["pools"]]
    filled, size = sum(pool["filled"] for pool in pools) / len(pools), sum(pool["size"] for pool in pools) / len(pools)
    least = [pool["least_probability"] for pool in pools if pool["least_probability"] is not None]
    notes = [
        f"{found['divisions']} random divisions of the seeds into halves of {found['seeds'][0]} and "
        f"{found['seeds'][1]}; each half makes a pool, a single seed and a random pool, and all six are trained on the "
        f"same {found['extra_rows']:,} rows in the same order, learning rate {found['lr']:.2g}. The two of a kind come "
        "from different seeds, so that pools do not agree for sharing latents. Single seeds get the same extra rows.",
        f"A pool takes latents by p̂ among its half's seeds, each once (cosine below {found['threshold']:g} with all "
        f"taken before); {size:.0f} latents, of which {filled:.0f} came by mass under the looser threshold; the least "
        f"p̂ is {min(least, default=0):.2f}. The published algorithm was not available: choice and comparison are ours.",
        f"Intervals are {found['confidence']:.0%}, Student's over divisions, differences paired by division. Divisions "
        "share their seeds: other seeds would vary somewhat more. "
        f"{found['comparisons']} comparisons are not corrected for their number. Null: the random pool.",
    ]
    drawing = Drawing("pooling", "Pools, single seeds and random pools", 9.5, partial(_draw, found))
    tables = (_arms(found), _differences(found))
    return Section("pooling", TITLE, _verdict(found), tables, (drawing,), tuple(notes))


def _measures(found: dict[str, Any]) -> list[str]:
    return [name for name in MEASURES if name in found["arms"]["pool"]]


def _verdict(found: dict[str, Any]) -> str:
    said = []
    for other, label in (("single", "single seeds"), ("random", "random pools")):
        given = found["differences"][f"pool - {other}"]
        seen, rate, ev = given["reappearance"], given["match_rate"], given["ev"]
        said.append(
            f"Pools from disjoint halves of the seeds find {_word(rate)} of their latents in each other than {label} "
            f"({_ends(rate)}), and {_word(seen)} in the other half's seeds ({_ends(seen)}). Their explained variance "
            f"is {_word(ev, 'higher', 'lower', 'not measurably different')} ({_ends(ev, 4)})."
        )
    covered = {arm: found["arms"][arm]["mass_covered"]["mean"] for arm in ("pool", "single")}
    if all(value is not None for value in covered.values()):
        said.append(
            f"Before the training a pool covered {covered['pool']:.1%} of the activation mass of seeds that had no "
            f"part in it, a single seed {covered['single']:.1%}."
        )
    return " ".join(said)


def _word(
    ends: dict[str, float | None],
    more: str = "more",
    less: str = "fewer",
    neither: str = "neither measurably more nor fewer",
) -> str:
    low, high = ends["low"], ends["high"]
    if low is None or high is None:
        return neither
    return more if low > 0 else less if high < 0 else neither


def _ends(ends: dict[str, float | None], digits: int = 3) -> str:
    mean, low, high = (ends[end] for end in ("mean", "low", "high"))
    if mean is None:
        return "not measured"
    if low is None or high is None:
        return f"difference {mean:+.{digits}f}, no interval with so few divisions"
    return f"difference {mean:+.{digits}f}, {low:+.{digits}f} to {high:+.{digits}f}"


def _cell(ends: dict[str, float | None], digits: int) -> str:
    return interval(*(ends[end] for end in ("mean", "low", "high")), digits=digits)


def _arms(found: dict[str, Any]) -> Table:
    rows = [
        [label, *(_cell(found["arms"][arm][name], digits) for arm in ARMS)]
        for name, (label, digits) in MEASURES.items()
        if name in _measures(found)
    ]
    return Table("pooling", "Mean over both halves and all divisions", ["", *ARMS.values()], rows)


def _differences(found: dict[str, Any]) -> Table:
    others = [arm for arm in ARMS if arm != "pool"]
    rows = [
        [label, *(_cell(found["differences"][f"pool - {arm}"][name], digits) for arm in others)]
        for name, (label, digits) in MEASURES.items()
        if name in _measures(found)
    ]
    header = ["", *(f"pool − {ARMS[arm]}" for arm in others)]
    return Table("pooling_differences", "Differences, paired by division", header, rows)


def _draw(found: dict[str, Any], figure: "Figure") -> tuple[str, str]:
    axes = figure.subplots(1, len(SHOWN))
    for ax, name in zip(axes, SHOWN, strict=True):
        for i, arm in enumerate(ARMS):
            values = [sum(run["arms"][arm][name]) / 2 if isinstance(run["arms"][arm][name], list)
                      else run["arms"][arm][name] for run in found["runs"]]  # fmt: skip
            ax.plot([i - 0.12] * len(values), values, "o", ms=3, color=COLOURS[arm], alpha=0.5)
            mean, low, high = (found["arms"][arm][name][end] for end in ("mean", "low", "high"))
            reach = None if low is None or high is None else [[mean - low], [high - mean]]
            ax.errorbar([i + 0.12], [mean], yerr=reach, fmt="s", ms=4, color=COLOURS[arm], capsize=3)
        ax.set_xticks(range(len(ARMS)), [label.replace(" ", "\n") for label in ARMS.values()])
        ax.set_xlim(-0.6, len(ARMS) - 0.4)
        ax.set_title(MEASURES[name][0], fontsize=8.5)
    caption = (
        f"After {found['extra_rows']:,} further rows. Dots: divisions of the seeds; squares: their mean with its "
        f"{found['confidence']:.0%} interval."
    )
    return caption, "Match rate, reappearance and explained variance of pools, single seeds and random pools."
