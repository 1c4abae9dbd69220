"""Text to tree: what each statement and operator becomes, where spans lie, and that no text breaks the parser."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnc.diagnostics import Diagnostic, Source, SpecError, render_plain
from attnc.diagnostics.catalogue import CATALOGUE
from attnc.grammar import tree
from attnc.grammar.load import load
from attnc.grammar.parser import LONGEST_TEXT, MOST_DIAGNOSTICS, keywords, parse, parse_functions, parse_prelude
from attnc.grammar.tree import Apply, Binary, Compare, Conditional, Expr, Name, Number, Subscript, Tree, Truth, Unary

EXAMPLES = sorted((Path(__file__).parent.parent.parent / "examples").glob("*.attn"))
TEXTS = [path.read_text(encoding="utf-8") for path in EXAMPLES]

i, j, x, y = Name("i"), Name("j"), Name("x"), Name("y")
one, two = Number(1), Number(2)


def body(text: str) -> tuple[tree.Statement, ...]:
    (definition,) = parse(Source("test.attn", f"attention test\n{text}")).definitions
    return definition.body


def expr(text: str) -> Expr:
    (statement,) = body(f"bias = {text}")
    assert isinstance(statement, tree.Section)
    return statement.value


def codes(text: str) -> list[str]:
    return [d.code for d in diagnostics(text)]


def diagnostics(text: str) -> list[Diagnostic]:
    with pytest.raises(SpecError) as raised:
        parse(Source("test.attn", text))
    return raised.value.diagnostics


def nodes(root: Tree) -> Iterator[Tree]:
    yield root
    pending: list[object] = [getattr(root, f.name) for f in fields(root)]
    while pending:
        value = pending.pop()
        if isinstance(value, Tree):
            yield from nodes(value)
        elif isinstance(value, tuple):
            pending.extend(value)


# ------------------------------------------------------------------------------------------------------ statements

f32 = Name("f32")
STATEMENTS: dict[str, tree.Statement] = {
    "const W = 256": tree.ConstDecl(Name("W"), Number(256)),
    "size L": tree.SizeDecl(Name("L")),
    "index a: A": tree.IndexDecl(Name("a"), Name("A")),
    "index c: 3": tree.IndexDecl(Name("c"), Number(3)),
    "tensor t: [H, 2 * D]": tree.TensorDecl(Name("t"), None, (Name("H"), Binary("*", two, Name("D")))),
    "tensor t: f32[H] = 1": tree.TensorDecl(Name("t"), f32, (Name("H"),), one),
    "tensor t: f32[]": tree.TensorDecl(Name("t"), f32, ()),
    "let u = 1": tree.Let(Name("u"), None, one),
    "let u[i, j] = 1": tree.Let(Name("u"), (i, j), one),
    "def f(x, y) = x": tree.Def(Name("f"), (), (x, y), x),
    "def f() = 1": tree.Def(Name("f"), (), (), one),
    "def f[j](x) = x": tree.Def(Name("f"), (j,), (x,), x),
    "normaliser f[j](x, y) = y": tree.Def(Name("f"), (j,), (x, y), y, is_normaliser=True),
    "normaliser = x": tree.Section("normaliser", x),
    "normalizer = x": tree.Section("normaliser", x),
    "normaliser(x) = x": tree.Section("normaliser", x, x),
    "observe x = 1": tree.Observe(x, one),
}
SECTIONS = ("query", "key", "value", "score", "bias", "mask", "mask_value", "empty_rows", "weight", "output", "gate")
STATEMENTS.update((f"{word} = 1", tree.Section(word, one)) for word in SECTIONS)


@pytest.mark.parametrize("text", STATEMENTS)
def test_statement(text: str) -> None:
    assert body(text) == (STATEMENTS[text],)


def test_keywords_are_read_off_the_grammar() -> None:
    assert keywords() == {text.split()[0].partition("(")[0] for text in STATEMENTS} | {"attention"}


def test_keywords_are_words_only_at_the_start() -> None:
    (tensor, section) = body("tensor bias: f32[H]\nbias = bias[h] + size * let(mask = weight)")
    assert isinstance(tensor, tree.TensorDecl)
    assert tensor.name == Name("bias")
    keyword = (Name("mask"), Name("weight"))
    sum_ = Binary(
        "+", Subscript(Name("bias"), (Name("h"),)), Binary("*", Name("size"), Apply(Name("let"), (), (keyword,)))
    )
    assert section == tree.Section("bias", sum_)


def test_definitions_and_docstrings() -> None:
    text = '# file\nattention a # one\n"First."  # why\nmask = true\n\nattention b\nattention c\n"x"'
    assert parse(Source("f", text)).definitions == (
        tree.Definition(Name("a"), "First.", (tree.Section("mask", Truth(True)),)),
        tree.Definition(Name("b"), None, ()),
        tree.Definition(Name("c"), "x", ()),
    )


# ----------------------------------------------------------------------------------------------------- expressions

minus_x = Unary("-", x)
EXPRESSIONS: dict[str, Expr] = {
    "12": Number(12),
    "0.5": Number(0.5),
    ".5": Number(0.5),
    "2.": Number(2.0),
    "1e-6": Number(1e-6),
    "007": Number(7),
    "false": Truth(False),
    "(x)": x,
    "x[i, j + 1]": Subscript(x, (i, Binary("+", j, one))),
    "x[i,]": Subscript(x, (i,)),
    "x()": Apply(x, ()),
    "x(i, j = 2)": Apply(x, (i,), ((j, two),)),
    "x(i, y,)": Apply(x, (i, y)),
    "x[i, j](y)": Apply(x, (y,), (), (i, j)),
    "x - y - 1": Binary("-", Binary("-", x, y), one),
    "x - (y - 1)": Binary("-", x, Binary("-", y, one)),
    "x + y * 2": Binary("+", x, Binary("*", y, two)),
    "x / y // 2 % 1": Binary("%", Binary("//", Binary("/", x, y), two), one),
    "-x ** 2": Unary("-", Binary("**", x, two)),
    "2 ** -x": Binary("**", two, minus_x),
    "x ** y ** 2": Binary("**", x, Binary("**", y, two)),
    "-x * y": Binary("*", minus_x, y),
    "--x": Unary("-", minus_x),
    "+x": Unary("+", x),
    "x < y": Compare((x, y), ("<",)),
    "1 <= x < y != 2": Compare((one, x, y, two), ("<=", "<", "!=")),
    "(x < y) == 1": Compare((Compare((x, y), ("<",)), one), ("==",)),
    "x | y ^ i & j << 1 + 2": Binary("|", x, Binary("^", y, Binary("&", i, Binary("<<", j, Binary("+", one, two))))),
    "x & y - 1 == 1": Compare((Binary("&", x, Binary("-", y, one)), one), ("==",)),
    "x >> y << 1": Binary("<<", Binary(">>", x, y), one),
    "x ** y ^ 2": Binary("^", Binary("**", x, y), two),
    "not x == y": Unary("not", Compare((x, y), ("==",))),
    "x or y and i": Binary("or", x, Binary("and", y, i)),
    "x and y and i": Binary("and", Binary("and", x, y), i),
    "not x and y": Binary("and", Unary("not", x), y),
    "x if i else y if j else 1": Conditional(x, i, Conditional(y, j, one)),
    "x if i or j else y + 1": Conditional(x, Binary("or", i, j), Binary("+", y, one)),
    "iffy + android": Binary("+", Name("iffy"), Name("android")),
}


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_expression(text: str) -> None:
    found = expr(text)
    assert found == EXPRESSIONS[text]
    assert type(getattr(found, "value", None)) is type(getattr(EXPRESSIONS[text], "value", None))


@pytest.mark.parametrize("text", TEXTS, ids=[path.stem for path in EXAMPLES])
def test_spans_cut_out_what_they_belong_to(text: str) -> None:
    for definition in parse(Source("f", text)).definitions:
        for statement in definition.body:
            assert body(text[statement.span.start : statement.span.end]) == (statement,)
            for node in nodes(statement):
                if isinstance(node, Expr):
                    assert expr(text[node.span.start : node.span.end]) == node


def test_span_of_a_group_holds_its_brackets() -> None:
    text = "attention a\nbias = (i + j) * 2"
    (section,) = parse(Source("f", text)).definitions[0].body
    assert isinstance(section, tree.Section)
    assert isinstance(section.value, Binary)
    assert section.value.span.start == text.index("(")
    assert section.value.left.span.end == text.index(")") + 1


# ------------------------------------------------------------------------------------------------- layout of lines


def test_brackets_carry_a_statement_over_lines() -> None:
    assert expr("(x # first\n\n  # alone\n + y\n)") == Binary("+", x, y)


def test_line_ends_tabs_and_byte_order_mark() -> None:
    text = '\ufeffattention test\r\n\t"Doc."\r\n\tbias\t=\tx\t\r\n\r\n'
    (definition,) = parse(Source("f", text)).definitions
    assert definition == tree.Definition(Name("test"), "Doc.", (tree.Section("bias", x),))


def test_no_newline_at_the_end_and_a_comment_right_after_code() -> None:
    assert body("bias = x#y") == (tree.Section("bias", x),)


def test_comments_and_docstrings_may_hold_any_letter() -> None:
    (definition,) = parse(Source("f", 'attention a # ∑ “x” − 注\n"Ω ≤ 3"')).definitions
    assert definition.doc == "Ω ≤ 3"


# -------------------------------------------------------------------------------------------------------- mistakes


def test_every_line_is_reported() -> None:
    text = "attention a\nmask = j = i\nmaks = 1\nbias = 2x\nlet = 3\ngate = o\n"
    assert codes(text) == ["E001", "E004", "E001", "E001"]


def test_an_unclosed_bracket_ends_at_the_next_statement() -> None:
    text = "attention a\nbias = (1 +\nlet u = [\nmask = j < \nnormaliser(s) = s)\nweight = p"
    assert codes(text) == ["E003", "E003", "E001", "E003"]


def test_a_statement_word_in_brackets_is_an_argument_when_it_fits() -> None:
    assert expr("x(i,\nmask = j\n)") == Apply(x, (i,), ((Name("mask"), j),))


def test_diagnostics_are_capped() -> None:
    assert len(codes("attention a\n" + "bias = )\n" * 100)) == MOST_DIAGNOSTICS


def test_a_broken_header_does_not_orphan_its_statements() -> None:
    assert codes("attention 3\nmask = j <= i\nbias = 1") == ["E001"]


@pytest.mark.parametrize(
    "character",
    [*"@!~;{}$?.\\'`", *"−“”×≤≥≠∧√Σα", "\0", "\v", "\f", "\x1b", "\u00a0", "\u200b", "\ufeff", "１", "\ud800"],
)
def test_odd_characters_are_named(character: str) -> None:
    (found,) = diagnostics(f"attention a\nbias = 1 {character} 2")
    assert found.code == "E002"
    assert found.span is not None
    assert found.span.start == len("attention a\nbias = 1 ")
    assert f"`{character}`" in found.message or f"U+{ord(character):04X}" in found.message
    assert found.remedy


@pytest.mark.parametrize("character", ["\0", "\u202e", "\u2066", "\x1b", "\ud800"])
def test_hidden_characters_are_found_in_comments_and_docstrings(character: str) -> None:
    assert codes(f"attention a # {character}") == ["E002"]
    assert codes(f'attention a\n"{character}"') == ["E002"]


@pytest.mark.parametrize("text", ["1e999", "9223372036854775808", "1" * 10_000, "1" * 5_000 + "e-4990"])
def test_huge_numbers(text: str) -> None:
    assert codes(f"attention a\nbias = {text}") == ["E009"]


def test_the_largest_integer() -> None:
    assert expr("9223372036854775807") == Number(2**63 - 1)


@pytest.mark.parametrize(
    "text",
    [
        "(" * 5000 + "x" + ")" * 5000,
        "x[" * 5000 + "x" + "]" * 5000,
        "+".join("x" * 5000),
        "-" * 5000 + "x",
        "x**" * 5000 + "x",
    ],
    ids=["brackets", "subscripts", "sum", "signs", "powers"],
)
def test_deep_nesting_is_refused(text: str) -> None:
    assert codes(f"attention a\nbias = {text}") == ["E008"]


def test_a_hundred_terms_are_fine() -> None:
    assert isinstance(expr(" + ".join(f"x{k}" for k in range(100))), Binary)


def test_a_text_too_long() -> None:
    (found,) = diagnostics("attention a\n" + "#" * LONGEST_TEXT)
    assert found.code == "E008"
    assert "1,000,012 characters" in found.message


# ----------------------------------------------------------------------------------------------------------- noise

NOISE = {
    "bytes": [chr(k) for k in range(1, 256)],
    "printable": [chr(k) for k in range(32, 127)] + ["\n"],
    "operators": list("abc =()[],+-\n"),
    "brackets": list("([\n"),
    "words": ["attention ", "a", " = ", "mask", "\n", "(", '"'],
    "lines": ["mask = j <= (i\n"],
    "zeros": ["\0"],
}


@pytest.mark.parametrize("kind", NOISE)
@pytest.mark.parametrize("length", [900_000, 10_000_000])
def test_noise_ends_soon_and_with_few_words(kind: str, length: int) -> None:
    pieces = NOISE[kind]
    text = "".join(random.Random(0).choices(pieces, k=length // len(pieces[0])))
    start = time.process_time()
    found = diagnostics(text)
    # A few seconds; what grows with the square of the length would take hours.
    assert time.process_time() - start < 60
    if length > LONGEST_TEXT:
        assert len(found) == 1
    for diagnostic in found:
        assert len(render_plain(diagnostic)) < 1000


def check_any_text(text: str) -> None:
    try:
        parse(Source("f", text))
    except SpecError as wrong:
        assert 1 <= len(wrong.diagnostics) <= MOST_DIAGNOSTICS
        for diagnostic in wrong.diagnostics:
            assert diagnostic.code in CATALOGUE
            assert diagnostic.remedy
            assert diagnostic.span is not None
            assert 0 <= diagnostic.span.start <= len(text)
            assert len(render_plain(diagnostic).splitlines()) <= 12


@given(st.text(max_size=200))
def test_any_text(text: str) -> None:
    check_any_text(text)


WORDS = sorted(
    keywords() | {"if", "else", "and", "or", "not", "true", "i", "x", "1", "2.5", '"', "#", "\n", " ", "\t", "\r"}
)
SIGNS = ["**", "//", "&", "|", "^", "<<", ">>", "<=", "==", "=", *"()[]:,+-*/<"]


@given(st.lists(st.sampled_from(WORDS + SIGNS), max_size=60))
def test_any_tokens(pieces: list[str]) -> None:
    check_any_text("attention a\n" + " ".join(pieces))
    check_any_text("".join(pieces))


@given(st.sampled_from(TEXTS), st.data())
def test_specs_with_a_piece_changed(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 6)))
    check_any_text(text[:start] + data.draw(st.sampled_from(["", *WORDS, *SIGNS, "−", "\0"])) + text[end:])


# ----------------------------------------------------------------------------------------------- prelude and files


def test_the_prelude_names_its_normalisers() -> None:
    prelude = parse_prelude()
    assert not prelude.definitions
    normalisers = {d.name.id for d in prelude.defs if d.is_normaliser}
    assert {"softmax", "softmax1", "sigmoid", "l1", "relu2", "none"} <= normalisers


@pytest.mark.parametrize("text", ["mask = true", "attention a", "let u = 1", '"doc"'])
def test_a_prelude_holds_functions_only(text: str) -> None:
    with pytest.raises(SpecError) as raised:
        parse_functions(Source("p.attn", f"def f(x) = x\n{text}"))
    assert [d.code for d in raised.value.diagnostics] == ["E005"]


def refused(path: str | Path) -> Diagnostic:
    with pytest.raises(SpecError) as raised:
        load(path)
    (found,) = raised.value.diagnostics
    assert len(render_plain(found).splitlines()) <= 12
    return found


def test_load(tmp_path: Path) -> None:
    path = tmp_path / "a.attn"
    path.write_bytes("attention a # −\r\n".encode())
    assert load(path) == Source(str(path), "attention a # −\r\n")


def test_load_suggests_a_file_of_a_similar_name(tmp_path: Path) -> None:
    (tmp_path / "alibi.attn").touch()
    for name in ("alibbi.attn", "alibi"):
        found = refused(tmp_path / name)
        assert found.code == "E301"
        assert found.remedy == f"did you mean `{tmp_path / 'alibi.attn'}`?"


def test_load_missing_directory(tmp_path: Path) -> None:
    assert refused(tmp_path / "no" / "a.attn").remedy == f"the directory `{tmp_path / 'no'}` does not exist either"


def test_load_directory(tmp_path: Path) -> None:
    assert refused(tmp_path).code == "E302"
    (tmp_path / "a.attn").touch()
    assert f"`{tmp_path / 'a.attn'}`" in (refused(tmp_path).remedy or "")


@pytest.mark.parametrize("data", [b"attention a\nb\xe9", "attention a".encode("utf-16"), b"\x80" * 1000])
def test_load_not_utf8(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.attn"
    path.write_bytes(data)
    assert refused(path).code == "E303"


def test_load_too_large(tmp_path: Path) -> None:
    path = tmp_path / "a.attn"
    path.write_bytes(random.Random(0).randbytes(10_000_000))
    assert refused(path).code == "E008"


def test_load_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert refused(tmp_path / "pipe").code == "E304"
    assert refused("a\0b").code == "E301"
    assert refused(tmp_path / ("n" * 300)).code == "E304"


def test_load_not_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.attn").touch()
    monkeypatch.setattr(Path, "read_bytes", refuse)
    found = refused(tmp_path / "a.attn")
    assert found.code == "E304"
    assert "permission denied" in found.message
