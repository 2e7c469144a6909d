"""The initialisation ablation in a study."""

import pytest

from saekern.pipeline import StudyConfig
from saekern.pipeline.experiments.initialisation import ARMS, InitialisationSettings

pytest.importorskip("matplotlib")
SMALL = InitialisationSettings(arms=("random, l2, tied", "kmeans-shared, l2, tied"), seeds=3, rows=2560)
SHARED = "shared initialisation: D(0) = 0, agreement is not stabilisation"


def test_shared_starts_are_said_on_the_page(experiment):
    """The arm that begins at one place has no index and is named in the verdict; the other begins apart."""
    found, page, ran = experiment("initialisation", SMALL)
    assert ran == ("initialisation", "report")
    apart, shared = found["arms"]
    assert (apart["shared_init"], shared["shared_init"]) == (False, True)
    assert shared["raw"]["initial_all"]["mean"] == 0
    assert shared["centered"]["stabilisation_index"] is None
    assert apart["raw"]["initial"]["mean"] > 0.2
    assert f"1 of 2 arms: {SHARED}." in page
    assert f"Kmeans-shared, l2, tied: {SHARED}" in page
    assert '<section id="initialisation">' in page
    assert experiment("initialisation", SMALL)[2] == ()


def test_independent_starts_alone_are_not_said_to_be_shared(experiment):
    settings = InitialisationSettings(arms=("random, l2, tied", "data, l2, tied"), seeds=3, rows=2560)
    _, page, _ = experiment("initialisation", settings)
    assert SHARED not in page


def test_settings():
    assert len(set(ARMS)) == 12
    config = StudyConfig.from_json({"experiments": {"run": ["initialisation"], "initialisation": {"full": True}}})
    assert StudyConfig.from_json(config.to_json()) == config
    with pytest.raises(ValueError, match=r"initialisation.arms: expected names among .*, got 'kmeans'"):
        InitialisationSettings(arms=("kmeans",))
    with pytest.raises(ValueError, match=r"initialisation.seeds: expected at least 3"):
        InitialisationSettings(seeds=2)
