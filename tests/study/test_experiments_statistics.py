"""The experiments on who is stable: thresholds, numbers of seeds, rules, chance, statistics."""

import pytest

from saekern.pipeline.config import StabilityConfig
from saekern.pipeline.experiments.convergence import ConvergenceSettings
from saekern.pipeline.experiments.statistics import StatisticsSettings
from saekern.pipeline.experiments.strict_rule import StrictRuleSettings
from saekern.pipeline.experiments.thresholds import ThresholdsSettings
from saekern.report.sections import convergence as convergence_section
from saekern.report.sections import statistics as statistics_section
from saekern.report.sections import thresholds as thresholds_section

pytest.importorskip("matplotlib")


def test_thresholds(experiment, tmp_path):
    """The study's θ = 0.7 and ε = 0.05 are added; shares fall with θ; the page has the table and its file."""
    found, page, ran = experiment("thresholds", ThresholdsSettings((0.5, 0.9), (0.0, 0.2)))
    assert ran == ("thresholds", "report")
    assert found["thresholds"] == [0.5, 0.7, 0.9]
    assert found["epsilons"] == [0.0, 0.05, 0.2]
    stable = [line["stable"]["mean"] for line in found["intervals"]]
    assert stable[0] >= stable[1] >= stable[2]
    own = [line["stable"] for line in found["seeds"]["lines"] if line["epsilon"] == 0.05]
    assert own == pytest.approx(stable)
    assert found["null"]["lines"][-1]["stable"] == 0
    assert '<section id="thresholds">' in page
    assert (tmp_path / "study" / "tables" / "thresholds.csv").exists()


def test_verdicts_follow_the_intervals():
    """Overlapping shares are not called different, nor a distance above the limit enough."""

    def verdict(low, high):
        lines = [{"stable": dict(zip(("mean", "low", "high"), ends, strict=True))} for ends in (low, high)]
        null = {"lines": [{"epsilon": 0, "stable": 0.0}] * 2}
        both = {"thresholds": [0.6, 0.7], "threshold": 0.7, "epsilon": 0, "intervals": lines, "null": null}
        return thresholds_section._verdict(both)

    assert verdict((0.5, 0.45, 0.55), (0.4, 0.35, 0.44)).startswith("The boundary depends on θ")
    assert "is not measurable" in verdict((0.5, 0.45, 0.55), (0.4, 0.35, 0.46))
    assert "two seeds give no interval" in verdict((0.5, None, None), (0.4, None, None))
    line = {"runs": 4} | {name: {"mean": 0.06, "min": 0.05, "max": 0.08} for name in ("disjoint", "to_full")}
    found = {"lines": [line], "comparisons": 8, "distance": 0.05, "draws": 20, "enough": None}
    assert convergence_section._verdict(found).startswith("Not shown: with n = 4")
    assert convergence_section._verdict(found | {"enough": 4}).startswith("Yes")


def test_convergence(experiment):
    """Three comparisons: one run against another is all that two sets can be. All runs are at distance 0 from all."""
    found, page, _ = experiment("convergence", ConvergenceSettings(draws=3))
    assert [line["runs"] for line in found["lines"]] == [1, 2, 3]
    assert found["lines"][-1]["to_full"]["max"] == 0
    assert found["lines"][1]["disjoint"]["mean"] is None
    assert found["lines"][0]["to_full"]["max"] > 0.05  # p is 0 or 1, and has four values with three runs
    assert found["enough"] is None
    assert experiment("convergence", ConvergenceSettings(distance=0.99, draws=3))[0]["enough"] == 1
    assert '<section id="convergence">' in page


def test_strict_rule(experiment):
    """Shared by both implies found by the decoder's assignment, and that by the nearest row. Nothing is shared after
    rotations of D = 24."""
    found, page, _ = experiment("strict_rule", StrictRuleSettings(seeds=3, null_seeds=2))
    rates = {name: line["mean"] for name, line in found["rates"].items()}
    assert 0 < rates["shared"] <= rates["decoder"] <= rates["argmax"]
    assert rates["shared"] <= rates["same_partner"]
    assert found["both_of_two"]["shared"] <= rates["shared"]
    assert found["null"]["shared"] == 0
    assert 'id="assignment"' in page  # IoU and PW-MCC


def test_excess_needs_no_experiment(experiment):
    """It is part of every study's stability."""
    page = experiment("thresholds")[1]
    assert '<section id="excess">' in page
    assert "A latent has a partner in another seed with probability" in page


def test_statistics(experiment):
    """Two of the four seeds are described, the predictor is fitted on one and judged on the other. Their features fire
    equally often, so that frequency says nothing here."""
    found, page, _ = experiment("statistics", StatisticsSettings(anchors=2, min_firings=12, draws=3))
    assert found["groups"]["anchors"] == [0, 1]
    effect = found["groups"]["lines"][0]
    assert effect["statistic"] == "log_frequency"
    assert effect["lower"] < 0.5 < effect["upper"]
    assert found["shuffled"]["lines"][0]["effect"] == effect["effect"]  # tokens have no say in how often
    assert sum(found["histograms"]["log_frequency"]["stable"]) == found["groups"]["stable"][0]
    assert found["predictor"]["test"] == [1]
    assert 'id="predictor"' in page


def test_nothing_to_describe_is_said(experiment):
    settings = StabilityConfig(assignment_seeds=2, null_seeds=2, threshold=-0.99)
    assert experiment("statistics", stability=settings)[0] == {"skipped": "seed 0 has no unstable latents"}
    assert "fire 390 times" in experiment("statistics", StatisticsSettings(min_firings=390))[0]["skipped"]


def test_only_clear_differences_have_a_direction():
    """A small p-value with seeds on both sides of 0.5 is not clear."""

    def line(name, p, low, high):
        return {"statistic": name, "p_holm": p, "effect_min": low, "effect_max": high, "lower": low, "upper": high}

    lines = [line("log_frequency", 0.001, 0.6, 0.7), line("token_entropy", 0.001, 0.4, 0.7)]
    lines += [line("surface_score", 0.2, 0.3, 0.4)]
    shuffled = {"lines": [line("token_entropy", 1, 0.6, 0.8), line("surface_score", 1, 0.48, 0.52)]}
    found = {"groups": {"confidence": 0.95, "lines": lines}, "shuffled": shuffled}
    assert statistics_section._differences(found) == (
        "Stable latents have higher firing frequency than unstable ones, in every seed. No clear difference in token "
        "entropy and surface-form score. In surface-form score they differ otherwise than frequency alone would make "
        "them."
    )


def test_settings_are_checked():
    for settings, values in (
        (ThresholdsSettings, {"thresholds": (0.9, 0.5)}),
        (ConvergenceSettings, {"distance": 0.0}),
        (StrictRuleSettings, {"seeds": 1}),
        (StatisticsSettings, {"anchors": 0}),
    ):
        with pytest.raises(ValueError, match=rf"\.{next(iter(values))}: expected"):
            settings(**values)
