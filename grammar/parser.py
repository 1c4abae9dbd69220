"""Text to tree. A file is split into statements and each is parsed by itself, so one run reports every mistake."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import cast

from lark import Lark, TextSlice
from lark.exceptions import UnexpectedInput

from attnc.diagnostics.diagnostic import Diagnostic, SpecError
from attnc.diagnostics.source import Source, Span
from attnc.grammar import characters, mistakes
from attnc.grammar.build import Builder, Docstring, Header, Mistake, depth
from attnc.grammar.scanner import Chunk, Token, bad_characters, next_chunk, tokens_of
from attnc.grammar.tree import Def, Definition, File, Name, Section, Statement, Tree
from attnc.settings import Settings

LONGEST_TEXT = 1_000_000
LONGEST_STATEMENT = 20_000
DEEPEST_NESTING = 64
DEEPEST_TREE = 150
MOST_DIAGNOSTICS = 20

_FOLDER = Path(__file__).parent


def parse(source: Source) -> File:
    """The definitions of a spec.

    Raises:
        SpecError: with every syntax mistake found, at most `MOST_DIAGNOSTICS`.
    """
    reader = _Reader(source)
    reader.read()
    if not reader.found and not reader.definitions:
        reader.report(mistakes.empty(source.text))
    reader.raise_if_wrong()
    return File(tuple(d.finish() for d in reader.definitions), span=Span(0, len(source.text)))


def parse_prelude() -> File:
    """The functions and normalisers that every spec can use, from `prelude.attn`; only `defs` is filled."""
    return parse_functions(prelude_source())


def parse_functions(source: Source) -> File:
    """A file of `def` and `normaliser` definitions without any `attention`."""
    reader = _Reader(source, prelude=True)
    reader.read()
    reader.raise_if_wrong()
    return File((), tuple(reader.functions), span=Span(0, len(source.text)))


@lru_cache(maxsize=1)
def prelude_source() -> Source:
    """The text of the prelude, for diagnostics about its functions."""
    return Source("prelude.attn", (_FOLDER / "prelude.attn").read_text(encoding="utf-8"))


@lru_cache(maxsize=1)
def statement_parser() -> Lark:
    """The LALR parser of one statement; it builds tree nodes while it parses. Its tables are kept on disk."""
    tables = Settings.read().cache_dir / "grammar" / f"{sys.implementation.cache_tag}.pickle"
    if tables.exists():
        return _parser(tables)
    # Lark writes where it read nothing; under a name of its own first, so that no other process reads half of it.
    own = tables.with_name(f"{tables.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        tables.parent.mkdir(parents=True, exist_ok=True)
    made = _parser(own)
    with contextlib.suppress(OSError):
        own.replace(tables)
    return made


def _parser(tables: Path) -> Lark:
    """The parser from its tables if they are sound and of this grammar and lark, else made anew and written there."""
    return Lark(
        (_FOLDER / "attn.lark").read_text(encoding="utf-8"),
        parser="lalr",
        start="statement",
        keep_all_tokens=True,
        maybe_placeholders=False,
        transformer=Builder(),
        cache=str(tables),
    )


@lru_cache(maxsize=1)
def keywords() -> frozenset[str]:
    """The words that begin a statement, read off the grammar."""
    parser = statement_parser()
    accepted = parser.parse_interactive("").accepts()  # type: ignore[no-untyped-call]
    patterns = [t.pattern.value for t in parser.terminals if t.name in accepted and t.name != "STRING"]
    return frozenset(word for pattern in patterns for word in pattern.strip("(?:)").split("|"))


@dataclass
class _Open:
    """A definition being read."""

    header: Header
    doc: str | None = None
    body: list[Statement] = field(default_factory=list)
    end: int = 0

    def finish(self) -> Definition:
        return Definition(self.header.name, self.doc, tuple(self.body), span=Span(self.header.span.start, self.end))


class _Reader:
    def __init__(self, source: Source, *, prelude: bool = False) -> None:
        self.source = source
        self.prelude = prelude
        self.found: list[Diagnostic] = []
        self.definitions: list[_Open] = []
        self.functions: list[Def] = []
        self.headless = False

    def report(self, mistake: Mistake) -> None:
        found = Diagnostic(mistake.code, mistake.message, self.source, mistake.span, mistake.remedy)
        if len(self.found) < MOST_DIAGNOSTICS:
            self.found.append(found)

    def raise_if_wrong(self) -> None:
        if self.found:
            raise SpecError(sorted(self.found, key=lambda d: d.span.start if d.span else 0))

    def read(self) -> None:
        text = self.source.text
        if len(text) > LONGEST_TEXT:
            self.found.append(mistakes.text_too_long(self.source.name, len(text), LONGEST_TEXT))
            return
        tokens = tokens_of(text)
        bad = list(bad_characters(tokens))
        for mistake in characters.mistakes(bad):
            self.report(mistake)
        if characters.is_noise(bad):
            return
        wrong = frozenset(offset for _, offset in bad)
        position = 0
        while len(self.found) < MOST_DIAGNOSTICS:
            chunk = next_chunk(tokens, position, keywords())
            if chunk is None:
                return
            position = self.read_chunk(chunk, tokens, position, wrong)

    def read_chunk(self, chunk: Chunk, tokens: list[Token], position: int, wrong: frozenset[int]) -> int:
        """Parse one statement and take it in; returns the index of the token after it."""
        outcome = self.parse_chunk(chunk, wrong)
        if not isinstance(outcome, Tree):
            shorter = next_chunk(tokens, position, keywords(), cut=True)
            if shorter is not None and shorter.stop < chunk.stop:
                chunk = shorter
                outcome = self.parse_chunk(chunk, wrong)
        if isinstance(outcome, Mistake):
            self.report(outcome)
        if isinstance(outcome, Tree):
            self.take(outcome, chunk)
        elif chunk.tokens[0].text == "attention":
            self.definitions.append(_Open(Header(Name(""))))
        return chunk.stop

    def parse_chunk(self, chunk: Chunk, wrong: frozenset[int]) -> Tree | Mistake | None:
        """The statement, or what is wrong with it; None where its characters were already reported."""
        if any(token.start in wrong for token in chunk.tokens):
            return None
        first = chunk.tokens[0]
        if first.kind != "string" and first.text not in keywords():
            return mistakes.unknown_statement(chunk, keywords())
        if chunk.nesting > DEEPEST_NESTING:
            return mistakes.too_deep(chunk, f"brackets nested deeper than {DEEPEST_NESTING}")
        if chunk.bracket is not None:
            return mistakes.bracket(chunk.bracket)
        if chunk.span.end - chunk.span.start > LONGEST_STATEMENT:
            return mistakes.statement_too_long(chunk, LONGEST_STATEMENT)
        slice_ = TextSlice(self.source.text, chunk.span.start, chunk.span.end)
        try:
            statement = cast(Tree, statement_parser().parse(slice_))
        except Mistake as mistake:
            return mistake
        except UnexpectedInput as problem:
            return mistakes.unexpected(chunk, problem)
        if len(chunk.tokens) > DEEPEST_TREE and depth(statement) > DEEPEST_TREE:
            return mistakes.too_deep(chunk, f"an expression more than {DEEPEST_TREE} operations deep")
        return statement

    def take(self, statement: Tree, chunk: Chunk) -> None:
        if isinstance(statement, Header):
            self.open(statement)
        elif self.prelude:
            if isinstance(statement, Def):
                self.functions.append(statement)
            else:
                self.report(mistakes.not_in_prelude(chunk))
        elif not self.definitions:
            if not self.headless:
                self.report(mistakes.no_header(chunk))
            self.headless = True
        elif isinstance(statement, Docstring):
            self.document(statement)
        else:
            self.add(cast(Statement, statement), chunk)

    def open(self, header: Header) -> None:
        if self.prelude:
            self.report(Mistake("E005", "there is no attention in a prelude", header.span, "delete this line"))
        for other in self.definitions:
            if other.header.name.id == header.name.id:
                self.report(mistakes.same_name(header.name, self.line(other.header.name.span)))
                break
        self.definitions.append(_Open(header, end=header.span.end))

    def document(self, doc: Docstring) -> None:
        definition = self.definitions[-1]
        if definition.doc is not None or definition.body:
            self.report(mistakes.misplaced_docstring(doc.span))
        definition.doc = doc.text
        definition.end = doc.span.end

    def add(self, statement: Statement, chunk: Chunk) -> None:
        definition = self.definitions[-1]
        if isinstance(statement, Section):
            for other in definition.body:
                if isinstance(other, Section) and other.keyword == statement.keyword:
                    line = self.line(other.span)
                    self.report(mistakes.repeated_section(statement.keyword, chunk.tokens[0].span, line))
                    break
        definition.body.append(statement)
        definition.end = statement.span.end

    def line(self, span: Span) -> int:
        return self.source.position(span.start)[0]
