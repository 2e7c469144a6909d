"""SAEs that a study was given: what they are, what is not known of them, and their figures in a few lines of text."""

import html
from typing import Any

from saekern.report.text import number, percent, table

NO_ROWS = (
    "There are no activations, so this page has no explained variance, no sparsity, no cross-entropy, no firing "
    "frequencies, no contexts and no dead latents but those whose decoder row is zero: what never fires is judged like "
    "the rest. An activation cache (--rows) or a model and its hook (--model, --hook) would give all of it."
)
UNKNOWN = (
    "These SAEs were trained elsewhere, and a seed on this page is one of them, in the order in which they were given. "
    "In what their training differed is not known. Runs that start from one initialisation agree from the start, and "
    "that is not stability; D(0), which would show it, needs the dictionaries before training."
)


def given_saes(saes: list[dict[str, Any]]) -> str:
    """A table of what was found in their files."""
    header = ["seed", "SAE", "format", "architecture", "F", "D", "K", "zero rows", "encoder"]
    rows = [
        [
            str(i),
            html.escape(one["path"]),
            html.escape(one["format"]),
            html.escape(one["architecture"].replace("_", " ")),
            f"{one['latents']:,}",
            f"{one['width']:,}",
            "–" if one["k"] is None else f"{one['k']}",
            f"{one['zero']:,}",
            "yes" if one["encoder"] else "no",
        ]
        for i, one in enumerate(saes)
    ]
    return table(header, rows, numeric=False)


def stability_lines(found: dict[str, Any], *, rows: bool) -> list[str]:
    """What a study says about stability, for a terminal: every share with its interval, beside chance.

    Args:
        found: `results/stability.json`.
        rows: whether there were activations, from which dead latents are known.
    """
    limits = found["intervals"]
    sizes = " or ".join(sorted({f"{size:,}" for size in found["sizes"]}))
    dead = sum(found["raw"]["dead"])
    known = "dead" if rows else "without direction (activations would tell which others are dead)"
    lines = [
        f"{found['seeds']} dictionaries of {sizes} latents, θ = {found['threshold']:g}, ε = {found['epsilon']:g}; "
        f"set aside: {dead:,}, {known}",
        f"stable {_share(limits['stable'])}, unstable {_share(limits['unstable'])}, "
        f"mean p {_interval(limits['mean_probability'])}",
    ]
    if found["raw"]["note"]:
        lines.append(found["raw"]["note"])
    if found["seeds"] < 3:
        lines.append("No intervals: they come from leaving out one dictionary of at least three.")
    random, rotated = (found["null"][kind]["match_rate"]["mean"] for kind in ("random", "rotated"))
    lines.append(
        f"by chance: mean p {number(random, 4)} of random dictionaries, {number(rotated, 4)} of rotated copies"
    )
    for kind, name in (("random", "random dictionaries"), ("rotated", "rotated copies")):
        excess = found["excess"].get(kind)
        if excess:
            lines.append(
                f"beyond chance ({name}): excess {number(excess['excess'], 4)}, "
                f"{percent(excess['beyond_chance'])} of latents at a false discovery rate of {excess['level']:g}; "
                f"{excess['level']:.0%} of chance partners exceed cosine {number(excess['calibrated_threshold'], 3)}"
            )
    median, chance = (of["cosine_quantiles"]["0.5"] for of in (found["raw"], found["null"]["random"]))
    lines.append(
        f"best cosine in another dictionary: median {number(median, 3)}, among random ones {number(chance['mean'], 3)}"
    )
    return lines + _one_to_one(found)


def _one_to_one(found: dict[str, Any]) -> list[str]:
    lines = []
    iou, strict = found["iou"], found.get("strict")
    if iou:
        lines.append(
            f"nearest against one-to-one, {iou['pairs_compared']} pairs: IoU {number(iou['features']['mean'], 3)} of "
            f"latents, {number(iou['pairs']['mean'], 3)} of pairs; mean assigned cosine (PW-MCC) "
            f"{number(iou['pw_mcc'], 3)}"
        )
    if strict:
        lines.append(strict_sentence(strict))
    return lines


def strict_sentence(strict: dict[str, Any]) -> str:
    return (
        f"strict rule, encoder and decoder choose the same partner and both cosines reach θ: "
        f"{percent(strict['shared']['mean'])} of latents; the same partner at any cosine "
        f"{percent(strict['same_partner']['mean'])}, by chance {percent(strict['chance']['mean'], digits=3)}"
    )


def _share(estimate: dict[str, float | None]) -> str:
    return _interval({end: None if value is None else 100 * value for end, value in estimate.items()}, 2) + " %"


def _interval(estimate: dict[str, float | None], digits: int = 4) -> str:
    mean, low, high = (estimate[end] for end in ("mean", "low", "high"))
    if low is None:
        return number(mean, digits)
    return f"{number(mean, digits)} ({number(max(0.0, low), digits)} to {number(high, digits)})"
