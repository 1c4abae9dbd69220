"""Splits `.attn` text into tokens and statements, and finds characters that do not belong.

This is coarser than the grammar: it knows brackets, comments, strings and line ends, which is what decides where a
statement ends. The formatter works on the same tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from attnc.diagnostics.source import Span

_TOKEN = re.compile(
    r"""
      (?P<space>[ \t]+|\r(?=\n)|\A\ufeff)
    | (?P<word>[A-Za-z_][A-Za-z0-9_]*)
    | (?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)
    | (?P<newline>\n)
    | (?P<comment>\#[^\n]*)
    | (?P<string>"[^"\n]*")
    | (?P<open>[(\[])
    | (?P<close>[)\]])
    | (?P<operator>\*\*|//|<<|>>|<=|>=|==|!=|[-+*/%<>=,:&|^])
    | (?P<curly>[\u201c\u201d\u201e\u00ab][^\n]*?[\u201c\u201d\u00bb])
    | (?P<bad>.)
    """,
    re.VERBOSE | re.DOTALL,
)
# In comments and strings too: control characters, text-direction overrides, halves of surrogate pairs.
_HIDDEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u202a-\u202e\u2066-\u2069\ud800-\udfff]|\r(?!$)")
_CLOSER = {"(": ")", "[": "]"}
_MOST_TOKENS = 10_000


class Token(NamedTuple):
    """A piece of text; `kind` is a group name of the pattern above."""

    kind: str
    text: str
    start: int

    @property
    def end(self) -> int:
        return self.start + len(self.text)

    @property
    def span(self) -> Span:
        return Span(self.start, self.end)


@dataclass(frozen=True, slots=True)
class BracketMistake:
    """An `unclosed` opener, a `stray` closer, or a closer that does `not match` its opener `partner`."""

    kind: str
    token: Token
    partner: Token | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """One statement's tokens, without spaces, comments and newlines. `stop` is the index of the token after it."""

    tokens: tuple[Token, ...]
    stop: int
    nesting: int
    bracket: BracketMistake | None = None

    @property
    def span(self) -> Span:
        return Span(self.tokens[0].start, self.tokens[-1].end)


def tokens_of(text: str) -> list[Token]:
    """All tokens, spaces included: joined together they are `text`."""
    return [Token(m.lastgroup or "bad", m.group(), m.start()) for m in _TOKEN.finditer(text)]


def bad_characters(tokens: Sequence[Token]) -> Iterator[tuple[str, int]]:
    """Each character that may not stand where it stands, with its offset."""
    for token in tokens:
        if token.kind == "bad":
            yield token.text, token.start
        elif token.kind == "curly":
            yield token.text[0], token.start
            yield token.text[-1], token.end - 1
        elif token.kind in ("comment", "string"):
            for match in _HIDDEN.finditer(token.text):
                yield match.group(), token.start + match.start()


def next_chunk(tokens: Sequence[Token], start: int, keywords: frozenset[str], *, cut: bool = False) -> Chunk | None:
    """The statement that begins at or after token `start`; None at the end of the text.

    With `cut`, a bracket still open where the next line looks like a statement counts as forgotten there. A statement
    that goes on for thousands of tokens takes the rest of the text with it.
    """
    held: list[Token] = []
    stack: list[Token] = []
    nesting = 0
    mistake: BracketMistake | None = None
    for k in range(start, len(tokens)):
        token = tokens[k]
        match token.kind:
            case "space" | "comment":
                continue
            case "newline":
                if held and not stack:
                    return Chunk(tuple(held), k + 1, nesting, mistake)
                if held and cut and _looks_like_statement(tokens, k + 1, keywords):
                    return Chunk(tuple(held), k + 1, nesting, mistake or BracketMistake("unclosed", stack[-1]))
                continue
            case "open":
                stack.append(token)
                nesting = max(nesting, len(stack))
            case "close":
                opener = stack.pop() if stack else None
                if mistake is None and opener is None:
                    mistake = BracketMistake("stray", token)
                elif mistake is None and opener is not None and _CLOSER[opener.text] != token.text:
                    mistake = BracketMistake("not match", token, opener)
            case _:
                pass
        held.append(token)
        if len(held) > _MOST_TOKENS:
            break
    if not held:
        return None
    if stack and mistake is None:
        mistake = BracketMistake("unclosed", stack[-1])
    return Chunk(tuple(held), len(tokens), nesting, mistake)


def _looks_like_statement(tokens: Sequence[Token], start: int, keywords: frozenset[str]) -> bool:
    """`mask = …`, `normaliser(s) = …` or `let x …` at the start of a line."""
    line: list[Token] = []
    for token in tokens[start : start + 16]:
        if token.kind == "newline":
            break
        if token.kind not in ("space", "comment"):
            line.append(token)
    if len(line) < 2 or line[0].text not in keywords:
        return False
    return line[1].kind == "word" or line[1].text == "=" or [t.text for t in line[1:5:3]] == ["(", "="]
