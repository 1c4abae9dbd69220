"""Masks that ask positions of both axes to be congruent: dilated neighbourhoods.

Where a query's remainder decides a key's, positions that leave fixed remainders are numbered anew, a step apart. On
each such class the congruence is gone, a remainder is a number, and a mask leaves one range of numbers. What the
classes leave together has gaps shorter than a block, so the blocks to visit are those between the first and the last
position of all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from attnc.ir.construct import add, axis, call, const, sub, var
from attnc.ir.node import Call, Node
from attnc.ir.walk import replace
from attnc.passes.bounds import ZERO, End, Range, Solution, ends, extremes, first, inner_range, last, solved, uncut
from attnc.passes.conditions import plain
from attnc.passes.congruence import Lattice, divided, lattices
from attnc.passes.inequality import all_at_most, at_most_zero
from attnc.passes.progression import alternatives
from attnc.passes.series import ONE, SHORTEST, Names

MOST = 4
"""Alternatives a mask may have on one class."""
MORE = var("more", (), "i")
"""Positions of a block of the outer axis after its first."""


@dataclass(frozen=True, slots=True)
class Part:
    """What one alternative of a mask leaves on one class: a range of inner numbers and the solution it comes from, and
    the outer numbers it speaks of: at least each of `lows`, below each of `highs`."""

    outer: Lattice
    inner: Lattice
    range: Range
    solution: Solution
    lows: tuple[Node, ...]
    highs: tuple[Node, ...]

    def reach(self, extent: Node) -> tuple[list[Node], list[Node]] | None:
        """The ends of its positions over a block, before they are cut to the axis: it begins at the greatest of the
        first and ends before the least of the others. None where they are not known."""
        count = self.inner.up(extent)
        below: list[Node] = []
        above: list[Node] = []
        for x in self.solution.lows:
            found = extremes(End(uncut(x.value, "maximum", ZERO)), ZERO, self.outer.number, -1)
            if found is None:
                return None
            below.append(self.inner.position(found[0]))
        for x in self.solution.highs:
            found = extremes(End(uncut(x.value, "minimum", count)), count, self.outer.number, 1)
            if found is None:
                return None
            above.append(add(self.inner.position(add(found[1], const(-1))), ONE))
        numbers: dict[Node, Node] = {
            first(self.outer.number): self.outer.up(first(self.outer.axis)),
            last(self.outer.number): self.outer.down(add(first(self.outer.axis), MORE)),
        }
        return replace(below, numbers), replace(above, numbers)

    @property
    def holds_first(self) -> bool:
        """Whether the first position of the outer axis may always attend that of the inner one."""
        if any(x.rest or x.shift is not ZERO for x in (self.outer, self.inner)) or self.lows:
            return False
        at_first: dict[Node, Node] = {axis(self.outer.number): ZERO}
        lows = replace([x.node(ZERO) for x in self.solution.lows], at_first)
        highs = replace([*self.highs, *(x.node(ONE) for x in self.solution.highs)], at_first)
        return all(map(at_most_zero, lows)) and all(at_most_zero(sub(ONE, x)) for x in highs)


@dataclass(frozen=True, slots=True)
class Classes:
    """What a mask leaves on all classes, and a condition on neither axis without which that is nothing."""

    parts: tuple[Part, ...]
    gate: Node

    def hull(self, block: tuple[Node, Node], window: tuple[Node, Node], names: Names) -> tuple[Node, Node]:
        """From the first allowed position to after the last.

        Args:
            block: the first and the last position of a block of the outer axis.
            window: the inner positions that there are, without the second.
            names: are given what is computed on the way.
        """
        lows: list[Node] = []
        highs: list[Node] = []
        for p in self.parts:
            from_ = names.let("number_first", ends("maximum", [p.outer.up(block[0]), *p.lows]))
            to = ends("minimum", [p.outer.down(block[1]), *(add(x, const(-1)) for x in p.highs)])
            to = names.let("number_last", to)
            numbers: dict[Node, Node] = {first(p.outer.number): from_, last(p.outer.number): to}
            low, high = replace([p.range.low, p.range.high], numbers)
            low = names.let("number_low", _cut("maximum", low, p.inner.up(window[0])))
            high = names.let("number_high", _cut("minimum", high, p.inner.up(window[1])))
            there = call("and", call("le", from_, to), call("lt", low, high), self.gate)
            begin, end = p.inner.position(low), add(p.inner.position(add(high, const(-1))), ONE)
            lows.append(call("where", there, begin, window[1]))
            highs.append(call("where", there, end, window[0]))
        return ends("minimum", lows), ends("maximum", highs)

    @property
    def from_the_start(self) -> bool:
        """Whether a block that holds the first position of the outer axis leaves a range from the first position of the
        inner axis on, if it leaves anything."""
        return any(p.holds_first for p in self.parts)


def _cut(fn: str, end: Node, limit: Node) -> Node:
    """An end cut to a limit, unless it is already."""
    known = isinstance(end, Call) and end.fn == fn and limit in end.args
    return end if known else call(fn, end, limit)


def classes(conditions: Sequence[Node], outer: str, inner: str, extent: Node, top: int | None = None) -> Classes | None:
    """What conditions leave class by class; None where they ask for no congruence, or where what is left is not known.

    Args:
        conditions: all of which must hold.
        outer, inner: the axes.
        extent: of the inner axis.
        top: the greatest position of both axes, where that is a number.
    """
    gates = [c for c in conditions if not c.axes & {outer, inner}]
    conditions = divided(c for c in conditions if c not in gates)
    parts: list[Part] = []
    for a, b in lattices(conditions, outer, inner):
        moved: dict[Node, Node] = {axis(x.axis): x.position(axis(x.number)) for x in (a, b)}
        known: dict[Node, int] = {
            axis(x.number): (top - x.rest) // x.step for x in (a, b) if top is not None and x.shift is ZERO
        }
        found = _on_class(divided(replace(conditions, moved)), a, b, extent, known)
        if found is None:
            return None
        parts += found
    tops: dict[Node, int] = {} if top is None else {first(outer): top}
    if not parts or not _in_one_window(parts) or not _meet(parts, extent, tops):
        return None
    return Classes(tuple(parts), call("and", *gates))


def _on_class(
    conditions: Sequence[Node], a: Lattice, b: Lattice, extent: Node, known: Mapping[Node, int]
) -> list[Part] | None:
    """What is left on one class, alternative by alternative; `known` are the greatest numbers."""
    conditions = plain(plain(conditions, (a.number, b.number), known), (), known)
    count = b.up(extent)
    size = known[axis(a.number)] + 1 if axis(a.number) in known else None
    whole = inner_range([c for c in conditions if b.number in c.axes], a.number, b.number, count, size)
    choices = [tuple(conditions)] if whole.exact else alternatives(conditions, MOST)
    if choices is None:
        return None
    parts = []
    for choice in choices:
        alone = [c for c in choice if b.number not in c.axes]
        limits = solved(alone, a.number, add(last(a.number), ONE))
        rest = [c for c in choice if c not in alone]
        part = inner_range(rest, a.number, b.number, count, size)
        if not part.exact or not limits.exact or not all(x.plain for x in (*limits.lows, *limits.highs)):
            return None
        lows, highs = (tuple(x.value for x in side) for side in (limits.lows, limits.highs))
        parts.append(Part(a, b, part, solved(rest, b.number, count), lows, highs))
    return parts


def _in_one_window(parts: Sequence[Part]) -> bool:
    """Whether all parts speak of the outer positions of one window: what the first and what the last of it restrict
    one part to, they do all."""
    for sides, fn in (([p.lows for p in parts], "maximum"), ([p.highs for p in parts], "minimum")):
        if not any(sides):
            continue
        if not all(sides):
            return False
        numbers = [ends(fn, side) for side in sides]
        at = [p.outer.position(x) for p, x in zip(parts, numbers, strict=True)]
        before = [p.outer.position(add(x, const(-1))) for p, x in zip(parts, numbers, strict=True)]
        if not all_at_most([add(x, ONE) for x in before], at):
            return False
    return True


def _meet(parts: Sequence[Part], extent: Node, tops: Mapping[Node, int]) -> bool:
    """Whether no two parts that are there leave a gap between them that holds a block, however short blocks are.

    Cut to a window they leave none either, since neighbouring positions of all parts together stay as near.
    """
    reaches = [p.reach(extent) for p in parts]
    slack = const(1 - SHORTEST)
    for k, one in enumerate(reaches):
        for n, other in enumerate(reaches):
            if one is None or other is None:
                return False
            if k != n and not all_at_most([add(x, slack) for x in one[0]], other[1], tops=tops):
                return False
    return True
