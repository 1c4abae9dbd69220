"""Every name a definition declares or is given, and what it stands for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

from attnc.diagnostics.source import Span
from attnc.grammar.tree import (
    ConstDecl,
    Def,
    Definition,
    IndexDecl,
    Let,
    Name,
    Observe,
    Section,
    SizeDecl,
    TensorDecl,
)
from attnc.ir.construct import size
from attnc.ir.node import Node
from attnc.lowering.report import Report
from attnc.lowering.value import Scope

SIZES = ("B", "H", "G", "M", "N", "D", "E")
INDEX_EXTENTS = {"b": "B", "h": "H", "g": "G", "i": "M", "j": "N", "d": "D", "e": "E"}
OPERANDS = {"q": ("B", "H", "M", "D"), "k": ("B", "G", "N", "D"), "v": ("B", "G", "N", "E")}
REWRITES = {"q": "query", "k": "key", "v": "value"}
STAGES = ("s", "p", "w", "o")
NUMBERS = {"inf": float("inf"), "pi": 3.141592653589793}
DTYPES = ("f64", "f32", "f16", "bf16", "i64", "i32", "i16", "i8", "u8", "bool")
PLANE = frozenset("ij")

POINTWISE = (
    *("exp", "exp2", "log", "log2", "sqrt", "rsqrt", "tanh", "sigmoid", "softplus", "erf", "sin", "cos"),
    *("sign", "finite_or_zero", "detach", "abs", "floor", "where", "relu", "silu", "gelu", "clamp", "xlogy"),
    "floor_log2",
)
EXTREMES = {"max": "maximum", "min": "minimum"}
SPECIAL = ("dot", "repeat", "uniform", "sum", "mean", "cumsum")
BUILT_IN = frozenset((*POINTWISE, *EXTREMES, *SPECIAL))

_TAKEN = frozenset((*SIZES, *INDEX_EXTENTS, *OPERANDS, "q_start", *NUMBERS)) - {"g"}
_HIDING = {
    **{name: f"`{name}` is already the size of an index" for name in SIZES},
    **{name: f"`{name}` is already an index" for name in INDEX_EXTENTS},
    **{name: f"`{name}` is already an operand" for name in OPERANDS},
}

T = TypeVar("T")
Declaration = ConstDecl | SizeDecl | IndexDecl | TensorDecl | Let


@dataclass(slots=True)
class Names:
    """The declarations of one definition, by name, and which of them were used.

    Values, functions, sections and observations live in separate tables: `tensor sigmoid` and the function `sigmoid` do
    not meet, since a function is always followed by brackets.
    """

    values: dict[str, Declaration] = field(default_factory=dict)
    functions: dict[str, list[Def]] = field(default_factory=dict)
    sections: dict[str, Section] = field(default_factory=dict)
    observations: dict[str, Observe] = field(default_factory=dict)
    extents: dict[str, Node] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    """Names a declaration wanted and could not have; reported, so their uses are not."""

    def tensor(self, name: str) -> TensorDecl | None:
        found = self.values.get(name)
        return found if isinstance(found, TensorDecl) else None

    def let(self, name: str) -> Let | None:
        found = self.values.get(name)
        return found if isinstance(found, Let) else None

    def is_index(self, name: str) -> bool:
        return isinstance(self.values.get(name), IndexDecl) or (name in INDEX_EXTENTS and name not in self.values)

    def is_size(self, name: str) -> bool:
        return name in SIZES or isinstance(self.values.get(name), SizeDecl)

    @property
    def indices(self) -> tuple[str, ...]:
        """All index names: the given ones, then the declared in order."""
        return (*INDEX_EXTENTS, *(n for n, d in self.values.items() if isinstance(d, IndexDecl)))

    @property
    def visible(self) -> tuple[str, ...]:
        """Every name a value can be written with, for suggestions."""
        return (*self.values, *SIZES, *INDEX_EXTENTS, *OPERANDS, *STAGES, *NUMBERS)


def collect(definition: Definition, report: Report, scope: Scope) -> Names:
    """Declare every name of `definition`; names declared twice or already taken are reported and the first one kept."""
    names = Names(extents={index: size(extent) for index, extent in INDEX_EXTENTS.items()})
    for statement in definition.body:
        match statement:
            case Section():
                names.sections.setdefault(statement.keyword, statement)
            case Observe():
                _declare(names.observations, statement.name, statement, report, scope, ("o",))
            case Def():
                _declare_function(names, statement, report, scope)
            case _:
                _declare(names.values, statement.name, statement, report, scope, _TAKEN)
                names.refused |= {statement.name.id} & _TAKEN
    return names


def _declare(
    table: dict[str, T], name: Name, statement: T, report: Report, scope: Scope, taken: frozenset[str] | tuple[str, ...]
) -> None:
    if name.id in taken:
        message = _HIDING.get(name.id, f"`{name.id}` already has a meaning")
        report.error("E109", scope, name.span, message, "choose another name")
    elif name.id in table:
        line = _line(table[name.id], scope)
        report.error(
            "E109", scope, name.span, f"`{name.id}` is defined twice, first on line {line}", "rename one of them"
        )
    else:
        table[name.id] = statement


def _declare_function(names: Names, statement: Def, report: Report, scope: Scope) -> None:
    if not statement.is_normaliser and statement.name.id in BUILT_IN:
        message = f"`{statement.name.id}` is already a function"
        report.error("E109", scope, statement.name.span, message, "choose another name")
        return
    others = names.functions.setdefault(statement.name.id, [])
    for other in others:
        if {p.id for p in other.params} == {p.id for p in statement.params} or not statement.is_normaliser:
            line = _line(other, scope)
            message = f"`{statement.name.id}` is defined twice, first on line {line}"
            report.error("E109", scope, statement.name.span, message, "rename one of them")
            return
    others.append(statement)


def _line(statement: object, scope: Scope) -> int:
    span = getattr(statement, "span", Span(0, 0))
    return scope.source.position(span.start)[0]
