"""Masks on grids within grids: neighbourhoods that are dilated or whose borders meet, along any axis.

What a mask leaves of a block is told part by part. A *band* is one range. Where it is none, positions are numbered row
after row, and where a mask asks one thing of rows and another of places, each is a mask of its own and may be on a grid
again: positions of the same remainder are those in one place of rows that are as long as the step. Parts are
alternatives; they may overlap, in any order. `attnc.passes.following` finds the next of them from a position on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from attnc.ir.construct import FALSE, add, axis, call, coefficient, const, neg, terms_of
from attnc.ir.node import Call, Const, Node
from attnc.ir.walk import postorder
from attnc.passes.bounds import ZERO, Range, inner_range, shortened
from attnc.passes.cases import MOST, Tops, cases, separated, settled
from attnc.passes.congruence import divided
from attnc.passes.inequality import at_most_zero
from attnc.passes.progression import alternatives
from attnc.passes.rows import Line, lines
from attnc.passes.series import ONE

DEEPEST = 4
"""Grids within grids."""
MOST_SEARCHES = 100
"""Bands that one search may look at: each takes some five integer operations of a turn."""
NO_TOPS: Tops = {}


@dataclass(frozen=True, slots=True)
class Band:
    """One range of inner positions for a block of the outer axis; each of them is allowed to some outer one."""

    outer: str
    range: Range


@dataclass(frozen=True, slots=True)
class Grid:
    """Rows that may attend each other by their numbers, and in each of them places that may by theirs."""

    outer: Line
    inner: Line
    rows: Parts
    places: Parts


Part = Band | Grid
Parts = tuple[Part, ...]


def nested(
    conditions: Sequence[Node], outer: str, inner: str, extent: Node, tops: Tops = NO_TOPS, left: int = DEEPEST
) -> Parts | None:
    """What conditions leave, part by part; None where that is not known.

    Args:
        conditions: all of which must hold.
        outer, inner: the axes.
        extent: of the inner axis.
        tops: the greatest positions of axes, where these are numbers.
        left: how many grids may lie within.
    """
    conditions = settled(conditions, tops)
    if FALSE in conditions:
        return ()
    top = tops.get(axis(outer))
    length = None if top is None else top + 1
    found_range = inner_range(conditions, outer, inner, extent, length)
    one = found_range if found_range.exact else shortened(conditions, outer, inner, extent, length)
    if one is not None:
        return (Band(outer, one),)
    for a, b in _grids(conditions, outer, inner) if left > 0 else ():
        if top is not None and top < a.columns and a.shift is ZERO:
            continue  # one row
        found = _on_grid(conditions, a, b, extent, tops, left)
        if found is not None:
            return found
    choices: Sequence[Sequence[Node]] | None = alternatives(conditions, MOST)
    if choices is None or len(choices) == 1:
        choices = cases(conditions, conditions, tops)
    if choices is None:
        return None
    parts: list[Part] = []
    for choice in choices:
        inside = nested(choice, outer, inner, extent, tops, left)
        if inside is None:
            return None
        parts += inside
    return tuple(dict.fromkeys(parts)) if len(parts) <= MOST else None


def _on_grid(conditions: Sequence[Node], a: Line, b: Line, extent: Node, tops: Tops, left: int) -> Parts | None:
    """What is left on one grid."""
    places: dict[Node, int] = {axis(x.place): x.columns - 1 for x in (a, b)}
    rows = {axis(x.row): _row_of(tops[axis(x.axis)], x) for x in (a, b) if axis(x.axis) in tops}
    known = places | {x: n for x, n in rows.items() if n is not None}
    choices = separated(settled(divided(b.rewritten(a.rewritten(conditions))), known), a, b, known)
    if choices is None:
        return None
    every = add(call("floordiv", add(extent, b.shift, const(-1)), const(b.columns)), ONE)
    parts: list[Part] = []
    for of_rows, of_places in choices:
        inside = nested(of_places, a.place, b.place, const(b.columns), places, left - 1)
        around = None if inside is None else nested(of_rows, a.row, b.row, every, known, left - 1)
        if inside is None or around is None:
            return None
        if inside and around:
            parts.append(Grid(a, b, around, inside))
    return tuple(parts)


def _row_of(top: int, line: Line) -> int | None:
    return (top + int(line.shift.value)) // line.columns if isinstance(line.shift, Const) else None


def _grids(conditions: Sequence[Node], outer: str, inner: str) -> Iterator[tuple[Line, Line]]:
    """Grids that conditions speak of, where no number is negative."""
    seen: dict[tuple[int, Node, Node], None] = {
        (a.columns, a.shift, b.shift): None for a, b in lines(conditions, outer, inner)
    }
    for n in postorder(conditions):
        match n:
            case Call(fn="floordiv" | "mod", args=(x, Const(kind="i") as by)) if by.value > 1:
                shifts = _shifts(x, outer, inner)
                if shifts is not None:
                    seen[int(by.value), *shifts] = None
            case _:
                pass
    for columns, *shift in seen:
        if all(at_most_zero(neg(x)) for x in shift):
            a, b = (
                Line(name, x, columns, f"{name}_row", f"{name}_place")
                for name, x in zip((outer, inner), shift, strict=True)
            )
            yield a, b


def _shifts(value: Node, outer: str, inner: str) -> tuple[Node, Node] | None:
    """What goes with each position in a difference of positions, without numbers."""
    sides: dict[int, Node] = {1: ZERO, -1: ZERO}
    at: Mapping[Node, str] = {axis(outer): outer, axis(inner): inner}
    signs: dict[str, int] = {}
    for t in terms_of(value):
        k, factors = coefficient(t)
        if not factors:
            continue
        if k not in (1, -1) or len(factors) != 1:
            return None
        if factors[0] in at:
            signs[at[factors[0]]] = int(k)
        else:
            sides[int(k)] = add(sides[int(k)], factors[0])
    if len(signs) != 2 or signs[outer] == signs[inner] or any(x.axes for x in sides.values()):
        return None
    return sides[signs[outer]], sides[signs[inner]]


def searches(parts: Parts, *, single: bool = False) -> int:
    """How many bands a search looks at, for one position of the outer axis or for a block of them: the end of a row,
    whole rows and the beginning of another are looked at one by one."""
    total = 0
    for p in parts:
        if isinstance(p, Band):
            total += 1
        elif single:
            total += searches(p.rows, single=True) + searches(p.places, single=True)
        else:
            total += 2 * searches(p.rows, single=True) + searches(p.rows) + 3 * searches(p.places)
    return total
