"""Lists of blocks in closed form, for masks that leave several ranges to a block of the outer axis.

A mask is taken apart into alternatives. Each leaves one range, or ranges that follow a progression
(`attnc.passes.series`); a kernel loops over all of them in order of their first position and begins each no earlier
than where the last one ended, so that no block is visited twice. A range with full blocks takes two turns of the loop,
since these have partly allowed blocks before and after them. What is left of a mask on grids within grids is found by a
search for the next range (`attnc.passes.following`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from attnc.ir.construct import FALSE, add, axis, call, const, mul, neg, size, sub
from attnc.ir.node import Node, Var
from attnc.ir.notes import tracking
from attnc.ir.walk import replace
from attnc.passes.bounds import ZERO, Range, first, inner_range, last, shortened
from attnc.passes.conditions import plain
from attnc.passes.distance_list import listed
from attnc.passes.distances import distances
from attnc.passes.following import Block, Follower
from attnc.passes.inequality import at_most_zero
from attnc.passes.nested import MOST_SEARCHES, nested, searches
from attnc.passes.progression import Multiples, Progression, alternatives, membership
from attnc.passes.residues import classes
from attnc.passes.rows import ITEM, row_ranges
from attnc.passes.series import ONE, Names, Series, on_lattice, series, with_room
from attnc.passes.whole import in_integers

MOST = 6
"""Alternatives that a mask is taken apart into."""
TURN = axis("turn")
"""The counter of the loop over a list."""

Named = tuple[tuple[Var, Node], ...]


@dataclass(frozen=True, slots=True)
class BlockList:
    """Ranges of inner positions for one block of the outer axis, in whole blocks and in order.

    Attributes:
        before: integers to be computed before the loop over `TURN`, in this order.
        count: turns of the loop.
        each: integers to be computed in every turn, in this order; some overwrite those of `before`.
        low, turn, high: blocks from the first to the second are partly allowed, those from there to the third are all
            allowed, as in a run of a table.
    """

    before: Named
    count: Node
    each: Named
    low: Node
    turn: Node
    high: Node


def closed_form(conditions: Iterable[Node], outer: str, inner: str, extent: Node) -> Range | BlockList | None:
    """What the conditions leave, where exactly the blocks that hold an allowed pair are known in closed form."""
    return _closed_form(tuple(conditions), outer, inner, extent)


@lru_cache(maxsize=64)
def _closed_form(conditions: tuple[Node, ...], outer: str, inner: str, extent: Node) -> Range | BlockList | None:
    # Names that a program gives to its nodes must not depend on what was asked for before.
    with tracking({}):
        return _found(in_integers(conditions), outer, inner, extent)


def _found(conditions: Sequence[Node], outer: str, inner: str, extent: Node) -> Range | BlockList | None:
    found = plain(conditions, (outer,), {})
    whole = shortened(found, outer, inner, extent)
    if whole is not None:
        return _inlined(whole, Names())
    parted = _in_parts(found, outer, inner, extent, _part) or _on_grid(conditions, outer, inner, extent)
    parted = parted or _in_parts(conditions, outer, inner, extent, _by_class)
    parted = parted or _by_distance(conditions, outer, inner, extent)
    return parted or _by_search(tuple(conditions), outer, inner, extent)


def _on_grid(conditions: Sequence[Node], outer: str, inner: str, extent: Node) -> BlockList | None:
    """What a mask on a grid leaves, row after row."""
    lister = _Lister(Names(), inner, extent)
    inside = Names(around=lister.names)
    found = row_ranges(conditions, outer, inner, extent, lister.names, inside)
    if found is None:
        return None
    return lister.in_blocks(inside, found.count, found.low, found.high, found.full)


def _by_distance(conditions: Sequence[Node], outer: str, inner: str, extent: Node) -> BlockList | None:
    """What a mask leaves that asks how far apart rows are."""
    lister = _Lister(Names(), inner, extent)
    inside = Names(around=lister.names)

    def alone(choice: Sequence[Node]) -> Range | None:
        part = _part(choice, outer, inner, extent, lister.names)
        return part if isinstance(part, Range) else None

    found = distances(conditions, outer, inner, extent, alone)
    if found is None:
        return None
    ranges = listed(found, extent, lister.names, inside)
    return lister.in_blocks(inside, ranges.count, ranges.low, ranges.high, None)


@lru_cache(maxsize=32)
def _by_search(conditions: tuple[Node, ...], outer: str, inner: str, extent: Node) -> BlockList | None:
    """What a mask on grids within grids leaves: each turn searches where the last one ended."""
    parts = nested(conditions, outer, inner, extent)
    if parts is None or searches(parts) > MOST_SEARCHES:
        return None
    lister = _Lister(Names(), inner, extent)
    inside = Names(around=lister.names)
    done = lister.names.variable("done", ZERO)
    search = Follower(done, lister.names, inside)
    block = Block(first(outer), last(outer))
    begin = search.following(parts, block, ZERO, extent).begin
    reach = sub(lister.up(call("minimum", search.until(parts, block), extent)), lister.down(begin))
    blocks = call("floordiv", call("maximum", reach, ZERO), lister.block)
    count = search.let("turns", call("minimum", search.ranges(parts, block), blocks))
    found = search.following(parts, block, done, extent, lister.block)
    stop = inside.let("stop", lister.up(found.end))
    start = call("where", call("lt", found.begin, extent), lister.down(found.begin), stop)
    return lister.finished(inside, {}, count, (inside.let("start", start), stop, stop), done)


def _in_parts(
    conditions: Sequence[Node],
    outer: str,
    inner: str,
    extent: Node,
    part_of: Callable[[Sequence[Node], str, str, Node, Names], Range | Series | None],
) -> Range | BlockList | None:
    """What is left by alternatives one by one."""
    choices = alternatives(conditions, MOST)
    if choices is None:
        return None
    names = Names()
    parts: list[Range | Series] = []
    for choice in dict.fromkeys(choices):
        part = part_of(choice, outer, inner, extent, names)
        if part is None:
            return None
        parts.append(part.as_one(names) if isinstance(part, Series) and part.always_one else part)
    many = [p for p in parts if isinstance(p, Series)]
    ranges = [p for p in parts if isinstance(p, Range)]
    if len(many) > 1:
        return None
    if not many and len(ranges) == 1 and part_of is _part:
        (r,) = ranges
        return _inlined(r, names)
    ranges = [with_room(r, outer) for r in ranges]
    return _Lister(names, inner, extent).listed(ranges, many[0] if many else None)


def _inlined(r: Range, names: Names) -> Range:
    """A range without names, and with no end where it is empty, since its beginning is rounded down."""
    full_low, full_high = (None if x is None else names.inlined(x) for x in (r.full_low, r.full_high))
    high = call("where", call("lt", r.low, r.high), r.high, ZERO)
    return Range(names.inlined(r.low), names.inlined(high), full_low, full_high, r.exact)


def _part(choice: Sequence[Node], outer: str, inner: str, extent: Node, names: Names) -> Range | Series | None:
    """What one alternative leaves."""
    sets: list[tuple[Node, Progression]] = []
    others: list[Node] = []
    for c in choice:
        found = membership(c)
        if found is None or not found[0].axes & {outer, inner}:
            others.append(c)
        else:
            sets.append(found)
    if not sets:
        found_range = inner_range(others, outer, inner, extent)
        return found_range if found_range.exact else shortened(others, outer, inner, extent)
    if len(sets) > 1:
        return None
    ((number, members),) = sets
    if inner in number.axes:
        return series(number, members, others, outer, inner, extent, names)
    return on_lattice(number, members, others, outer, inner, extent) if isinstance(members, Multiples) else None


def _by_class(choice: Sequence[Node], outer: str, inner: str, extent: Node, names: Names) -> Range | Series | None:
    """What one alternative leaves, where others ask positions of both axes to be congruent."""
    found = classes(choice, outer, inner, extent)
    if found is None:
        return _part(plain(choice, (outer,), {}), outer, inner, extent, names)
    low, high = found.hull((first(outer), last(outer)), (ZERO, extent), names)
    return Range(names.let("low", low), names.let("high", high), None, None, exact=True)


@dataclass(frozen=True, slots=True)
class _Lister:
    """Puts ranges in order; `names` hold what the ranges are made of."""

    names: Names
    inner: str
    extent: Node

    @property
    def block(self) -> Node:
        return size(f"BLOCK_{self.inner.upper()}")

    def down(self, position: Node) -> Node:
        return mul(call("floordiv", position, self.block), self.block)

    def up(self, position: Node) -> Node:
        return neg(mul(call("floordiv", neg(position), self.block), self.block))

    def listed(self, ranges: Sequence[Range], many: Series | None) -> BlockList:
        let = self.names.let
        ranges = self._sorted([self._named(r) for r in ranges])
        total: Node = ZERO
        places: list[Node] = []
        if many is not None:
            single = self._is_single(many)
            total = let("series", call("where", single, call("minimum", many.count, ONE), many.count))
            begin = let("series_low", many.begin(many.member(ZERO)))
            for k, r in enumerate(ranges):
                ahead = call("where", single, total, many.before(r.low))
                ahead = call("where", call("le", r.low, begin), ZERO, ahead)
                places.append(let("place", add(ahead, const(k))))
        else:
            places = [const(k) for k in range(len(ranges))]
        count = let("turns", add(total, const(len(ranges))))
        inside = Names(around=self.names)
        low, high, full_low, full_high = self._chosen(ranges, many, places, inside)
        some = any(r.full_low is not None for r in ranges) or (many is not None and many.full(ZERO) is not None)
        full = (full_low, full_high) if some else None
        return self.in_blocks(inside, count, low, high, full)

    def in_blocks(self, inside: Names, count: Node, low: Node, high: Node, full: tuple[Node, Node] | None) -> BlockList:
        """Ranges that depend on `ITEM`, from 0 to `count`, as whole blocks."""
        done = self.names.variable("done", ZERO)
        # Whole blocks: where a range ends inside one, the next may have positions in it too, and does not visit it.
        stop = inside.let("end", self.up(high))
        start = call("where", call("lt", low, high), self.down(low), stop)
        if full is None:
            start = inside.let("start", call("maximum", start, done))
            return self.finished(inside, {ITEM: TURN}, count, (start, stop, stop), done)
        half = call("mod", TURN, const(2))
        from_ = inside.let("from", call("maximum", call("maximum", start, self.up(full[0])), done))
        to = inside.let("to", self.down(call("minimum", full[1], high)))
        none = call("le", to, from_)
        first_half = call("eq", half, ZERO)
        stop = inside.let("stop", call("where", call("and", first_half, call("not", none)), to, stop))
        start = call("where", call("or", first_half, none), call("maximum", start, done), call("maximum", to, done))
        start = inside.let("start", start)
        turn = inside.let("full", call("where", call("and", first_half, call("not", none)), from_, stop))
        item: dict[Node, Node] = {ITEM: call("floordiv", TURN, const(2))}
        return self.finished(inside, item, mul(const(2), count), (start, turn, stop), done)

    def finished(
        self, inside: Names, item: dict[Node, Node], count: Node, ends: tuple[Node, Node, Node], done: Var
    ) -> BlockList:
        start, turn, stop = ends
        ended = call("where", call("lt", start, stop), stop, ZERO)
        inside.values.append((done, call("maximum", done, ended)))
        each = tuple((v, replace([value], item)[0]) for v, value in inside.used([*ends, done]))
        before = self.names.used([count, *(value for _, value in each)])
        return BlockList(before, count, each, start, turn, stop)

    def _named(self, r: Range) -> Range:
        let = self.names.let
        full_low, full_high = r.full_low, r.full_high
        if full_low is not None and full_high is not None:
            full_low, full_high = let("full_low", full_low), let("full_high", full_high)
        return Range(let("low", r.low), let("high", r.high), full_low, full_high, r.exact)

    def _sorted(self, ranges: list[Range]) -> list[Range]:
        """By their first position: neighbours change places where they are the wrong way round."""
        for end in range(len(ranges) - 1, 0, -1):
            for k in range(end):
                a, b = ranges[k], ranges[k + 1]
                if not at_most_zero(sub(self.names.inlined(a.low), self.names.inlined(b.low))):
                    ranges[k], ranges[k + 1] = self._exchanged(a, b)
        return ranges

    def _exchanged(self, a: Range, b: Range) -> tuple[Range, Range]:
        swap = call("lt", b.low, a.low)

        def pick(x: Node | None, y: Node | None) -> Node | None:
            if x is None and y is None:
                return None
            return call("where", swap, ZERO if x is None else x, ZERO if y is None else y)

        def both(x: Range, y: Range) -> Range:
            low, high = call("where", swap, x.low, y.low), call("where", swap, x.high, y.high)
            return self._named(Range(low, high, pick(x.full_low, y.full_low), pick(x.full_high, y.full_high)))

        return both(b, a), both(a, b)

    def _is_single(self, many: Series) -> Node:
        """Whether the ranges of a series leave no block between them."""
        return call("lt", many.gap, self.block) if many.merges else FALSE

    def _chosen(
        self, ranges: Sequence[Range], many: Series | None, places: Sequence[Node], inside: Names
    ) -> tuple[Node, Node, Node, Node]:
        """The ends of the range numbered `ITEM`, and those of its full part."""
        low: Node = ZERO
        high: Node = ZERO
        full_low: Node = ZERO
        full_high: Node = ZERO
        if many is not None:
            passed = [call("where", call("lt", p, ITEM), ONE, ZERO) for p in places]
            number = inside.let("number", sub(ITEM, add(ZERO, *passed)))
            member = inside.let("member", many.member(number))
            low = many.begin(member)
            to = many.member(call("where", self._is_single(many), add(many.count, const(-1)), number))
            high = many.end(inside.let("last_member", to))
            full_low, full_high = many.full(member) or (ZERO, ZERO)
            full_high = call("where", self._is_single(many), ZERO, full_high)
        for r, p in zip(ranges, places, strict=True):
            here = call("eq", ITEM, p)
            low, high = call("where", here, r.low, low), call("where", here, r.high, high)
            full_low = call("where", here, ZERO if r.full_low is None else r.full_low, full_low)
            full_high = call("where", here, ZERO if r.full_high is None else r.full_high, full_high)
        low, high = inside.let("low", low), inside.let("high", high)
        return low, high, inside.let("full_low", full_low), inside.let("full_high", full_high)
