"""The stand-in model in place of the shipped one."""

import importlib.util
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
