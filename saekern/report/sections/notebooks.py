"""The released notebooks' four arms, beside what they published."""

from functools import partial
from typing import TYPE_CHECKING, Any

from saekern.report.drawing import Drawing
from saekern.report.results import Results
from saekern.report.section import Section, Table
from saekern.report.sections.initialisation import arm_table, cell, distance_tables, draw_arrows
from saekern.report.text import number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Do the archetypal notebooks' figures come out here?"
ROWS = ("centred", "uncentred")


def section(found: dict[str, Any], results: Results) -> Section:
    tables = [_beside(found[rows]["beside"], rows) for rows in ROWS]
    for rows in ROWS:
        tables += [
            arm_table(f"notebooks_{rows}", found[rows]["arms"]),
            *distance_tables(f"notebooks_{rows}", found[rows]),
        ]
    runs = len(found["centred"]["init_seeds"])
    source = "the study's rows" if found["file"] is None else found["file"]
    notes = (
        f"F = 200, K = 3, 100 points, Adam at 5e-3, batches of 1,024, {found['epochs']} epochs over {found['rows']:,} "
        f"rows of width {found['width']} from {source}; {runs} runs an arm. The notebooks have 76,800 rows of DINOv2, "
        "width 384, one pair of runs and no interval. So values cannot agree; the order and the signs can.",
        "Distances beside the published ones are over all atoms in raw cosine, as theirs are. Differences to the first "
        f"arm: {found['centred']['difference_interval']}. Null: one run of a pair turned by a random rotation.",
        "All arms but the first share their k-means points: D(0) = 0, agreement is not stabilisation. The third and "
        "the fourth arm are one model, written twice in the notebooks.",
    )
    return Section(
        name="notebooks",
        title=TITLE,
        verdict=" ".join(_verdict(found[rows], rows) for rows in ROWS),
        tables=tuple(tables),
        drawings=(Drawing("notebooks", "Distance between runs, before and after", 11.0, partial(_draw, found)),),
        notes=notes,
    )


def _verdict(found: dict[str, Any], rows: str) -> str:
    lines = found["beside"]
    signs = {word: [line["arm"] for line in lines if line.get("sign") == word] for word in _WORDS}
    parts = [f"{text} {_quoted(signs[word])}" for word, text in _WORDS.items() if signs[word]]
    ours, theirs = _order(lines, lambda line: line["ours"]["mean"]), _order(lines, lambda line: line["published"])
    if ours == theirs:
        order = "The order of the mean distances is theirs"
    else:
        order = f"The order of the mean distances is not theirs: here {ours}; there {theirs}"
    shared = [arm["arm"] for arm in found["arms"] if arm["shared_init"]]
    said = f" Shared initialisation: D(0) = 0, agreement is not stabilisation: {_quoted(shared)}." if shared else ""
    return f"Rows {rows}: the difference from “{lines[0]['arm']}” {'; '.join(parts)}. {order}.{said}"


_WORDS = {
    "agrees": "has the published sign for",
    "disagrees": "has the opposite sign for",
    "undecided": "is not decided for",
}


def _quoted(names: list[str]) -> str:
    return ", ".join(f"“{name}”" for name in names)


def _order(lines: list[dict[str, Any]], value: Any) -> str:
    return " > ".join(f"“{line['arm']}”" for line in sorted(lines, key=value, reverse=True))


def _beside(lines: list[dict[str, Any]], rows: str) -> Table:
    header = ["arm", "published D(T)", "D(T) here", "published difference", "difference here", "sign"]
    cells = [
        [
            line["arm"],
            number(line["published"], 4),
            cell(line["ours"], 4),
            number(line.get("published_difference"), 4),
            cell(line.get("difference"), 4),
            line.get("sign", "first arm"),
        ]
        for line in lines
    ]
    return Table(f"notebooks_{rows}", f"Beside the published values, rows {rows}", header, cells)


def _draw(found: dict[str, Any], figure: "Figure") -> tuple[str, str]:
    arms = [
        {"arm": a["arm"], "shared_init": a["shared_init"], "centred": a["raw"], "uncentred": b["raw"]}
        for a, b in zip(*(found[rows]["arms"] for rows in ROWS), strict=True)
    ]
    draw_arrows(figure, arms, {rows: f"raw cosine, rows {rows}" for rows in ROWS})
    caption = (
        "From D(0), open, to D(T), filled, over latents live at the end; the bar is D(T)'s interval, the tick its "
        "null. Orange arms begin at D(0) = 0 over all latents; over those live at the end it need not be 0, since each "
        "run keeps other ones."
    )
    return caption, "Arrows from the distance between runs before training to that after, for the four arms."
