"""Masks on a grid of short rows that ask how far apart rows are: radial masks.

Where such a mask does not bound rows, going through all inner rows would take more steps than there are blocks. But
what it leaves of a row may depend on the distance of the rows alone, ``outer row - inner row``. At one distance a block
of the outer axis then leaves one range: the end of a row, whole rows, the beginning of a row. And where the mask reads
the distance through the power of two below it, those that leave anything follow a step that is the same from each power
of two to the next, an *octave*. `attnc.passes.distance_list` puts the ranges in order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from attnc.ir.construct import FALSE, TRUE, add, axis, call, coefficient, const, is_const, mul, neg, sub, terms_of, var
from attnc.ir.node import Call, Const, Node
from attnc.ir.walk import postorder, replace, rewrite
from attnc.passes.bounds import ZERO, Range, first, inner_range, last
from attnc.passes.conditions import plain
from attnc.passes.inequality import at_most_zero
from attnc.passes.progression import alternatives
from attnc.passes.rows import Line, in_row, lines
from attnc.passes.series import ONE

MOST = 6
"""Alternatives that a mask is taken apart into."""
OCTAVES = 31
"""Positions have 32 bits."""
FULLEST = 128
"""Ranges that an octave may have."""
MORE = var("more", (), "i")
"""How much more than 1 a distance is, either way."""
REACH = var("reach", (), "i")
"""The power of two that a distance is not below."""
OCTAVE = call("power_of_two", call("floor_log2", add(ONE, MORE)))
"""`REACH`, as conditions say it."""
APART = var("apart", (), "i")
"""The distance of two rows, of either sign."""


@dataclass(frozen=True, slots=True)
class Side:
    """What is left at distances of one sign, of size ``1 + MORE``: the places from `low` up to `high`, and the step
    that the distances follow in the octave of `REACH`."""

    low: Node
    high: Node
    step: Node


@dataclass(frozen=True, slots=True)
class Distances:
    """What a mask leaves at every distance.

    Attributes:
        outer, inner: the axes on their grid.
        before, after: what is left at distances of either sign, None where that is nothing.
        same: what is left within a row.
        fullest: the greatest number of distances of an octave.
        begun: ranges of alternatives that ask for something else, which begin with the mask.
    """

    outer: Line
    inner: Line
    before: Side | None
    same: Range
    after: Side | None
    fullest: int
    begun: tuple[Range, ...] = ()

    def either(self, before: Node, attribute: str) -> Node:
        """An attribute of the side that a condition tells; where there is only one, it is that one's."""
        found = dict.fromkeys(getattr(s, attribute) for s in (self.before, self.after) if s is not None)
        return call("where", before, *found) if len(found) > 1 else next(iter(found), ONE)


def distances(
    conditions: Sequence[Node], outer: str, inner: str, extent: Node, alone: Callable[[Sequence[Node]], Range | None]
) -> Distances | None:
    """What a mask that asks for distances of rows leaves; None for others. `alone` finds the range of an alternative
    that asks for something else."""
    choices = alternatives(plain(conditions, (outer,), {}), MOST)
    least = inner_range(conditions, outer, inner, extent).low
    for a, b in lines(conditions, outer, inner) if choices is not None else ():
        grid: list[Node] = []
        begun: list[Range] = []
        for choice in choices or ():
            moved = _at_distance(choice, a, b)
            if moved is not None:
                grid.append(moved)
                continue
            found = alone(choice)
            if found is None or not found.exact or found.low not in (ZERO, least):
                break
            begun.append(found)
        else:
            every = _distances([call("or", *grid)], a, b) if grid else None
            if every is not None:
                return dataclasses.replace(every, begun=tuple(begun))
    return None


def _at_distance(conditions: Sequence[Node], a: Line, b: Line) -> Node | None:
    """Conditions on two rows as conditions on their distance; None where they ask for more of the rows."""
    moved = replace(b.rewritten(a.rewritten(conditions)), {axis(b.row): sub(axis(a.row), APART)})
    moved = rewrite(moved, lambda n: _on_one_side(n) if isinstance(n, Call) else None)
    known = {axis(a.place), axis(b.place), APART}
    variables = (n for n in postorder(moved) if not n.children and n.kind != "b" and not isinstance(n, Const))
    return call("and", *moved) if all(n in known for n in variables) else None


