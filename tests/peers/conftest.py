"""Tests beside the real libraries, marked `peers` and run by `make test-peers`; what a file needs, it asks for with
`pytest.importorskip`. A run in which nothing was tested fails: an environment without the libraries is no success."""

from importlib.metadata import distributions

import pytest

LIBRARIES = (
    "dictionary-learning",
    "eai-sparsify",
    "numpy",
    "overcomplete",
    "sae-bench",
    "sae-lens",
    "transformer-lens",
)


def asked_for(config: pytest.Config) -> bool:
    return config.getoption("markexpr") == "peers"


def versions() -> str:
    # Of two with one name, the first in sys.path is the one that is imported.
    found = {dist.name.lower(): dist.version for dist in reversed(list(distributions()))}
    return ", ".join(f"{name} {found[name]}" for name in LIBRARIES if name in found)


def pytest_report_header(config):
    return f"peers: {versions()}" if asked_for(config) else None


@pytest.fixture(scope="session", autouse=True)
def environment(record_testsuite_property):
    record_testsuite_property("versions", versions())


def pytest_sessionfinish(session):
    stats = session.config.pluginmanager.get_plugin("terminalreporter").stats
    if asked_for(session.config) and session.exitstatus in (0, 5) and not stats.get("passed"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter):
    if asked_for(terminalreporter.config) and not terminalreporter.stats.get("passed"):
        terminalreporter.write_line("No test passed. `make test-peers` makes the environments that they need.")
