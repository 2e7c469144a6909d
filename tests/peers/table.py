"""`python tests/peers/table.py REPORT.xml …`: docs/peers.md from pytest's reports of tests/peers, and nothing else."""

import re
import sys
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from pathlib import Path

SHOWN = 7  # cases of a test that are named
PAGE = Path(__file__).parent.parent.parent / "docs" / "peers.md"
HEAD = """# Beside the real libraries

What `make test-peers` saw last: our code and the libraries' own, on the same weights and rows. A test passes where
outputs (gradients, losses, files) agree within what rounding explains (`tests/bounds.py`); figures that a test recorded
are the worst of its cases. What both environments run counts twice; `bench/install_peers.py` and
`tests/peers/install_saebench.py` make them.

"""


def main(reports: list[str]) -> int:
    suites = [suite for report in reports for suite in ElementTree.parse(report).getroot().iter("testsuite")]
    versions = [p.get("value", "") for suite in suites for p in suite.iterfind("properties/property")]
    PAGE.write_text(HEAD + "".join(f"- {text}\n" for text in dict.fromkeys(versions)) + "\n" + table(suites))
    return 0


def table(suites: list[ElementTree.Element]) -> str:
    outcomes: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    figures: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for case in (case for suite in suites for case in suite.iter("testcase")):
        file = case.get("classname", "").split(".")[-1].removeprefix("test_")
        name, _, parameters = case.get("name", "").partition("[")
        key = (file, name.removeprefix("test_"))
        outcome = next((kind for kind in ("failure", "error", "skipped") if case.find(kind) is not None), "passed")
        outcomes[key][outcome].append(parameters.rstrip("]"))
        for entry in case.iterfind("properties/property"):
            label, value = entry.get("name", ""), float(entry.get("value", "nan"))
            figures[key][label] = max(value, figures[key].get(label, value))
    lines = ["| file | test | cases | passed | figures |", "|---|---|---|---|---|"]
    for (file, name), found in sorted(outcomes.items()):
        passed = found.pop("passed", [])
        if not passed and found.keys() == {"skipped"}:
            continue  # belongs to another environment
        named = list(dict.fromkeys(re.sub(r"\s+", " ", p) for p in passed if p))
        cases = ", ".join(named) if len(named) <= SHOWN else f"{len(named)}: {', '.join(named[:3])}, …"
        rest = "".join(f", {len(which)} {kind}" for kind, which in found.items())
        shown = "; ".join(f"{label} {value:.3g}" for label, value in figures[file, name].items())
        lines.append(f"| {file} | {name.replace('_', ' ')} | {cases} | {len(passed)}{rest} | {shown} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
