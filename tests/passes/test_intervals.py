"""The rules of interval analysis, proved for all integers by z3."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import z3

from attnc.passes.interval_rules import Rules
from attnc.passes.intervals import Interval, Truth


class Symbols:
    """Arithmetic on z3's integers."""

    def minimum(self, a: Any, b: Any) -> Any:
        return z3.If(a <= b, a, b)

    def maximum(self, a: Any, b: Any) -> Any:
        return z3.If(a <= b, b, a)

    def where(self, c: Any, a: Any, b: Any) -> Any:
        return z3.If(c, a, b)

    def floordiv(self, a: Any, b: Any) -> Any:
        return a / b  # rounds down for a positive divisor

    def common_bits(self, low: Any, high: Any) -> tuple[Any, Any]:
        raise NotImplementedError

    def bitand(self, a: Any, b: Any) -> Any:
        raise NotImplementedError

    def bitor(self, a: Any, b: Any) -> Any:
        raise NotImplementedError

    def bitxor(self, a: Any, b: Any) -> Any:
        raise NotImplementedError

    def floor_log2(self, a: Any) -> Any:
        raise NotImplementedError

    def power_of_two(self, a: Any) -> Any:
        raise NotImplementedError

    def both(self, a: Any, b: Any) -> Any:
        return z3.And(a, b)

    def either(self, a: Any, b: Any) -> Any:
        return z3.Or(a, b)

    def no(self, a: Any) -> Any:
        return z3.Not(a)

    def always(self, a: Any) -> bool:
        raise NotImplementedError

    def real(self, name: str, a: Any) -> Any:
        raise NotImplementedError

    def ends(self, low: Any, high: Any) -> tuple[Any, Any]:
        return low, high


RULES = Rules(Symbols())
X, Y, VALUE = z3.Ints("x y value")
AL, AH, BL, BH = z3.Ints("a_low a_high b_low b_high")
A_ATTAINED, A_SOLID, B_ATTAINED, B_SOLID = z3.Bools("a_attained a_solid b_attained b_solid")
A = Interval(AL, AH, A_ATTAINED, A_SOLID)
B = Interval(BL, BH, B_ATTAINED, B_SOLID)
INSIDE = z3.And(AL <= X, X <= AH, BL <= Y, Y <= BH)
ORDERED = z3.And(AL <= AH, BL <= BH, z3.Implies(A_SOLID, A_ATTAINED), z3.Implies(B_SOLID, B_ATTAINED))


def prove(claim: Any, *, given: Any = ORDERED) -> None:
    solver = z3.Solver()
    solver.set("timeout", 60_000)
    solver.add(given, z3.Not(claim))
    assert solver.check() == z3.unsat, solver.model() if solver.check() == z3.sat else "not decided"


def occurs(x: Any, low: Any, high: Any, attained: Any, solid: Any) -> Any:
    """What the flags of an interval promise: x is a value at some pair."""
    return z3.Or(z3.And(attained, z3.Or(x == low, x == high)), z3.And(solid, low <= x, x <= high))


A_OCCURS, B_OCCURS = occurs(X, AL, AH, A_ATTAINED, A_SOLID), occurs(Y, BL, BH, B_ATTAINED, B_SOLID)


def quotient(by: int) -> Callable[[Any], Any]:
    return lambda x: x / by


def remainder(by: int) -> Callable[[Any], Any]:
    return lambda x: x % by


Unary = Callable[[Interval], Interval]
UNARY: dict[str, tuple[Unary, Callable[[Any], Any]]] = {
    "absolute": (RULES.absolute, lambda x: z3.If(x < 0, -x, x)),
    "negated": (lambda a: RULES.scale(a, -1), lambda x: -x),
    "thrice": (lambda a: RULES.scale(a, 3), lambda x: 3 * x),
    "minus twice": (lambda a: RULES.scale(a, -2), lambda x: -2 * x),
}
for by in (1, 2, 3, 10):
    UNARY[f"// {by}"] = (partial(RULES.floordiv, by=by), quotient(by))
    UNARY[f"% {by}"] = (partial(RULES.mod, by=by), remainder(by))

Binary = Callable[[Interval, Interval, bool], Interval]
BINARY: dict[str, tuple[Binary, Callable[[Any, Any], Any]]] = {
    "add": (RULES.add, lambda x, y: x + y),
    "minimum": (RULES.minimum, Symbols().minimum),
    "maximum": (RULES.maximum, Symbols().maximum),
}


@pytest.mark.parametrize("name", UNARY)
def test_a_value_is_inside_its_interval(name: str) -> None:
    rule, function = UNARY[name]
    found = rule(A)
    prove(z3.Implies(INSIDE, z3.And(found.low <= function(X), function(X) <= found.high)))


@pytest.mark.parametrize("name", UNARY)
def test_ends_and_all_between_occur_where_a_rule_says_so(name: str) -> None:
    rule, function = UNARY[name]
    found = rule(A)
    some = z3.Exists(X, z3.And(A_OCCURS, function(X) == VALUE))
    prove(z3.Implies(z3.And(found.attained, z3.Or(found.low == VALUE, found.high == VALUE)), some))
    prove(z3.Implies(z3.And(found.solid, found.low <= VALUE, found.high >= VALUE), some))


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("name", BINARY)
def test_two_values_meet_inside_the_interval(name: str, apart: bool) -> None:
    rule, function = BINARY[name]
    found = rule(A, B, apart)
    prove(z3.Implies(INSIDE, z3.And(found.low <= function(X, Y), function(X, Y) <= found.high)))
    if not apart:
        prove(z3.Not(z3.Or(found.attained, found.solid)))


