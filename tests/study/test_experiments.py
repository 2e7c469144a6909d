"""Experiments as stages of a study."""

import pytest

from saekern.pipeline import StudyConfig
from saekern.pipeline.config import StabilityConfig
from saekern.pipeline.experiments import EXPERIMENTS
from saekern.pipeline.experiments.masking import MaskingSettings
from saekern.pipeline.experiments.settings import ExperimentsConfig
from saekern.report.sections import SECTIONS

pytest.importorskip("matplotlib")


def test_every_experiment_has_its_places():
    """One name: the experiment, its settings, its section."""
    assert set(EXPERIMENTS) <= set(SECTIONS)
    for name in EXPERIMENTS:
        assert hasattr(ExperimentsConfig(), name)


def test_settings_come_back_from_json():
    config = StudyConfig.from_json({"experiments": {"run": ["masking"], "masking": {"draws": 7}}})
    assert config.experiments.masking.draws == 7
    assert StudyConfig.from_json(config.to_json()) == config


def test_unknown_names_and_values_are_refused():
    with pytest.raises(ValueError, match=r"experiments.run: expected names among .*masking.*, got 'maskin'"):
        ExperimentsConfig(run=("maskin",))
    with pytest.raises(ValueError, match="every name once"):
        ExperimentsConfig(run=("masking", "masking"))
    with pytest.raises(ValueError, match=r"masking\.draws: expected at least 2, got 1"):
        StudyConfig.from_json({"experiments": {"masking": {"draws": 1}}})


def test_masking(experiment):
    """Only the experiment and the report run; the page says what was found. Stable latents matter more here, since they
    have most of the mass."""
    found, page, ran = experiment("masking")
    assert ran == ("masking", "report")
    assert found["levels"][0] == 1
    assert found["ce"] is not None
    assert found["differences"]["stable - unstable"]["ev"]["lower"][-1] > 0
    assert '<section id="masking">' in page
    assert "What was found" in page
    assert experiment("masking")[2] == ()  # complete
    assert experiment("masking", MaskingSettings(draws=3))[2] == ("masking", "report")


def test_nothing_to_measure_is_said(experiment):
    """Every latent is between stable and unstable: no masks, and a page that says so."""
    found, page, _ = experiment("masking", stability=StabilityConfig(assignment_seeds=2, null_seeds=2, threshold=-0.99))
    assert found == {"skipped": "seed 0 has 60 stable and 0 unstable latents"}
    assert "Not measured: seed 0 has 60 stable" in page
