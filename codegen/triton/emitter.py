"""Lines of Python at the right depth."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

WIDTH = 120


class Emitter:
    """Collects lines; `indent` nests."""

    def __init__(self, depth: int = 0) -> None:
        self.lines: list[str] = []
        self.depth = depth

    def line(self, text: str = "", comment: str | None = None) -> None:
        """One statement with a comment after it."""
        if not text:
            self.lines.append("")
            return
        tail = f"  # {comment}" if comment else ""
        self.lines += fold(text, "    " * self.depth, tail)

    def raw(self, text: str) -> None:
        """A line that is never broken."""
        self.lines.append(f"{'    ' * self.depth}{text}".rstrip())

    def packed(self, items: list[str]) -> None:
        """Items with commas after them, as many on a line as fit."""
        pad = "    " * self.depth
        row = ""
        for item in items:
            if row and len(pad) + len(row) + len(item) + 2 > WIDTH:
                self.raw(row)
                row = ""
            row += f"{' ' if row else ''}{item},"
        self.raw(row)

    def note(self, text: str) -> None:
        """A comment of one or several lines."""
        for part in text.splitlines():
            self.raw(f"# {part}")

    @contextmanager
    def indent(self) -> Generator[None]:
        self.depth += 1
        yield
        self.depth -= 1

    def text(self) -> str:
        return "\n".join(self.lines) + "\n"


def fold(text: str, pad: str, tail: str, *, bracketed: bool = False) -> list[str]:
    """A statement on one line if it fits, else with the contents of its longest bracket on lines of their own.

    `bracketed` text lies inside brackets already and may also be broken at its operators.
    """
    if len(pad) + len(text) + len(tail) <= WIDTH:
        return [pad + text + tail]
    opening, closing = _longest_bracket(text)
    if bracketed and closing - opening < 0.8 * len(text):
        for operator in (" | ", " & ", " + ", " - ", " * "):
            first, *rest = _split(text, operator)
            if rest:
                parts = [first, *(f"{operator.strip()} {part}" for part in rest)]
                return _lines(parts, pad, "", tail)
    if closing - opening < 20:
        return [pad + text + tail]
    inner = text[opening + 1 : closing]
    items = _split(inner, ", ")
    body = _lines(items, pad + "    ", ",", ",") if len(items) > 1 else fold(inner, pad + "    ", "", bracketed=True)
    return [pad + text[: opening + 1], *body, pad + text[closing:] + tail]


def _lines(parts: list[str], pad: str, tail: str, last: str) -> list[str]:
    tails = [tail] * (len(parts) - 1) + [last]
    return [line for p, t in zip(parts, tails, strict=True) for line in fold(p, pad, t, bracketed=True)]


def _longest_bracket(text: str) -> tuple[int, int]:
    """The ends of the longest outermost round bracket; (0, 0) if there is none."""
    best, depth, start = (0, 0), 0, 0
    for at, char in enumerate(text):
        if char in "([":
            if depth == 0:
                start = at
            depth += 1
        elif char in ")]":
            depth -= 1
            if depth == 0 and char == ")" and at - start > best[1] - best[0]:
                best = (start, at)
    return best


def _split(text: str, separator: str) -> list[str]:
    """Split at separators outside all brackets."""
    parts, depth, start = [], 0, 0
    for at, char in enumerate(text):
        depth += (char in "([") - (char in ")]")
        if depth == 0 and text.startswith(separator, at) and at >= start:
            parts.append(text[start:at])
            start = at + len(separator)
    return [*parts, text[start:]]
