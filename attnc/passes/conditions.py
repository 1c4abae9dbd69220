"""Conditions on indices in plain form: inequalities without maxima, minima and absolute values, joined by and and or.

What follows from bounds of the axes, or from conditions that stand beside it, is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from attnc.ir.construct import FALSE, TRUE, add, axis, call, coefficient, const, mul, neg, sub, terms_of
from attnc.ir.node import Call, Const, Node
from attnc.passes.bounds import without_bits
from attnc.passes.inequality import at_most_zero

LARGEST = 64
"""Inequalities that one condition may become."""
ZERO = const(0)


def plain(conditions: Iterable[Node], axes: Iterable[str], tops: Mapping[Node, int]) -> list[Node]:
    """Conditions of which all must hold, each in plain form; `tops` are the greatest values of axes."""
    found: list[Node] = []
    for c in without_bits(conditions):
        split = _split(c)
        found += split.args if isinstance(split, Call) and split.fn == "and" else [split]
    facts = [c for c in found if not isinstance(c, Call) or c.fn != "or"]
    known = {**tops, **_tops(facts, axes)}
    below = [x for c in facts if (x := excess(c)) is not None and x.axes]
    return [
        (c if _is_top(c, axes) else _simplified(c, known, ())) if c in facts else _simplified(c, known, below)
        for c in found
    ]


def _split(condition: Node) -> Node:
    """One condition in plain form; as it is where that would be too long."""
    parts = _parts(condition)
    if parts is None:
        return condition
    done = call(parts[0], *(_split(c) for c in parts[1]))
    return done if _leaves(done) <= LARGEST else condition


def _parts(condition: Node) -> tuple[str, Sequence[Node]] | None:
    """What a condition joins, and by which function."""
    match condition:
        case Call(fn="and" | "or", args=args):
            return condition.fn, args
        case Call(fn="not", args=(Call(fn="and" | "or" as joined, args=args),)):
            return ("or" if joined == "and" else "and"), [call("not", a) for a in args]
        case Call(fn="le" | "lt", args=(a, b)) if a.kind == b.kind == "i":
            return _branches(add(a, neg(b), const(1 if condition.fn == "lt" else 0)))
        case _:
            return None


def _branches(value: Node) -> tuple[str, Sequence[Node]] | None:
    """``value <= 0``, where a term is an extreme or an absolute value."""
    for t in terms_of(value):
        k, factors = coefficient(t)
        if len(factors) != 1 or not isinstance(k, int):
            continue
        match factors[0]:
            case Call(fn="maximum" | "minimum" as fn, args=args):
                pass
            case Call(fn="abs" as fn, args=(x,)):
                args = (x, neg(x))
            case _:
                continue
        rest = sub(value, t)
        conditions = [call("le", add(mul(const(k), x), rest), ZERO) for x in args]
        return ("and" if (fn != "minimum") == (k > 0) else "or"), conditions
    return None


def _leaves(condition: Node) -> int:
    if isinstance(condition, Call) and condition.fn in ("and", "or"):
        return sum(map(_leaves, condition.args))
    return 1


def excess(condition: Node) -> Node | None:
    """What is at most 0 where a condition holds; None if it is no inequality of integers."""
    match condition:
        case Call(fn="le" | "lt", args=(a, b)) if a.kind == b.kind == "i":
            return add(a, neg(b), const(1 if condition.fn == "lt" else 0))
        case _:
            return None


def _tops(conditions: Iterable[Node], axes: Iterable[str]) -> dict[Node, int]:
    """Greatest values of axes that conditions allow."""
    found: dict[Node, int] = {}
    for c in conditions:
        value = excess(c)
        for a in axes:
            if value is None or a not in value.axes:
                continue
            rest = sub(value, axis(a))
            number = next((int(t.value) for t in terms_of(rest) if isinstance(t, Const)), 0)
            if not rest.axes and at_most_zero(neg(sub(rest, const(number)))):
                found[axis(a)] = min(found.get(axis(a), -number), -number)
    return found


def _is_top(condition: Node, axes: Iterable[str]) -> bool:
    return bool(_tops([condition], axes))


def _simplified(condition: Node, tops: Mapping[Node, int], below: Sequence[Node]) -> Node:
    """A condition without what always or never holds where each of `below` is at most 0."""
    if isinstance(condition, Call) and condition.fn in ("and", "or"):
        return call(condition.fn, *(_simplified(c, tops, below) for c in condition.args))
    value = excess(condition)
    if value is None:
        return condition
    for known in (ZERO, *(x for x in below if x.axes == value.axes)):
        if at_most_zero(sub(value, known), tops=tops):
            return TRUE
        if at_most_zero(sub(const(1), add(value, known)), tops=tops):
            return FALSE
    return condition
