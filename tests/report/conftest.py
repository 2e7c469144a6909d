"""One written report for all tests of it."""

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
spec = importlib.util.spec_from_file_location("synthetic", Path(__file__).parent / "synthetic.py")
synthetic = importlib.util.module_from_spec(spec)
spec.loader.exec_module(synthetic)


@pytest.fixture(scope="session")
def results_folder():
    return synthetic.results_folder


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    from saekern import report

    folder = synthetic.results_folder(tmp_path_factory.mktemp("study"))
    report.write(folder)
    return folder
