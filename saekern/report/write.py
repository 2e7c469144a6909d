"""Draw the figures and write the pages."""

from pathlib import Path

from saekern.features import Dashboard
from saekern.report.drawing import render
from saekern.report.features_page import features_page
from saekern.report.figures import drawings
from saekern.report.page import page
from saekern.report.papers import beside_papers
from saekern.report.results import load
from saekern.report.sections import sections


def write(folder: str | Path, out: str | Path | None = None) -> Path:
    """Make `figures/*.png`, `tables/*.csv`, `papers.md` and `report.html` from `<folder>/results`.

    Args:
        folder: a study's folder.
        out: where they go; the same folder by default.

    Returns:
        the path of the page: one file without outside references, readable offline and in print.

    Raises:
        ImportError: Matplotlib is missing. FileNotFoundError, ValueError: a results file is missing or damaged.
    """
    out = Path(folder if out is None else out)
    results = load(folder)
    figures, chosen = out / "figures", sections(results)
    (out / "tables").mkdir(parents=True, exist_ok=True)
    for table in (table for section in chosen for table in section.tables):
        (out / "tables" / f"{table.name}.csv").write_text(table.csv(), encoding="utf-8")
    _replace(out / "papers.md", beside_papers(results, chosen))
    drawn = [(section, [render(drawing, figures) for drawing in section.drawings]) for section in chosen]
    text = page(results, [render(drawing, figures) for drawing in drawings(results)], drawn)
    return _replace(out / "report.html", text)


def write_features(dashboard: Dashboard, out: str | Path) -> Path:
    """The page about single latents, as one file.

    Returns:
        its path.
    """
    return _replace(Path(out), features_page(dashboard))


def _replace(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
    return path
