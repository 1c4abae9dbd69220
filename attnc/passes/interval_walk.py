"""Interval analysis of whole expressions: which rule applies to which node, and which operands meet freely."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from attnc.ir.construct import add, call, sub
from attnc.ir.node import Add, Call, Const, Iverson, Node, Prod
from attnc.passes import interval_bits as bits
from attnc.passes.interval_rules import Rules
from attnc.passes.intervals import UNKNOWN, Interval, Truth

INCREASING = frozenset(
    {"floor", "exp", "exp2", "log", "log2", "sqrt", "tanh", "sigmoid", "softplus", "erf", "sign", "detach"}
)
"""Functions of one number that never fall."""


BITWISE = {"bitand": bits.bitand, "bitor": bits.bitor, "bitxor": bits.bitxor}
_RULED = frozenset(
    {"abs", "minimum", "maximum", "floor_log2", "power_of_two", "where", "and", "or", "not", "lt", "le", "eq"}
    | INCREASING
    | BITWISE.keys()
)


def has_rule(node: Call) -> bool:
    """Whether a function of bounded numbers or conditions has a rule."""
    return node.fn in _RULED or (node.fn in ("floordiv", "mod") and node.kind == "i")


Leaf = Callable[[Node], "Interval | Truth | None"]
Align = Callable[[Sequence[Any]], list[Any]]


class Walker:
    """The interval or truth of any expression over the tiles of one context.

    Args:
        rules: over the numbers in use.
        moving: the axes that vary inside a tile.
        leaf: gives axes, sizes and whatever else is known; None where it knows nothing.
        align: brings values of different spaces into one.
    """

    def __init__(self, rules: Rules, moving: frozenset[str], leaf: Leaf, align: Align | None = None) -> None:
        self.rules = rules
        self.moving = moving
        self.leaf = leaf
        self.align = align or list
        self._known: dict[Node, Interval | Truth | None] = {}

    def truth(self, node: Node) -> Truth:
        """A condition over each tile."""
        found = self._value(node)
        return found if isinstance(found, Truth) else UNKNOWN

    def interval(self, node: Node) -> Interval | None:
        """A number over each tile; None where nothing bounds it."""
        found = self._value(node)
        return found if isinstance(found, Interval) else None

    def _value(self, node: Node) -> Interval | Truth | None:
        if node not in self._known:
            found = self.leaf(node)
            if found is None:
                found = self._condition(node) if node.kind == "b" else self._number(node)
                if isinstance(found, Interval) and node.kind == "f":
                    found.low, found.high = self.rules.on.ends(found.low, found.high)
            self._known[node] = found
        return self._known[node]

    def _apart(self, a: Node, b: Node) -> bool:
        return not a.axes & b.axes & self.moving

    # ------------------------------------------------------------------------------------------------- numbers

    def _number(self, node: Node) -> Interval | None:
        match node:
            case Const():
                return Interval(node.value, node.value, True, True)
            case Add():
                return self._fold(self._by_axis(node.terms, add), self.rules.add)
            case Prod():
                return self._product(node)
            case Iverson():
                return self._choice(
                    node.condition, Const.intern((1.0,), frozenset(), "f"), Const.intern((0.0,), frozenset(), "f")
                )
            case Call():
                return self._function(node)
            case _:
                return None

    def _fold(self, nodes: Sequence[Node], rule: Callable[[Interval, Interval, bool], Interval]) -> Interval | None:
        total = self.interval(nodes[0])
        axes = nodes[0].axes
        for node in nodes[1:]:
            total = self._joined(total, self.interval(node), rule, not axes & node.axes & self.moving)
            axes |= node.axes
        return total

    def _joined(
        self,
        a: Interval | None,
        b: Interval | None,
        rule: Callable[[Interval, Interval, bool], Interval],
        apart: bool,
    ) -> Interval | None:
        if a is None or b is None:
            return None
        a, b = self.align((a, b))
        assert a is not None and b is not None
        out = rule(a, b, apart)
        out.space = max(a.space, b.space)
        return out

    def _product(self, node: Prod) -> Interval | None:
        scale: int | float = 1
        rest: dict[Node, int] = {}
        for f in node.factors:
            if isinstance(f, Const):
                scale *= f.value
            else:
                rest[f] = rest.get(f, 0) + 1
        total: Interval | None = None
        axes: frozenset[str] = frozenset()
        for f, count in rest.items():
            part = self._power(self.interval(f), count)
            apart = not axes & f.axes & self.moving
            total = part if not axes and total is None else self._joined(total, part, self.rules.multiply, apart)
            if total is None:
                return None
            axes |= f.axes
        assert total is not None
        out = self.rules.scale(total, scale)
        out.space = total.space
        return out

    def _power(self, a: Interval | None, count: int) -> Interval | None:
        if a is None or count == 1:
            return a
        out = self.rules.square(a)
        for _ in range(count // 2 - 1):
            out = self.rules.multiply(out, self.rules.square(a), False)
        if count % 2:
            out = self.rules.multiply(out, a, False)
        out.space = a.space
        return out

    def _function(self, node: Call) -> Interval | None:
        rules, args = self.rules, node.args
        match node.fn:
            case "floordiv" | "mod" if node.kind == "i":
                return self._divided(node)
            case "abs":
                return self._unary(args[0], rules.absolute)
            case "minimum":
                return self._fold(args, rules.minimum)
            case "maximum":
                return self._fold(args, rules.maximum)
            case "bitand" | "bitor" | "bitxor":
                divided = bits.as_division(node)
                combine = BITWISE[node.fn]
                return self.interval(divided) if divided else self._fold(args, lambda a, b, _: combine(rules.on, a, b))
            case "floor_log2":
                return self._unary(args[0], lambda a: bits.floor_log2(rules.on, a))
            case "power_of_two":
                return self._unary(args[0], lambda a: bits.power_of_two(rules.on, a))
            case "where":
                return self._choice(*args)
            case fn if fn in INCREASING:
                return self._unary(args[0], lambda a: rules.increasing(fn, a))
            case _:
                return None

    def _divided(self, node: Call) -> Interval | None:
        """A quotient or remainder; by something that may not be positive, it is not bounded."""
        rules, exact = self.rules, node.fn == "floordiv"
        by = self.interval(node.args[1])
        if by is None:
            return None
        if isinstance(by.low, int) and isinstance(by.high, int) and by.low == by.high:
            if by.low < 1:
                return None
            rule = rules.floordiv if exact else rules.mod
            return self._unary(node.args[0], lambda a: rule(a, by.low))
        if not rules.on.always(by.low >= 1):
            return None
        general = rules.quotient if exact else rules.remainder
        return self._joined(self.interval(node.args[0]), by, lambda a, b, _: general(a, b), False)

    def _unary(self, x: Node, rule: Callable[[Interval], Interval | None]) -> Interval | None:
        a = self.interval(x)
        out = None if a is None else rule(a)
        if a is None or out is None:
            return None
        out.space = a.space
        return out

    def _choice(self, condition: Node, x: Node, y: Node) -> Interval | None:
        c, a, b = self.truth(condition), self.interval(x), self.interval(y)
        if a is None or b is None:
            return None
        c, a, b = self.align((c, a, b))
        out = self.rules.where(c, a, b)
        out.space = max(c.space, a.space, b.space)
        return out

    # ---------------------------------------------------------------------------------------------- conditions

    def _condition(self, node: Node) -> Truth:
        if isinstance(node, Const):
            value = bool(node.value)
            return Truth(value, value, value, not value)
        if not isinstance(node, Call):
            return UNKNOWN
        match node.fn:
            case "and":
                return self._all(node.args)
            case "or":
                inverted = self._all([call("not", a) for a in node.args])
                return self._negated(inverted)
            case "not":
                return self._not(node.args[0])
            case "lt" | "le" | "eq" if all(a.kind != "b" for a in node.args):
                return self._comparison(node)
            case "where":
                c, a, b = node.args
                return self.truth(call("or", call("and", c, a), call("and", call("not", c), b)))
            case _:
                return UNKNOWN

    def _all(self, nodes: Sequence[Node]) -> Truth:
        """Conditions on one axis first: those on different axes are met together."""
        ordered = self._by_axis(nodes, lambda *parts: call("and", *parts))
        total, axes = self.truth(ordered[0]), ordered[0].axes
        for node in ordered[1:]:
            a, b = self.align((total, self.truth(node)))
            total = self.rules.conjunction(a, b, not axes & node.axes & self.moving)
            total.space = max(a.space, b.space)
            axes |= node.axes
        return total

    def _by_axis(self, nodes: Sequence[Node], combine: Callable[..., Node]) -> list[Node]:
        """Operands on one axis put together, one for each axis, then those on several."""
        grouped: dict[frozenset[str], list[Node]] = {}
        for node in nodes:
            grouped.setdefault(node.axes & self.moving, []).append(node)
        if len(grouped) == 1:
            return list(nodes)
        single = [combine(*group) for axes, group in grouped.items() if len(axes) < 2]
        return [*single, *(x for axes, group in grouped.items() if len(axes) > 1 for x in group)]

    def _not(self, node: Node) -> Truth:
        if isinstance(node, Call) and node.fn in ("and", "or"):
            other = "or" if node.fn == "and" else "and"
            return self.truth(call(other, *(call("not", a) for a in node.args)))
        return self._negated(self.truth(node))

    def _negated(self, a: Truth) -> Truth:
        out = self.rules.negated(a)
        out.space = a.space
        return out

    def _comparison(self, node: Call) -> Truth:
        x, y = node.args
        apart = self._apart(x, y)
        if not apart and all(a.kind == "i" for a in node.args):
            x, y, apart = sub(x, y), Const.intern((0,), frozenset(), "i"), True
        a, b = self.interval(x), self.interval(y)
        if a is None or b is None:
            return UNKNOWN
        a, b = self.align((a, b))
        if node.fn == "eq":
            out = self.rules.equal(a, b, apart)
        else:
            out = self.rules.less(a, b, apart, strict=node.fn == "lt")
        if x.kind == "f" or y.kind == "f":
            # A NaN compares as false, so an interval without an end proves nothing about all pairs.
            finite = self.rules.on.both(
                self.rules.on.no(a.high == float("inf")), self.rules.on.no(b.low == float("-inf"))
            )
            out.every = self.rules.on.both(out.every, finite)
            out.some = self.rules.on.both(out.some, finite)
        out.space = max(a.space, b.space)
        return out
