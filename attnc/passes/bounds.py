"""Loop bounds from masks: for a block of the outer axis, which inner positions can be allowed and which all are.

Each condition is solved for the inner position by interval arithmetic over the block. What cannot be solved bounds
nothing and makes every block partial, which is always sound.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from attnc.ir.node import (
    Add,
    Axis,
    Call,
    Const,
    Node,
    Size,
    Var,
    add,
    call,
    coefficient,
    const,
    mul,
    neg,
    sub,
    terms_of,
    var,
)

Interval = tuple[Node, Node]


@dataclass(frozen=True, slots=True)
class Range:
    """Inner positions of one block: outside [low, high) none is allowed; inside [full_low, full_high) all are.

    None in the last two means that nothing is known to be full.
    """

    low: Node
    high: Node
    full_low: Node | None
    full_high: Node | None


def first(axis: str) -> Var:
    """The first position of the current block of an outer axis."""
    return var(f"{axis}_first", (), "i")


def last(axis: str) -> Var:
    """The last position of the current block of an outer axis, inside its extent."""
    return var(f"{axis}_last", (), "i")


def inner_range(conditions: Iterable[Node], outer: str | None, inner: str, extent: Node) -> Range:
    """The range that all conditions leave, within 0 and `extent`."""
    zero = const(0)
    result = Range(zero, extent, zero, extent)
    for condition in conditions:
        result = _intersect(result, _solve(condition, outer, inner, extent))
    return result


def _intersect(a: Range, b: Range) -> Range:
    low = call("maximum", a.low, b.low)
    high = call("minimum", a.high, b.high)
    if a.full_low is None or b.full_low is None or a.full_high is None or b.full_high is None:
        return Range(low, high, None, None)
    return Range(low, high, call("maximum", a.full_low, b.full_low), call("minimum", a.full_high, b.full_high))


def _solve(condition: Node, outer: str | None, inner: str, extent: Node) -> Range:
    unknown = Range(const(0), extent, None, None)
    if not isinstance(condition, Call):
        return unknown
    match condition.fn:
        case "and":
            return inner_range(condition.args, outer, inner, extent)
        case "or":
            return _union([_solve(c, outer, inner, extent) for c in condition.args])
        case "le" | "lt" if all(a.kind == "i" for a in condition.args):
            a, b = condition.args
            slack = const(1 if condition.fn == "lt" else 0)
            return _at_most_zero(add(a, neg(b), slack), outer, inner, extent)
        case "eq" if all(a.kind == "i" for a in condition.args):
            a, b = condition.args
            up = _at_most_zero(sub(a, b), outer, inner, extent)
            down = _at_most_zero(sub(b, a), outer, inner, extent)
            both = _intersect(up, down)
            return Range(both.low, both.high, None, None)
        case _:
            return unknown


def _union(ranges: list[Range]) -> Range:
    low, high = ranges[0].low, ranges[0].high
    for r in ranges[1:]:
        low, high = call("minimum", low, r.low), call("maximum", high, r.high)
    return Range(low, high, None, None)


def _at_most_zero(value: Node, outer: str | None, inner: str, extent: Node) -> Range:
    """Solve ``value <= 0`` for the inner position."""
    unknown = Range(const(0), extent, None, None)
    moving = [t for t in terms_of(value) if inner in t.axes]
    rest = [t for t in terms_of(value) if inner not in t.axes]
    if not moving:
        return _fixed(add(*rest), outer, extent) if rest else unknown
    absolute = _absolute(moving, rest)
    if absolute is not None:
        up, down = (_at_most_zero(x, outer, inner, extent) for x in absolute)
        return _intersect(up, down)
    if len(moving) != 1:
        return unknown
    bounds = interval(add(const(0), *rest), outer)
    if bounds is None:
        return unknown
    return _isolate(moving[0], bounds, inner, extent)


def _fixed(value: Node, outer: str | None, extent: Node) -> Range:
    """A condition that does not depend on the inner position leaves all of it or nothing."""
    bounds = interval(value, outer)
    if bounds is None:
        return Range(const(0), extent, None, None)
    zero = const(0)
    some = call("where", call("le", bounds[0], zero), extent, zero)
    every = call("where", call("le", bounds[1], zero), extent, zero)
    return Range(zero, some, zero, every)


def _absolute(moving: list[Node], rest: list[Node]) -> tuple[Node, Node] | None:
    """``abs(x) + rest <= 0`` as the pair ``x + rest <= 0`` and ``-x + rest <= 0``."""
    if len(moving) != 1 or not (isinstance(moving[0], Call) and moving[0].fn == "abs"):
        return None
    x = moving[0].args[0]
    return add(x, *rest), add(neg(x), *rest)


def _isolate(term: Node, rest: Interval, inner: str, extent: Node) -> Range:
    """Solve ``k * u(j) + r <= 0`` with r in `rest`, where u is j or ``j // c``."""
    k, factors = coefficient(term)
    if len(factors) != 1 or not isinstance(k, int):
        return Range(const(0), extent, None, None)
    unit: Node = const(1)
    u = factors[0]
    if isinstance(u, Call) and u.fn == "floordiv" and isinstance(u.args[1], Const | Size):
        unit, u = u.args[1], u.args[0]
    if not (isinstance(u, Axis) and u.name == inner):
        return Range(const(0), extent, None, None)
    low, high = rest
    if k > 0:
        return Range(const(0), _below(low, k, unit), const(0), _below(high, k, unit))
    return Range(_above(low, -k, unit), extent, _above(high, -k, unit), extent)


def _below(r: Node, k: int, unit: Node) -> Node:
    """One past the largest j with ``k * (j // unit) <= -r``."""
    return mul(add(call("floordiv", neg(r), const(k)), const(1)), unit)


def _above(r: Node, k: int, unit: Node) -> Node:
    """The smallest j with ``k * (j // unit) >= r``."""
    return mul(neg(call("floordiv", neg(r), const(k))), unit)


def interval(node: Node, outer: str | None) -> Interval | None:
    """The least and greatest value of an integer expression over a block of the outer axis; None if unknown."""
    if outer is None or outer not in node.axes:
        return node, node
    match node:
        case Axis():
            return first(outer), last(outer)
        case Add():
            parts = [interval(t, outer) for t in node.terms]
            if any(p is None for p in parts):
                return None
            return add(*(p[0] for p in parts if p)), add(*(p[1] for p in parts if p))
        case Call():
            return _call_interval(node, outer)
        case _:
            k, rest = coefficient(node)
            inside = interval(rest[0], outer) if len(rest) == 1 and rest[0] is not node and isinstance(k, int) else None
            if inside is None:
                return None
            low, high = (mul(const(k), x) for x in inside)
            return (low, high) if k >= 0 else (high, low)


def _call_interval(node: Call, outer: str) -> Interval | None:
    match node.fn:
        case "floordiv" if isinstance(node.args[1], Const | Size):
            inside = interval(node.args[0], outer)
            return (
                None
                if inside is None
                else (call("floordiv", inside[0], node.args[1]), call("floordiv", inside[1], node.args[1]))
            )
        case "mod" if isinstance(node.args[1], Const | Size):
            return const(0), sub(node.args[1], const(1))
        case "maximum" | "minimum":
            a, b = (interval(x, outer) for x in node.args)
            if a is None or b is None:
                return None
            return call(node.fn, a[0], b[0]), call(node.fn, a[1], b[1])
        case _:
            return None
