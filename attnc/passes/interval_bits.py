"""Interval analysis of operations on the bits of integers in two's complement.

Of numbers between two ends of one sign, the leading bits that the ends share are known, and any other bit may be either
(`Arithmetic.common_bits`). An interval of both signs is looked at in two parts.
"""

from __future__ import annotations

from collections.abc import Callable

from attnc.ir.construct import call, const, mul
from attnc.ir.node import Call, Const, Node
from attnc.passes.intervals import Arithmetic, Flag, Interval, Number

Ends = tuple[Number, Number]
Rule = Callable[[Arithmetic, Ends, Ends, bool, bool], Ends]
"""The ends of a result from those of two operands of one sign each, and whether these are negative."""
HIGHEST_POWER = 40
"""Powers of two beyond this one are not bounded: sums and products with them might not fit a word."""


def bitand(on: Arithmetic, a: Interval, b: Interval) -> Interval:
    """``a & b``."""
    return _combined(on, a, b, _and)


def bitor(on: Arithmetic, a: Interval, b: Interval) -> Interval:
    """``a | b``, which is ``~(~a & ~b)``."""
    return _flipped(bitand(on, _flipped(a), _flipped(b)))


def bitxor(on: Arithmetic, a: Interval, b: Interval) -> Interval:
    """``a ^ b``."""
    return _combined(on, a, b, _xor)


def floor_log2(on: Arithmetic, a: Interval) -> Interval:
    """The number of the highest set bit: numbers that follow each other have the same, or the next."""
    return Interval(on.floor_log2(a.low), on.floor_log2(a.high), a.attained, a.solid)


def power_of_two(on: Arithmetic, a: Interval) -> Interval | None:
    """``2 ** n``; None where it may be too large a number."""
    if not on.always(a.high <= HIGHEST_POWER):
        return None
    single = on.both(a.attained, a.low == a.high)
    return Interval(on.power_of_two(a.low), on.power_of_two(a.high), a.attained, single)


def as_division(node: Call) -> Node | None:
    """``x & c`` by quotients and remainders, where the ones of the number c follow each other; None for others. Those
    have rules that know which values occur, and loop bounds."""
    if node.fn != "bitand":
        return None
    x, c = sorted(node.args, key=lambda n: isinstance(n, Const))
    if not isinstance(c, Const) or c.value == 0:
        return None
    ones = int(c.value)
    lowest = ones & -ones
    field = ones // lowest + 1
    if field & (field - 1):
        return None
    x = call("floordiv", x, const(lowest))
    return mul(const(lowest), call("mod", x, const(field)) if field else x)


def _combined(on: Arithmetic, a: Interval, b: Interval, rule: Rule) -> Interval:
    """The rule for every choice of signs that there is, put together."""
    single = on.both(a.low == a.high, b.low == b.high)
    if on.always(on.both(a.low >= 0, b.low >= 0)):
        return Interval(*rule(on, (a.low, a.high), (b.low, b.high), False, False), single, single)
    found: tuple[Flag, Number, Number] | None = None
    for exists_a, ends_a, negative_a in _parts(on, a):
        for exists_b, ends_b, negative_b in _parts(on, b):
            low, high = rule(on, ends_a, ends_b, negative_a, negative_b)
            found = _joined(on, found, (on.both(exists_a, exists_b), low, high))
    assert found is not None
    return Interval(found[1], found[2], single, single)


def _parts(on: Arithmetic, a: Interval) -> list[tuple[Flag, Ends, bool]]:
    """The negative and the other numbers of an interval, and whether there are any."""
    below = on.minimum(a.low, -1), on.minimum(a.high, -1)
    above = on.maximum(a.low, 0), on.maximum(a.high, 0)
    return [(a.low < 0, below, True), (a.high >= 0, above, False)]


def _joined(
    on: Arithmetic, a: tuple[Flag, Number, Number] | None, b: tuple[Flag, Number, Number]
) -> tuple[Flag, Number, Number]:
    """The union of two ranges, of which each may not exist."""
    if a is None:
        return b
    exists = on.either(a[0], b[0])
    low = on.where(a[0], on.where(b[0], on.minimum(a[1], b[1]), a[1]), b[1])
    high = on.where(a[0], on.where(b[0], on.maximum(a[2], b[2]), a[2]), b[2])
    return exists, low, high


def _and(on: Arithmetic, a: Ends, b: Ends, negative_a: bool, negative_b: bool) -> Ends:
    least_a, most_a = on.common_bits(*a)
    least_b, most_b = on.common_bits(*b)
    # Taking bits away makes a number smaller, unless it takes the sign.
    if negative_a == negative_b:
        limit = on.minimum(a[1], b[1])
    else:
        limit = b[1] if negative_a else a[1]
    return on.bitand(least_a, least_b), on.minimum(on.bitand(most_a, most_b), limit)


def _xor(on: Arithmetic, a: Ends, b: Ends, negative_a: bool, negative_b: bool) -> Ends:
    least_a, most_a = on.common_bits(*a)
    least_b, most_b = on.common_bits(*b)
    # Bits that differ between the least and the most are unknown; every sum here only sets bits.
    unknown = on.bitor(most_a - least_a, most_b - least_b)
    known = on.bitand(on.bitxor(least_a, least_b), -1 - unknown)
    return known, known + unknown


def _flipped(a: Interval) -> Interval:
    """``~a``."""
    return Interval(-1 - a.high, -1 - a.low, a.attained, a.solid)
