"""The page and the pictures, from a synthetic results folder."""

import html.parser
import json
import re
import shutil

import pytest

from saekern import report
from saekern.report import pareto
from saekern.report.figures import FIGURES, VARIANTS
from saekern.report.page import page as make_page
from saekern.report.text import snippet, visible


def test_every_figure_is_in_the_page_and_a_png(written):
    """Planted: skipped one figure of the table; caught."""
    page = (written / "report.html").read_text()
    names = [*FIGURES, *VARIANTS]
    for name in names:
        assert f'<figure id="{name}">' in page
        png = (written / "figures" / f"{name}.png").read_bytes()
        assert png.startswith(b"\x89PNG")
        assert len(png) > 5000
    assert page.count("<svg ") == len(names)


def test_without_variants_there_is_no_section(results_folder, tmp_path):
    folder = results_folder(tmp_path)
    (folder / "results" / "variants.json").unlink()
    page = report.write(folder).read_text()
    assert "Other architectures" not in page
    assert 'id="pareto"' not in page


def test_variants_stand_in_the_table_and_on_their_lines(written):
    """Names that end in a number are one line. Planted: every variant its own line; caught."""
    page = (written / "report.html").read_text()
    for cell in ("kron-8", "kron-32", "nested &lt;1&gt;, k = 4", "0.7640", "1.5000"):
        assert cell in page
    lines = {point.series for point in pareto.points(report.load(written))}
    assert lines == {"the study's", "kron", "nested <1>"}


def test_page_needs_nothing_from_outside(written):
    """No address is fetched: no src or href but data: and fragments, no @import, no url() but fragments.

    Planted: a web font by @import; caught."""
    page = (written / "report.html").read_text()
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert links
    assert all(link.startswith(("data:", "#")) for link in links)
    assert "@import" not in page
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))


def test_page_is_well_formed(written):
    class Checker(html.parser.HTMLParser):
        void = frozenset({"meta", "link", "br", "input"})

        def __init__(self):
            super().__init__()
            self.open = []

        def handle_starttag(self, tag, attributes):
            if tag not in self.void:
                self.open.append(tag)

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

    checker = Checker()
    checker.feed((written / "report.html").read_text())
    checker.close()
    assert checker.open == []


def test_hostile_text_is_shown_and_not_run(written):
    """The contexts hold a script element, control bytes, a right-to-left override, a lone surrogate.

    Planted: characters that show written unescaped; caught."""
    page = (written / "report.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;alert" in page
    assert "alert('x')</script>" not in page
    assert "Stability of a &lt;tiny&gt; SAE" in page
    for hidden in "\x00\x1b\u202e\u200b":
        assert hidden not in page


def test_visible_marks_what_does_not_show():
    assert visible("a\nb\t<\x00\x7f\u202e\ud800") == (
        "a<i>⏎</i>b<i>⇥</i>&lt;<i>␀</i><i>␡</i><i>U+202E</i><i>U+D800</i>"
    )
    assert snippet("<", "&", ">") == "<code>&lt;<mark>&amp;</mark>&gt;</code>"


def test_same_results_same_page(written, tmp_path):
    report.write(written, tmp_path)
    assert (tmp_path / "report.html").read_bytes() == (written / "report.html").read_bytes()


def test_says_when_epsilon_is_vacuous(results_folder, tmp_path):
    for seeds, vacuous in ((8, True), (32, False)):
        folder = results_folder(tmp_path / str(seeds), seeds=seeds, latents=128)
        page = make_page(report.load(folder), [])
        assert ("comparisons are few" in page) == vacuous
        assert ("in all of the other 7" in page) == vacuous


def test_verdicts_follow_the_worst_seed(written):
    evaluation = report.load(written).evaluation
    assert [line.passed for line in report.verdicts(evaluation)] == [True, True, True]
    for field, value, position in (("ev", 0.70, 0), ("recovered", 0.89, 1), ("dead", 0.21, 2)):
        changed = json.loads(json.dumps(evaluation))
        changed["seeds"][3][field] = value
        passed = [line.passed for line in report.verdicts(changed)]
        assert passed == [i != position for i in range(3)], field


def test_missed_verdict_is_on_the_page(results_folder, tmp_path):
    folder = results_folder(tmp_path, latents=128)
    path = folder / "results" / "evaluation.json"
    evaluation = json.loads(path.read_text())
    evaluation["pca_ev"] = 0.99
    path.write_text(json.dumps(evaluation))
    page = make_page(report.load(folder), [])
    assert "Explained variance: missed." in page
    assert "Missed: explained variance." in page


def test_rows_without_text_or_model(results_folder, tmp_path):
    page = make_page(report.load(results_folder(tmp_path, latents=128, text=False)), [])
    assert "Cross-entropy recovered: not measured." in page
    assert "The rows came without text" in page


def test_two_seeds_all_dead(results_folder, tmp_path):
    """Nothing to draw and nothing to average: the page still comes."""
    page = report.write(results_folder(tmp_path, seeds=2, latents=64, dead=1.0)).read_text()
    assert "nan" not in re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL)


@pytest.mark.parametrize("name", ["stability.safetensors", "stability.json", "run.json"])
def test_cut_file_is_named(written, tmp_path, name):
    shutil.copytree(written / "results", tmp_path / "results")
    path = tmp_path / "results" / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=name):
        report.write(tmp_path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"stability\.safetensors"):
        report.write(tmp_path)


def test_the_table_of_many_seeds_is_folded(results_folder, tmp_path):
    """Planted: folded at any number; caught."""
    for seeds, folded in ((8, False), (24, True)):
        folder = results_folder(tmp_path / str(seeds), seeds=seeds)
        page = report.write(folder).read_text()
        assert (f"<summary>All {seeds} seeds: EV 0.8600 to" in page) == folded
