"""Every class of mistake in a spec or a path: located, at most twelve lines, with a remedy, exit code 1, no
traceback."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from attnc.diagnostics.diagnostic import SpecError

Attnc = Callable[..., Result]

# What the spec holds, the code it must draw, and a word its remedy or message must hold.
SPECS = {
    "unknown name": ("attention a\nmask = j <= ii\n", "E101", "ii"),
    "wrong arity": ("attention a\nscore = exp(1, 2)\n", "E103", "exp"),
    "wrong index count": ("attention a\ntensor t: f32[H, N]\nbias = t[h, i, j]\n", "E104", "t"),
    "subscript can leave its tensor": ("attention a\ntensor t: f32[H, 9]\nbias = t[h, i - j]\n", "E105", "clamp"),
    "mask not boolean": ("attention a\nmask = i - j\n", "E106", "mask"),
    "size never bound": ("attention a\nsize L\nbias = i / L\n", "E107", "L"),
    "section twice": ("attention a\nmask = j <= i\nmask = j < i\n", "E006", "mask"),
    "no header": ("mask = j <= i\n", "E005", "attention"),
    "unicode minus": ("attention a\nbias = 1 \u2212 i\n", "E002", "-"),
    "unicode less or equal": ("attention a\nmask = j \u2264 i\n", "E002", "<="),
    "non-breaking space": ("attention a\nmask =\u00a0j <= i\n", "E002", "space"),
    "empty": ("", "E007", "attention"),
    "only a comment": ("# nothing\n", "E007", "attention"),
}


def complain(result: Result) -> str:
    """What was printed about one mistake, checked for form."""
    text = result.stderr
    assert "Traceback" not in result.output
    assert "bug in attnc" not in result.output
    assert result.exit_code == 1, result.output
    blocks = text.strip().split("\n\n")
    assert all(len(block.splitlines()) <= 12 for block in blocks), text
    assert all("help: " in block for block in blocks), text
    return text


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("command", ["check", "run"])
def test_a_wrong_spec(attnc: Attnc, tmp_path: Path, name: str, command: str) -> None:
    text, code, word = SPECS[name]
    (tmp_path / "a.attn").write_text(text, encoding="utf-8")
    complaint = complain(attnc(command, "a.attn"))
    assert code in complaint
    assert word in complaint
    assert "a.attn:" in complaint
    assert complaint.count("error[") == 1


def test_a_tab_points_at_the_right_place(attnc: Attnc, tmp_path: Path) -> None:
    (tmp_path / "a.attn").write_text("attention a\nmask =\tj <=\tii\n")
    lines = complain(attnc("check", "a.attn")).splitlines()
    shown = next(k for k, line in enumerate(lines) if "mask" in line and "|" in line)
    caret = lines[shown + 1].index("^")
    assert lines[shown][caret : caret + 2] == "ii"


@pytest.mark.parametrize("command", ["check", "fmt", "run", "verify", "explain", "inspect", "plot", "bench"])
def test_a_missing_file(attnc: Attnc, tmp_path: Path, command: str) -> None:
    (tmp_path / "alibi.attn").write_text("attention alibi\n")
    complaint = complain(attnc(command, "alibbi.attn"))
    assert "E301" in complaint
    assert "alibi.attn" in complaint


@pytest.mark.parametrize("command", ["run", "explain", "inspect", "plot", "bench"])
def test_a_directory_instead_of_a_file(attnc: Attnc, tmp_path: Path, command: str) -> None:
    (tmp_path / "specs").mkdir()
    (tmp_path / "specs" / "one.attn").write_text("attention one\n")
    complaint = complain(attnc(command, "specs"))
    assert "E302" in complaint
    assert "one.attn" in complaint


def test_a_directory_without_specs(attnc: Attnc, tmp_path: Path) -> None:
    (tmp_path / "specs").mkdir()
    assert "E302" in complain(attnc("check", "specs"))


@pytest.mark.parametrize("kind", ["bytes", "text"])
def test_ten_megabytes_of_noise(attnc: Attnc, tmp_path: Path, kind: str) -> None:
    dice = random.Random(0)
    noise = dice.randbytes(10_000_000) if kind == "bytes" else bytes(dice.choices(range(32, 127), k=10_000_000))
    (tmp_path / "noise.attn").write_bytes(noise)
    for command in ("check", "run", "fmt"):
        assert "help: " in complain(attnc(command, "noise.attn"))


def test_smaller_noise(attnc: Attnc, tmp_path: Path) -> None:
    dice = random.Random(1)
    for size in (1, 10, 100, 1000, 10_000):
        text = "".join(dice.choices("attention mask=j<=i[]()\n\t\"'+-*/%#\u00e9\u03a3\ud7ff\u202e0123456789.", k=size))
        (tmp_path / "noise.attn").write_text("attention a\n" + text, encoding="utf-8")
        result = attnc("check", "noise.attn")
        if result.exit_code:
            complain(result)


def test_several_mistakes_are_reported_at_once(attnc: Attnc, tmp_path: Path) -> None:
    (tmp_path / "a.attn").write_text("attention a\nmask = j <= ii\nbias = slop[h] * i\n")
    assert complain(attnc("check", "a.attn")).count("error[") == 2


def test_debug_shows_the_traceback(attnc: Attnc, tmp_path: Path) -> None:
    (tmp_path / "a.attn").write_text("attention a\nmask = j <= ii\n")
    for arguments in (("--debug", "check", "a.attn"), ("check", "a.attn", "--debug")):
        assert isinstance(attnc(*arguments).exception, SpecError)


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "ok.attn", "--size", "N"),
        ("run", "ok.attn", "--size", "N=0"),
        ("run", "ok.attn", "--size", "Q=3"),
        ("run", "ok.attn", "--size", "H=4,G=3"),
        ("run", "ok.attn", "--dtype", "f8"),
        ("check", "ok.attn", "--const", "x"),
        ("verify",),
        ("verify", "ok.attn", "--lengths", "1,x"),
        ("verify", "ok.attn", "--dtypes", "f8"),
        ("inspect", "ok.attn", "--emit", "ast"),
        ("inspect", "ok.attn", "--emit", "ptx", "--target", "sm_12"),
        ("explain", "E998"),
        ("explain", "ok.attn", "--dtype", "half"),
        ("new", "two words"),
        ("new", "x", "--template", "y"),
        ("list", "everything"),
        ("plot", "ok.attn", "--head", "99"),
        ("nonsense",),
        ("check", "--nonsense", "ok.attn"),
    ],
)
def test_a_command_line_that_cannot_be_understood(attnc: Attnc, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "ok.attn").write_text("attention ok\nmask = j <= i\n")
    result = attnc(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert 0 < len(result.stderr.splitlines()) <= 12


@pytest.mark.parametrize(("name", "text"), [("ATTNC_PAIRS", "sometimes"), ("ATTNC_THREADS", "x")])
@pytest.mark.parametrize("command", ["run", "bench"])
def test_an_environment_variable_that_cannot_be_understood(
    attnc: Attnc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, name: str, text: str
) -> None:
    (tmp_path / "ok.attn").write_text("attention ok\nmask = j <= i\n")
    monkeypatch.setenv(name, text)
    complaint = complain(attnc(command, "ok.attn"))
    assert "error[E222]" in complaint
    assert f"{name} is '{text}'" in complaint


def test_a_bug_is_called_a_bug(attnc: Attnc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.attn").write_text("attention a\n")
    monkeypatch.setattr("attnc.grammar.formatter.format_source", lambda source: source.gone)
    result = attnc("fmt", "a.attn")
    assert result.exit_code == 3
    assert "bug in attnc" in result.stderr
    assert "--debug" in result.stderr
    assert "Traceback" not in result.output
