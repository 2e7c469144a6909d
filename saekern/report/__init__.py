"""Results → pictures and one self-contained HTML page."""

from saekern.report.results import Results, load
from saekern.report.verdict import Verdict, verdicts
from saekern.report.write import write, write_features

__all__ = ["Results", "Verdict", "load", "verdicts", "write", "write_features"]
