"""Stable against unstable latents: effects, tests, what is left out."""

import json

import pytest
import torch
from scipy.stats import mannwhitneyu
from stability_example import example

from saekern.stability import compare_groups, feature_stability
from saekern.stability.group_comparison import holm


def test_effects_are_those_of_the_groups():
    """Planted: dead latents kept among the unstable; caught by the counts and the effect."""
    statistics, stability = example()
    found = compare_groups(statistics, stability)
    assert found.anchors == [0, 1, 2, 3]
    assert found.names[0] == "log_frequency"
    for a in range(4):
        live = statistics[a].live
        groups = [stability.stable[a] & live, stability.unstable[a] & live]
        assert [found.stable[a], found.unstable[a]] == [int(group.sum()) for group in groups]
        assert found.dead[a] == int((~live).sum()) > 0
        x, y = (statistics[a].frequency[group] for group in groups)
        test = mannwhitneyu(x.numpy(), y.numpy())
        assert found.effect[a, 0].item() == pytest.approx(test.statistic / (len(x) * len(y)))
        assert found.p_value[a, 0] >= test.pvalue
        assert found.medians[a, 0, 0].item() == pytest.approx(x.log10().quantile(0.5).item())
        assert found.lower[a, 0] < found.effect[a, 0] < found.upper[a, 0]
    assert bool((found.effect[:, 0] > 0.8).all())  # planted: stable latents fire more
    assert bool((found.p_value[:, 0] < 1e-3).all())
    noise = found.names.index("mean_activation")  # planted: no difference
    assert bool(((found.lower[:, noise] < 0.5) & (found.upper[:, noise] > 0.5)).sum() >= 3)
    summary = found.to_json()
    assert "Holm over 5 statistics" in summary["multiple_comparisons"]
    json.dumps(summary, allow_nan=False)


def test_holm_by_hand():
    """Sorted 0.01, 0.03, 0.04 times 3, 2, 1, running maximum. Planted: Bonferroni; caught."""
    p = torch.tensor([0.04, 0.01, torch.nan, 0.03], dtype=torch.float64)
    assert holm(p)[[0, 1, 3]].tolist() == pytest.approx([0.06, 0.03, 0.06])
    assert bool(holm(p)[2].isnan())


def test_without_a_group_there_is_no_effect():
    statistics, _ = example()
    everything = feature_stability([torch.eye(200)[:120]] * 4)
    found = compare_groups(statistics[:1], everything, [2])
    assert found.unstable == [0]
    assert bool(found.effect.isnan().all())
    json.dumps(found.to_json(), allow_nan=False)


def test_errors():
    statistics, stability = example()
    with pytest.raises(ValueError, match=r"anchors: expected one of 0\.\.3 for each of 1, got \[4\]"):
        compare_groups(statistics[:1], stability, [4])
    with pytest.raises(ValueError, match=r"statistics: expected 5 latents for run 0, got 120"):
        compare_groups(statistics[:1], feature_stability([torch.randn(5, 4)] * 2))
