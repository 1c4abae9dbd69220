"""Subscripts: of tensors, of q, k and v, of `let`s with indices, and of stage values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

from attnc.diagnostics.source import Span
from attnc.grammar.tree import Expr
from attnc.ir.construct import call, const, sub
from attnc.ir.node import Axes, Load, Node
from attnc.ir.walk import postorder
from attnc.lowering import checks
from attnc.lowering.forms import Form, form_of, spell
from attnc.lowering.masks import domain
from attnc.lowering.proofs import Verdict, relation_node, relation_text, settle
from attnc.lowering.ranges import Facts, facts_of
from attnc.lowering.state import Q_START, Dim, Lowering, is_plane
from attnc.lowering.value import POISON, Scope, Value


@dataclass(frozen=True, slots=True)
class Subject:
    """Something that takes subscripts.

    Attributes:
        dims: its dimensions in order.
        build: the value at given positions, counted from 0 in each dimension.
        hidden: how many leading dimensions are never meant by a subscript unless all are written.
    """

    name: str
    dims: tuple[Dim, ...]
    build: Callable[[Sequence[Node], Axes], Value]
    hidden: int = 0


def read(state: Lowering, subject: Subject, index: tuple[Expr, ...], span: Span, scope: Scope) -> Value:
    """The value of `subject` at these subscripts; those left out are the dimensions' own indices."""
    values = [state.expression(tree, scope) for tree in index]
    what = f"a subscript of `{subject.name}`"
    fine = [checks.want_integer(state, v, t, scope, what) for v, t in zip(values, index, strict=True)]
    if not all(fine):
        return POISON
    places = _align(state, subject, values, span, scope)
    if places is None:
        return POISON
    nodes: list[Node] = []
    axes: Axes = frozenset()
    for k, dim in enumerate(subject.dims):
        if k not in places:
            assert dim.natural is not None
            state.names.used.add(dim.natural)
            own = state.index(dim.natural, scope.mode)
            nodes.append(_relative(dim, own.node))
            axes |= own.axes
            continue
        value, tree = values[places[k]], index[places[k]]
        node = _within(state, subject, k, value, tree, span, scope)
        if node is None:
            return POISON
        nodes.append(node)
        axes |= value.axes
    return subject.build(nodes, axes)


def _relative(dim: Dim, node: Node) -> Node:
    """A position counted from the dimension's first row."""
    return sub(node, Q_START) if dim.is_position else node


# --------------------------------------------------------------------------------- which subscript is which dimension


def _align(
    state: Lowering, subject: Subject, values: Sequence[Value], span: Span, scope: Scope
) -> dict[int, int] | None:
    """Dimension -> subscript.

    Left-out dimensions must have an index of their own; of several ways to assign the rest, the one in which most
    subscripts meet the dimension their indices belong to.
    """
    total, given = len(subject.dims), len(values)
    if given == total:
        return {k: k for k in range(total)}
    own = [_own_dimension(state, subject, value, scope) for value in values]
    ways = _assignments(subject, given)
    possible = [w for w in ways if all(o in (None, k, *w) for k, o in zip(w, own, strict=True))]
    if not possible:
        _wrong_number(state, subject, given, span, scope)
        return None
    scored = [
        (sum(_fit(state, subject.dims[k], v, scope) for k, v in zip(w, values, strict=True)), w) for w in possible
    ]
    best = max(score for score, _ in scored)
    chosen = [way for score, way in scored if score == best]
    if len(chosen) > 1:
        message = f"it is not clear which dimensions of `{subject.name}` these {given} subscripts belong to"
        remedy = f"write all {total} of them: {_shape(subject)}"
        state.error("E124", scope, span, message, remedy)
        return None
    return {k: n for n, k in enumerate(chosen[0])}


def _assignments(subject: Subject, given: int) -> list[tuple[int, ...]]:
    dims = range(len(subject.dims))
    if given <= len(subject.dims) - subject.hidden:
        dims = range(subject.hidden, len(subject.dims))
    return [
        way
        for way in combinations(dims, given)
        if all(subject.dims[k].natural is not None for k in range(len(subject.dims)) if k not in way)
    ]


def _own_dimension(state: Lowering, subject: Subject, value: Value, scope: Scope) -> int | None:
    """The dimension whose own index the subscript is: it cannot be left out while that index stands elsewhere."""
    for k, dim in enumerate(subject.dims):
        if dim.natural is not None and value.node is state.index(dim.natural, scope.mode).node:
            return k
    return None


_ROLES = ({"b"}, {"h", "g"}, {"d"}, {"e"})


