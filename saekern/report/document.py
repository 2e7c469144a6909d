"""The shell of a page that needs nothing else: style and script inside, and a policy that forbids any other source."""

import html
from importlib.resources import files

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def document(title: str, styles: list[str], script: str, body: str, *, late: str = "") -> str:
    """A whole HTML document.

    Args:
        title: text.
        styles: names of CSS files of this package, in order.
        script: JavaScript for the head.
        body: HTML.
        late: JavaScript for the end of the body.
    """
    style = "\n".join(asset(name) for name in styles)
    end = f"<script>{late}</script>\n" if late else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'  # else a browser asks the server for favicon.ico
        f"<title>{html.escape(title)}</title>\n<style>\n{style}</style>\n<script>{script}</script>\n</head>\n"
        f"<body>\n{body}\n{end}</body>\n</html>\n"
    )


def asset(name: str) -> str:
    """A CSS or JavaScript file of this package."""
    return files("saekern.report").joinpath(name).read_text(encoding="utf-8")
