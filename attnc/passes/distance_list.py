"""Ranges at all distances of rows in order: octave by octave, each with room for as many as the fullest has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from attnc.ir.construct import add, call, const, mul, neg, sub
from attnc.ir.node import Node
from attnc.ir.walk import postorder, replace
from attnc.passes.bounds import ZERO, first, last
from attnc.passes.distances import MORE, OCTAVE, OCTAVES, REACH, Distances
from attnc.passes.rows import ITEM, Line
from attnc.passes.series import ONE, Names


@dataclass(frozen=True, slots=True)
class Listed:
    """Ranges of inner positions in order, numbered by `ITEM`."""

    count: Node
    low: Node
    high: Node


def listed(found: Distances, extent: Node, names: Names, inside: Names) -> Listed:
    """All distances from the greatest to the least, which are those of the inner rows in order, after what begins with
    the mask. `names` are given what is computed once, `inside` what is for each range."""
    a, b, begun = found.outer, found.inner, found.begun
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
