"""Sets of integers in closed form that a mask may ask of one number: the multiples of a step, the powers of two.

A set is given by its members in order and by how many lie below a number, so that the members between two bounds, and
the place of another range among them, are known without a search.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from attnc.ir.construct import add, call, const, mul, neg, sub
from attnc.ir.node import Call, Const, Node

ZERO, ONE = const(0), const(1)


@dataclass(frozen=True, slots=True)
class Multiples:
    """All numbers that leave `rest` when divided by `step`, below 0 too."""

    step: int
    rest: int

    least: int | None = None

    def value(self, k: Node) -> Node:
        """The member number `k`."""
        return add(mul(const(self.step), k), const(self.rest))

    def rank(self, value: Node) -> Node:
        """The number of the first member that is not below `value`."""
        return neg(call("floordiv", sub(const(self.rest), value), const(self.step)))


@dataclass(frozen=True, slots=True)
class Powers:
    """1, 2, 4 and so on, with 0 before them or without."""

    zero: bool

    @property
    def least(self) -> int | None:
        """The smallest member; None where there is none."""
        return 0 if self.zero else 1

    def value(self, k: Node) -> Node:
        """The member number `k`."""
        if not self.zero:
            return call("power_of_two", k)
        return call("where", call("le", k, ZERO), ZERO, call("power_of_two", add(k, const(-1))))

    def rank(self, value: Node) -> Node:
        """The number of the first member that is not below `value`."""
        above = add(call("floor_log2", call("maximum", add(value, const(-1)), ONE)), const(2 if self.zero else 1))
        below = call("minimum", call("maximum", value, ZERO), ONE) if self.zero else ZERO
        return call("where", call("le", value, ONE), below, above)


Progression = Multiples | Powers


def membership(condition: Node) -> tuple[Node, Progression] | None:
    """A number and the set that a condition restricts it to; None for other conditions."""
    if not isinstance(condition, Call) or condition.fn != "eq":
        return None
    a, b = condition.args
    for x, y in ((a, b), (b, a)):
        found = _multiples(x, y) or _bits(x, y) or _own_power(x, y)
        if found is not None:
            return found
    return None


def _multiples(rest: Node, value: Node) -> tuple[Node, Progression] | None:
    """``rest == x % step``, or two remainders that are the same."""
    match value:
        case Call(fn="mod", args=(x, Const(kind="i") as step)) if step.value > 0:
            pass
        case _:
            return None
    by = int(step.value)
    match rest:
        case Const(kind="i") if 0 <= rest.value < by:
            return x, Multiples(by, int(rest.value))
        case Call(fn="mod", args=(y, other)) if other is step:
            return sub(x, y), Multiples(by, 0)
        case _:
            return None


def _bits(zero: Node, value: Node) -> tuple[Node, Progression] | None:
    """``x & (x - 1) == 0``: one bit at most."""
    match zero, value:
        case Const(value=0), Call(fn="bitand", args=(a, b)):
            for x, y in ((a, b), (b, a)):
                if sub(x, ONE) is y:
                    return x, Powers(zero=True)
        case _:
            pass
    return None


def _own_power(x: Node, value: Node) -> tuple[Node, Progression] | None:
    """``2 ** floor(log2(max(x, 1))) == x``, with integers or with reals."""
    match value:
        case Call(fn="exp2", args=(Call(fn="floor", args=(Call(fn="log2", args=(inside,)),)),)):
            pass
        case Call(fn="power_of_two", args=(Call(fn="floor_log2", args=(inside,)),)):
            pass
        case _:
            return None
    match inside:
        case Call(fn="maximum", args=(a, b)) if x.kind == "i" and {a, b} == {x, ONE}:
            return x, Powers(zero=False)
        case _:
            return None


def alternatives(conditions: Sequence[Node], most: int) -> list[tuple[Node, ...]] | None:
    """Conditions as alternatives, each of which asks for all of some conditions; None for more than `most`."""
    found: list[tuple[Node, ...]] = [()]
    for c in conditions:
        parts = c.args if isinstance(c, Call) and c.fn == "or" else (c,)
        inside = [alternatives(p.args, most) if isinstance(p, Call) and p.fn == "and" else [(p,)] for p in parts]
        if any(x is None for x in inside):
            return None
        choices = [x for several in inside if several is not None for x in several]
        found = [(*before, *choice) for before in found for choice in choices]
        if len(found) > most:
            return None
    return found
