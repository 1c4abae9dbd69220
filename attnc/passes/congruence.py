"""Congruences between positions of both axes, and the numbers of positions that leave the same remainder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import gcd, lcm

from attnc.ir.construct import add, axis, call, coefficient, const, mul, neg, sub, terms_of
from attnc.ir.node import Call, Const, Node
from attnc.ir.walk import rewrite
from attnc.passes.bounds import ZERO
from attnc.passes.inequality import at_most_zero
from attnc.passes.progression import Multiples, membership
from attnc.passes.series import SHORTEST

Congruence = tuple[tuple[int, int], Multiples, Node, Node]


@dataclass(frozen=True, slots=True)
class Lattice:
    """Positions of an axis that, with `shift` added, are ``step * number + rest``; `number` is their axis."""

    axis: str
    shift: Node
    step: int
    rest: int

    @property
    def number(self) -> str:
        return f"{self.axis}_number"

    def position(self, number: Node) -> Node:
        return sub(add(mul(const(self.step), number), const(self.rest)), self.shift)

    def up(self, position: Node) -> Node:
        """The number of the first position that is not before this one."""
        return neg(call("floordiv", sub(const(self.rest), add(position, self.shift)), const(self.step)))

    def down(self, position: Node) -> Node:
        """The number of the last position that is not after this one."""
        return call("floordiv", sub(add(position, self.shift), const(self.rest)), const(self.step))


def lattices(conditions: Sequence[Node], outer: str, inner: str) -> list[tuple[Lattice, Lattice]]:
    """Pairs of classes that congruences between both axes leave. None at all where there are no congruences, where
    there are too many classes, or where a block might hold no position of one."""
    found = [x for c in conditions if (x := _congruence(c, outer, inner)) is not None]
    if not found:
        return []
    step = lcm(*(members.step for _, members, _, _ in found))
    shifts = found[0][2:]
    if step > SHORTEST or any(x[2:] != shifts for x in found):
        return []
    pairs = [(g, h) for g in range(step) for h in range(step) if all(_holds(x[0], x[1], g, h) for x in found)]
    if len(pairs) > SHORTEST:
        return []
    return [(Lattice(outer, shifts[0], step, g), Lattice(inner, shifts[1], step, h)) for g, h in pairs]


def _holds(number: tuple[int, int], members: Multiples, g: int, h: int) -> bool:
    sign, more = number
    return (sign * (g - h) + more - members.rest) % members.step == 0


def _congruence(condition: Node, outer: str, inner: str) -> Congruence | None:
    """``sign * (x - y) + more`` and its set, where x is the outer position plus a shift that is never negative, and y
    such an inner one; both shifts."""
    found = membership(condition)
    if found is None:
        return None
    number, members = found
    if not isinstance(members, Multiples):
        return None
    sides: dict[int, Node] = {1: ZERO, -1: ZERO}
    at: dict[str, int] = {}
    more = 0
    for t in terms_of(number):
        k, factors = coefficient(t)
        if not factors:
            more += int(k)
            continue
        if k not in (1, -1) or len(factors) != 1:
            return None
        if factors[0] in (axis(outer), axis(inner)):
            at[outer if factors[0] is axis(outer) else inner] = int(k)
        else:
            sides[int(k)] = add(sides[int(k)], factors[0])
    if len(at) != 2 or at[outer] == at[inner] or any(x.axes or not at_most_zero(neg(x)) for x in sides.values()):
        return None
    return (at[outer], more), members, sides[at[outer]], sides[at[inner]]


def divided(conditions: Iterable[Node]) -> list[Node]:
    """Conditions where multiples of a divisor, and of what a sum and a divisor have in common, are taken out of
    quotients and remainders."""
    return rewrite(list(conditions), lambda n: _divided(n) if isinstance(n, Call) else None)


def _divided(node: Call) -> Node | None:
    match node:
        case Call(fn="floordiv" | "mod", args=(x, Const(kind="i") as divisor)) if divisor.value > 0:
            by = int(divisor.value)
        case _:
            return None
    whole: list[Node] = []
    rest: list[tuple[int, tuple[Node, ...]]] = []
    more = 0
    for t in terms_of(x):
        k, factors = coefficient(t)
        if not isinstance(k, int):
            return None
        if not factors:
            more += k
        elif k % by == 0:
            whole.append(mul(const(k // by), *factors))
        else:
            rest.append((k, factors))
    common = gcd(by, *(k for k, _ in rest)) if rest else by
    if not whole and common == 1 and 0 <= more < by:
        return None
    quotient, more = divmod(more, by)
    # A sum of multiples of what is common, and less than that.
    unit, left = divmod(more, common)
    inside = add(const(unit), *(mul(const(k // common), *factors) for k, factors in rest))
    if node.fn == "floordiv":
        return add(*whole, const(quotient), call("floordiv", inside, const(by // common)) if rest else ZERO)
    if not rest:
        return const(more)
    return add(mul(const(common), call("mod", inside, const(by // common))), const(left))
