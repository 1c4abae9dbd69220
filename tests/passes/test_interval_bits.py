"""The rules of interval analysis for operations on bits, proved for all words of a few bits by z3."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import z3

from attnc.ir.construct import axis, call, const
from attnc.ir.node import Call, Const, Node, Prod
from attnc.passes import interval_bits as bits
from attnc.passes.intervals import Arithmetic, Interval
from tests.passes.test_intervals import Symbols, prove

WIDTH, MOST = 10, 64
"""Words of 10 bits hold numbers of 7: sums of two stay inside."""


class Words(Symbols):
    """Arithmetic on words of a few bits, signed."""

    def __init__(self, *, positive: bool) -> None:
        self.positive = positive
        """What `always` says of its flags, which then have to be given."""

    def floordiv(self, a: Any, b: Any) -> Any:
        raise NotImplementedError

    def common_bits(self, low: Any, high: Any) -> tuple[Any, Any]:
        differ = low ^ high
        for shift in (1, 2, 4, 8):
            differ = differ | z3.LShR(differ, shift)
        return low & ~differ, high | differ

    def bitand(self, a: Any, b: Any) -> Any:
        return a & b

    def bitor(self, a: Any, b: Any) -> Any:
        return a | b

    def bitxor(self, a: Any, b: Any) -> Any:
        return a ^ b

    def always(self, a: Any) -> bool:
        return self.positive

    def floor_log2(self, a: Any) -> Any:
        found = z3.BitVecVal(0, WIDTH)
        for n in range(1, WIDTH - 1):
            found = z3.If(a >= 1 << n, z3.BitVecVal(n, WIDTH), found)
        return found

    def power_of_two(self, a: Any) -> Any:
        return z3.BitVecVal(1, WIDTH) << z3.If(a < 0, 0, a)


X, Y, VALUE, AL, AH, BL, BH = z3.BitVecs("x y value a_low a_high b_low b_high", WIDTH)
ATTAINED, SOLID = z3.Bools("attained solid")
A, B = Interval(AL, AH, ATTAINED, SOLID), Interval(BL, BH)
INSIDE = z3.And(AL <= X, X <= AH, BL <= Y, Y <= BH)
Rule = Callable[[Arithmetic, Interval, Interval], Interval]
RULES: dict[str, tuple[Rule, Callable[[Any, Any], Any]]] = {
    "and": (bits.bitand, lambda x, y: x & y),
    "or": (bits.bitor, lambda x, y: x | y),
    "exclusive or": (bits.bitxor, lambda x, y: x ^ y),
}


def small(*words: Any) -> Any:
    return z3.And(*(z3.And(w >= -MOST, w < MOST) for w in words))


@pytest.mark.parametrize("sign", ["any", "positive", "negative"])
@pytest.mark.parametrize("name", RULES)
def test_a_value_is_inside_its_interval(name: str, sign: str) -> None:
    rule, function = RULES[name]
    given = [small(AL, AH, BL, BH), INSIDE]
    if sign == "positive":
        given += [AL >= 0, BL >= 0]
    if sign == "negative":
        given += [AH < 0, BH < 0]
    # Both ways through the rules: by sign, and the shorter one where no operand is negative (for an `or`: of `~a`).
    short = {"positive": name != "or", "negative": name == "or", "any": False}[sign]
    found = rule(Words(positive=short), A, B)
    prove(z3.And(found.low <= function(X, Y), function(X, Y) <= found.high), given=z3.And(*given))
    single = z3.And(AL == AH, BL == BH, found.low == function(X, Y), found.high == function(X, Y))
    prove(z3.Implies(z3.Or(found.attained, found.solid), single), given=z3.And(*given))


@pytest.mark.parametrize("name", RULES)
def test_known_bits_give_the_narrowest_interval(name: str) -> None:
    """Of aligned ranges of 4 and 8 numbers, both ends occur."""
    rule, function = RULES[name]
    found = rule(Words(positive=False), A, B)
    aligned = [AL & 3 == 0, AH == AL + 3, BL & 7 == 0, BH == BL + 7, small(AL, AH, BL, BH)]
    for end in (found.low, found.high):
        pairs = [function(AL + a, BL + b) == end for a in range(4) for b in range(8)]
        prove(z3.Or(*pairs), given=z3.And(*aligned))


def test_the_logarithm_of_an_integer() -> None:
    words = Words(positive=True)
    found = bits.floor_log2(words, A)
    given = z3.And(small(AL, AH), AL <= X, X <= AH)
    prove(z3.And(found.low <= words.floor_log2(X), words.floor_log2(X) <= found.high), given=given)
    # What a rule says to occur does, at the ends and, for each number between, at its power of two.
    prove(z3.And(found.low == words.floor_log2(AL), found.high == words.floor_log2(AH)), given=given)
    power = words.power_of_two(VALUE)
    at = z3.If(power < AL, AL, z3.If(power > AH, AH, power))
    between = z3.And(found.low <= VALUE, found.high >= VALUE)
    prove(z3.Implies(between, z3.And(at >= AL, at <= AH, words.floor_log2(at) == VALUE)), given=given)


def test_a_power_of_two() -> None:
    words = Words(positive=True)
    found = bits.power_of_two(words, A)
    assert found is not None
    given = z3.And(AL <= X, X <= AH, AL > -MOST, AH < WIDTH - 2)
    prove(z3.And(found.low <= words.power_of_two(X), words.power_of_two(X) <= found.high), given=given)
    prove(z3.And(found.low == words.power_of_two(AL), found.high == words.power_of_two(AH)), given=given)
    prove(z3.Implies(found.solid, z3.And(ATTAINED, found.low == found.high)), given=given)
    assert bits.power_of_two(Words(positive=False), A) is None


def evaluated(node: Node, j: int) -> int:
    match node:
        case Const():
            return int(node.value)
        case Prod():
            a, b = node.factors
            return evaluated(a, j) * evaluated(b, j)
        case Call(fn="floordiv"):
            return evaluated(node.args[0], j) // evaluated(node.args[1], j)
        case Call(fn="mod"):
            return evaluated(node.args[0], j) % evaluated(node.args[1], j)
        case _:
            return j


def test_consecutive_ones_are_quotients_and_remainders() -> None:
    found = {c: bits.as_division(call("bitand", axis("j"), const(c))) for c in range(-40, 40)}  # type: ignore[arg-type]
    assert [c for c, node in found.items() if node is not None and 0 < c < 20] == [1, 2, 3, 4, 6, 7, 8, 12, 14, 15, 16]
    assert [c for c, node in found.items() if node is not None and -20 < c < 0] == [-16, -8, -4, -2, -1]
    for c, node in found.items():
        assert node is None or all(evaluated(node, j) == j & c for j in range(-70, 70))
