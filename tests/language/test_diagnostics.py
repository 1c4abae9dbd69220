"""How mistakes are told: goldens of the syntax errors, the catalogue, and the renderer."""

from __future__ import annotations

import re
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

import attnc
from attnc.diagnostics import Diagnostic, Source, Span, SpecError, render_plain, render_rich
from attnc.diagnostics.catalogue import CATALOGUE
from attnc.diagnostics.codes_syntax import ENTRIES as SYNTAX
from attnc.grammar.parser import parse

ROOT = Path(attnc.__file__).parent
MISTAKES = sorted((Path(__file__).parent.parent / "errors" / "syntax").glob("*.attn"))


def mistakes(text: str, name: str = "spec.attn") -> list[Diagnostic]:
    with pytest.raises(SpecError) as raised:
        parse(Source(name, text))
    return raised.value.diagnostics


@pytest.mark.parametrize("path", MISTAKES, ids=lambda path: path.stem)
def test_golden(path: Path, golden: Callable[[Path, str], None]) -> None:
    found = mistakes(path.read_text(encoding="utf-8"), path.name)
    for diagnostic in found:
        text = render_plain(diagnostic)
        assert len(text.splitlines()) <= 12
        assert "help: " in text
    golden(path.with_suffix(".err"), "\n\n".join(map(render_plain, found)) + "\n")


@pytest.mark.parametrize("code", SYNTAX)
def test_syntax_examples_show_what_their_entry_says(code: str) -> None:
    assert code in {d.code for d in mistakes(SYNTAX[code].wrong)}
    parse(Source("right.attn", SYNTAX[code].right))


def test_every_code_is_explained() -> None:
    raised: set[str] = set()
    for path in (*ROOT.rglob("*.py"), *(ROOT / "grammar").resolve().rglob("*.py")):
        if not path.name.startswith("codes_"):
            raised |= set(re.findall(r'"(E\d{3})"', path.read_text(encoding="utf-8")))
    assert raised == set(CATALOGUE)


@pytest.mark.parametrize("code", CATALOGUE)
def test_entry_reads_well(code: str) -> None:
    entry = CATALOGUE[code]
    text = str(entry)
    assert entry.code == code
    assert text.startswith(f"{code}: ")
    assert all(len(line) <= 100 for line in text.splitlines() if not line.startswith("    "))


# ------------------------------------------------------------------------------------------------------- rendering


def drawn(text: str, start: int, end: int) -> tuple[str, str]:
    """The source line and the caret line, without their gutters."""
    diagnostic = Diagnostic("E001", "wrong", Source("f.attn", text), Span(start, end), "fix it")
    lines = render_plain(diagnostic).splitlines()
    assert lines[0] == "error[E001]: wrong"
    assert lines[-1] == "help: fix it"
    return lines[2].partition(" | ")[2], lines[3].partition(" | ")[2]


def test_caret_marks_the_span() -> None:
    assert drawn("attention a\nbias = two\n", 19, 22) == ("bias = two", "       ^^^")


def test_caret_stops_at_the_end_of_the_line() -> None:
    assert drawn("bias = (\n1)", 7, 11) == ("bias = (", "       ^")


def test_caret_after_the_last_character() -> None:
    assert drawn("bias =", 6, 7) == ("bias =", "      ^")


def test_tabs_are_expanded() -> None:
    assert drawn("\tbias\t= x", 8, 9) == ("    bias    = x", "              ^")


def test_wide_and_combining_characters_keep_the_caret_in_place() -> None:
    assert drawn("\uff08e\u0301 x", 4, 5) == ("\uff08e\u0301 x", "    ^")


def test_control_characters_never_reach_the_terminal() -> None:
    text, caret = drawn("bias = \x1b[31m\0", 12, 13)
    assert text == "bias = \ufffd[31m\ufffd"
    assert caret == " " * 12 + "^"


def test_long_lines_are_clipped_around_the_caret() -> None:
    text, caret = drawn("a" * 5000 + "!" + "b" * 5000, 5000, 5001)
    assert len(text) == 102
    assert text.startswith("…a")
    assert text.endswith("b…")
    assert text[caret.index("^")] == "!"


def test_a_long_mark_is_clipped_too() -> None:
    text, caret = drawn("x" * 5000, 0, 5000)
    assert len(caret) <= len(text) <= 101


def test_without_a_place() -> None:
    assert render_plain(Diagnostic("E301", "no file", severity="warning")) == "warning[E301]: no file"
    named = Diagnostic("E301", "no file", Source("a.attn", ""))
    assert render_plain(named) == "error[E301]: no file\n --> a.attn"


def test_messages_stay_on_one_line() -> None:
    text = render_plain(Diagnostic("E001", "a\nb\x1b[0m" + "c" * 10_000, remedy="d\n\ne"))
    assert len(text.splitlines()) == 2
    assert len(text) < 1500
    assert "\x1b" not in text


@pytest.mark.parametrize("path", MISTAKES, ids=lambda path: path.stem)
def test_rich_says_the_same(path: Path) -> None:
    for diagnostic in mistakes(path.read_text(encoding="utf-8")):
        assert render_rich(diagnostic).plain == render_plain(diagnostic)


def test_rich_has_colours() -> None:
    console = Console(record=True, force_terminal=True, file=StringIO())
    console.print(render_rich(Diagnostic("E001", "wrong", Source("f.attn", "x"), Span(0, 1))))
    assert "\x1b[" in console.export_text(styles=True)
