"""What an experiment says in a report: a verdict in words, tables, pictures and notes, before any HTML."""

import csv
import html
import io
from dataclasses import dataclass

from saekern.report.drawing import Drawing, Picture
from saekern.report.text import table


@dataclass(frozen=True)
class Table:
    """Cells are plain text; the first column names the row."""

    name: str
    """Of its CSV file; unique in a report."""
    title: str
    header: list[str]
    rows: list[list[str]]
    numeric: bool = True
    """All columns but the first align right."""

    def csv(self) -> str:
        """As text of comma-separated values."""
        lines = io.StringIO()
        csv.writer(lines, lineterminator="\n").writerows([self.header, *self.rows])
        return lines.getvalue()

    def html(self) -> str:
        cells = [[html.escape(cell) for cell in row] for row in self.rows]
        shown = table([html.escape(cell) for cell in self.header], cells, numeric=self.numeric)
        return f'<figure class="table" id="{self.name}"><h3>{html.escape(self.title)}</h3>{shown}</figure>'


@dataclass(frozen=True)
class Section:
    """One experiment's part of a report."""

    name: str
    """The experiment's name."""
    title: str
    """The question it answers."""
    verdict: str
    """What was found, in one or two sentences of plain text that also stand in the overview. No more than the intervals
    allow."""
    tables: tuple[Table, ...] = ()
    drawings: tuple[Drawing, ...] = ()
    notes: tuple[str, ...] = ()
    """How it was measured, its null, what it cannot say: a plain sentence or two each."""


def section_html(section: Section, pictures: list[Picture]) -> str:
    """What stands under its title. `pictures`: the section's drawings, drawn."""
    parts = [f'<p class="verdict">{html.escape(section.verdict)}</p>']
    parts += [one.html() for one in section.tables]
    parts.append(figures_html(pictures))
    parts += [f'<p class="note">{html.escape(note)}</p>' for note in section.notes]
    return "\n".join(parts)


def figures_html(pictures: list[Picture]) -> str:
    items = "".join(
        f'<figure id="{p.name}"><h3>{html.escape(p.title)}</h3>'
        + p.svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(p.alt, quote=True)}"', 1)
        + f"<figcaption>{html.escape(p.caption)}</figcaption></figure>"
        for p in pictures
    )
    return f'<div class="figures">{items}</div>' if items else ""
