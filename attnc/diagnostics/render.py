"""Diagnostics as text: plain for exceptions, files and pipes, rich for terminals. At most six lines each."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

from attnc.diagnostics.diagnostic import Diagnostic
from attnc.diagnostics.source import Source, Span

if TYPE_CHECKING:
    from rich.text import Text

_WIDTH = 100
_TAB = 4
_LONGEST_MESSAGE = 600

Piece = tuple[str, str]
"""Text and its rich style."""


def render_plain(diagnostic: Diagnostic) -> str:
    """The diagnostic as lines of text without colours, no newline at the end."""
    return "\n".join("".join(text for text, _ in line) for line in _lines(diagnostic))


def render_rich(diagnostic: Diagnostic) -> Text:
    """The same lines with colours, for a rich console."""
    from rich.text import Text

    return Text("\n").join(Text.assemble(*line) for line in _lines(diagnostic))


def _lines(diagnostic: Diagnostic) -> list[list[Piece]]:
    colour = "bold red" if diagnostic.severity == "error" else "bold yellow"
    lines = [[(f"{diagnostic.severity}[{diagnostic.code}]", colour), (f": {_one_line(diagnostic.message)}", "bold")]]
    if diagnostic.source is not None and diagnostic.span is not None:
        lines += _excerpt(diagnostic.source, diagnostic.span, colour)
    elif diagnostic.source is not None:
        lines.append([(" --> ", "blue"), (diagnostic.source.name, "")])
    if diagnostic.remedy:
        lines.append([("help", "bold cyan"), (f": {_one_line(diagnostic.remedy)}", "")])
    return lines


def _excerpt(source: Source, span: Span, colour: str) -> list[list[Piece]]:
    line, column = source.position(span.start)
    text = source.line(line)
    place: list[Piece] = [(f"{' ' * len(str(line))}--> ", "blue"), (f"{source.name}:{line}:{column}", "")]
    if not text.strip():
        return [place]
    shown, start, end = _clip(text, column - 1, column - 1 + max(1, span.end - span.start))
    before, marked = _printable(shown[:start], 0)
    _, width = _printable(shown[start:end], marked)
    gutter = " " * len(str(line))
    carets = " " * marked + "^" * max(1, width - marked)
    return [
        place,
        [(f"{line} | ", "blue"), ((before + _printable(shown[start:], marked)[0]).rstrip(), "")],
        [(f"{gutter} | ", "blue"), (carets, colour)],
    ]


def _clip(text: str, start: int, end: int) -> tuple[str, int, int]:
    """At most `_WIDTH` characters around `[start, end)`, and where that range lies in them."""
    end = max(min(end, len(text)), start)
    if len(text) <= _WIDTH:
        return text, start, end
    first = max(0, min(start - _WIDTH // 3, len(text) - _WIDTH))
    last = min(len(text), first + _WIDTH)
    head, tail = "…" if first else "", "…" if last < len(text) else ""
    return head + text[first:last] + tail, start - first + len(head), min(end, last) - first + len(head)


def _printable(text: str, cell: int) -> tuple[str, int]:
    """The text as a terminal can show it from column `cell` on, and the column after it.

    Tabs become spaces, and what a terminal would swallow or act on becomes a replacement sign.
    """
    out: list[str] = []
    for character in text:
        if character == "\t":
            out.append(" " * (_TAB - cell % _TAB))
            cell += _TAB - cell % _TAB
            continue
        shown = character if character.isprintable() or character.isspace() else "\ufffd"
        out.append(" " if shown.isspace() else shown)
        wide = unicodedata.east_asian_width(shown) in "WF" and not shown.isspace()
        cell += 2 if wide else 0 if unicodedata.combining(shown) else 1
    return "".join(out), cell


def _one_line(text: str) -> str:
    text = " ".join("".join(c if c.isprintable() or c.isspace() else "\ufffd" for c in text).split())
    return text if len(text) <= _LONGEST_MESSAGE else text[: _LONGEST_MESSAGE - 1] + "…"
