"""Canonical layout of `.attn` text: one space around operators, none inside brackets, no indentation.

Works on tokens, so comments, line breaks inside brackets and brackets written for clarity stay. `=` signs and trailing
comments that the author aligned stay aligned.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

from attnc.diagnostics.source import Source
from attnc.grammar.parser import parse, parse_functions
from attnc.grammar.scanner import Token, tokens_of

_WORD_OPERATORS = frozenset({"and", "or", "not", "by", "if", "else"})
_INDENT = 4
_COMMENT_GAP = 2
_TAB = 8

Key = TypeVar("Key", bound=Hashable)


def format_source(source: Source, *, prelude: bool = False) -> str:
    """The text of `source` in canonical layout; `prelude` is for files of functions without an `attention`.

    Parsing the result gives the same tree, and formatting it again gives the same text.

    Raises:
        SpecError: the text does not parse.
    """
    (parse_functions if prelude else parse)(source)
    lines = _lines(tokens_of(source.text))
    _align_equals(lines)
    for line in lines:
        line.text = line.text or line.print()
    _align_comments(lines)
    return "\n".join(_spaced(lines)) + "\n"


@dataclass
class _Line:
    """One line of text. `tokens` has neither spaces nor the comment; columns are those the author used."""

    tokens: list[Token]
    comment: str
    comment_column: int
    depth: int
    equals_column: int | None
    wide_equals: bool
    text: str = ""

    @property
    def is_blank(self) -> bool:
        return not self.tokens and not self.comment

    @property
    def is_header(self) -> bool:
        return self.depth == 0 and bool(self.tokens) and self.tokens[0].text == "attention"

    def print(self) -> str:
        closing = len(self.tokens) - len(_without_leading_closers(self.tokens))
        indent = " " * (_INDENT * max(0, self.depth - closing))
        return indent + (_joined(self.tokens) if self.tokens else self.comment)

    @property
    def equals(self) -> int:
        """Index of the `=` that belongs to the statement."""
        depth = 0
        for k, token in enumerate(self.tokens):
            depth += _nesting(token)
            if token.text == "=" and depth == 0:
                return k
        raise ValueError("a line without `=`")


def _lines(tokens: Sequence[Token]) -> list[_Line]:
    lines: list[_Line] = []
    pieces: list[Token] = []
    depth = 0
    for token in tokens:
        if token.kind != "newline":
            pieces.append(token)
            continue
        lines.append(_line(pieces, depth))
        depth += sum(_nesting(piece) for piece in pieces)
        pieces = []
    return [*lines, _line(pieces, depth)]


def _nesting(token: Token) -> int:
    return (token.kind == "open") - (token.kind == "close")


def _line(pieces: Sequence[Token], depth: int) -> _Line:
    line = _Line([], "", 0, depth, None, wide_equals=False)
    nesting, column = depth, 0
    before: Token | None = None
    for token in pieces:
        nesting += _nesting(token)
        if token.kind == "comment":
            line.comment, line.comment_column = token.text.rstrip(), column
        elif token.kind != "space":
            line.tokens.append(_respelled(token) if depth == 0 and not line.tokens else token)
        if token.text == "=" and nesting == 0 and line.equals_column is None:
            line.equals_column = column
            line.wide_equals = before is not None and before.kind == "space" and len(before.text) > 1
        column = _column_after(column, token)
        before = token
    return line


def _column_after(column: int, token: Token) -> int:
    if token.kind != "space":
        return column + len(token.text)
    for character in token.text.strip("\ufeff\r"):
        column += _TAB - column % _TAB if character == "\t" else 1
    return column


def _respelled(token: Token) -> Token:
    return token._replace(text="normaliser") if token.text == "normalizer" else token


# --------------------------------------------------------------------------------------------------------- spacing


def _joined(tokens: Sequence[Token]) -> str:
    text = ""
    before: Token | None = None
    tight = True
    for token in tokens:
        text += ("" if tight or _hugs(before, token) else " ") + token.text
        tight = token.kind == "open" or (token.text in "+-" and _starts_operand(before))
        before = token
    return text


def _hugs(before: Token | None, token: Token) -> bool:
    """Whether no space stands before `token`."""
    if token.kind == "close" or token.text in ",:":
        return True
    if token.kind == "open" and before is not None:
        return before.kind == "close" or (before.kind == "word" and before.text not in _WORD_OPERATORS)
    return False


def _starts_operand(before: Token | None) -> bool:
    """Whether what follows `before` is an operand, so that a `-` there is a sign."""
    return before is None or before.kind in ("operator", "open") or before.text in _WORD_OPERATORS


def _without_leading_closers(tokens: Sequence[Token]) -> Sequence[Token]:
    k = 0
    while k < len(tokens) and tokens[k].kind == "close":
        k += 1
    return tokens[k:]


# ------------------------------------------------------------------------------------------------------- alignment


def _align_equals(lines: Sequence[_Line]) -> None:
    """Neighbouring statements whose `=` the author put in one column, with more than one space somewhere."""
    for column, group in _runs(lines, lambda line: line.equals_column if line.depth == 0 else None):
        if column is None or not any(line.wide_equals for line in group):
            continue
        width = max(len(_joined(line.tokens[: line.equals])) for line in group)
        for line in group:
            left, right = line.tokens[: line.equals], line.tokens[line.equals + 1 :]
            line.text = f"{_joined(left):<{width}} = {_joined(right)}".rstrip()


def _align_comments(lines: Sequence[_Line]) -> None:
    """Comments after code keep their column, or move right together where the code has grown into it."""
    for is_code, block in _runs(lines, lambda line: bool(line.tokens)):
        if not is_code:
            continue
        column = {line.comment_column: 0 for line in block}
        for line in block:
            if line.comment:
                start = max(line.comment_column, len(line.text) + _COMMENT_GAP)
                column[line.comment_column] = max(column[line.comment_column], start)
        for line in block:
            if line.comment:
                line.text = f"{line.text:<{column[line.comment_column]}}{line.comment}"


def _runs(lines: Sequence[_Line], key: Callable[[_Line], Key]) -> list[tuple[Key, list[_Line]]]:
    return [(value, list(group)) for value, group in groupby(lines, key)]


def _spaced(lines: Sequence[_Line]) -> list[str]:
    """Texts with at most one blank line in a row, none inside brackets, and one before each further definition."""
    out: list[str] = []
    for line in lines:
        if line.is_blank:
            if line.depth == 0 and out and out[-1]:
                out.append("")
            continue
        if line.is_header:
            _separate(out)
        out.append(line.text)
    while out and not out[-1]:
        out.pop()
    return out


def _separate(out: list[str]) -> None:
    """A blank line above the comments that stand directly above a header, unless they begin the file."""
    k = len(out)
    while k and out[k - 1].startswith("#"):
        k -= 1
    if k and out[k - 1]:
        out.insert(k, "")
