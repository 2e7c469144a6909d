"""The page in a real browser: figures drawn, no error on the console, a screenshot to look at."""

import re

import pytest
from browser import CHROMIUM, browse, console

from saekern.report.figures import FIGURES, VARIANTS

pytestmark = [
    pytest.mark.chromium,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium"),
]


def test_figures_draw_and_the_console_is_silent(written, tmp_path):
    """Planted: `svg` without content, a throw in the script; both caught."""
    process = browse(tmp_path / "profile", "--dump-dom", (written / "report.html").as_uri())
    drawn = re.findall(r'<figure id="(\w+)" data-drawn="yes"', process.stdout)
    assert drawn == [*FIGURES, *VARIANTS]
    assert "data-errors" not in process.stdout[:400]
    assert console(process) == []


def test_console_errors_would_be_seen(written, tmp_path):
    """The test above can fail: a page with an error has it on the console and in the mark."""
    page = (written / "report.html").read_text().replace("</script>", "throw new Error('planted');</script>", 1)
    path = tmp_path / "report.html"
    path.write_text(page)
    process = browse(tmp_path / "profile", "--dump-dom", path.as_uri())
    assert any("planted" in line for line in console(process))
    assert 'data-errors="yes"' in process.stdout[:400]


@pytest.mark.parametrize("dark", [False, True])
def test_screenshot(written, tmp_path, dark):
    picture = tmp_path / "screenshot.png"
    theme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    page = (written / "report.html").as_uri()
    browse(tmp_path / "profile", *theme, "--window-size=1280,4000", f"--screenshot={picture}", page)
    from matplotlib.image import imread

    pixels = imread(picture)[..., :3]
    assert pixels.shape[:2] == (4000, 1280)
    assert pixels.std() > 0.05  # not one colour
    assert (pixels[0, 0].mean() < 0.3) == dark  # the paper
