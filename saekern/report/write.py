"""Draw the figures and write the page."""

from pathlib import Path

from saekern.report.figures import draw
from saekern.report.page import page
from saekern.report.results import load


def write(folder: str | Path, out: str | Path | None = None) -> Path:
    """Make `figures/*.png` and `report.html` from `<folder>/results`.

    Args:
        folder: a study's folder.
        out: where the figures and the page go; the same folder by default.

    Returns:
        the path of the page: one file without outside references, readable offline and in print.

    Raises:
        ImportError: Matplotlib is missing. FileNotFoundError, ValueError: a results file is missing or damaged.
    """
    out = Path(folder if out is None else out)
    results = load(folder)
    text = page(results, draw(results, out / "figures"))
    path = out / "report.html"
    temporary = path.with_name(".report.html")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
    return path
