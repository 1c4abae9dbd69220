"""What one lowering knows and has found so far."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

from attnc.diagnostics.source import Source, Span
from attnc.grammar.tree import NOWHERE, Def, Expr, Name
from attnc.ir.construct import add, axis, call, size
from attnc.ir.node import Axis, Const, Load, Node, Size
from attnc.ir.program import Check, Note
from attnc.lowering.names import PLANE, Names
from attnc.lowering.ranges import GROUP, Ranges
from attnc.lowering.report import Report
from attnc.lowering.value import Mode, Scope, Value

MOST_EXPANSIONS = 20_000
WIDEST_NODE = 2_000

Q_START = size("q_start")
ROWS = size("M")


@dataclass(frozen=True, slots=True)
class Dim:
    """A dimension of something that takes subscripts.

    Attributes:
        extent: its size, an integer expression over sizes.
        natural: the index that runs over it, put in where a subscript is left out; None where no single one does.
    """

    extent: Node
    natural: str | None

    @property
    def is_position(self) -> bool:
        """Whether its rows are the queries of the call, row 0 at absolute position ``q_start``."""
        return self.extent is ROWS


@dataclass(slots=True)
class Lowering:
    """The state shared by the modules of the lowering.

    `expression` and `named` are the entry points of other modules, put here because expressions contain names, and
    names stand for expressions.
    """

    source: Source
    names: Names
    report: Report
    ranges: Ranges
    prelude_source: Source
    prelude: dict[str, list[Def]]
    provided: frozenset[str] | None
    expression: Callable[[Expr, Scope], Value]
    named: Callable[[Name, Scope], Value]
    consts: dict[str, float | int] = field(default_factory=dict)
    dims: dict[str, tuple[Dim, ...]] = field(default_factory=dict)
    checks: dict[Node, Check] = field(default_factory=dict)
    notes: dict[Node, Note] = field(default_factory=dict)
    cache: dict[tuple[str, str, Mode], Value] = field(default_factory=dict)
    active: list[tuple[str, str, Mode]] = field(default_factory=list)
    blocks: dict[str, int] = field(default_factory=dict)
    expansions: int = 0
    mask_used: bool = False

    def scope(self, mode: Mode) -> Scope:
        """The scope of a statement of the spec."""
        return Scope(self.source, mode)

    def error(self, code: str, scope: Scope, span: Span, message: str, remedy: str | None = None) -> Value:
        return self.report.error(code, scope, span, message, remedy)

    def require(self, relation: Node, message: str, span: Span | None) -> None:
        """Have every call checked for `relation`."""
        if not isinstance(relation, Const):
            self.checks.setdefault(relation, Check(relation, message, span))

    def note(self, node: Node, name: str, span: Span | None) -> None:
        """Remember the name a spec gives to a node; the first name stays."""
        if isinstance(node, Const | Axis | Size):
            return
        line = None if span is None or span == NOWHERE else self.source.position(span.start)[0]
        self.notes.setdefault(node, Note(name, line))

    def note_load(self, node: Node, name: str, span: Span) -> None:
        if isinstance(node, Load):
            self.note(node, name, span)

    @contextmanager
    def computing(self, key: tuple[str, str, Mode]) -> Generator[None]:
        self.active.append(key)
        try:
            yield
        finally:
            self.active.pop()

    def once(self, kind: str, name: str, mode: Mode, asked: Span, scope: Scope, build: Callable[[], Value]) -> Value:
        """The value of a named thing, built at most once per mode; a thing needed for itself is reported."""
        key = (kind, name, mode)
        if key in self.cache:
            return self.cache[key]
        if key in self.active:
            path = [n for _, n, _ in self.active[self.active.index(key) :]]
            message = f"`{name}` depends on itself: {' → '.join((*path, name))}"
            return self.error("E114", scope, asked, message, "break the circle: use only what is computed before it")
        with self.computing(key):
            value = build()
        self.cache[key] = value
        return value

    def index(self, name: str, mode: Mode) -> Value:
        """The index as a number: absolute for query positions."""
        if name == "g" and mode.head:
            return Value(call("floordiv", axis("h"), GROUP), frozenset("h"))
        position = axis(name)
        node = add(position, Q_START) if self.names.extents[name] is ROWS else position
        return Value(node, frozenset((name,)))

    def natural(self, extent: Node) -> str | None:
        """The one index that runs over a dimension of this size."""
        found = [name for name, e in self.names.extents.items() if e is extent]
        given = [name for name in found if name in "bhgijde"]
        if given:
            return given[0]
        return found[0] if len(found) == 1 else None

    def grown(self, value: Value, scope: Scope, span: Span) -> Value:
        """The value, unless it has become too large to go on with."""
        if len(value.node.children) <= WIDEST_NODE:
            return value
        return self.error("E127", scope, span, f"this expression grows to more than {WIDEST_NODE} parts", "simplify it")


def is_plane(axes: frozenset[str]) -> bool:
    return axes >= PLANE
