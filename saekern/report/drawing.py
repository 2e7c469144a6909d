"""From a plain function over a Matplotlib figure to a PNG file and SVG text for the page."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, FAINT = "#101418", "#c9ced6"  # in SVG these two become CSS colours, so that a page can be dark
BLUE, ORANGE, GREY = "#2f7fd0", "#e0792f", "#8a93a0"
SCALE = ["#dcebf9", "#9cc6ee", "#5a9fdd", "#2f7fd0", "#1c559b", "#10305c"]  # light to dark, one hue

STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # shipped with Matplotlib, so pictures do not depend on the machine's fonts
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "grid.alpha": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "legend.frameon": False,
    "svg.fonttype": "path",
}


class Drawing(NamedTuple):
    """A picture that is not drawn yet."""

    name: str
    """Of its files; unique in a report."""
    title: str
    width: float
    """Inches; the height is 3.5."""
    make: "Callable[[Figure], tuple[str, str]]"
    """Draws, and returns the caption and the text for those who do not see it."""


class Picture(NamedTuple):
    name: str
    title: str
    caption: str
    alt: str
    svg: str


def need_matplotlib(who: str) -> None:
    """Raises ImportError with the remedy; `who` begins its sentence."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{who} Matplotlib: pip install 'saekern[report]'") from error


def render(drawing: Drawing, folder: Path) -> Picture:
    """Draw it: `<folder>/<name>.png`, and the SVG text for the page."""
    need_matplotlib("the report's figures need")
    import matplotlib
    from matplotlib import figure as mpl

    folder.mkdir(parents=True, exist_ok=True)
    style: Any = {**STYLE, "svg.hashsalt": drawing.name}  # ids differ between figures and not between runs
    with matplotlib.rc_context(style):
        figure = mpl.Figure(figsize=(drawing.width, 3.5), layout="constrained")
        caption, alt = drawing.make(figure)
        figure.savefig(folder / f"{drawing.name}.png", dpi=160, facecolor="white")
        figure.set_layout_engine("none")  # the layout is made; making it again is half the time
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor").replace(FAINT, "var(--line)")
    return Picture(drawing.name, drawing.title, caption, alt, svg)
