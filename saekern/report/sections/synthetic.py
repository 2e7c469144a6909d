"""What is recovered of known features: each, or only the space that they share."""

from functools import partial
from typing import TYPE_CHECKING, Any

from saekern.report.drawing import INK, SCALE, Drawing
from saekern.report.results import Results
from saekern.report.section import Section, Table
from saekern.report.text import interval, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Are low-rank features found one by one, or only as a space?"
PHASES = {"latents": "one by one", "subspace": "as a space only", "none": "neither"}
PANELS = {
    "identifiable_matched": "isolated features: cosine",
    "low_rank_excess": "block features: excess",
    "cross": "block: energy across seeds",
    "probability_low_rank": "block latents: p̂",
}


def section(found: dict[str, Any], results: Results) -> Section:
    cells, settings = found["cells"], found["settings"]
    header = ["rank, noise, K", "isolated: cosine", "block: cosine", "null, thrown in", "excess", "captured"]
    header += ["principal directions", "across seeds", "p̂ isolated", "p̂ block", "null p̂", "EV", "dead", "found"]
    notes = (
        f"x = Σ a g + Σ a B h + noise: {settings['identifiable']} isolated features g, {settings['low_rank']} features "
        f"in a block of few dimensions, D = {settings['width']}, {settings['seeds']} SAEs with F = {settings['d_sae']} "
        f"for each point, {settings['rows']:,} rows each. F is as small as the number of true features by design, and "
        "nothing here is read from the study. Model, measures and thresholds are ours.",
        "Cosine: of each true feature with its one-to-one partner. Excess: how far it is above directions thrown into "
        "the block at random, 1 when all are found; “one by one” from 0.5. Captured: share of the block features' "
        "energy in as many singular vectors of the block's latents as it has dimensions; “as a space” from 0.9. "
        "Principal directions of the rows capture much of that without any SAE.",
        f"Intervals: {found['interval']}; what is over pairs of seeds has none. p̂ at θ = "
        f"{settings['stability_threshold']:g}; its null are random directions of the block, far from 0 in few "
        "dimensions.",
    )
    return Section(
        name="synthetic",
        title=TITLE,
        verdict=_verdict(cells),
        tables=(Table("synthetic", "Every point of the grid", header, [_line(one) for one in cells]),),
        drawings=(Drawing("synthetic", "What is recovered", 11.0, partial(_draw, cells)),),
        notes=notes,
    )


def _verdict(cells: list[dict[str, Any]]) -> str:
    sentences = []
    for phase, words in PHASES.items():
        ranks = {one["rank"] for one in cells if one["phase"] == phase}
        count = sum(one["phase"] == phase for one in cells)
        if count:
            where = ", ".join(map(str, sorted(ranks)))
            sentences.append(f"Block features are found {words} at {count} of {len(cells)} points (rank {where}).")
    above = [one for one in cells if one["low_rank_excess_lower"] is not None and one["low_rank_excess_lower"] > 0]
    sentences.append(
        f"At {len(above)} they are nearer to latents than directions thrown into the block (95% intervals)."
    )
    lower = sum(
        one["low_rank_matched_upper"] is not None
        and one["identifiable_matched_lower"] is not None
        and one["low_rank_matched_upper"] < one["identifiable_matched_lower"]
        for one in cells
    )
    sentences.append(f"Isolated features have the larger cosine, intervals apart, at {lower} of {len(cells)} points.")
    return " ".join(sentences)


def _line(one: dict[str, Any]) -> list[str]:
    def shown(name: str) -> str:
        return interval(one[name], one[f"{name}_lower"], one[f"{name}_upper"])

    return [
        f"{one['rank']}, {one['noise']:g}, {one['k']}",
        shown("identifiable_matched"),
        shown("low_rank_matched"),
        number(one["low_rank_matched_scattered"], 3),
        shown("low_rank_excess"),
        shown("captured"),
        number(one["captured_principal"], 3),
        number(one["cross"], 3),
        number(one["probability_identifiable"], 3),
        number(one["probability_low_rank"], 3),
        number(one["probability_low_rank_scattered"], 3),
        shown("explained_variance"),
        number(one["dead"], 1),
        PHASES[one["phase"]],
    ]


def _draw(cells: list[dict[str, Any]], figure: "Figure") -> tuple[str, str]:
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("scale", SCALE)
    ranks = sorted({one["rank"] for one in cells})
    lines = sorted({(one["k"], one["noise"]) for one in cells})
    axes = figure.subplots(1, len(PANELS), sharey=True)
    for ax, (name, title) in zip(axes, PANELS.items(), strict=True):
        ax.grid(False)
        for one in cells:
            value = one[name]
            x, y = ranks.index(one["rank"]), lines.index((one["k"], one["noise"]))
            if value is None:
                ax.text(x, y, "–", ha="center", va="center")
                continue
            shade = min(max(value, 0.0), 1.0)
            ax.add_patch(_square(x, y, colours(shade)))
            ax.text(x, y, f"{value:.2f}", ha="center", va="center", size=7, color="white" if shade > 0.5 else "#101419")
        ax.set(xlim=(-0.5, len(ranks) - 0.5), ylim=(len(lines) - 0.5, -0.5), xlabel="rank of the block")
        ax.set_xticks(range(len(ranks)), [str(rank) for rank in ranks])
        ax.set_title(title, size=9, color=INK)
    axes[0].set_yticks(range(len(lines)), [f"K {k}, noise {noise:g}" for k, noise in lines])
    caption = (
        "Light is 0, dark is 1. Isolated features one by one; the block's features one by one, above chance; the space "
        "of the block's latents, found in other seeds; and how many of these latents other seeds have."
    )
    return caption, "Heat maps over the rank of the block, the noise and K."


def _square(x: int, y: int, colour: Any) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor="white", lw=1)
