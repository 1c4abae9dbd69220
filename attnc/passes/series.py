"""Ranges of inner positions that follow a progression: dilated windows, strided keys, power-of-two distances.

Such a mask asks that a number ``u = h(i) - j // c`` (or plus) be a member of a set in closed form. Each member leaves
one range to a block of the outer axis; the ranges come in order of their first position.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from attnc.ir.construct import add, axis, call, coefficient, const, mul, neg, sub, terms_of, var
from attnc.ir.node import Call, Const, Node, Var
from attnc.ir.walk import postorder, replace
from attnc.passes.bounds import ZERO, Range, Solution, ends, first, inner_range, last, solved, trend
from attnc.passes.inequality import all_at_most, at_most_zero
from attnc.passes.progression import Multiples, Progression

ONE = const(1)
SHORTEST = 16
"""No block of a kernel is shorter."""


@dataclass(slots=True)
class Names:
    """Integers of a kernel with names of their own, each made of earlier ones; `around` are those outside a loop."""

    values: list[tuple[Var, Node]] = field(default_factory=list)
    around: Names | None = None

    def variable(self, name: str, value: Node) -> Var:
        """A value under exactly this name."""
        made = var(name, (), "i")
        self.values.append((made, value))
        return made

    def let(self, name: str, value: Node) -> Node:
        """A value under a name that is free, unless it is as short as a name."""
        if not value.children:
            return value
        taken = {v.name for v, _ in (*self.values, *(self.around.values if self.around else ()))}
        k, candidate = 1, name
        while candidate in taken:
            k += 1
            candidate = f"{name}_{k}"
        return self.variable(candidate, value)

    def used(self, nodes: Iterable[Node]) -> tuple[tuple[Var, Node], ...]:
        """What some expressions need, in order."""
        needed = set(postorder(nodes))
        found: list[tuple[Var, Node]] = []
        for v, value in reversed(self.values):
            if v in needed:
                found.append((v, value))
                needed |= set(postorder([value]))
        return tuple(reversed(found))

    def inlined(self, node: Node) -> Node:
        """The same without names."""
        for v, value in reversed(self.values):
            (node,) = replace([node], {v: value})
        return node


@dataclass(frozen=True, slots=True)
class Place:
    """How a number depends on both positions: ``sign * ((j + shift) // unit) + rest``, where no j is in the rest."""

    sign: int
    unit: int
    shift: Node
    rest: Node


def place(value: Node, outer: str, inner: str) -> Place | None:
    """Where the inner position is in a number; None if there in another way."""
    moving = [t for t in terms_of(value) if inner in t.axes]
    if len(moving) != 1:
        return None
    sign, factors = coefficient(moving[0])
    if sign not in (1, -1) or len(factors) != 1:
        return None
    unit, x = 1, factors[0]
    match x:
        case Call(fn="floordiv", args=(y, Const(kind="i") as by)) if by.value > 0:
            unit, x = int(by.value), y
        case _:
            pass
    shift = sub(x, axis(inner))
    if shift.axes & {inner, outer}:
        return None
    return Place(int(sign), unit, shift, sub(value, moving[0]))


@dataclass(frozen=True, slots=True)
class Series:
    """Ranges numbered from 0 to `count`, in order of their first position.

    `least`, `most`: of the rest of the number over the block; `low`, `high`: what all ranges are cut to, `full_low` and
    `full_high` what is all allowed but for the progression; `bottom`: the number of the first member, `top` of the one
    after the last. With `merges` the ranges are one where the gaps between them are shorter than a block.
    """

    at: Place
    members: Progression
    least: Node
    most: Node
    low: Node
    high: Node
    full_low: Node
    full_high: Node
    bottom: Node
    top: Node
    count: Node
    merges: bool

    def member(self, number: Node) -> Node:
        """The member that gives the range of this number."""
        from_below = self.at.sign > 0
        return self.members.value(add(self.bottom, number) if from_below else sub(add(self.top, const(-1)), number))

    def first(self, member: Node) -> Node:
        """Where the range of a member begins, before it is cut."""
        quotient = sub(member, self.most) if self.at.sign > 0 else sub(self.least, member)
        return sub(mul(const(self.at.unit), quotient), self.at.shift)

    def begin(self, member: Node) -> Node:
        return call("maximum", self.first(member), self.low)

    def end(self, member: Node) -> Node:
        quotient = sub(member, self.least) if self.at.sign > 0 else sub(self.most, member)
        return call("minimum", sub(mul(const(self.at.unit), add(quotient, ONE)), self.at.shift), self.high)

    def full(self, member: Node) -> tuple[Node, Node] | None:
        """What is all allowed in the range of a member: all of it where the rest of the number is the same all over the
        block. None where that cannot hold a block."""
        if self.at.unit < SHORTEST:
            return None
        same = call("eq", self.least, self.most)
        high = call("where", same, call("minimum", self.end(member), self.full_high), ZERO)
        return call("maximum", self.begin(member), self.full_low), high

    def before(self, position: Node) -> Node:
        """How many ranges begin before a position that is above `low`."""
        quotient = call("floordiv", add(position, const(-1), self.at.shift), const(self.at.unit))
        if self.at.sign > 0:
            number = sub(self.members.rank(add(quotient, self.most, ONE)), self.bottom)
        else:
            number = sub(self.top, self.members.rank(sub(self.least, quotient)))
        return call("minimum", call("maximum", number, ZERO), self.count)

    @property
    def gap(self) -> Node:
        """Positions between a range and the next."""
        assert isinstance(self.members, Multiples)
        width = add(sub(self.most, self.least), ONE)
        return mul(const(self.at.unit), sub(const(self.members.step), width))

    @property
    def always_one(self) -> bool:
        """Whether no gap holds a block, however short blocks are."""
        if not self.merges or not isinstance(self.members, Multiples):
            return False
        return self.at.unit * (self.members.step - 1) < SHORTEST

    def as_one(self, names: Names) -> Range:
        """The range from the first to the last."""
        low = names.let("low", self.begin(self.member(ZERO)))
        high = self.end(self.member(add(self.count, const(-1))))
        high = names.let("high", call("where", call("lt", ZERO, self.count), high, ZERO))
        return Range(low, high, None, None, exact=True)


def series(
    number: Node, members: Progression, others: Sequence[Node], outer: str, inner: str, extent: Node, names: Names
) -> Series | None:
    """The ranges that a membership and other conditions leave; None where they are not known exactly."""
    at = place(number, outer, inner)
    if at is None:
        return None
    lows, highs, others = _cuts(number, others, {outer, inner})
    solution = solved(others, inner, extent)
    hull = inner_range(others, outer, inner, extent)
    if hull.full_low is None or hull.full_high is None:
        return None
    moving = any(outer in x.axes for x in (*solution.lows, *solution.highs))
    if outer not in at.rest.axes:
        if not hull.exact:
            return None
        least = most = at.rest
    else:
        rising = trend(at.rest, outer)
        known = [int(x.value) for x in lows if isinstance(x, Const)]
        known += [] if members.least is None else [members.least]
        known += [0] if not known and _never_below_zero(at, solution) else []
        if rising is None or not _chained(at, solution, outer, -at.sign * rising, max(known, default=None)):
            return None
        lows += [const(max(known))] if known else []
        at_ends = [replace([at.rest], {axis(outer): x})[0] for x in (first(outer), last(outer))]
        least, most = at_ends if rising >= 0 else reversed(at_ends)
    low, high = names.let("list_low", hull.low), names.let("list_high", hull.high)
    full_low, full_high = names.let("list_full_low", hull.full_low), names.let("list_full_high", hull.full_high)
    least, most = names.let("least", least), names.let("most", most)
    from_, to = (call("floordiv", add(x, at.shift), const(at.unit)) for x in (low, add(high, const(-1))))
    if at.sign > 0:
        lows, highs = [*lows, add(from_, least)], [*highs, add(to, most)]
    else:
        lows, highs = [*lows, sub(least, to)], [*highs, sub(most, from_)]
    bottom = names.let("bottom", members.rank(ends("maximum", lows)))
    top = names.let("top", members.rank(add(ends("minimum", highs), ONE)))
    count = names.let("members", call("maximum", sub(top, bottom), ZERO))
    merges = isinstance(members, Multiples) and not (moving and outer in at.rest.axes)
    return Series(at, members, least, most, low, high, full_low, full_high, bottom, top, count, merges)


def _cuts(number: Node, conditions: Sequence[Node], plane: set[str]) -> tuple[list[Node], list[Node], list[Node]]:
    """Bounds of the number itself, at least and at most, among conditions; and the other ones."""
    lows: list[Node] = []
    highs: list[Node] = []
    others = []
    for c in conditions:
        if isinstance(c, Call) and c.fn in ("le", "lt") and all(a.kind == "i" for a in c.args):
            a, b = c.args
            difference = sub(add(a, const(1 if c.fn == "lt" else 0)), b)  # at most 0
            if not sub(difference, number).axes & plane:
                highs.append(neg(sub(difference, number)))
                continue
            if not add(difference, number).axes & plane:
                lows.append(add(difference, number))
                continue
        others.append(c)
    return lows, highs, others


MEMBER = var("member", (), "i")


def _unit_range(at: Place, member: Node) -> tuple[Node, Node]:
    """The inner positions that give a member, at one outer position."""
    quotient = sub(member, at.rest) if at.sign > 0 else sub(at.rest, member)
    low = sub(mul(const(at.unit), quotient), at.shift)
    return low, add(low, const(at.unit))


def _never_below_zero(at: Place, solution: Solution) -> bool:
    """Whether no position that gives a negative member is allowed."""
    low, high = _unit_range(at, sub(const(-1), MEMBER))
    return any(at_most_zero(sub(high, x.value)) for x in solution.lows) or any(
        at_most_zero(sub(x.value, low)) for x in solution.highs
    )


def _chained(at: Place, solution: Solution, outer: str, rising: int, least: int | None) -> bool:
    """Whether the ranges of neighbouring outer positions touch, for every member, and move the way that `rising` says:
    then they are one range, from the least lower to the greatest upper end."""
    moving = [[x for x in part if outer in x.axes] for part in (solution.lows, solution.highs)]
    for side, part in zip((-1, 1), moving, strict=True):
        if any(x.trend(outer, side) != rising or not x.plain for x in part):
            return False
    member = MEMBER if least is None else add(MEMBER, const(least))
    low, high = _unit_range(at, member)
    lows, highs = [low, *(x.value for x in moving[0])], [high, *(x.value for x in moving[1])]
    after = add(axis(outer), ONE)
    if rising >= 0:
        lows = replace(lows, {axis(outer): after})
    else:
        highs = replace(highs, {axis(outer): after})
    return all_at_most(lows, highs, frozenset() if least is not None else frozenset({MEMBER}))


def with_room(r: Range, outer: str) -> Range:
    """A range without its full part where that cannot hold a block, however short blocks are."""
    if r.full_low is None or r.full_high is None:
        return r
    length = replace([sub(r.full_high, r.full_low)], {last(outer): add(first(outer), var("more", (), "i"))})[0]
    return r if not at_most_zero(sub(length, const(SHORTEST - 1))) else Range(r.low, r.high, None, None, r.exact)


def on_lattice(
    number: Node, members: Multiples, others: Sequence[Node], outer: str, inner: str, extent: Node
) -> Range | None:
    """The range that is left where a remainder of the outer position restricts the block to every so many positions of
    it."""
    shift = sub(number, axis(outer))
    if outer in shift.axes or not at_most_zero(neg(shift)):
        return None
    start = sub(const(members.rest), shift)
    step = const(members.step)
    name = f"{outer}_step"
    moved = replace(list(others), {axis(outer): add(mul(step, axis(name)), start)})
    found = inner_range(moved, name, inner, extent)
    if not found.exact:
        return None
    from_ = neg(call("floordiv", sub(start, first(outer)), step))
    to = call("floordiv", sub(last(outer), start), step)
    low, high = replace([found.low, found.high], {first(name): from_, last(name): to})
    return Range(low, call("where", call("le", from_, to), high, ZERO), None, None, exact=True)
