"""Interval analysis of index expressions and masks over a tile: a range of query positions times a range of key
positions.

A number is bounded by a least and a greatest value, a mask by whether any and whether all pairs of the tile are
allowed. Each rule is written once, over an `Arithmetic`: on tensors it classifies many tiles at a time, on z3's
integers it is proved. Besides bounds the rules carry witnesses: where both ends of an interval are values that occur, a
comparison that may hold does hold somewhere, so a tile is known to be neither empty nor full without looking at its
pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from attnc.ir.node import Add, Call, Const, Iverson, Node, Prod, add, call, sub

Number = Any
"""A value of an `Arithmetic`, or a Python number."""
Flag = Any
"""A truth value of an `Arithmetic`, or a Python bool."""


class Arithmetic(Protocol):
    """What the rules need of numbers besides ``+ - * <= < ==``."""

    def minimum(self, a: Number, b: Number) -> Number: ...
    def maximum(self, a: Number, b: Number) -> Number: ...
    def where(self, c: Flag, a: Number, b: Number) -> Number: ...
    def floordiv(self, a: Number, b: Number) -> Number: ...
    def common_bits(self, low: Number, high: Number) -> tuple[Number, Number]:
        """For ``0 <= low <= high``: the leading bits that all numbers between have in common, with zeros and with ones
        for the rest."""
        ...

    def bitand(self, a: Number, b: Number) -> Number: ...
    def both(self, a: Flag, b: Flag) -> Flag: ...
    def either(self, a: Flag, b: Flag) -> Flag: ...
    def no(self, a: Flag) -> Flag: ...
    def always(self, a: Flag) -> bool:
        """Whether a flag is True everywhere."""
        ...

    def real(self, name: str, a: Number) -> Number:
        """A function of one real, by its name in the IR."""
        ...

    def ends(self, low: Number, high: Number) -> tuple[Number, Number]:
        """The ends of an interval of reals, where an end that is no number bounds nothing."""
        ...


@dataclass(slots=True)
class Interval:
    """Values of an expression over a tile.

    Attributes:
        low, high: no value lies outside.
        attained: both ends are values at some pair.
        solid: every integer between the ends is a value at some pair.
        space: what the tensors run over; used by whoever walks.
    """

    low: Number
    high: Number
    attained: Flag = False
    solid: Flag = False
    space: int = 0


@dataclass(slots=True)
class Truth:
    """Values of a condition over a tile.

    Attributes:
        may: False where no pair fulfils it.
        every: True where all pairs do.
        some, lacking: True where a pair that fulfils it, or one that does not, is known to exist.
        space: as in `Interval`.
    """

    may: Flag
    every: Flag
    some: Flag = False
    lacking: Flag = False
    space: int = 0


UNKNOWN = Truth(True, False)
INCREASING = frozenset(
    {"floor", "exp", "exp2", "log", "log2", "sqrt", "tanh", "sigmoid", "softplus", "erf", "sign", "detach"}
)
"""Functions of one number that never fall."""


_RULED = frozenset({"abs", "minimum", "maximum", "bitand", "where", "and", "or", "not", "lt", "le", "eq"} | INCREASING)


def has_rule(node: Call) -> bool:
    """Whether a function of bounded numbers or conditions has a rule."""
    return node.fn in _RULED or (node.fn in ("floordiv", "mod") and node.kind == "i")


class Rules:
    """One rule per operation.

    `apart` says that the operands depend on different axes, so that any value of one meets any value of the other at
    some pair. Without `witnesses`, conditions get bounds alone.
    """

    def __init__(self, arithmetic: Arithmetic, *, witnesses: bool = True) -> None:
        self.on = arithmetic
        self.witnesses = witnesses

    # ------------------------------------------------------------------------------------------------- numbers

    def add(self, a: Interval, b: Interval, apart: bool) -> Interval:
        on = self.on
        attained = on.both(apart, on.both(a.attained, b.attained))
        solid = on.both(apart, on.both(a.solid, b.solid))
        return Interval(a.low + b.low, a.high + b.high, attained, solid)

    def scale(self, a: Interval, by: int | float) -> Interval:
        """Times a constant."""
        ends = (a.low * by, a.high * by) if by >= 0 else (a.high * by, a.low * by)
        return Interval(*ends, a.attained, a.solid if by in (1, -1) else False)

    def multiply(self, a: Interval, b: Interval, apart: bool) -> Interval:
        on = self.on
        corners = [a.low * b.low, a.low * b.high, a.high * b.low, a.high * b.high]
        low, high = self._least(corners), self._greatest(corners)
        return Interval(low, high, on.both(apart, on.both(a.attained, b.attained)))

    def square(self, a: Interval) -> Interval:
        size = self.absolute(a)
        return Interval(size.low * size.low, size.high * size.high, size.attained)

    def floordiv(self, a: Interval, by: Number) -> Interval:
        """Divided by a positive number."""
        return Interval(self.on.floordiv(a.low, by), self.on.floordiv(a.high, by), a.attained, a.solid)

    def quotient(self, a: Interval, by: Interval) -> Interval:
        """Rounded down, divided by numbers that are all positive. Along each operand it only rises or only falls."""
        corners = [self.on.floordiv(x, y) for x in (a.low, a.high) for y in (by.low, by.high)]
        return Interval(self._least(corners), self._greatest(corners))

    def remainder(self, a: Interval, by: Interval) -> Interval:
        """By numbers that are all positive; as `mod` where they are all the same."""
        on = self.on
        fixed = self.mod(a, by.high)
        same = by.low == by.high
        return Interval(
            on.where(same, fixed.low, 0), on.where(same, fixed.high, by.high - 1), on.both(same, fixed.attained)
        )

    def mod(self, a: Interval, by: Number) -> Interval:
        """The remainder by a positive number: exact inside one period, everything outside."""
        on = self.on
        start = on.floordiv(a.low, by) * by
        same = a.high < start + by
        low = on.where(same, a.low - start, 0)
        high = on.where(same, a.high - start, by - 1)
        attained = self._either_way(same, a.attained, a.solid)
        return Interval(low, high, attained, on.both(a.solid, on.either(same, a.low + by <= a.high + 1)))

    def _either_way(self, c: Flag, a: Flag, b: Flag) -> Flag:
        """`a` where `c`, else `b`."""
        on = self.on
        return a if a is b else on.either(on.both(c, a), on.both(on.no(c), b))

    def absolute(self, a: Interval) -> Interval:
        on = self.on
        low = on.maximum(on.maximum(a.low, -a.high), 0)
        attained = a.solid
        if a.attained is not False and a.solid is not True:
            crosses = on.both(a.low < 0, a.high > 0)
            attained = on.either(a.solid, on.both(a.attained, on.no(crosses)))
        return Interval(low, on.maximum(-a.low, a.high), attained, a.solid)

    def minimum(self, a: Interval, b: Interval, apart: bool) -> Interval:
        return self._extreme(self.on.minimum, a, b, apart)

    def maximum(self, a: Interval, b: Interval, apart: bool) -> Interval:
        return self._extreme(self.on.maximum, a, b, apart)

    def _extreme(self, pick: Callable[[Number, Number], Number], a: Interval, b: Interval, apart: bool) -> Interval:
        on = self.on
        attained = on.both(apart, on.both(a.attained, b.attained))
        return Interval(pick(a.low, b.low), pick(a.high, b.high), attained, on.both(apart, on.both(a.solid, b.solid)))

    def where(self, c: Truth, a: Interval, b: Interval) -> Interval:
        on = self.on
        low = on.where(c.every, a.low, on.where(c.may, on.minimum(a.low, b.low), b.low))
        high = on.where(c.every, a.high, on.where(c.may, on.maximum(a.high, b.high), b.high))
        never = on.no(c.may)
        attained = on.either(on.both(c.every, a.attained), on.both(never, b.attained))
        return Interval(low, high, attained, on.either(on.both(c.every, a.solid), on.both(never, b.solid)))

    def bitand(self, a: Interval, b: Interval) -> Interval:
        """``a & b``: bits that are the same all over both intervals are known. A negative number has an unknown number
        of leading ones and bounds nothing."""
        on = self.on
        zero = on.maximum(a.low, 0), on.maximum(a.high, 0), on.maximum(b.low, 0), on.maximum(b.high, 0)
        a_low, a_high = on.common_bits(zero[0], zero[1])
        b_low, b_high = on.common_bits(zero[2], zero[3])
        single = on.both(a.low == a.high, b.low == b.high)
        high = on.minimum(on.bitand(a_high, b_high), on.minimum(zero[1], zero[3]))
        plain = on.both(a.low >= 0, b.low >= 0)
        # The sign bits of both survive only together: two negative numbers give one not below the sum of both.
        low = on.where(plain, on.bitand(a_low, b_low), on.where(on.either(a.low >= 0, b.low >= 0), 0, a.low + b.low))
        high = on.where(
            plain, high, on.where(a.low >= 0, a.high, on.where(b.low >= 0, b.high, on.maximum(a.high, b.high)))
        )
        low = on.where(single, on.bitand(a.low, b.low), low)
        high = on.where(single, on.bitand(a.high, b.high), high)
        return Interval(low, high, single, single)

    def increasing(self, name: str, a: Interval) -> Interval:
        """A function that never falls, of a real."""
        return Interval(self.on.real(name, a.low), self.on.real(name, a.high), a.attained)

    def _least(self, values: Sequence[Number]) -> Number:
        out = values[0]
        for v in values[1:]:
            out = self.on.minimum(out, v)
        return out

    def _greatest(self, values: Sequence[Number]) -> Number:
        out = values[0]
        for v in values[1:]:
            out = self.on.maximum(out, v)
        return out

    # ---------------------------------------------------------------------------------------------- conditions

    def less(self, a: Interval, b: Interval, apart: bool, *, strict: bool) -> Truth:
        """``a < b`` or ``a <= b``."""
        on = self.on
        may = a.low < b.high if strict else a.low <= b.high
        every = a.high < b.low if strict else a.high <= b.low
        if not self.witnesses:
            return Truth(may, every)
        known = on.both(apart, on.both(a.attained, b.attained))
        return Truth(may, every, on.either(every, on.both(known, may)), self._lacking(may, every, known))

    def equal(self, a: Interval, b: Interval, apart: bool) -> Truth:
        on = self.on
        may = on.both(a.low <= b.high, b.low <= a.high)
        every = on.both(a.low == b.high, a.high == b.low)
        if not self.witnesses:
            return Truth(may, every)
        known = on.both(apart, on.both(a.attained, b.attained))
        touch = on.either(on.either(a.low == b.low, a.high == b.high), on.either(a.low == b.high, a.high == b.low))
        meet = on.either(on.both(known, touch), on.both(apart, on.both(may, on.both(a.solid, b.solid))))
        return Truth(may, every, on.either(every, meet), self._lacking(may, every, known))

    def _lacking(self, may: Flag, every: Flag, known: Flag) -> Flag:
        return self.on.either(self.on.no(may), self.on.both(known, self.on.no(every)))

    def negated(self, a: Truth) -> Truth:
        return Truth(self.on.no(a.every), self.on.no(a.may), a.lacking, a.some)

    def conjunction(self, a: Truth, b: Truth, apart: bool) -> Truth:
        on = self.on
        if not self.witnesses:
            return Truth(on.both(a.may, b.may), on.both(a.every, b.every))
        one = on.either(on.both(a.every, b.some), on.both(a.some, b.every))
        some = on.either(one, on.both(apart, on.both(a.some, b.some)))
        return Truth(on.both(a.may, b.may), on.both(a.every, b.every), some, on.either(a.lacking, b.lacking))

    def disjunction(self, a: Truth, b: Truth, apart: bool) -> Truth:
        return self.negated(self.conjunction(self.negated(a), self.negated(b), apart))


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
            case "bitand":
                return self._fold(args, lambda a, b, _: rules.bitand(a, b))
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

    def _unary(self, x: Node, rule: Callable[[Interval], Interval]) -> Interval | None:
        a = self.interval(x)
        if a is None:
            return None
        out = rule(a)
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
