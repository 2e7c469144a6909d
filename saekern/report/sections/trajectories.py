"""When runs come together, if they do."""

from functools import partial
from typing import TYPE_CHECKING, Any

from saekern.report.drawing import BLUE, GREY, ORANGE, Drawing
from saekern.report.results import Results
from saekern.report.section import Section, Table
from saekern.report.sections.initialisation import GEOMETRIES, cell
from saekern.report.text import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "When do the runs come together?"


def section(found: dict[str, Any], results: Results) -> Section:
    spaces = found["geometries"]
    one = spaces["raw"]
    rows = [_line(name, spaces[name]) for name in spaces]
    header = ["cosine", "D(0), live", "D(T), live", "D(0), all", "D(T), all", "null D(T)", "M(T)"]
    header += ["index, live", "index, all", "birth, median step", "locked in at the end", "null"]
    steps = [_steps(name, spaces[name]) for name in spaces]
    notes = (
        f"{found['seeds']} seeds, their dictionaries at steps {', '.join(map(str, one['steps']))} of "
        f"{found['batch_size']:,} rows. D(t): mean of 1 − cosine between runs, latents matched one to one; M(t): "
        "between a run and itself at step 0. Index: (D(0) − D(T)) / D(0).",
        f"A latent is born when it comes, for good, within θ = {one['threshold']:g} of its own end, and has locked in "
        f"to another run when its partner there is, for good, the final one at θ or above; drawn for at least "
        f"{found['share']:.0%} of the other runs.",
        f"Intervals: {one['interval']}. Null: one run of a pair turned by a random rotation, at every step. Latents "
        "are live or dead by their end; the index over all latents must agree before runs are said to converge.",
    )
    return Section(
        name="trajectories",
        title=TITLE,
        verdict=_verdict(found),
        tables=(Table("trajectories", "Beginning and end", header, rows), *steps),
        drawings=(
            Drawing("trajectories", "Distances over the training", 11.0, partial(_draw_distances, found)),
            Drawing("trajectories_latents", "When latents are found", 11.0, partial(_draw_latents, found)),
        ),
        notes=notes,
    )


def _verdict(found: dict[str, Any]) -> str:
    first = found["verdict"][0].upper() + found["verdict"][1:] + "."
    name = "centered" if "centered" in found["geometries"] else "raw"
    one = found["geometries"][name]
    end, null = one["locked"][-1], one["null_locked"][-1]
    share = f"{end:.0%} of the pairs of a live latent and another run have locked in at the end"
    half = next((step for step, value in zip(one["steps"], one["locked"], strict=True) if value >= end / 2), None)
    when = f", half of them by step {half:,}" if end > 0 and half is not None else ""
    return f"{first} {share}{when}; by chance {null:.0%} ({GEOMETRIES[name]})."


def _line(name: str, one: dict[str, Any]) -> list[str]:
    distances = [_at(one[key], at) for key in ("distance", "distance_all") for at in (0, -1)]
    return [
        GEOMETRIES[name],
        *map(cell, distances),
        number(one["null"][-1], 3),
        cell(_at(one["movement"], -1)),
        cell(one["stabilisation_index"]),
        cell(one["stabilisation_index_all"]),
        number(one["birth"]["50%"], 0),
        number(one["locked"][-1], 3),
        number(one["null_locked"][-1], 3),
    ]


def _steps(name: str, one: dict[str, Any]) -> Table:
    header = ["step", "D, live", "D, all", "null D", "M", "born", "locked in", "locked in, null"]
    rows = [
        [
            f"{step:,}",
            cell(_at(one["distance"], t)),
            cell(_at(one["distance_all"], t)),
            number(one["null"][t], 3),
            cell(_at(one["movement"], t)),
            cell(_at(one["born"], t)),
            number(one["locked"][t], 3),
            number(one["null_locked"][t], 3),
        ]
        for t, step in enumerate(one["steps"])
    ]
    return Table(f"trajectories_{name}", f"Every step, {GEOMETRIES[name]}", header, rows)


def _at(estimate: dict[str, Any], t: int) -> dict[str, Any]:
    return {name: values[t] for name, values in estimate.items()}


def _curve(ax: "Axes", steps: list[int], estimate: dict[str, Any], colour: str, label: str, line: str = "-") -> None:
    ax.plot(steps, estimate["mean"], color=colour, ls=line, lw=1.8, marker="o", ms=3, label=label)
    if None not in estimate["low"]:
        ax.fill_between(steps, estimate["low"], estimate["high"], color=colour, alpha=0.15, lw=0)


def _log_steps(ax: "Axes", steps: list[int]) -> None:
    ax.set_xscale("symlog", linthresh=1, linscale=0.5)
    ax.set_xticks([0, *(step for step in steps if step and (step & (step - 1)) == 0)][::2])
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0f}")
    ax.set(xlabel="step", xlim=(-0.1, steps[-1] * 1.1))


def _draw_distances(found: dict[str, Any], figure: "Figure") -> tuple[str, str]:
    axes = figure.subplots(1, len(found["geometries"]), sharey=True, squeeze=False)[0]
    for ax, (name, one) in zip(axes, found["geometries"].items(), strict=True):
        _curve(ax, one["steps"], one["distance"], BLUE, "D(t), live")
        _curve(ax, one["steps"], one["distance_all"], BLUE, "D(t), all", ":")
        _curve(ax, one["steps"], one["movement"], ORANGE, "M(t)")
        ax.plot(one["steps"], one["null"], color=GREY, ls="--", lw=1.2, label="D(t), null")
        _log_steps(ax, one["steps"])
        ax.set(title=GEOMETRIES[name], ylim=(0, None))
    axes[0].set_ylabel("mean of 1 − cosine")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    caption = "Distance between runs (blue) and from each run's own beginning (orange), with intervals over runs."
    return caption, "Curves of the distance between runs and of the movement against the step."


def _draw_latents(found: dict[str, Any], figure: "Figure") -> tuple[str, str]:
    axes = figure.subplots(1, len(found["geometries"]), sharey=True, squeeze=False)[0]
    for ax, (name, one) in zip(axes, found["geometries"].items(), strict=True):
        _curve(ax, one["steps"], one["born"], ORANGE, "born")
        _curve(ax, one["steps"], one["locked_in"], BLUE, f"locked in to {found['share']:.0%} of runs")
        ax.plot(one["steps"], one["locked"], color=BLUE, ls=":", lw=1.5, label="latent and run locked in")
        ax.plot(one["steps"], one["null_locked"], color=GREY, ls="--", lw=1.2, label="the same, null")
        _log_steps(ax, one["steps"])
        ax.set(title=GEOMETRIES[name], ylim=(0, 1.02))
    axes[0].set_ylabel("share of live latents")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    caption = (
        "Share of live latents that have come near their own end (orange) and that have, for good, their final "
        "partners in other runs (blue). At the last step every latent is born by definition."
    )
    return caption, "Rising curves of the shares of born and locked-in latents against the step."
