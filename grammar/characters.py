"""Characters that do not belong in a spec: their names and what to write for them."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence

from attnc.diagnostics.source import Span
from attnc.grammar.build import Mistake

_NOISE_KINDS = 12

# What people write for something that has a spelling here.
_SPELLINGS = {
    "\u2212": "-", "\u2013": "-", "\u2014": "-", "\u2010": "-", "\u2011": "-",
    "\u00d7": "*", "\u00b7": "*", "\u22c5": "*", "\u2217": "*", "\u00f7": "/", "\u2215": "/", "\u2044": "/",
    "\u2264": "<=", "\u2a7d": "<=", "\u2265": ">=", "\u2a7e": ">=", "\u2260": "!=", "\u2261": "==",
    "\u2227": "and", "\u2228": "or", "\u00ac": "not", "!": "not", "~": "not",
    "\u00b2": "** 2", "\u00b3": "** 3", "\u221a": "sqrt(…)", "\u221e": "inf",
    "\u03a3": "sum[j](…)", "\u2211": "sum[j](…)", "\u220f": "exp(sum[j](log(…)))", "\u2207": "a name in letters",
    "\u201c": '"', "\u201d": '"', "\u201e": '"', "\u00ab": '"', "\u00bb": '"', "'": '"', "\u2018": '"', "\u2019": '"',
    "{": "(", "}": ")", "\u27e8": "dot(…)", "\u27e9": "dot(…)",
}  # fmt: skip
_ADVICE = {
    "@": "write `dot(x, y)` or `sum[d](x[d] * y[d])`; there is no `@`",
    ";": "put each statement on a line of its own",
    ".": "a spec has no attributes or methods; write `f(x)` for `x.f()`",
    "\\": "a line continues inside brackets; put the expression in `(…)`",
    '"': 'close the text with `"` on the same line',
    "?": "write `a if condition else b`",
    "\0": "delete it; if the file is full of them, save it as UTF-8",
    "\r": "end lines with a line feed, alone or after the carriage return",
}
_NAMED = {
    "\0": "a null character (U+0000)",
    "\r": "a carriage return without a line feed (U+000D)",
    "\f": "a form feed (U+000C)",
    "\v": "a vertical tab (U+000B)",
    "\x1b": "an escape character (U+001B)",
    '"': 'a `"` without its partner',
}


def is_noise(bad: Sequence[tuple[str, int]]) -> bool:
    """Whether so many kinds of characters are out of place that the text is something else than a spec."""
    return len({c for c, _ in bad}) > _NOISE_KINDS


def mistakes(bad: Sequence[tuple[str, int]]) -> Iterator[Mistake]:
    """One mistake per kind of character, at its first place; a single one for text that is no spec at all."""
    if is_noise(bad):
        first, offset = bad[0]
        message = f"this is no attention spec: {len(bad):,} characters do not belong, such as {_character_name(first)}"
        remedy = "check that this is the file you meant, saved as plain text in UTF-8"
        yield Mistake("E002", message, Span(offset, offset + 1), remedy)
        return
    places: dict[str, list[int]] = {}
    for character, offset in bad:
        places.setdefault(character, []).append(offset)
    for character, offsets in places.items():
        more = f" (and {len(offsets) - 1} more like it)" if len(offsets) > 1 else ""
        message = f"{_character_name(character)} does not belong here{more}"
        yield Mistake("E002", message, Span(offsets[0], offsets[0] + 1), _character_remedy(character))


def _character_name(character: str) -> str:
    if character in _NAMED:
        return _NAMED[character]
    if "!" <= character <= "~":
        return f"`{character}`"
    number = f"U+{ord(character):04X}"
    name = unicodedata.name(character, "").lower()
    if not name:
        return f"a character without a name, {number},"
    if character.isprintable() and not character.isspace():
        return f"`{character}` ({name}, {number})"
    return f"a {name} ({number})"


def _character_remedy(character: str) -> str:
    if character in _ADVICE:
        return _ADVICE[character]
    spelling = _SPELLINGS.get(character)
    if spelling is None:
        plain = unicodedata.normalize("NFKC", character)
        if plain == " " or character.isspace():
            return "replace it with an ordinary space"
        if plain != character and plain.isascii() and plain.isprintable():
            spelling = plain
        elif "\u0370" <= character <= "\u03ff":
            spelling = unicodedata.name(character, "").split()[-1].lower()
    if spelling:
        return f"write `{spelling}`"
    if character.isalpha():
        return "names use the letters a-z, A-Z, digits and `_`"
    return "delete it"