def _on_one_side(condition: Call) -> Node | None:
    """``a <= b`` as ``a - b <= 0``, so that what both sides have in common is gone."""
    if condition.fn not in ("le", "lt") or any(x.kind != "i" for x in condition.args):
        return None
    a, b = condition.args
    value = add(a, neg(b), const(1 if condition.fn == "lt" else 0))
    opened: list[Node] = []
    for t in terms_of(value):
        k, factors = coefficient(t)
        inside = terms_of(factors[0]) if len(factors) == 1 else (mul(*factors),)
        opened += [mul(const(k), x) for x in inside]
    return call("le", add(ZERO, *opened), ZERO)


def _distances(conditions: Sequence[Node], a: Line, b: Line) -> Distances | None:
    size = add(ONE, MORE)
    sides: list[Side | None] = []
    fullest = 1
    for apart in (size, neg(size)):
        settled = _settled(replace(conditions, {APART: apart}))
        places = in_row(settled, a, b, both_ends=True)
        if places is None:
            return None
        if places.high is ZERO:
            sides.append(None)
            continue
        side = _side(settled, places, a, b)
        most = None if side is None else _fullest(side.step)
        if most is None:
            return None
        sides.append(side)
        fullest = max(fullest, most)
    settled = _settled(replace(conditions, {APART: ZERO}))
    same = in_row(settled, a, b, both_ends=True)
    if same is None:
        return None
    return Distances(a, b, sides[0], same, sides[1], fullest)


def _settled(conditions: Sequence[Node]) -> list[Node]:
    """Conditions with absolute values and extremes whose outcome is known."""

    def rule(node: Node) -> Node | None:
        match node:
            case Call(fn="abs", args=(x,)) if x.kind == "i":
                return x if at_most_zero(neg(x)) else neg(x) if at_most_zero(x) else None
            case Call(fn="maximum", args=(x, y)) if x.kind == y.kind == "i":
                return x if at_most_zero(sub(y, x)) else y if at_most_zero(sub(x, y)) else None
            case _:
                return None

    return plain(rewrite(list(conditions), rule), (), {})


def _side(conditions: Sequence[Node], places: Range, a: Line, b: Line) -> Side | None:
    """The places that are left at distances of one sign, with the step of the distances."""
    choices = alternatives(conditions, MOST)
    if choices is None:
        return None
    every: Node = FALSE
    steps: dict[Node, None] = {}
    for choice in choices:
        step = next((s for c in choice if (s := _step(c)) is not None), None)
        if step is not None:
            steps[step] = None
            continue
        whole = in_row(choice, a, b, both_ends=True)
        there = TRUE if whole is None else _in_octave(_there(whole, a))
        every = call("or", every, TRUE if there is None else there)
    if len(steps) > 1:
        return None
    return Side(places.low, places.high, call("where", every, ONE, next(iter(steps), mul(const(2), REACH))))


def _step(condition: Node) -> Node | None:
    """The number that distances are multiples of, the same throughout an octave."""
    match condition:
        case Call(fn="eq", args=(x, y)):
            for zero, rest in ((x, y), (y, x)):
                match rest:
                    case Call(fn="mod", args=(u, by)) if is_const(zero, 0) and u is add(ONE, MORE):
                        return _in_octave(by)
                    case _:
                        pass
        case _:
            pass
    return None


def _in_octave(node: Node) -> Node | None:
    """What depends on the octave of a distance alone; None for others."""
    (found,) = replace([node], {OCTAVE: REACH})
    return None if found.axes or MORE in postorder([found]) else found


def _there(places: Range, a: Line) -> Node:
    """Whether anything is left of a whole row."""
    whole: dict[Node, Node] = {first(a.place): ZERO, last(a.place): const(a.columns - 1)}
    return call("lt", *replace([places.low, places.high], whole))


def _fullest(step: Node) -> int | None:
    """The most multiples of a step in an octave; None for too many, or where that cannot be told."""
    most = 0
    for octave in range(OCTAVES):
        (found,) = replace([step], {REACH: const(2**octave)})
        if not isinstance(found, Const) or found.value <= 0:
            return None
        by, reach = int(found.value), 2**octave
        most = max(most, (2 * reach - 1) // by - (reach - 1) // by)
    return most if most <= FULLEST else None
