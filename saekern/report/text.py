"""Text from a model's input, made safe and visible in HTML."""

import html
import unicodedata

_NAMED = {"\n": "⏎", "\t": "⇥", "\r": "␍"}


def visible(text: str) -> str:
    """Escape for HTML; characters that would not show, or would rearrange their neighbours, become marks.

    Newline, tab and carriage return get arrows, other control bytes their Unicode picture (␀, ␛), bidirectional
    controls, zero-width characters and lone surrogates their code point. Each mark is a `<i>` element.
    """
    return "".join(_mark(c) if _hidden(c) else html.escape(c) for c in text)


def _hidden(character: str) -> bool:
    # Cc control, Cf format (bidi, zero width), Cs surrogates, Co private use, Zl/Zp line and paragraph separators
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")


def _mark(character: str) -> str:
    code = ord(character)
    if character in _NAMED:
        sign = _NAMED[character]
    elif code < 0x20:
        sign = chr(0x2400 + code)
    elif code == 0x7F:
        sign = "␡"
    else:
        sign = f"U+{code:04X}"
    return f"<i>{sign}</i>"


def snippet(before: str, token: str, after: str) -> str:
    """One context with its activating token marked."""
    return f"<code>{visible(before)}<mark>{visible(token)}</mark>{visible(after)}</code>"


def table(header: list[str], rows: list[list[str]], *, numeric: bool = True) -> str:
    """An HTML table; cells are HTML already. With `numeric`, all columns but the first align right."""
    kind = ' class="numbers"' if numeric else ""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in header)
    body = "".join(
        f'<tr><th scope="row">{first}</th>' + "".join(f"<td>{cell}</td>" for cell in rest) + "</tr>"
        for first, *rest in rows
    )
    return f'<div class="scroll"><table{kind}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def interval(mean: float | None, lower: float | None, upper: float | None, *, digits: int = 3) -> str:
    """A number with the ends of its interval; a dash where there is none."""
    if mean is None:
        return "–"
    if lower is None or upper is None:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ({lower:.{digits}f} to {upper:.{digits}f})"


def percent(mean: float | None, lower: float | None = None, upper: float | None = None, *, digits: int = 1) -> str:
    """A share in percent with the ends of its interval, which stay in 0..100; a dash where there is none."""
    if mean is None:
        return "–"
    if lower is None or upper is None:
        return f"{100 * mean:.{digits}f} %"
    return f"{100 * mean:.{digits}f} % ({100 * max(0.0, lower):.{digits}f} to {100 * min(1.0, upper):.{digits}f})"
