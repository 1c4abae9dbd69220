"""Which blocks of a plane a mask leaves, found without looking at its pairs.

Large tiles are classified first, and only those that are neither empty nor full are divided, so that the cost follows
the boundary of the mask. What comes out are runs of blocks for each block of the outer axis, in order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attnc.ir.node import Axis, Call, Node
from attnc.ir.walk import postorder
from attnc.passes.intervals import Truth
from attnc.runtime.tiles import Cells, Level, Mask, Pieces, reads_tensor

FACTOR = 4
"""How many cells a cell is divided into, along each axis."""
COARSEST = 8
"""Most cells per axis to begin with."""
MOST_TILES = 1 << 21
"""Tiles looked at in one step. Where a mask needs more, what is left counts as partly allowed, which is always sound."""
OPEN, PARTIAL, FULL = range(3)
"""Classes of tiles; open ones are not decided yet, empty ones are not kept."""


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


@dataclass(frozen=True, slots=True)
class Segments:
    """Consecutive blocks of one class, ordered by row, then column; int64 [S] each, columns in cells of a level."""

    row: Tensor
    low: Tensor
    high: Tensor
    kind: Tensor

    def select(self, keep: Tensor) -> Segments:
        return Segments(self.row[keep], self.low[keep], self.high[keep], self.kind[keep])


def plan(mask: Mask, blocks: tuple[int, int]) -> Table:
    """The runs of a mask.

    Args:
        mask: what to plan.
        blocks: block lengths of the outer and of the inner axis.
    """
    levels = _levels(mask, blocks)
    level = levels[-1]
    rows = torch.arange(level.rows * mask.combinations, device=mask.device).repeat_interleave(level.columns)
    low = torch.arange(level.columns, device=mask.device).repeat(level.rows * mask.combinations)
    found = Segments(rows, low, low + 1, torch.full_like(rows, OPEN))
    for finer in reversed(levels[:-1]):
        found = _divided(_judged(found, level), level, finer, mask.combinations)
        level = finer
    found = _settled(_judged(found, level), level)
    return _table(found, level, mask)


def _levels(mask: Mask, blocks: tuple[int, int]) -> list[Level]:
    """Cells of one block each, then larger and larger ones."""
    outer, inner = (Cells(a, n, mask.extents[a]) for a, n in zip((mask.outer, mask.inner), blocks, strict=True))
    levels = [Level(mask, outer, inner, None)]
    while max(outer.count, inner.count) > COARSEST:
        outer = Cells(outer.axis, outer.length * FACTOR, outer.extent)
        inner = Cells(inner.axis, inner.length * FACTOR, inner.extent)
        levels.append(Level(mask, outer, inner, levels[-1]))
    return levels


def _judged(found: Segments, level: Level) -> Segments:
    """Open tiles classified: empty ones dropped, and where all blocks are alike, neighbours joined."""
    at = torch.nonzero(found.kind == OPEN).flatten()
    if not len(at):
        return found
    truth = level.classify(found.row[at], found.low[at])
    shape, device = at.shape, at.device
    may, every = _flags(truth.may, shape, device), _flags(truth.every, shape, device)
    kind = torch.where(every, FULL, OPEN)
    if level.finer is None:
        mixed = _flags(truth.some, shape, device) & _flags(truth.lacking, shape, device)
        kind = torch.where(mixed, PARTIAL, kind)
    found.kind[at] = torch.where(may, kind, -1)
    return _joined(found.select(found.kind >= 0))


def _flags(value: Any, shape: torch.Size, device: torch.device) -> Tensor:
    return value.expand(shape) if isinstance(value, Tensor) else torch.full(shape, bool(value), device=device)


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
    begins = torch.nonzero(torch.cat([edge, ~same])).flatten()
    ends = torch.nonzero(torch.cat([~same, edge])).flatten()
    return Segments(found.row[begins], found.low[begins], found.high[ends], found.kind[begins])


def _divided(found: Segments, level: Level, finer: Level, combinations: int) -> Segments:
    """Every row becomes those of the finer level, and open tiles their finer ones; the order stays."""
    device = found.row.device
    width = torch.ones_like(found.row)
    is_open = found.kind == OPEN
    width[is_open] = (finer.columns - found.low[is_open] * FACTOR).clamp(max=FACTOR)
    if int(width[is_open].sum()) * FACTOR > MOST_TILES:
        found = _joined(Segments(found.row, found.low, found.high, found.kind.masked_fill(is_open, PARTIAL)))
        width, is_open = torch.ones_like(found.row), torch.zeros_like(found.row, dtype=torch.bool)
    per_row = torch.zeros(level.rows * combinations, dtype=torch.int64, device=device)
    per_row.index_add_(0, found.row, width)
    begins = per_row.cumsum(0) - per_row
    row = torch.arange(finer.rows * combinations, device=device)
    parent = row // finer.rows * level.rows + row % finer.rows // FACTOR
    lengths = per_row[parent]
    child = row.repeat_interleave(lengths)
    source = torch.arange(len(child), device=device) + (begins[parent] - (lengths.cumsum(0) - lengths))[child]
    segment = torch.arange(len(found.row), device=device).repeat_interleave(width)
    offset = torch.arange(len(segment), device=device) - (width.cumsum(0) - width)[segment]
    low = found.low[segment] * FACTOR + offset
    high = torch.where(is_open[segment], low + 1, (found.high[segment] * FACTOR).clamp(max=finer.columns))
    return Segments(child, low[source], high[source], found.kind[segment][source])


# ------------------------------------------------------------------------------------------------ inside blocks


def _settled(found: Segments, level: Level) -> Segments:
    """Blocks still open are decided by their parts."""
    at = torch.nonzero(found.kind == OPEN).flatten()
    if len(at):
        found.kind[at] = _inside(level, found.row[at], found.low[at])
        found = found.select(found.kind >= 0)
    return _joined(found)


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
    while len(owner):
        for axis, cut in cuts.items():
            ranges, owner, combination = _halved(ranges, owner, combination, axis, cut)
        if len(owner) > MOST_TILES:
            unknown[owner] = True
            break
        truth = Pieces(mask, ranges, combination).classify()
        flags = [_flags(f, owner.shape, owner.device) for f in (truth.may, truth.every, truth.some, truth.lacking)]
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
    kind = torch.where(some, torch.where(lacking, PARTIAL, FULL), -1)
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
    from attnc.ir.node import sub
    from attnc.ir.sizes import evaluator

    if reads_tensor(mask.condition):
        return []
    found = set()
    for n in postorder([mask.condition]):
        if isinstance(n, Call) and n.fn in ("floordiv", "mod") and n.axes == {axis} and not n.args[1].axes:
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
    out = {
        a: (torch.cat([x, x[long]]), torch.cat([y, y[long]])) for a, (x, y) in ranges.items() if a != axis
    }
    out[axis] = torch.cat([first, middle[long] + 1]), torch.cat([ends, last[long]])
    return out, torch.cat([owner, owner[long]]), torch.cat([combination, combination[long]])


# -------------------------------------------------------------------------------------------------------- table


def _table(found: Segments, level: Level, mask: Mask) -> Table:
    """Segments as runs: a partly allowed stretch and the full one that follows it are one."""
    inner = level.cells[mask.inner]
    if inner.extent % inner.length:
        found = _last_partial(found, level.columns)
    follows = (
        (found.row[1:] == found.row[:-1])
        & (found.low[1:] == found.high[:-1])
        & (found.kind[1:] == FULL)
        & (found.kind[:-1] == PARTIAL)
    )
    runs = _merged(found, follows)
    begins = torch.nonzero(torch.cat([torch.ones(min(1, len(found.row)), dtype=torch.bool, device=mask.device), ~follows]))
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