def _role(name: str) -> object:
    """Indices of one role are read in place of each other: i and j are positions, h and g heads."""
    return next((k for k, role in enumerate(_ROLES) if name in role), "position")


def _fit(state: Lowering, dim: Dim, value: Value, scope: Scope) -> int:
    if dim.natural is None:
        return 1
    own = state.index(dim.natural, scope.mode)
    if value.node is own.node:
        return 4
    if own.axes & value.axes:
        return 3
    return 2 if any(_role(a) == _role(dim.natural) for a in value.axes) else 0


def _shape(subject: Subject) -> str:
    return f"`{subject.name}` is [{', '.join(spell(form_of(d.extent)) for d in subject.dims)}]"


def _wrong_number(state: Lowering, subject: Subject, given: int, span: Span, scope: Scope) -> None:
    total = len(subject.dims)
    plural = "" if given == 1 else "s"
    remedy = _shape(subject)
    if given < total:
        need = [str(k + 1) for k, d in enumerate(subject.dims) if d.natural is None]
        if need:
            remedy += f"; dimension{'' if len(need) == 1 else 's'} {' and '.join(need)} must be written"
    message = f"`{subject.name}` has {total} dimension{'' if total == 1 else 's'}, and {given} subscript{plural} "
    state.error("E104", scope, span, message + ("was given" if given == 1 else "were given"), remedy)


# ------------------------------------------------------------------------------------------------ staying in range


def _within(
    state: Lowering, subject: Subject, k: int, value: Value, tree: Expr, span: Span, scope: Scope
) -> Node | None:
    """The position in dimension k, proved to lie in it; None (and reported) where it can leave it."""
    dim = subject.dims[k]
    node = _relative(dim, value.node)
    if dim.natural is not None and node is _relative(dim, state.index(dim.natural, scope.mode).node):
        return node
    facts = Facts(_facts(state, value, scope))
    low = settle(state.ranges, form_of(node), facts)
    high = settle(state.ranges, form_of(dim.extent) - form_of(node).shifted(1), facts)
    if "refused" in (low.state, high.state):
        _can_leave(state, subject, k, node, tree, scope, low, high)
        return None
    for verdict in (low, high):
        if verdict.state == "check":
            text = relation_text(verdict.relations)
            message = f"`{spelled_or(subject.name, span, scope)}` needs {text}"
            state.require(relation_node(verdict.relations), message, span)
            if len(verdict.relations) == 1:
                state.ranges.assume(verdict.relations[0])
    # Pairs outside the mask are computed before they are dropped, so what only the mask guarantees is enforced here.
    if low.state == "given":
        node = call("maximum", node, const(0))
    if high.state == "given":
        node = call("minimum", node, sub(dim.extent, const(1)))
    return node


def spelled_or(name: str, span: Span, scope: Scope) -> str:
    return name if scope.prelude else scope.source.text[span.start : span.end]


def _facts(state: Lowering, value: Value, scope: Scope) -> tuple[Form, ...]:
    known = [*scope.facts]
    if is_plane(value.axes) and scope.mode.masked:
        known += domain(state, value.axes, frozenset("ij"), scope.mode)
    return tuple(f for condition in known for f in facts_of(condition))


def _can_leave(
    state: Lowering, subject: Subject, k: int, node: Node, tree: Expr, scope: Scope, low: Verdict, high: Verdict
) -> None:
    dim = subject.dims[k]
    text = checks.spelled(tree, scope)
    extent = spell(form_of(dim.extent))
    message = f"`{text}` can leave dimension {k + 1} of `{subject.name}`, which has size {extent}"
    data = sorted({n.tensor for n in postorder([node]) if isinstance(n, Load)})
    bottom = [spell(b) for b in state.ranges.bounds(form_of(node), upper=False)[:1]]
    top = [spell(b) for b in state.ranges.bounds(form_of(node), upper=True)[:1]]
    if data:
        message += f": it depends on the values of `{data[0]}`"
    elif low.state == "refused" and bottom:
        message += f": it goes down to {bottom[0]}"
    elif high.state == "refused" and top:
        message += f": it goes up to {top[0]}"
    last = spell(form_of(dim.extent).shifted(-1))
    shown = f"clamp({text}, 0, {last})"
    if dim.is_position:
        shown = f"clamp({text}, 0, {extent} - 1)"
    remedy = f"write `{shown}`" + (", or mask the pairs that leave it" if is_plane(node.axes) else "")
    if not data and low.state != "refused" and dim.natural is None:
        remedy += ", or widen the dimension"
    state.error("E105", scope, tree.span, message, remedy)
