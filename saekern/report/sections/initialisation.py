"""Whether runs end together because they began together."""

from functools import partial
from typing import TYPE_CHECKING, Any

from saekern.report.drawing import BLUE, GREY, ORANGE, Drawing
from saekern.report.results import Results
from saekern.report.section import Section, Table
from saekern.report.text import interval, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Do runs come together, or did they begin together?"
SHARED = "shared initialisation: D(0) = 0, agreement is not stabilisation"
MOVED = {
    1: "end with runs closer together than they began",
    -1: "with runs farther apart",
    0: "with neither shown",
}
GEOMETRIES = {"raw": "raw cosine", "centered": "centred cosine", "whitened": "whitened cosine"}


def section(found: dict[str, Any], results: Results) -> Section:
    arms = found["arms"]
    drawing = Drawing("initialisation", "Distance between runs, before and after", 11.0, partial(_draw, found))
    notes = (
        f"{len(arms)} arms of {arms[0]['runs']} TopK SAEs each, F = {found['d_sae']:,}, K = {found['k']}, "
        f"{found['rows']:,} rows each. Runs of an arm differ in their seed and in the order of the rows. D is the mean "
        "of 1 − cosine over latents matched one to one: live ones, and all with the dead ones. Index: "
        "(D(0) − D(T)) / D(0).",
        f"Intervals: {found['interval']}. Differences to the first arm: {found['difference_interval']}, "
        f"{found['comparisons']} comparisons. Null: one run of the pair turned by a random rotation.",
        "Centred: without each dictionary's mean atom, since an offset that all share looks like agreement. Latents "
        "are live or dead by their end, so the index over live latents can be large without convergence: a verdict "
        "asks both indices to agree.",
    )
    return Section(
        name="initialisation",
        title=TITLE,
        verdict=verdict(found),
        tables=(arm_table("initialisation", arms), *distance_tables("initialisation", found)),
        drawings=(drawing,),
        notes=(*notes, *(f"{note[0].upper()}{note[1:]}." for note in found["notes"])),
    )


def verdict(found: dict[str, Any]) -> str:
    """What the intervals allow: how many arms began at one place, and where the others went; the tables name them."""
    arms, sentences = found["arms"], []
    shared = {arm["arm"] for arm in arms if arm["shared_init"]}
    if shared:
        sentences.append(f"{len(shared)} of {len(arms)} arms: {SHARED}.")
    moved = [_moved(arm) for arm in arms if not arm["shared_init"]]
    if moved:
        counts = [f"{moved.count(sign)} {words}" for sign, words in MOVED.items() if sign in moved]
        sentences.append(f"From independent beginnings (centred cosine): {_list(counts)}.")
    gaps = found["differences"]["centered"]
    for word, sign in (("closer together", -1), ("farther apart", 1)):
        names = {name for name, gap in gaps.items() if _sign(gap) == sign}
        if names:
            began = f", {len(names & shared)} of which began at one place" if names & shared else ""
            sentences.append(f"Runs of {len(names)} arms end {word} than those of “{arms[0]['arm']}”{began}.")
    return " ".join(sentences)


def _list(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _moved(arm: dict[str, Any]) -> int:
    """By both indices, of live latents and of all."""
    live, every = (arm["centered"][name] for name in ("stabilisation_index", "stabilisation_index_all"))
    first, second = (0 if one is None else _sign(one) for one in (live, every))
    return first if first == second else 0


def _sign(estimate: dict[str, Any]) -> int:
    if estimate["low"] is None:
        return 0
    return 1 if estimate["low"] > 0 else -1 if estimate["high"] < 0 else 0


def cell(estimate: dict[str, Any] | None, digits: int = 3) -> str:
    """A jackknife estimate with its interval."""
    return "–" if estimate is None else interval(estimate["mean"], estimate["low"], estimate["high"], digits=digits)


def arm_table(name: str, arms: list[dict[str, Any]]) -> Table:
    """Quality and verdict of each arm."""
    rows = [
        [arm["arm"], cell(arm["explained_variance"]), cell(arm["l0"], 1), cell(arm["dead"]), arm["verdict"]]
        for arm in arms
    ]
    header = ["arm", "explained variance", "L0", "share of dead latents", "verdict"]
    return Table(f"{name}_arms", "Arms", header, rows)


def distance_tables(name: str, found: dict[str, Any]) -> list[Table]:
    """A table a geometry: where runs begin and end."""
    header = ["arm", "D(0), live", "D(T), live", "D(0), all", "D(T), all", "null D(T)"]
    header += ["index, live", "index, all", "D(T) − first arm's"]
    tables = []
    for geometry, title in GEOMETRIES.items():
        rows = []
        for arm in found["arms"]:
            one = arm[geometry]
            cells = [cell(one[key]) for key in ("initial", "final", "initial_all", "final_all")]
            cells += [number(one["null"], 3), cell(one["stabilisation_index"]), cell(one["stabilisation_index_all"])]
            rows.append([arm["arm"], *cells, cell(found["differences"][geometry].get(arm["arm"]))])
        tables.append(Table(f"{name}_{geometry}", f"Distances, {title}", header, rows))
    return tables


def _draw(found: dict[str, Any], figure: "Figure") -> tuple[str, str]:
    draw_arrows(figure, found["arms"], {name: GEOMETRIES[name] for name in ("raw", "centered")})
    caption = (
        "From D(0), open, to D(T), filled, over latents live at the end; the bar is D(T)'s interval, the tick its "
        "null. Orange arms begin at D(0) = 0 over all latents; over those live at the end it need not be 0, since each "
        "run keeps other ones."
    )
    return caption, "Arrows from the distance between runs before training to that after, an arm a line."


def draw_arrows(figure: "Figure", arms: list[dict[str, Any]], titles: dict[str, str]) -> None:
    """An axis a geometry, an arrow an arm."""
    axes = figure.subplots(1, len(titles), sharey=True)
    for ax, (geometry, title) in zip(axes, titles.items(), strict=True):
        for y, arm in enumerate(arms):
            one, colour = arm[geometry], ORANGE if arm["shared_init"] else BLUE
            start, end = one["initial"]["mean"], one["final"]["mean"]
            if start is None or end is None:
                continue
            ax.annotate("", (end, y), (start, y), arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 1.2})
            ax.plot(start, y, "o", color=colour, mfc="none", ms=4)
            ax.plot(end, y, "o", color=colour, ms=4)
            if one["final"]["low"] is not None:
                ax.plot([one["final"]["low"], one["final"]["high"]], [y, y], color=colour, lw=4, alpha=0.35)
            if one["null"] is not None:
                ax.plot(one["null"], y, "|", color=GREY, ms=9, mew=2)
        ax.set(xlabel=f"mean of 1 − {title}", xlim=(-0.03, None))
    axes[0].set_yticks(range(len(arms)), [arm["arm"] for arm in arms])
    axes[0].invert_yaxis()