@pytest.mark.parametrize("name", BINARY)
def test_values_of_different_axes_meet_where_a_rule_says_so(name: str) -> None:
    rule, function = BINARY[name]
    found = rule(A, B, True)
    some = z3.Exists([X, Y], z3.And(A_OCCURS, B_OCCURS, function(X, Y) == VALUE))
    prove(z3.Implies(z3.And(found.attained, z3.Or(found.low == VALUE, found.high == VALUE)), some))
    prove(z3.Implies(z3.And(found.solid, found.low <= VALUE, found.high >= VALUE), some))


@pytest.mark.parametrize("low", [1, 2, 5])
@pytest.mark.parametrize("more", [0, 1, 3])
def test_divisors_that_vary(low: int, more: int) -> None:
    """By any of a few divisors: with divisors as variables the arithmetic is not linear and z3 does not decide it."""
    by = Interval(z3.IntVal(low), z3.IntVal(low + more))
    quotient, remainder = RULES.quotient(A, by), RULES.remainder(A, by)
    for divisor in range(low, low + more + 1):
        prove(z3.Implies(INSIDE, z3.And(quotient.low <= X / divisor, X / divisor <= quotient.high)))
        prove(z3.Implies(INSIDE, z3.And(remainder.low <= X % divisor, X % divisor <= remainder.high)))


def test_products_are_inside_their_interval() -> None:
    """x * y is linear in each factor, so it is enough to look at the ends of one and at any value of the other."""
    found = RULES.multiply(A, B, True)
    for end in (AL, AH):
        prove(z3.Implies(z3.And(BL <= Y, Y <= BH), z3.And(found.low <= end * Y, end * Y <= found.high)))
    square = RULES.square(A)
    prove(z3.Implies(z3.And(AL <= X, X <= AH), z3.And(square.low <= X * X, square.high >= X * X)))


def test_a_choice_is_inside_its_interval() -> None:
    may, every, c = z3.Bools("may every c")
    found = RULES.where(Truth(may, every), A, B)
    holds = z3.And(INSIDE, z3.Implies(every, c), z3.Implies(c, may))
    value = z3.If(c, X, Y)
    prove(z3.Implies(holds, z3.And(found.low <= value, value <= found.high)))


RELATIONS: dict[str, tuple[Callable[[bool], Truth], Callable[[Any, Any], Any]]] = {
    "less": (lambda apart: RULES.less(A, B, apart, strict=True), lambda x, y: x < y),
    "at most": (lambda apart: RULES.less(A, B, apart, strict=False), lambda x, y: x <= y),
    "equal": (lambda apart: RULES.equal(A, B, apart), lambda x, y: x == y),
}


@pytest.mark.parametrize("name", RELATIONS)
def test_comparisons(name: str) -> None:
    rule, relation = RELATIONS[name]
    for apart in (True, False):
        found = rule(apart)
        prove(z3.Implies(z3.And(INSIDE, relation(X, Y)), found.may))
        prove(z3.Implies(z3.And(INSIDE, found.every), relation(X, Y)))
        if not apart:
            prove(z3.Implies(found.some, found.every))
            prove(z3.Implies(found.lacking, z3.Not(found.may)))
    found = rule(True)
    meet = z3.Exists([X, Y], z3.And(A_OCCURS, B_OCCURS, relation(X, Y)))
    fail = z3.Exists([X, Y], z3.And(A_OCCURS, B_OCCURS, z3.Not(relation(X, Y))))
    prove(z3.Implies(z3.And(found.some, z3.Not(found.every)), meet))
    prove(z3.Implies(z3.And(found.lacking, found.may), fail))


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("name", ["conjunction", "disjunction"])
def test_connectives(name: str, apart: bool) -> None:
    """Over any set of pairs: conditions on different axes are functions of one coordinate each."""
    coordinate = z3.DeclareSort("Coordinate")
    i, j = z3.Consts("i j", coordinate)
    first = z3.Function("first", coordinate, coordinate, z3.BoolSort())
    second = z3.Function("second", coordinate, coordinate, z3.BoolSort())
    flags = {n: z3.Bools(f"{n}_may {n}_every {n}_some {n}_lacking") for n in ("first", "second")}
    known = []
    for n, f in (("first", first), ("second", second)):
        may, every, some, lacking = flags[n]
        known += [
            z3.ForAll([i, j], z3.Implies(f(i, j), may)),
            z3.ForAll([i, j], z3.Implies(every, f(i, j))),
            z3.Implies(some, z3.Exists([i, j], f(i, j))),
            z3.Implies(lacking, z3.Exists([i, j], z3.Not(f(i, j)))),
        ]
    if apart:
        k = z3.Const("k", coordinate)
        known.append(z3.ForAll([i, j, k], first(i, j) == first(i, k)))
        known.append(z3.ForAll([i, j, k], second(i, j) == second(k, j)))
    rule = RULES.conjunction if name == "conjunction" else RULES.disjunction
    both = z3.And if name == "conjunction" else z3.Or
    found = rule(Truth(*flags["first"]), Truth(*flags["second"]), apart)
    together = both(first(i, j), second(i, j))
    for claim in (
        z3.ForAll([i, j], z3.Implies(together, found.may)),
        z3.ForAll([i, j], z3.Implies(found.every, together)),
        z3.Implies(found.some, z3.Exists([i, j], together)),
        z3.Implies(found.lacking, z3.Exists([i, j], z3.Not(together))),
    ):
        prove(claim, given=z3.And(*known))
