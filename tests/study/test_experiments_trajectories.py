"""The seeds over the course of their training, in a study."""

import pytest

from saekern.pipeline.experiments.settings import ExperimentsConfig
from saekern.pipeline.experiments.trajectories import TrajectoriesSettings
from saekern.pipeline.snapshots import snapshot_steps

pytest.importorskip("matplotlib")
STEPS = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 320]


def test_trajectories(experiment):
    """The followed seeds are trained again, to the same weights; D(0) is that of the study, exactly. All latents are
    born at the end, and the shares only rise."""
    found, page, ran = experiment("trajectories", TrajectoriesSettings(seeds=3))
    assert {"train/000", "train/001", "train/002", "trajectories"} <= set(ran)
    assert "train/003" not in ran
    assert found["seeds"] == 3
    assert list(found["geometries"]) == ["raw", "centered", "whitened"]
    for one in found["geometries"].values():
        assert one["steps"] == STEPS
        assert one["born"]["mean"][-1] == 1
        for curve in (one["born"]["mean"], one["locked_in"]["mean"], one["locked"]):
            assert curve == sorted(curve)
        assert one["movement"]["mean"][0] == pytest.approx(0, abs=1e-6)
        assert one["distance"]["mean"][-1] < one["null"][-1]
    assert '<section id="trajectories">' in page
    assert "independent initialisation" in page.lower()


def test_snapshots_only_where_they_are_followed(small_config):
    config = small_config()
    assert snapshot_steps(config, 0) == (0,)
    followed = ExperimentsConfig(run=("trajectories",), trajectories=TrajectoriesSettings(seeds=3))
    config = small_config(seeds=4, experiments=followed)
    assert snapshot_steps(config, 2) == (0, 1, 2, 4, 8, 16)
    assert snapshot_steps(config, 3) == (0,)


def test_too_few_seeds_are_said(experiment):
    found, page, _ = experiment("trajectories", seeds=2)
    assert found == {"skipped": "2 seeds; intervals need at least 3"}
    assert "Not measured: 2 seeds" in page
