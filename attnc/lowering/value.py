"""What the lowering knows about an expression, and the circumstances it was lowered in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from attnc.diagnostics.source import Source, Span
from attnc.ir.construct import const
from attnc.ir.node import NO_AXES, Axes, Node


@dataclass(frozen=True, slots=True)
class Value:
    """An IR node and its index set.

    `axes` are the indices the expression was written over, which may be more than the node still mentions: the scores
    of `score = 0` are a plane value although they fold to a constant, and their sum over j counts the allowed keys.
    """

    node: Node
    axes: Axes = NO_AXES

    @property
    def poisoned(self) -> bool:
        """Whether the expression was wrong and has been reported; whatever is made of it is wrong for that reason."""
        return self is POISON


POISON = Value(const(0))


def join(values: Iterable[Value]) -> Axes:
    """The index set of an expression over these parts."""
    return NO_AXES.union(*(v.axes for v in values))


@dataclass(frozen=True, slots=True)
class Mode:
    """How names are read. A named value is lowered once per mode.

    Attributes:
        raw: q, k and v are the operands as given (inside `query`, `key` and `value`), not their rewritten forms.
        masked: reductions over the plane are restricted to the mask; False while the mask itself is being lowered.
        head: what the index g means: `h // (H // G)`, or (False) an index of its own, as in `key` and `value`.
    """

    raw: bool = False
    masked: bool = True
    head: bool = True


PLAIN = Mode(raw=True, masked=False, head=False)
"""How declarations are read: no rewrites, no mask, every index for itself."""


@dataclass(frozen=True, slots=True)
class Scope:
    """The names local to one expansion, and where its mistakes are reported.

    Attributes:
        mode: how names are read.
        params: values of the parameters of the `def` being expanded.
        axes: index names of its axis parameters.
        blocks: the block lengths of those given as `j by n`.
        source: the text the expression comes from: the spec or the prelude.
        blame: report here instead of at the expression: the call of a prelude function.
        expanding: the functions being expanded, to find recursion.
        facts: conditions known to hold where the value is used; they may prove a subscript's range.
    """

    source: Source
    mode: Mode = Mode()
    params: Mapping[str, Value] = field(default_factory=dict)
    axes: Mapping[str, str] = field(default_factory=dict)
    blocks: Mapping[str, int] = field(default_factory=dict)
    blame: tuple[Source, Span] | None = None
    expanding: tuple[str, ...] = ()
    facts: tuple[Node, ...] = ()
    prelude: bool = False

    def at(self, span: Span) -> tuple[Source, Span]:
        return self.blame or (self.source, span)

    def assuming(self, facts: Iterable[Node]) -> Scope:
        return replace(self, facts=(*self.facts, *facts))
