"""Sections about variants: what the verdicts say follows the intervals, whichever way they come out."""

import pytest

from saekern.report.drawing import render
from saekern.report.sections import nulls, variants


def about(mean, half):
    return {"mean": mean, "low": mean - half, "high": mean + half, "runs": 5}


def arm(name, p, ev, *, axis=None, gap=None, fit=(-0.01, 0.01), rows_from="model", **fields):
    none = {"mean": 0.0, "min": 0.0, "max": 0.0}
    found = {
        "variant": name, "axis": axis, "rows_from": rows_from, "arch": "topk", "d_sae": 64, "k": 4, "seeds": 5,
        "model": "tiny", "hook": "blocks.1.hook_resid_post", "train_rows": 1000, "share_seeds": 5,
        "estimates": {
            kind: {"mean_probability": about(p, 0.02), "stable": about(0.3, 0.05), "unstable": about(0.2, 0.05)}
            for kind in ("raw", "centred")
        },
        "null": {"match_rate": none, "stable": none}, "rotated": {"match_rate": none, "stable": none},
        "ev": about(ev, 0.01) | {"sd": 0.002}, "l0": about(4.0, 0.0), "dead": about(0.1, 0.01),
    }  # fmt: skip
    if gap is not None:
        found["difference"] = {name: {"mean": sum(v) / 2, "low": v[0], "high": v[1]}
                               for name, v in (("mean_probability", gap), ("ev", fit))}  # fmt: skip
    return found | fields


def compared(*arms, ends=None):
    main = arm("the study's", 0.5, 0.8)
    axes = {}
    for one in arms:
        axes.setdefault(one["axis"], {"arms": ["the study's"]})["arms"].append(one["variant"])
    for axis, values in (ends or {}).items():
        axes[axis]["ends"] = {
            name: {"mean": sum(v) / 2, "low": v[0], "high": v[1]}
            for name, v in zip(("mean_probability", "ev"), values, strict=True)
        }
    limits = {"threshold": 0.7, "epsilon": 0.05, "confidence": 0.95}
    return {**limits, "main": main, "variants": list(arms), "axes": axes}


@pytest.mark.parametrize(
    ("gap", "words"),
    [
        ((0.05, 0.15), "they agree more than SAEs on the model, so that stability alone does not show"),
        ((-0.3, -0.1), "they agree less than SAEs on the model (difference -0.300 to -0.100)"),
        ((-0.1, 0.1), "not measurably different from SAEs on the model"),
    ],
)
def test_the_dead_salmon_may_be_more_stable_or_less(gap, words):
    """Planted: the sign of the difference turned; caught."""
    salmon = arm("salmon", 0.6, 0.9, axis="null", gap=gap, rows_from="random_model")
    section = nulls.section(compared(salmon), None)
    assert words in section.verdict
    assert [row[0] for row in section.tables[0].rows] == [
        "the study's",
        "salmon",
        "random dictionaries",
        "the study's, each rotated by itself",
    ]


def test_too_few_seeds_are_said():
    salmon = arm("salmon", 0.6, 0.9, axis="null", gap=(0, 0), rows_from="shuffled_marginals")
    salmon["difference"]["mean_probability"] = {"mean": 0.1, "low": None, "high": None}
    assert "with so few seeds it cannot be said" in nulls.section(compared(salmon), None).verdict


def test_verdicts_of_axes():
    found = compared(
        arm("relu", 0.9, 0.6, axis="architecture", gap=(0.3, 0.5), fit=(-0.3, -0.1), arch="relu"),
        arm("batch", 0.5, 0.8, axis="architecture", gap=(-0.1, 0.1), arch="batch_topk"),
        arm("wide", 0.3, 0.9, axis="size", gap=(-0.3, -0.1), d_sae=128),
        arm("before", 0.3, 0.9, axis="layer", gap=(-0.3, -0.1), hook="blocks.0.hook_resid_post"),
        ends={"size": ((-0.3, -0.1), (0.05, 0.15)), "layer": ((-0.05, 0.1), (0.05, 0.15))},
    )
    verdict = variants.section(found, None).verdict
    assert "more stable than the study's SAE: relu; not measurably different in stability: batch." in verdict
    assert "one up and the other down, in 1 of 2 (relu)." in verdict
    assert "From F, latents = 64 to 128 mean p falls (difference -0.300 to -0.100) and EV rises" in verdict
    assert "mean p does not change measurably (difference -0.050 to +0.100)." in verdict


def test_pictures_are_drawn(tmp_path):
    found = compared(
        arm("relu", 0.9, 0.6, axis="architecture", gap=(0.3, 0.5), arch="relu"),
        arm("wide", 0.3, 0.9, axis="size", gap=(-0.3, -0.1), d_sae=128),
        arm("before", 0.3, 0.9, axis="layer", gap=(-0.3, -0.1), hook="blocks.0.hook_resid_post"),
        arm("salmon", 0.6, 0.9, axis="null", gap=(0.1, 0.2), rows_from="random_model"),
    )
    made = [d for module in (variants, nulls) for d in module.section(found, None).drawings]
    assert [drawing.name for drawing in made] == ["variants_scatter", "variants_lines", "nulls"]
    for drawing in made:
        assert "<svg" in render(drawing, tmp_path).svg
