"""The stand-in model in place of the shipped one."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from saekern import activations

spec = importlib.util.spec_from_file_location("stand_in", Path(__file__).parent / "stand_in.py")
stand_in = importlib.util.module_from_spec(spec)
spec.loader.exec_module(stand_in)


@pytest.fixture
def small_config(monkeypatch):
    """Makes a config of three small seeds; the model of a study is the stand-in."""
    monkeypatch.setattr(activations, "tiny_model", stand_in.StandIn)
    return stand_in.small_config


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """One finished study, to be copied."""
    from saekern.pipeline import study

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(activations, "tiny_model", stand_in.StandIn)
        folder = tmp_path_factory.mktemp("finished") / "study"
        study(stand_in.small_config(), folder, progress=False)
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A finished study of `stand_in.trained_config`, to be copied."""
    from saekern.pipeline import study

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(activations, "tiny_model", stand_in.StandIn)
        folder = tmp_path_factory.mktemp("trained") / "study"
        study(stand_in.trained_config(), folder, progress=False)
    return folder


@pytest.fixture
def experiment(monkeypatch, trained, tmp_path):
    """Runs one experiment on a copy of the trained study; gives what it found, the page, and the steps that ran."""
    from saekern.pipeline import study
    from saekern.pipeline.experiments.settings import ExperimentsConfig

    monkeypatch.setattr(activations, "tiny_model", stand_in.StandIn)
    folder = tmp_path / "study"
    shutil.copytree(trained, folder)

    def run(name, settings=None, **changes):
        chosen = ExperimentsConfig(run=(name,), **({} if settings is None else {name: settings}))
        done = study(stand_in.trained_config(experiments=chosen, **changes), folder, progress=False)
        return json.loads((folder / "results" / f"{name}.json").read_text()), done.report.read_text(), done.ran

    return run
