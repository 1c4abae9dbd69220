"""The rules of interval analysis, one per operation: what is known of a value from what is known of its operands."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attnc.passes.intervals import Arithmetic, Flag, Interval, Number, Truth


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
