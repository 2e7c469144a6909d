"""What papers found, beside what a study found."""

import json

from saekern import report
from saekern.report.published import PUBLISHED
from saekern.report.sections import SECTIONS


def test_every_section_has_its_published_counterpart():
    assert set(PUBLISHED) == set(SECTIONS)


def test_page_has_the_question_both_findings_and_the_facts(results_folder, tmp_path):
    """Planted: the published text in the place of what was found; caught."""
    folder = results_folder(tmp_path)
    run = json.loads((folder / "results" / "run.json").read_text())
    run["config"]["experiments"] = {"run": ["masking"]}
    run["seconds"] = {"train": 90.0, "match": 30.0}
    (folder / "results" / "run.json").write_text(json.dumps(run))
    (folder / "results" / "masking.json").write_text(json.dumps({"skipped": "no unstable latents"}))
    report.write(folder)
    text = (folder / "papers.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| Do reconstructions need"))
    assert row.split(" | ")[1] == PUBLISHED["masking"]
    assert row.endswith("| Not measured: no unstable latents. |")
    assert "- Time: 2 minutes of steps" in text
