"""Code that finds the next positions of a nested mask: from a position on, where allowed ones begin, and how far from
there every block holds some.

Of several parts it is the one that begins first. On a grid, a block of the outer axis is the end of one row, whole rows
and the beginning of another, and in each of these three any row goes with any place. So the next position lies in the
row where the search starts, if that is allowed and has places left, or at the first place of the next row that is. No
order of parts and rows has to be known, and whatever parts have in common is visited once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from attnc.ir.construct import FALSE, TRUE, add, call, const, mul, sub
from attnc.ir.node import Node, Var
from attnc.ir.walk import postorder, replace
from attnc.passes.bounds import ZERO, ends, first, last
from attnc.passes.nested import Band, Grid, Part, Parts
from attnc.passes.series import ONE, Names


@dataclass(frozen=True, slots=True)
class Block:
    """From the first to the last position of an axis."""

    first: Node
    last: Node


@dataclass(frozen=True, slots=True)
class Stretch:
    """Positions that begin where one is allowed. Where `begin` is the end of the axis there are none."""

    begin: Node
    end: Node


@dataclass(frozen=True, slots=True)
class Group:
    """Rows and places of a block that all go together, where a condition holds."""

    rows: Block
    places: Block
    there: Node


@dataclass(slots=True)
class Follower:
    """Writes the search from `start` on.

    Attributes:
        start: where the search of a turn begins.
        names, inside: integers that are computed once, and those that are in every turn.
    """

    start: Var
    names: Names
    inside: Names
    _made: dict[Node, Node] = field(default_factory=dict)
    _moving: set[Node] = field(default_factory=set)
    _uses: Counter[str] = field(default_factory=Counter)

    def let(self, name: str, value: Node) -> Node:
        """A value under a name, computed once where it does not move with the search."""
        if value not in self._made:
            moves = any(n is self.start or n in self._moving for n in postorder([value]))
            made = self._named(f"next_{name}" if moves else name, value, self.inside if moves else self.names)
            self._made[value] = made
            if moves:
                self._moving.add(made)
        return self._made[value]

    def _named(self, name: str, value: Node, home: Names) -> Node:
        """A value under a name that no other has, unless it is as short as a name."""
        if not value.children:
            return value
        self._uses[name] += 1
        return home.variable(f"{name}_{self._uses[name]}", value)

    # ---------------------------------------------------------------------------------------------- the next positions

    def following(self, parts: Parts, block: Block, start: Node, limit: Node, length: Node | None = None) -> Stretch:
        """The first stretch with a position from `start` on that a block may attend.

        Args:
            parts: the mask.
            block: positions of the outer axis.
            start: of the search.
            limit: the extent of the inner axis.
            length: of its blocks; without it every position of a stretch is allowed.
        """
        best = Stretch(limit, limit)
        for k, part in enumerate(parts):
            found = (
                self._in_band(part, block, start, limit)
                if isinstance(part, Band)
                else self._on_grid(part, block, start, limit, length)
            )
            best = self._sooner(best, found) if k else found
        return best

    def _sooner(self, one: Stretch, other: Stretch) -> Stretch:
        sooner = call("lt", other.begin, one.begin)
        begin = self.let("begin", call("where", sooner, other.begin, one.begin))
        return Stretch(begin, self.let("end", call("where", sooner, other.end, one.end)))

    def _ends(self, band: Band, block: Block) -> tuple[Node, Node]:
        at: dict[Node, Node] = {first(band.outer): block.first, last(band.outer): block.last}
        low, high = replace([band.range.low, band.range.high], at)
        return self.let("low", low), self.let("high", high)

    def _in_band(self, band: Band, block: Block, start: Node, limit: Node) -> Stretch:
        low, high = self._ends(band, block)
        low = self.let("begin", call("where", call("lt", low, high), low, limit))
        if start is ZERO:
            return Stretch(low, high)
        begin = self.let("begin", call("maximum", low, start))
        return Stretch(self.let("begin", call("where", call("lt", begin, high), begin, limit)), high)

    def _on_grid(self, grid: Grid, block: Block, start: Node, limit: Node, length: Node | None) -> Stretch:
        columns, shift = const(grid.inner.columns), grid.inner.shift
        row = self.let("row", call("floordiv", add(start, shift), columns))
        place = self.let("place", call("mod", add(start, shift), columns))
        best: Stretch | None = None
        for group in self._groups(grid, block):
            found = self._in_group(grid, group, row, place, limit, length)
            best = found if best is None else self._sooner(best, found)
        return Stretch(limit, limit) if best is None else best

    def _in_group(self, grid: Grid, group: Group, row: Node, place: Node, limit: Node, length: Node | None) -> Stretch:
        columns, shift = const(grid.inner.columns), grid.inner.shift
        rows = add(call("floordiv", add(limit, shift, const(-1)), columns), ONE)
        first_ = self.following(grid.places, group.places, ZERO, columns)
        there = self.let("begin", call("where", group.there, first_.begin, columns))
        first_ = Stretch(there, first_.end)
        here = self.following(grid.places, group.places, place, columns)
        left = call("lt", here.begin, columns)
        from_ = self.let("row", call("where", left, row, add(row, ONE)))
        found = self.following(grid.rows, group.rows, from_, rows)
        same = call("eq", found.begin, row)
        begin = self.let("place", call("where", same, here.begin, first_.begin))
        end = self.let("place_end", call("where", same, here.end, first_.end))
        base = self.let("row_start", sub(mul(columns, found.begin), shift))
        some = call("and", call("lt", found.begin, rows), call("lt", there, columns))
        at = call("where", some, call("minimum", add(base, begin), limit), limit)
        stop = add(base, end)
        if length is not None:
            # Rows that follow are part of it where what lies between their places is shorter than a block.
            gap = sub(add(columns, first_.begin), call("minimum", end, first_.end))
            fit = call("floordiv", sub(add(limit, shift), first_.end), columns)
            last_ = call("minimum", add(found.end, const(-1)), fit)
            several = sub(add(mul(columns, last_), first_.end), shift)
            stop = call("maximum", stop, call("where", call("lt", gap, length), several, ZERO))
        return Stretch(self.let("begin", at), self.let("end", call("minimum", stop, limit)))

    def _groups(self, grid: Grid, block: Block) -> list[Group]:
        """The first row of a block, the last one, and those between."""
        columns, top = const(grid.outer.columns), const(grid.outer.columns - 1)
        firsts, lasts = (
            (
                self.let("outer_row", call("floordiv", add(x, grid.outer.shift), columns)),
                self.let("outer_place", call("mod", add(x, grid.outer.shift), columns)),
            )
            for x in (block.first, block.last)
        )
        (from_, start), (to, stop) = firsts, lasts
        if block.first is block.last:
            return [Group(Block(from_, from_), Block(start, start), TRUE)]
        one = call("eq", from_, to)
        head_end = self.let("place_last", call("where", one, stop, top))
        between = Block(self.let("row", add(from_, ONE)), self.let("row", add(to, const(-1))))
        groups = [
            Group(Block(from_, from_), Block(start, head_end), TRUE),
            Group(Block(to, to), Block(ZERO, stop), call("lt", from_, to)),
            Group(between, Block(ZERO, top), call("le", between.first, between.last)),
        ]
        return [g for g in groups if g.there is not FALSE]

    # ------------------------------------------------------------------------------------------------------- how many

    def until(self, parts: Parts, block: Block) -> Node:
        """The end of the last allowed position, or a number after it; 0 where there is none."""
        return ends("maximum", [ZERO, *(self._until(p, block) for p in parts)])

    def _until(self, part: Part, block: Block) -> Node:
        if isinstance(part, Band):
            low, high = self._ends(part, block)
            return self.let("until", call("where", call("lt", low, high), high, ZERO))
        found: list[Node] = [ZERO]
        for group in self._groups(part, block):
            rows, places = self.until(part.rows, group.rows), self.until(part.places, group.places)
            rows, places = self.let("until", rows), self.let("until", places)
            there = call("and", call("lt", ZERO, rows), call("lt", ZERO, places), group.there)
            at = sub(add(mul(const(part.inner.columns), add(rows, const(-1))), places), part.inner.shift)
            found.append(self.let("until", call("where", there, at, ZERO)))
        return ends("maximum", found)

    def positions(self, parts: Parts, block: Block) -> Node:
        """How many positions are allowed; those in several parts count several times."""
        return self._count(parts, block, ranges=False)

    def ranges(self, parts: Parts, block: Block) -> Node:
        """How many ranges there are, of each row and part."""
        return self._count(parts, block, ranges=True)

    def _count(self, parts: Sequence[Part], block: Block, *, ranges: bool) -> Node:
        found: list[Node] = []
        for part in parts:
            if isinstance(part, Band):
                low, high = self._ends(part, block)
                some = call("lt", low, high)
                found.append(call("where", some, ONE if ranges else sub(high, low), ZERO))
                continue
            for group in self._groups(part, block):
                rows = self.let("rows", self.positions(part.rows, group.rows))
                each = self.let("each", self._count(part.places, group.places, ranges=ranges))
                found.append(call("where", group.there, mul(rows, each), ZERO))
        return self.let("count", add(ZERO, *found))
