"""Known features in a study."""

import pytest

from saekern.pipeline.experiments.synthetic import SyntheticSettings
from saekern.pipeline.steps import write_json

pytest.importorskip("matplotlib")
SMALL = SyntheticSettings(
    ranks=(2, 4), noises=(0.0,), ks=(2,), seeds=3, rows=5120, width=16, identifiable=12, low_rank=8
)


def test_synthetic(experiment):
    """A line for each point of the grid; only this and the report run."""
    found, page, ran = experiment("synthetic", SMALL)
    assert ran == ("synthetic", "report")
    assert [(cell["rank"], cell["k"]) for cell in found["cells"]] == [(2, 2), (4, 2)]
    assert found["settings"]["d_sae"] == 20
    assert '<section id="synthetic">' in page
    assert "Block features are found" in page


def test_points_that_are_done_are_kept(tmp_path):
    """A file in the work folder is read, not made again. Planted: every point computed anew; caught."""
    from saekern.pipeline.experiments.synthetic import run

    first = run(None, SMALL, tmp_path)
    path = tmp_path / "rank-2-noise-0-k-2.json"
    write_json(path, {"settings": {}, "interval": "", "cells": [{"kept": 1}]})
    again = run(None, SMALL, tmp_path)
    assert again["cells"] == [{"kept": 1}, first["cells"][1]]
