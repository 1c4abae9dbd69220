"""Lines of C++ at the right depth."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

WIDTH = 120


class Emitter:
    """Collects lines; `block` nests them in braces."""

    def __init__(self, depth: int = 0) -> None:
        self.lines: list[str] = []
        self.depth = depth

    def line(self, text: str = "") -> None:
        """One statement; a long one is folded after an operator or comma."""
        pad = "    " * self.depth
        self.lines += [(pad + part).rstrip() for part in fold(text, WIDTH - len(pad))]

    def note(self, text: str | None) -> None:
        """A comment of one or several lines."""
        for part in (text or "").splitlines():
            # A backslash at the end would make the next line part of the comment.
            self.lines.append(f"{'    ' * self.depth}// {part}".rstrip("\\ "))

    @contextmanager
    def block(self, head: str) -> Generator[None]:
        self.line(f"{head} {{".lstrip())
        self.depth += 1
        yield
        self.depth -= 1
        self.line("}")

    @contextmanager
    def indent(self) -> Generator[None]:
        self.depth += 1
        yield
        self.depth -= 1

    def extend(self, other: Emitter) -> None:
        """Append lines collected elsewhere at the same depth."""
        self.lines += other.lines

    def text(self) -> str:
        return "\n".join(self.lines) + "\n"


def fold(text: str, width: int) -> list[str]:
    """Break a long line at the least nested space that fits, as late as possible."""
    if len(text) <= width:
        return [text]
    best: tuple[int, int] | None = None
    depth = 0
    for at, char in enumerate(text[:width]):
        if char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
        elif char == " " and at > 24 and (best is None or depth <= best[0]):
            best = (depth, at)
    if best is None:
        return [text]
    head, tail = text[: best[1]], text[best[1] + 1 :]
    return [head, *("    " + part for part in fold(tail, width - 4))]
