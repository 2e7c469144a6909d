"""A predictor of stability, judged on held-out runs, and the trap of dead latents."""

import json

import pytest
import torch
from stability_example import example

from saekern.stability import predict_stability
from saekern.stability.predictor import RIDGE, _Fit


def test_planted_statistics_are_found():
    """Log frequencies 1.5 standard deviations apart: an area of Φ(1.5/√2) = 0.856, with 36 and 58 live latents a run
    and three runs known to √(0.856 · 0.144 / 36 / 3) = 0.034 at most. Planted: judged on the training run; caught."""
    statistics, stability = example()
    found = predict_stability(statistics, stability)
    assert found.test == [1, 2, 3]
    assert len(found.heldout) == 3
    assert found.area.value == pytest.approx(0.856, abs=2.5 * 0.034)
    assert found.area.lower < found.area.value < found.area.upper
    assert found.weight[found.names.index("log_frequency")] > 1
    assert found.single["log_frequency"] > 0.8
    assert abs(found.single["mean_activation"] - 0.5) < 0.15
    assert len(found.null) == 20
    assert found.null.mean().item() == pytest.approx(0.5, abs=0.2)
    assert found.null.max() < found.area.value + 0.05
    assert torch.equal(found.null, predict_stability(statistics, stability).null)
    for run, area in zip(found.test, found.heldout, strict=True):
        score = found.score(statistics[run])
        assert bool(score[~statistics[run].live].isnan().all())
        live = statistics[run].live
        x, y = (score[group[run] & live] for group in (stability.stable, stability.unstable))
        won = (x[:, None] > y).double() + (x[:, None] == y).double() / 2
        assert area.value == pytest.approx(won.mean().item(), abs=1e-9)
    json.dumps(found.to_json(), allow_nan=False)


def test_statistics_that_say_nothing_predict_nothing_unless_dead_latents_count():
    """The trap: live latents have the same statistics whether stable or not, 40 % are dead. The held-out area is 0.5
    (standard error √(1/12 (1/24 + 1/48)) = 0.07 a run); with dead latents counted as unstable it looks like a
    result. Planted: dead latents not excluded; caught."""
    statistics, stability = example(effect=0.0, dead=0.4)
    found = predict_stability(statistics, stability)
    assert abs(found.area.value - 0.5) < 0.15
    assert found.with_dead > 0.6
    assert found.with_dead > found.area.upper
    assert min(found.dead) > 20
    assert found.to_json()["with_dead"] == found.with_dead


def test_some_runs_as_anchors():
    """Runs 1 and 3 of four: fitted on 3 and judged on 1, which is what all four anchors give for that pair."""
    statistics, stability = example()
    few = predict_stability([statistics[1], statistics[3]], stability, 3, anchors=[1, 3])
    every = predict_stability(statistics, stability, 3)
    assert few.test == [1]
    assert few.heldout == [every.heldout[1]]
    assert few.dead == [every.dead[1]]
    with pytest.raises(ValueError, match=r"one of \[1, 3\], got 0"):
        predict_stability([statistics[1], statistics[3]], stability, anchors=[1, 3])


def test_fit_is_the_minimum():
    """The gradient of the penalised log loss vanishes. Planted: penalty left out of the gradient; caught."""
    x = torch.randn(50, 3, dtype=torch.float64) * torch.tensor([1.0, 10.0, 0.1]) + 2
    label = (torch.rand(50) < 0.5).double()
    for target in (label, (x[:, 1] > 2).double()):  # the second is separable
        fit = _Fit(x, target)
        beta = torch.cat([fit.weight, torch.tensor([fit.bias])]).requires_grad_()
        z = (x - fit.mean) / fit.scale @ beta[:3] + beta[3]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(z, target) + RIDGE / 2 * beta[:3].square().sum()
        loss.backward()
        assert beta.grad.abs().max() < 1e-7
    constant = _Fit(torch.ones(10, 2).double(), torch.arange(10).double() % 2)
    assert bool(constant.weight.isfinite().all())


def test_errors():
    statistics, stability = example()
    with pytest.raises(ValueError, match=r"train: expected an anchor, one of \[0, 1, 2, 3\], got 4"):
        predict_stability(statistics, stability, 4)
    with pytest.raises(ValueError, match=r"anchors: expected one of 0\.\.3 for each of 3"):
        predict_stability(statistics[:3], stability)
    with pytest.raises(ValueError, match=r"train: expected at least 2 stable and 2 unstable latents"):
        predict_stability(*example(stable=0.0))
