"""Which blocks of a plane a mask leaves, found without looking at its pairs.

Large tiles are classified first, and only those that are neither empty nor full are divided, so that the cost follows
the boundary of the mask. What comes out are runs of blocks for each block of the outer axis, in order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attnc.ir.construct import conjuncts, sub
from attnc.ir.node import Axis, Call, Node
from attnc.ir.sizes import evaluator
from attnc.ir.walk import postorder
from attnc.runtime.tiles import FACTOR, SHIFT, Cells, Level, Mask, Pieces, reads_tensor

COARSEST = 64
"""Most cells per axis to begin with."""
MOST_TILES = 1 << 24
"""Tiles looked at for one mask. Where it needs more, what is left counts as partly allowed, which is always sound."""
BAND = 1 << 18
"""Tiles looked at together: few enough that their tensors stay in a cache."""
PAIRS = 1 << 20
"""Pairs looked at together where a mask reads a tensor of both positions."""
EMPTY, OPEN, PARTIAL, FULL = range(4)
"""Classes of tiles; open ones are not decided yet, empty ones are not kept. Sums of flags rely on the order."""


@dataclass(frozen=True, slots=True)
class Table:
    """Runs of blocks along the inner axis, for every block of the outer axis.

    Attributes:
        spans: int32 [*batch, rows, 2], the first run of a row and the one after its last.
        runs: int32 [runs, 3] positions: partly allowed blocks from the first to the second, full ones from there to
            the third.
    """

    spans: Tensor
    runs: Tensor


class Segments(NamedTuple):
    """Consecutive blocks of one class, ordered by row, then column; int32 [S] each, columns in cells of a level,
    classes uint8. Open ones are single tiles."""

    row: Tensor
    low: Tensor
    high: Tensor
    kind: Tensor
    all_open: bool = False

    def each(self, change: Callable[[Tensor], Tensor]) -> Segments:
        """The same change made to all four."""
        return Segments(change(self.row), change(self.low), change(self.high), change(self.kind), self.all_open)

    def select(self, at: Tensor) -> Segments:
        """Those at the positions `at`."""
        return self.each(lambda x: x.index_select(0, at))

    def narrow(self, first: int, stop: int) -> Segments:
        """Those from `first` up to `stop`."""
        return self.each(lambda x: x[first:stop])


class Strips(NamedTuple):
    """What segments become at the next finer level, one in each row of theirs, in its columns: tiles not looked at yet
    where a segment is open, `FACTOR` of them or as many as the level has; as `Segments` elsewhere."""

    row: Tensor
    low: Tensor
    high: Tensor
    kind: Tensor
    all_open: bool


def plan(mask: Mask, blocks: tuple[int, int]) -> Table:
    """The runs of a mask.

    Args:
        mask: what to plan.
        blocks: block lengths of the outer and of the inner axis.
    """
    levels = _levels(mask, blocks)
    level = levels[-1]
    count, low = level.rows * mask.combinations, _count(level.columns, mask.device)[::FACTOR]
    row = _count(count, mask.device).repeat_interleave(len(low))
    low = low.repeat(count)
    strips = Strips(row, low, low, torch.full_like(row, OPEN, dtype=torch.uint8), all_open=True)
    return _table(Search(mask, levels).descend(strips, len(levels) - 1, conjuncts(mask.condition)), levels[0], mask)


def _levels(mask: Mask, blocks: tuple[int, int]) -> list[Level]:
    """Cells of one block each, then larger and larger ones."""
    outer, inner = (Cells(a, n, mask.extents[a]) for a, n in zip((mask.outer, mask.inner), blocks, strict=True))
    levels = [Level(mask, outer, inner, None)]
    while max(outer.count, inner.count) > COARSEST:
        outer = Cells(outer.axis, outer.length * FACTOR, outer.extent)
        inner = Cells(inner.axis, inner.length * FACTOR, inner.extent)
        levels.append(Level(mask, outer, inner, levels[-1]))
    return levels


class Search:
    """One mask's search from the coarsest level to the finest, a band of rows at a time."""

    def __init__(self, mask: Mask, levels: list[Level]) -> None:
        self.mask = mask
        self.levels = levels
        self.left = MOST_TILES

    def descend(self, strips: Strips, k: int, conditions: tuple[Node, ...]) -> Segments:
        """What becomes of strips of level `k` at the level of blocks; `conditions` are those not known to hold."""
        level = self.levels[k]
        found, conditions = self._judged(strips, level, conditions)
        if k == 0:
            return _joined(self._settled(found))
        finer = self.levels[k - 1]
        done = [
            self.descend(_divided(found.narrow(a, b), level, finer), k - 1, conditions) for a, b in _bands(found, finer)
        ]
        return done[0] if len(done) == 1 else _concatenated(done)

    def _judged(self, strips: Strips, level: Level, conditions: tuple[Node, ...]) -> tuple[Segments, tuple[Node, ...]]:
        """Open tiles classified: empty ones dropped, and where all blocks are alike, neighbours joined. The conditions
        that are left are those that do not hold all over all tiles that stay open."""
        at = None if strips.all_open else torch.nonzero(strips.kind == OPEN).flatten()
        row, low = (strips.row, strips.low) if at is None else (strips.row[at], strips.low[at])
        kind = torch.zeros((FACTOR, len(row)), dtype=torch.uint8, device=row.device)
        self.left -= kind.numel()
        if self.left < 0:
            kind += PARTIAL
        elif len(row):
            truth, parts = level.classify(row, low, conditions)
            kind += _counted(truth.may) + _counted(truth.every) * (FULL - OPEN)
            if level.finer is None:
                kind += _counted(truth.some) & _counted(truth.lacking)
            elif len(parts) > 1:
                open_ = kind == OPEN
                kept = [bool((_counted(p.every) < open_).any()) for p in parts]
                conditions = tuple(c for c, keep in zip(conditions, kept, strict=True) if keep)
        if level.columns % FACTOR:
            kind *= low + _count(FACTOR, row.device)[:, None] < level.columns
        if at is not None:
            all_ = torch.zeros((FACTOR, len(strips.row)), dtype=torch.uint8, device=row.device)
            all_[0] = strips.kind
            kind = all_.index_copy_(1, at, kind)
        return _gathered(strips, kind, level), conditions

    def _settled(self, found: Segments) -> Segments:
        """Blocks still open are decided by their parts."""
        at = torch.nonzero(found.kind == OPEN).flatten()
        if not len(at):
            return found
        row, low = found.row[at], found.low[at]
        count = max(1, PAIRS // prod(c.length for c in self.levels[0].cells.values())) if self.mask.planes else len(at)
        parts = [_inside(self.levels[0], *x) for x in zip(row.split(count), low.split(count), strict=True)]
        found = found._replace(kind=found.kind.index_copy(0, at, torch.cat(parts)))
        return found.select(torch.nonzero(found.kind).flatten())


def _concatenated(parts: list[Segments]) -> Segments:
    row, low, high, kind = (torch.cat(x) for x in zip(*(p[:4] for p in parts), strict=True))
    return Segments(row, low, high, kind)


def _counted(value: Any) -> Any:
    """A truth value as 0 or 1."""
    return value.view(torch.uint8) if isinstance(value, Tensor) else int(value)


def _flags(value: Any, like: Tensor) -> Tensor:
    if isinstance(value, Tensor):
        return value.expand(like.shape).contiguous()
    return torch.full(like.shape, bool(value), device=like.device)


def _gathered(strips: Strips, kind: Tensor, level: Level) -> Segments:
    """The tiles of strips that are not empty; `kind`, [FACTOR, strips], has other segments first in theirs."""
    flat = kind.new_empty((len(strips.row), FACTOR))
    for part, column in zip(kind, flat.unbind(1), strict=True):
        column.copy_(part)  # several times as fast as a transposed copy
    kind = flat.flatten()
    at = torch.nonzero(kind).flatten().to(torch.int32)
    kind, strip = kind.index_select(0, at), at >> SHIFT
    low = strips.low.index_select(0, strip) + (at & (FACTOR - 1))
    high = low + 1
    if not strips.all_open:
        known = (strips.kind != OPEN).index_select(0, strip)
        high = torch.where(known, strips.high.index_select(0, strip), high)
    found = Segments(strips.row.index_select(0, strip), low, high, kind)
    if not level.finer:
        return found
    return _joined(found) if bool((kind != OPEN).any()) else found._replace(all_open=True)


def _joined(found: Segments) -> Segments:
    """Neighbours of one class become one segment; open tiles stay apart."""
    same = (
        (found.row[1:] == found.row[:-1])
        & (found.low[1:] == found.high[:-1])
        & (found.kind[1:] == found.kind[:-1])
        & (found.kind[1:] != OPEN)
    )
    return _merged(found, same)


def _merged(found: Segments, same: Tensor) -> Segments:
    """Each segment joined with the one before where `same` says so."""
    if not len(found.row):
        return found
    edge = torch.ones(1, dtype=torch.bool, device=same.device)
    begins = torch.nonzero(torch.cat([edge, ~same])).flatten().to(torch.int32)
    ends = torch.cat([begins[1:], begins.new_full((1,), len(found.row))]) - 1
    row, low, kind = (x.index_select(0, begins) for x in (found.row, found.low, found.kind))
    return Segments(row, low, found.high.index_select(0, ends), kind)


def _bands(found: Segments, finer: Level) -> list[tuple[int, int]]:
    """Ranges of segments, whole rows each, that give about `BAND` segments of the finer level or one row."""
    total = len(found.row)
    width = torch.where(found.kind == OPEN, FACTOR, 1).cumsum(0)
    tiles = int(width[-1]) * FACTOR if total else 0
    if tiles <= BAND:
        return [(0, total)]
    steps = _count(-(-tiles // BAND), width.device)[1:] * (BAND // FACTOR)
    rows = found.row[torch.searchsorted(width, steps.to(width.dtype)).clamp(max=total - 1)]
    places = [0, *torch.unique(torch.searchsorted(found.row, rows)).tolist(), total]
    return [(a, b) for a, b in pairwise(places) if a < b]


def _before(lengths: Tensor) -> Tensor:
    """Where each of several stretches begins, put one after another."""
    return lengths.cumsum(0, dtype=lengths.dtype) - lengths


def _count(length: int, device: torch.device) -> Tensor:
    return torch.arange(length, dtype=torch.int32, device=device)


def _divided(found: Segments, level: Level, finer: Level) -> Strips:
    """Every row becomes those of the finer level, and every segment a strip of it; the order stays."""
    device = found.row.device
    coarse, count = torch.unique_consecutive(found.row, return_counts=True)
    # Rows of the finer level: those of each combination follow each other, so the last cell may have fewer.
    inside = coarse % level.rows
    part = _count(FACTOR, device)
    fine = (coarse // level.rows * finer.rows + inside * FACTOR)[:, None] + part
    exists = (inside * FACTOR)[:, None] + part < finer.rows
    row, parent = fine[exists], torch.nonzero(exists)[:, 0]
    count = count.to(torch.int32)
    begins, count = _before(count)[parent], count[parent]
    row = row.repeat_interleave(count)
    source = (begins - _before(count)).repeat_interleave(count).add_(_count(len(row), device))
    low = found.low.index_select(0, source) << SHIFT
    if found.all_open:
        return Strips(row, low, low, torch.full_like(low, OPEN, dtype=torch.uint8), all_open=True)
    high = (found.high.index_select(0, source) << SHIFT).clamp_(max=finer.columns)
    return Strips(row, low, high, found.kind.index_select(0, source), all_open=False)


# ------------------------------------------------------------------------------------------------ inside blocks


def _inside(level: Level, row: Tensor, column: Tensor) -> Tensor:
    """The class of each block: divided until one part is known to be allowed and one not, or nothing is left."""
    mask = level.mask
    owner = torch.arange(len(row), device=row.device)
    combination = row // level.rows
    places = {mask.outer: row % level.rows, mask.inner: column}
    ranges = {}
    for axis, cell in places.items():
        first = cell * level.cells[axis].length
        ranges[axis] = first, (first + level.cells[axis].length - 1).clamp(max=level.cells[axis].extent - 1)
    some = torch.zeros(len(row), dtype=torch.bool, device=row.device)
    lacking, unknown = some.clone(), some.clone()
    cuts = {a: _cuts(mask, a) for a in ranges}
    if mask.planes:
        ranges, owner, combination = _pairs(level, ranges, owner, combination)
    while len(owner):
        for axis, cut in cuts.items():
            ranges, owner, combination = _halved(ranges, owner, combination, axis, cut)
        if len(owner) > MOST_TILES:
            unknown[owner] = True
            break
        truth = Pieces(mask, ranges, combination).classify()
        flags = [_flags(f, owner) for f in (truth.may, truth.every, truth.some, truth.lacking)]
        may, every = flags[:2]
        some[owner[flags[2] | every]] = True
        lacking[owner[flags[3] | ~may]] = True
        single = torch.ones_like(may)
        for first, last in ranges.values():
            single &= first == last
        unknown[owner[single & may & ~every]] = True
        left = torch.nonzero(may & ~every & ~single & ~(some & lacking)[owner]).flatten()
        ranges = {a: (first[left], last[left]) for a, (first, last) in ranges.items()}
        owner, combination = owner[left], combination[left]
    kind = some.view(torch.uint8) * FULL - (some & lacking).view(torch.uint8)
    return kind.masked_fill(unknown, PARTIAL)


Cut = Callable[[Tensor, Tensor], Tensor]


def _cuts(mask: Mask, axis: str) -> Cut:
    """Where to divide a range: at a boundary of a period that the mask has along this axis, else in the middle."""
    periods = _periods(mask, axis)

    def cut(first: Tensor, last: Tensor) -> Tensor:
        middle = (first + last) // 2
        for period, shift in periods:
            boundary = (last + shift) // period * period - shift - 1
            middle = torch.where(boundary >= first, boundary, middle)
        return middle

    return cut


def _periods(mask: Mask, axis: str) -> list[tuple[int, int]]:
    """Divisors of ``(axis + shift) // divisor`` in a mask, smallest first. Data are read in halves instead, and short
    periods need no cuts."""
    if reads_tensor(mask.condition):
        return []
    found = set()
    for n in postorder([mask.condition]):
        if isinstance(n, Call) and n.fn in ("floordiv", "mod") and n.axes == frozenset((axis,)) and not n.args[1].axes:
            shift: Node = sub(n.args[0], Axis.intern((axis,), frozenset((axis,)), "i"))
            if not shift.axes:
                found.add((int(evaluator(n.args[1])(mask.sizes)), int(evaluator(shift)(mask.sizes))))
    return sorted(p for p in found if p[0] >= 8)


def _halved(
    ranges: dict[str, tuple[Tensor, Tensor]], owner: Tensor, combination: Tensor, axis: str, cut: Cut
) -> tuple[dict[str, tuple[Tensor, Tensor]], Tensor, Tensor]:
    """Every tile longer than one position divided along an axis."""
    first, last = ranges[axis]
    long = torch.nonzero(first < last).flatten()
    middle = cut(first, last)
    ends = torch.where(first < last, middle, last)
    out = {a: (torch.cat([x, x[long]]), torch.cat([y, y[long]])) for a, (x, y) in ranges.items() if a != axis}
    out[axis] = torch.cat([first, middle[long] + 1]), torch.cat([ends, last[long]])
    return out, torch.cat([owner, owner[long]]), torch.cat([combination, combination[long]])


def _pairs(
    level: Level, ranges: dict[str, tuple[Tensor, Tensor]], owner: Tensor, combination: Tensor
) -> tuple[dict[str, tuple[Tensor, Tensor]], Tensor, Tensor]:
    """All pairs of each block; some more than once where a block is cut short."""
    mask = level.mask
    lengths = [level.cells[a].length for a in (mask.outer, mask.inner)]
    shape = (len(owner), *lengths)
    for k, a in enumerate((mask.outer, mask.inner)):
        first, last = ranges[a]
        at = torch.minimum(first[:, None] + torch.arange(lengths[k], device=first.device), last[:, None])
        at = (at[:, :, None] if k == 0 else at[:, None]).expand(shape).flatten()
        ranges = ranges | {a: (at, at)}
    owner, combination = (x[:, None, None].expand(shape).flatten() for x in (owner, combination))
    return ranges, owner, combination


# -------------------------------------------------------------------------------------------------------- table


def _table(found: Segments, level: Level, mask: Mask) -> Table:
    """Segments as runs: a partly allowed stretch and the full one that follows it are one."""
    inner = level.cells[mask.inner]
    if not mask.whole:
        found = _joined(found._replace(kind=torch.full_like(found.kind, PARTIAL)))
    if inner.extent % inner.length:
        found = _last_partial(found, level.columns)
    follows = (
        (found.row[1:] == found.row[:-1])
        & (found.low[1:] == found.high[:-1])
        & (found.kind[1:] == FULL)
        & (found.kind[:-1] == PARTIAL)
    )
    runs = _merged(found, follows)
    begins = torch.nonzero(
        torch.cat([torch.ones(min(1, len(found.row)), dtype=torch.bool, device=mask.device), ~follows])
    )
    turn = torch.where(runs.kind == PARTIAL, found.high[begins.flatten()], runs.low)
    positions = torch.stack([runs.low, turn, runs.high], 1) * inner.length
    count = torch.bincount(runs.row, minlength=level.rows * mask.combinations)
    stops = count.cumsum(0)
    spans = torch.stack([stops - count, stops], 1).to(torch.int32)
    shape = [*(mask.extents[a] for a in mask.batch), level.rows, 2]
    return Table(spans.view(shape), positions.to(torch.int32))


def _last_partial(found: Segments, columns: int) -> Segments:
    """The last, short block counts as partly allowed: kernels guard what lies beyond the end."""
    cut = (found.high == columns) & (found.kind == FULL)
    width = torch.where(cut & (found.high - found.low > 1), 2, 1)
    at = torch.arange(len(cut), device=cut.device).repeat_interleave(width)
    second = torch.cat([at.new_zeros(min(1, len(at)), dtype=torch.bool), at[1:] == at[:-1]])
    last = cut[at] & (second | (width[at] == 1))
    low = torch.where(last, columns - 1, found.low[at])
    high = torch.where(cut[at] & ~last, columns - 1, found.high[at])
    return Segments(found.row[at], low, high, torch.where(last, PARTIAL, found.kind[at]))
