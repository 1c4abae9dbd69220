"""Masks on a grid: what a block of the outer axis leaves of each row of the inner one.

Positions are numbered row after row, so ``j // columns`` is a row and ``j % columns`` a place in it. With both rows
held fixed, whatever a mask asks of rows is known before any place, and what it asks of places leaves one range. A block
of the outer axis holds the end of one row, whole rows, and the beginning of another: taken from the last to the first,
the ranges that they leave of one inner row come in order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from attnc.ir.construct import add, axis, call, coefficient, const, mul, neg, sub, terms_of, var
from attnc.ir.node import Call, Const, Node
from attnc.ir.walk import postorder, replace, rewrite
from attnc.passes.bounds import ZERO, Range, Solution, ends, first, inner_range, last, solved
from attnc.passes.conditions import plain
from attnc.passes.inequality import all_at_most, at_most_zero
from attnc.passes.progression import alternatives
from attnc.passes.residues import Classes, classes
from attnc.passes.series import ONE, Names, with_room

LONG = 64
"""Places of a row, from which on a step for every row is no more than one for every block."""
ITEM = var("item", (), "i")
"""The number of a range among all."""
MOST = 4
"""Alternatives a mask may have inside a row."""


@dataclass(frozen=True, slots=True)
class Line:
    """One axis on a grid: position plus `shift` is ``columns * row + place``."""

    axis: str
    shift: Node
    columns: int
    row: str
    place: str

    @property
    def number(self) -> Node:
        return add(axis(self.axis), self.shift)

    @property
    def whole(self) -> Node:
        """The number of a position by its row and its place."""
        return add(mul(const(self.columns), axis(self.row)), axis(self.place))

    def rewritten(self, conditions: Iterable[Node]) -> list[Node]:
        """Conditions on rows and places in place of positions."""
        found = rewrite(list(conditions), lambda n: self._part(n) if isinstance(n, Call) else None)
        found = rewrite(found, lambda n: self._of_place(n) if isinstance(n, Call) else None)
        return replace(found, {axis(self.axis): sub(self.whole, self.shift)})

    def _part(self, node: Call) -> Node | None:
        match node:
            case Call(fn="floordiv" | "mod", args=(x, Const(kind="i") as by)) if by.value > 0:
                n, c = int(by.value), self.columns
            case _:
                return None
        division = node.fn == "floordiv"
        row, at = axis(self.row), axis(self.place)
        if x is not self.number:
            return None
        if n % c == 0:
            rows = const(n // c)
            if division:
                return row if n == c else call("floordiv", row, rows)
            return at if n == c else add(mul(const(c), call("mod", row, rows)), at)
        if c % n == 0 and n > 1:
            if division:
                return add(mul(const(c // n), row), call("floordiv", at, const(n)))
            return call("mod", at, const(n))
        return None

    def _of_place(self, node: Call) -> Node | None:
        """What a division of a place itself leaves, where that is plain."""
        match node:
            case Call(fn="floordiv" | "mod", args=(x, Const(kind="i") as by)) if x is axis(self.place):
                quotient = node.fn == "floordiv"
                if by.value == 1:
                    return x if quotient else ZERO
                return None if by.value < self.columns else ZERO if quotient else x
            case _:
                return None


def lines(conditions: Sequence[Node], outer: str, inner: str) -> list[tuple[Line, Line]]:
    """Grids that conditions speak of, those with the shortest rows first."""
    seen: dict[str, dict[int, Node]] = {outer: {}, inner: {}}
    for n in postorder(conditions):
        match n:
            case Call(fn="floordiv" | "mod", args=(x, Const(kind="i") as by)) if by.value > 1 and len(x.axes) == 1:
                (name,) = x.axes
                if name in seen:
                    shift = sub(x, axis(name))
                    if not shift.axes:
                        seen[name].setdefault(int(by.value), shift)
            case _:
                pass
    found = []
    for columns in sorted(seen[outer].keys() & seen[inner].keys()):
        a, b = (Line(name, seen[name][columns], columns, f"{name}_row", f"{name}_place") for name in (outer, inner))
        found.append((a, b))
    return found


@dataclass(frozen=True, slots=True)
class RowRanges:
    """Ranges of inner positions, one for each outer row of the block and each inner row, numbered by `ITEM`; `full` is
    the part of it that is all allowed."""

    count: Node
    low: Node
    high: Node
    full: tuple[Node, Node] | None


def row_ranges(
    conditions: Sequence[Node], outer: str, inner: str, extent: Node, names: Names, inside: Names
) -> RowRanges | None:
    """The ranges of a mask on a grid, in order; None where they are not known."""
    for a, b in lines(conditions, outer, inner):
        rewritten = b.rewritten(a.rewritten(conditions))
        rows = _rows(rewritten, a, b, extent, names)
        fixed: dict[Node, Node] = {axis(a.row): var("outer_row", (), "i"), axis(b.row): var("inner_row", (), "i")}
        if rows is None:
            continue
        fixed_rows = replace(rewritten, fixed)
        found = in_row(fixed_rows, a, b) or _by_class(fixed_rows, a, b)
        if found is None:
            continue
        return _numbered(found, rows, a, b, extent, names, inside)
    return None


def _rows(
    conditions: Sequence[Node], a: Line, b: Line, extent: Node, names: Names
) -> tuple[Node, Node, Node, Node] | None:
    """The first and the last outer row of a block, the first inner row and the number of them; None where the mask
    does not bound them and there may be many more than blocks."""
    columns = const(a.columns)
    from_, to = (
        names.let(f"outer_{x}", call("floordiv", add(y, a.shift), columns))
        for x, y in (("first", first(a.axis)), ("last", last(a.axis)))
    )
    about_rows = [c for c in conditions if not c.axes & {a.place, b.place}]
    every = add(call("floordiv", add(extent, b.shift, const(-1)), columns), ONE)
    found = inner_range(about_rows, a.row, b.row, every)
    low, high = replace([found.low, found.high], {first(a.row): from_, last(a.row): to})
    start = call("floordiv", b.shift, columns)
    if not all({from_, to} & set(postorder([x])) for x in (low, high)):
        by_class = classes(about_rows, a.row, b.row, every)
        if by_class is not None:
            low, high = by_class.hull((from_, to), (start, every), names)
        elif b.columns < LONG:
            return None
    low = names.let("rows_from", call("maximum", low, start))
    count = names.let("rows", call("maximum", sub(high, low), ZERO))
    return from_, to, low, count


def in_row(conditions: Sequence[Node], a: Line, b: Line, *, both_ends: bool = False) -> Range | None:
    """The range of places, given the places of the outer row; it begins with the row where those do, and with
    `both_ends` it ends with it too."""
    top = a.columns - 1
    conditions = plain(conditions, (), {axis(a.place): top, axis(b.place): top})
    conditions = rewrite(conditions, lambda n: _of_rows(n, (a, b)) if isinstance(n, Call) else None)
    whole = inner_range(conditions, a.place, b.place, const(b.columns), a.columns)
    choices = [tuple(conditions)] if whole.exact else alternatives(conditions, MOST)
    if choices is None:
        return None
    parts = []
    for choice in choices:
        part = inner_range(choice, a.place, b.place, const(b.columns), a.columns)
        solution = solved(choice, b.place, const(b.columns))
        if not part.exact or not _from_the_start(solution, a) or (both_ends and not _to_the_end(solution, a)):
            return None
        parts.append(with_room(part, a.place))
    if len(parts) == 1:
        return parts[0]
    low, high = ([getattr(p, x) for p in parts] for x in ("low", "high"))
    if not _meet(low, high, a):
        return None
    lows = [call("where", call("lt", x, y), x, const(b.columns)) for x, y in zip(low, high, strict=True)]
    highs = [call("where", call("lt", x, y), y, ZERO) for x, y in zip(low, high, strict=True)]
    full_low, full_high = _longest(parts) if any(p.full_low is not None for p in parts) else (None, None)
    return Range(ends("minimum", lows), ends("maximum", highs), full_low, full_high, exact=True)


def _by_class(conditions: Sequence[Node], a: Line, b: Line) -> Classes | None:
    """As `_in_row`, where places are to be congruent."""
    conditions = rewrite(conditions, lambda n: _of_rows(n, (a, b)) if isinstance(n, Call) else None)
    found = classes(conditions, a.place, b.place, const(b.columns), a.columns - 1)
    return found if found is not None and found.from_the_start else None


def _longest(parts: Sequence[Range]) -> tuple[Node, Node]:
    """The longest full part of several ranges."""
    low: Node = ZERO
    high: Node = ZERO
    for p in parts:
        if p.full_low is not None and p.full_high is not None:
            longer = call("lt", sub(high, low), sub(p.full_high, p.full_low))
            low, high = call("where", longer, p.full_low, low), call("where", longer, p.full_high, high)
    return low, high


def _meet(lows: Sequence[Node], highs: Sequence[Node], a: Line) -> bool:
    """Whether each of some ranges begins before any other ends, if both are there at all."""
    highs = rewrite(list(highs), lambda n: n.args[1] if isinstance(n, Call) and _is_gated(n) else None)
    highs = replace(highs, {last(a.place): add(first(a.place), var("more", (), "i"))})
    tops: dict[Node, int] = {first(a.place): a.columns - 1}
    return all(all_at_most([x], [y for n, y in enumerate(highs) if n != k], tops=tops) for k, x in enumerate(lows))


def _is_gated(node: Call) -> bool:
    return node.fn == "where" and node.args[2] is ZERO


def _of_rows(condition: Call, grid: tuple[Line, Line]) -> Node | None:
    """``columns * rows + place < columns * n`` as ``rows < n``, and so from below."""
    if condition.fn not in ("le", "lt") or any(x.kind != "i" for x in condition.args):
        return None
    a, b = condition.args
    value = add(a, neg(b), const(1 if condition.fn == "lt" else 0))
    for line in grid:
        c, at = line.columns, axis(line.place)
        for sign in (1, -1):
            rest = add(value, neg(mul(const(sign), at)))
            if line.place in rest.axes:
                continue
            rows = _divided(add(rest, const(-1)) if sign > 0 else rest, c)
            if rows is not None:
                return call("le", add(rows, const(1)) if sign > 0 else rows, ZERO)
    return None


def _divided(node: Node, by: int) -> Node | None:
    """A sum of multiples of a number divided by it; None for others."""
    found = []
    for t in terms_of(node):
        k, factors = coefficient(t)
        if not isinstance(k, int) or k % by:
            return None
        found.append(mul(const(k // by), *factors))
    return add(*found)


def _from_the_start(solution: Solution, a: Line) -> bool:
    """Whether what the first place of an outer row leaves begins where the inner row does, if it leaves anything: since
    ranges begin at 0 at the least, no other order of outer rows matters.

    Of a range that is there, ``low + 1 <= high``; so ``low + high <= 1`` is enough.
    """
    lows, highs = (replace([x.value for x in part], {axis(a.place): ZERO}) for part in (solution.lows, solution.highs))
    return all(at_most_zero(x) or any(at_most_zero(add(x, y, const(-1))) for y in highs) for x in lows)


def _to_the_end(solution: Solution, a: Line) -> bool:
    """As `_from_the_start`, for the last place of an outer row and the end of an inner one. A range that ends at 0 is
    none."""
    at_end: dict[Node, Node] = {axis(a.place): const(a.columns - 1)}
    lows, highs = (replace([x.value for x in part], at_end) for part in (solution.lows, solution.highs))
    columns, both = const(a.columns), const(2 * a.columns - 1)
    return all(
        at_most_zero(x) or at_most_zero(sub(columns, x)) or any(at_most_zero(sub(both, add(x, y))) for y in lows)
        for x in highs
    )


def _numbered(
    found: Range | Classes,
    rows: tuple[Node, Node, Node, Node],
    a: Line,
    b: Line,
    extent: Node,
    names: Names,
    inside: Names,
) -> RowRanges:
    """Inner rows one after another, for each the outer rows of the block from the last to the first."""
    from_, to, rows_from, count = rows
    each = names.let("outer_rows", add(sub(to, from_), ONE))
    number = inside.let("rows_done", call("floordiv", ITEM, each))
    t = inside.variable("inner_row", add(rows_from, number))
    s = inside.variable("outer_row", add(sub(to, ITEM), mul(each, number)))
    columns = const(a.columns)
    start = call("where", call("eq", s, from_), call("mod", add(first(a.axis), a.shift), columns), ZERO)
    stop = call("where", call("eq", s, to), call("mod", add(last(a.axis), a.shift), columns), const(a.columns - 1))
    start, stop = inside.let("place_first", start), inside.let("place_last", stop)
    places: dict[Node, Node] = {first(a.place): start, last(a.place): stop}
    base = inside.let("row_start", sub(mul(columns, t), b.shift))
    if isinstance(found, Classes):
        window = call("maximum", neg(base), ZERO), call("minimum", sub(extent, base), columns)
        low, high = found.hull((start, stop), window, inside)
        # Ranges of one inner row come in order if those that begin with it begin there in so many words.
        found = Range(call("where", call("eq", start, ZERO), window[0], low), high, None, None, exact=True)
    low_place, high_place = (inside.let("place", x) for x in replace([found.low, found.high], places))
    empty = call("le", high_place, low_place)
    high = call("where", empty, ZERO, call("minimum", add(base, high_place), extent))
    full: tuple[Node, Node] | None = None
    if found.full_low is not None and found.full_high is not None:
        low_full, high_full = replace([found.full_low, found.full_high], places)
        alone = call("eq", each, ONE)  # what several outer rows all allow is not known one by one
        full = (
            inside.let("full_low", call("maximum", add(base, low_full), ZERO)),
            inside.let("full_high", call("where", alone, call("minimum", add(base, high_full), extent), ZERO)),
        )
    low = inside.let("low", call("maximum", add(base, low_place), ZERO))
    return RowRanges(mul(count, each), low, inside.let("high", high), full)
