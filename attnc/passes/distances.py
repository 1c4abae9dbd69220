"""Masks on a grid of short rows that ask how far apart rows are: radial masks.

Where such a mask does not bound rows, going through all inner rows would take more steps than there are blocks. But
what it leaves of a row may depend on the distance of the rows alone, ``outer row - inner row``. At one distance a block
of the outer axis then leaves one range: the end of a row, whole rows, the beginning of a row. And where the mask reads
the distance through the power of two below it, those that leave anything follow a step that is the same from each power
of two to the next, an *octave*: ranges are numbered octave by octave, each with room for as many as the fullest has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from attnc.ir.construct import FALSE, TRUE, add, axis, call, coefficient, const, is_const, mul, neg, sub, terms_of, var
from attnc.ir.node import Call, Const, Node
from attnc.ir.walk import postorder, replace, rewrite
from attnc.passes.bounds import ZERO, Range, first, inner_range, last
from attnc.passes.conditions import plain
from attnc.passes.inequality import at_most_zero
from attnc.passes.progression import alternatives
from attnc.passes.rows import ITEM, Line, in_row, lines
from attnc.passes.series import ONE, Names

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
    """What is left at distances of either sign, None where that is nothing, and within a row. `fullest` is the greatest
    number of distances of an octave."""

    before: Side | None
    same: Range
    after: Side | None
    fullest: int

    def either(self, before: Node, attribute: str) -> Node:
        """An attribute of the side that a condition tells; where there is only one, it is that one's."""
        found = dict.fromkeys(getattr(s, attribute) for s in (self.before, self.after) if s is not None)
        return call("where", before, *found) if len(found) > 1 else next(iter(found), ONE)


@dataclass(frozen=True, slots=True)
class Listed:
    """Ranges of inner positions in order, numbered by `ITEM`."""

    count: Node
    low: Node
    high: Node


def by_distance(
    conditions: Sequence[Node],
    outer: str,
    inner: str,
    extent: Node,
    names: Names,
    inside: Names,
    alone: Callable[[Sequence[Node]], Range | None],
) -> Listed | None:
    """The ranges of a mask that asks for distances of rows; None for others.

    Alternatives that ask for something else may leave a range each, which `alone` finds, where it begins with the mask.
    """
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
            found_all = _distances([call("or", *grid)], a, b) if grid else None
            if found_all is not None:
                return _numbered(found_all, begun, a, b, extent, names, inside)
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
    fullest = 0
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
    return Distances(sides[0], same, sides[1], fullest)


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


def _numbered(
    found: Distances, begun: Sequence[Range], a: Line, b: Line, extent: Node, names: Names, inside: Names
) -> Listed:
    """All distances from the greatest to the least, which are those of the inner rows in order."""
    columns = const(a.columns)
    rows = _outer_rows(a, names)
    nearest, furthest = call("floordiv", b.shift, columns), call("floordiv", add(extent, b.shift, const(-1)), columns)
    room = const(found.fullest)
    ahead, behind = (
        names.let("distances", ZERO if side is None else mul(room, _octaves(most)))
        for side, most in ((found.before, sub(rows.to, nearest)), (found.after, sub(furthest, rows.from_)))
    )
    count = names.let("turns", add(ahead, behind, const(1 + len(begun))))

    number = inside.let("number", sub(ITEM, const(len(begun))))
    before = call("lt", number, ahead)
    position = call("where", before, sub(ahead, add(number, ONE)), sub(number, add(ahead, ONE)))
    position = inside.let("position", call("maximum", position, ZERO))
    reach = call("power_of_two", call("floordiv", position, room))
    reach = inside.let("reach", call("minimum", reach, const(2 ** (OCTAVES - 1))))
    step = inside.let("step", replace([found.either(before, "step")], {REACH: reach})[0])
    size = inside.let("apart", mul(step, sub(call("mod", position, room), call("floordiv", neg(reach), step))))
    same = call("eq", number, ahead)
    valid = call("or", same, call("lt", size, mul(const(2), reach)))
    size = inside.let("apart", call("where", valid, size, ONE))
    apart = inside.let("rows_apart", call("where", same, ZERO, call("where", before, size, neg(size))))
    sides = replace([found.either(before, x) for x in ("low", "high")], {OCTAVE: reach})
    sides = replace(sides, {MORE: add(size, const(-1))})
    left = [call("where", same, x, y) for x, y in zip((found.same.low, found.same.high), sides, strict=True)]
    left = _named(left, {first(a.place), last(a.place)}, inside)
    low, high, some = _over_block(left, rows, apart, a, b, inside)
    low = call("maximum", low, ZERO)
    high = call("where", call("and", valid, some), call("minimum", high, extent), ZERO)
    for k, r in enumerate(begun):
        here = call("eq", ITEM, const(k))
        low = call("where", here, names.let("low", r.low), low)
        high = call("where", here, names.let("high", r.high), high)
    return Listed(count, inside.let("low", low), inside.let("high", high))


def _named(nodes: Sequence[Node], moving: set[Node], names: Names) -> list[Node]:
    """Expressions where every part that reads none of some variables has a name."""
    order = postorder(nodes)
    moves: set[Node] = set()
    for n in order:
        if n in moving or any(c in moves for c in n.children):
            moves.add(n)
    fixed = (c for n in order if n in moves for c in n.children if c not in moves and c.kind == "i")
    return replace(nodes, {n: names.let("known", n) for n in dict.fromkeys(fixed)})


@dataclass(frozen=True, slots=True)
class _Rows:
    """The first and the last outer row of a block, and the places where it begins and ends in them."""

    from_: Node
    to: Node
    start: Node
    stop: Node


def _outer_rows(a: Line, names: Names) -> _Rows:
    columns = const(a.columns)
    at = [add(x, a.shift) for x in (first(a.axis), last(a.axis))]
    from_, to = (names.let("outer_row", call("floordiv", x, columns)) for x in at)
    start, stop = (names.let("outer_place", call("mod", x, columns)) for x in at)
    return _Rows(from_, to, start, stop)


def _over_block(
    left: Sequence[Node], rows: _Rows, apart: Node, a: Line, b: Line, inside: Names
) -> tuple[Node, Node, Node]:
    """What a block leaves at a distance, before it is cut to the axis, and a condition without which that is nothing.

    Args:
        left: the places left of an inner row, by those of an outer one.
        rows: of the block.
        apart: the distance.
        a, b: the axes.
        inside: is given what is computed on the way.
    """
    columns, top = const(a.columns), const(a.columns - 1)
    one = call("eq", rows.from_, rows.to)

    def of(start: Node, stop: Node) -> tuple[Node, Node]:
        low, high = replace(left, {first(a.place): start, last(a.place): stop})
        return inside.let("place_low", low), inside.let("place_high", high)

    head = of(rows.start, call("where", one, rows.stop, top))
    tail = of(call("where", one, rows.start, ZERO), rows.stop)
    start = inside.let("row_start", sub(mul(columns, sub(rows.from_, apart)), b.shift))
    low = add(start, call("where", call("lt", *head), head[0], columns))
    high = add(start, mul(columns, sub(rows.to, rows.from_)), call("where", call("lt", *tail), tail[1], ZERO))
    return low, high, call("lt", *of(ZERO, top))


def _octaves(most: Node) -> Node:
    """How many octaves there are up to a distance."""
    some = add(call("floor_log2", call("maximum", most, ONE)), ONE)
    return call("where", call("lt", ZERO, most), some, ZERO)
