"""Many tiles of a mask classified at once: the rules of `attnc.passes.intervals` on tensors.

What depends on one axis alone is computed once per block of that axis and gathered where the axes meet. Tensors that a
mask reads are evaluated at every position once, then reduced to their least and greatest value per block.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from attnc.ir.construct import axis, call, sub
from attnc.ir.dense import evaluate_nodes
from attnc.ir.node import Axis, Load, Node, Size
from attnc.ir.sizes import evaluator
from attnc.ir.walk import postorder
from attnc.passes.interval_rules import Rules
from attnc.passes.interval_walk import Walker
from attnc.passes.intervals import Interval, Truth
from attnc.runtime.arithmetic import ON_TENSORS
from attnc.runtime.extremes import bounded, changed, forget_witnesses, pooled, pooled_plane, simple, taken, wide

SHIFT = 2
FACTOR = 1 << SHIFT
"""How many cells a cell is divided into, along each axis."""
EVERYWHERE, OUTER, INNER, TILE = range(4)
"""Spaces of values: the same for all tiles, one per row of tiles, one per column of tiles, one per tile."""


@dataclass(frozen=True, slots=True)
class Mask:
    """What is to be planned.

    Attributes:
        condition: true where a pair may attend.
        outer, inner: the axes of the plane; runs are along `inner`.
        batch: axes the condition mentions besides, in the order of the table's dimensions.
        extents: of all these axes.
        tensors, sizes: what the condition reads.
        whole: whether nothing else restricts the plane; if not, no block is known to be full.
    """

    condition: Node
    outer: str
    inner: str
    batch: tuple[str, ...]
    extents: Mapping[str, int]
    tensors: Mapping[str, Tensor]
    sizes: Mapping[str, int]
    device: torch.device
    whole: bool = True
    _dense: dict[Node, Tensor] = field(default_factory=dict)
    _planes: dict[Node, Tensor] = field(default_factory=dict)

    @property
    def combinations(self) -> int:
        """How many masks there are: the product of the batch axes' extents."""
        return math.prod(self.extents[a] for a in self.batch)

    def is_vector(self, node: Node) -> bool:
        """Whether an expression reads tensors and depends on at most one axis of the plane."""
        return len(node.axes & {self.outer, self.inner}) < 2 and reads_tensor(node)

    def is_plane(self, node: Node) -> bool:
        """Whether an expression is read from a tensor of both positions."""
        return isinstance(node, Load) and {self.outer, self.inner} <= node.axes

    @property
    def planes(self) -> list[Node]:
        """What the condition reads from tensors of both positions."""
        return [n for n in postorder([self.condition]) if self.is_plane(n)]

    def plane(self, node: Node) -> Tensor:
        """What is read at every pair, [*batch, outer, inner]; extent 1 along batch axes that do not matter."""
        if node not in self._planes:
            order = (*self.batch, self.outer, self.inner)
            found = self._view(node, order) if isinstance(node, Load) else None
            if found is None:
                (found,) = evaluate_nodes(
                    [node], self.extents, self.tensors, self.sizes, dtype=torch.float64, order=order
                )
                found = found.reshape([self.extents[a] if a in node.axes else 1 for a in order])
            self._planes[node] = found
        return self._planes[node]

    def dense(self, node: Node) -> Tensor:
        """The value of an expression on one axis at every position, [combinations, extent]; extent 1 on none."""
        if node not in self._dense and isinstance(node, Load) and (part := self._slice(node)) is not None:
            self._dense[node] = part
        if node not in self._dense:
            order = (*self.batch, *(node.axes & {self.outer, self.inner}))
            (value,) = evaluate_nodes([node], self.extents, self.tensors, self.sizes, dtype=torch.float64, order=order)
            shape = [self.extents[a] if a in node.axes else 1 for a in order]
            full = value.reshape(shape).expand([self.extents[a] for a in order])
            self._dense[node] = full.reshape(self.combinations, -1)
        return self._dense[node]

    def _slice(self, node: Load) -> Tensor | None:
        """As `dense`, for a load that is read without copying; None for others."""
        axis = tuple(a for a in (self.outer, self.inner) if a in node.axes)
        view = self._view(node, (*self.batch, *axis))
        if view is None:
            return None
        return view.expand([self.extents[a] for a in (*self.batch, *axis)]).reshape(self.combinations, -1)

    def _view(self, node: Load, order: Sequence[str]) -> Tensor | None:
        """A load whose subscripts are one axis each, plus a number, without copying, its dimensions in the given order,
        with extent 1 for axes it does not have; None for others."""
        source = self.tensors[node.tensor]
        dims: list[str] = []
        for k, index in enumerate(node.index):
            name = next(iter(index.axes), "")
            shift = sub(index, axis(name)) if name else index
            if not name or shift.axes or reads_tensor(shift) or name in dims:
                return None
            start = int(evaluator(shift)(self.sizes))
            if start < 0 or start + self.extents[name] > source.shape[k]:
                return None
            source = source.narrow(k, start, self.extents[name])
            dims.append(name)
        source = source.permute([dims.index(a) for a in order if a in dims])
        for k, a in enumerate(order):
            source = source if a in dims else source.unsqueeze(k)
        return source

    def coordinates(self, count: int) -> dict[str, Tensor]:
        """The position along each batch axis, for `count` entries per combination."""
        found = {}
        rest = torch.arange(self.combinations, device=self.device).repeat_interleave(count)
        for a in reversed(self.batch):
            found[a] = rest % self.extents[a]
            rest = rest // self.extents[a]
        return found


@lru_cache(maxsize=1024)
def reads_tensor(node: Node) -> bool:
    """Whether an expression reads any of the caller's tensors."""
    return any(isinstance(n, Load) for n in postorder([node]))


@dataclass(slots=True)
class Cells:
    """Cells of equal length along one axis: the ranges that rows or columns of tiles cover."""

    axis: str
    length: int
    extent: int

    @property
    def count(self) -> int:
        return -(-self.extent // self.length)


class Level:
    """All tiles of one size: rows are cells of the outer axis for each combination, columns cells of the inner axis."""

    def __init__(self, mask: Mask, outer: Cells, inner: Cells, finer: Level | None) -> None:
        self.mask = mask
        self.cells = {mask.outer: outer, mask.inner: inner}
        self.finer = finer
        self.ends: dict[Node, tuple[Tensor, Tensor]] = {}
        """Least and greatest value of dense expressions, per combination and cell."""
        self.corners: dict[Node, tuple[Tensor, Tensor]] = {}
        """Those of what is read at every pair, [combinations, rows, columns]."""
        self._known_planes: dict[Node, Interval | Truth] = {}
        self._ready: dict[int, tuple[Any, Any]] = {}
        self._rules = Rules(ON_TENSORS, witnesses=finer is None)
        plane = frozenset({mask.outer, mask.inner})
        self._sides = {s: Walker(self._rules, plane, partial(self._side, s)) for s in (OUTER, INNER)}
        """Values of what depends on one axis of the plane, the same for all tiles of a row or of a column."""

    @property
    def rows(self) -> int:
        """Cells of the outer axis, per combination."""
        return self.cells[self.mask.outer].count

    @property
    def columns(self) -> int:
        return self.cells[self.mask.inner].count

    def classify(self, row: Tensor, column: Tensor, conditions: tuple[Node, ...]) -> tuple[Truth, list[Truth]]:
        """Whether `conditions` hold, together and each, over strips of `FACTOR` tiles of a row; flags of tiles
        broadcast to [FACTOR, S].

        Args:
            row: int32 [S], counted over all combinations.
            column: int32 [S], of the first tile of each strip, a multiple of `FACTOR`; tiles beyond the last column
                count as that one.
        """
        strip = column >> SHIFT
        if self.mask.batch:
            strip = row // self.rows * -(-self.columns // FACTOR) + strip
        index = {OUTER: row, INNER: strip}
        lifted: dict[int, tuple[Any, Any]] = {}

        def lift(value: Any) -> Any:
            if value.space in (EVERYWHERE, TILE):
                return value
            if id(value) not in lifted:
                sides = self._prepared(value)
                lifted[id(value)] = value, changed(sides, TILE, lambda x: taken(x, index[value.space]))
            return lifted[id(value)][1]

        def align(values: Sequence[Any]) -> list[Any]:
            spaces = {v.space for v in values} - {EVERYWHERE}
            return list(values) if len(spaces) <= 1 else [lift(v) for v in values]

        def leaf(node: Node) -> Interval | Truth | None:
            if self.mask.is_plane(node):
                at = row * -(-self.columns // FACTOR) + (column >> SHIFT)
                return changed(self._prepared(self._plane(node)), TILE, lambda x: taken(x, at))  # type: ignore[no-any-return]
            return self._leaf(node)

        walker = Walker(self._rules, frozenset({self.mask.outer, self.mask.inner}), leaf, align)
        truth = lift(walker.truth(call("and", *conditions)))
        return truth, [lift(walker.truth(c)) for c in conditions]

    def _prepared(self, value: Any) -> Any:
        """A value of one side ready for strips: its integers in 32 bits where they are small, columns in strips."""
        if id(value) not in self._ready:
            ready = simple(value)
            if value.space in (INNER, TILE):
                ready = changed(ready, value.space, self._strips)
            self._ready[id(value)] = value, ready
        return self._ready[id(value)][1]

    def _strips(self, columns: Tensor) -> Tensor:
        """Values of all columns, over all combinations or rows, as [FACTOR, strips]."""
        columns = columns.view(-1, self.columns)
        short = -self.columns % FACTOR
        if short:
            columns = torch.cat([columns, columns[:, -1:].expand(-1, short)], 1)
        return columns.reshape(-1, FACTOR).t().contiguous()

    def _leaf(self, node: Node) -> Interval | Truth | None:
        if self.cells.keys() <= node.axes:
            return None
        side = self._sides[INNER if self.mask.inner in node.axes else OUTER]
        return side.truth(node) if node.kind == "b" else side.interval(node)

    def _side(self, space: int, node: Node) -> Interval | Truth | None:
        found = self._known(node, space)
        if self.finer is not None:
            forget_witnesses(found)
        return found

    def _known(self, node: Node, side: int) -> Interval | Truth | None:
        """A value that needs no rule; batch axes, and what reads tensors by them alone, are as for one side."""
        mask = self.mask
        match node:
            case Size():
                value = mask.sizes[node.name]
                return Interval(value, value, True, True)
            case Axis():
                space = INNER if node.name == mask.inner else OUTER
                cells = self.cells.get(node.name)
                if cells is None:
                    at = mask.coordinates(self.columns if side == INNER else self.rows)[node.name]
                    return Interval(at, at, True, True, side)
                first = torch.arange(0, cells.extent, cells.length, device=mask.device)
                first = first.repeat(mask.combinations) if mask.batch else first
                return Interval(first, (first + (cells.length - 1)).clamp(max=cells.extent - 1), True, True, space)
            case _ if mask.is_vector(node):
                low, high = self.extremes(node)
                return bounded(low, high, INNER if mask.inner in node.axes else OUTER, node.kind)
            case _ if not node.axes and node.kind == "i" and not reads_tensor(node):
                value = evaluator(node)(mask.sizes)
                return Interval(value, value, True, True)
            case _:
                return None

    def extremes(self, node: Node) -> tuple[Tensor, Tensor]:
        """The least and greatest value in every cell, over all combinations one after another."""
        if node not in self.ends:
            axis = next(iter(node.axes & self.cells.keys()), None)
            if axis is None:
                every = wide(self.mask.dense(node)).flatten().repeat_interleave(self.rows)
                self.ends[node] = every, every
                return self.ends[node]
            length = self.cells[axis].length
            if self.finer is None:
                low = high = self.mask.dense(node)
            else:
                low, high = (x.view(self.mask.combinations, -1) for x in self.finer.extremes(node))
                length //= self.finer.cells[axis].length
            self.ends[node] = wide(pooled(low, length, torch.amin)), wide(pooled(high, length, torch.amax))
        return self.ends[node]

    def _plane(self, node: Node) -> Interval | Truth:
        """What is read at every pair, over all tiles."""
        if node not in self._known_planes:
            low, high = (x.flatten() for x in self.extremes_of_plane(node))
            found = bounded(low, high, TILE, node.kind)
            if self.finer is not None:
                forget_witnesses(found)
            self._known_planes[node] = found
        return self._known_planes[node]

    def extremes_of_plane(self, node: Node) -> tuple[Tensor, Tensor]:
        """The least and greatest value in every tile, [combinations, rows, columns]."""
        if node not in self.corners:
            outer, inner = (self.cells[a].length for a in (self.mask.outer, self.mask.inner))
            if self.finer is None:
                low = high = self.mask.plane(node)
            else:
                low, high = self.finer.extremes_of_plane(node)
                outer, inner = FACTOR, FACTOR
            ends = (pooled_plane(x, outer, inner, f) for x, f in ((low, torch.amin), (high, torch.amax)))
            low, high = ends
            if self.finer is None:
                batch = [self.mask.extents[a] for a in self.mask.batch]
                low, high = (wide(x.expand([*batch, *x.shape[-2:]]).reshape(-1, *x.shape[-2:])) for x in (low, high))
            self.corners[node] = low, high
        return self.corners[node]


class Pieces:
    """Tiles of any size inside blocks, each given by its own ranges; integers [T] each, ends inclusive. Where the mask
    reads a tensor of both positions, they are single pairs."""

    def __init__(self, mask: Mask, ranges: Mapping[str, tuple[Tensor, Tensor]], combination: Tensor) -> None:
        self.mask = mask
        self.ranges = ranges
        self.combination = combination

    def classify(self) -> Truth:
        """The mask over each tile."""
        walker = Walker(Rules(ON_TENSORS), frozenset({self.mask.outer, self.mask.inner}), self._leaf)
        return walker.truth(self.mask.condition)

    def _leaf(self, node: Node) -> Interval | Truth | None:
        mask = self.mask
        match node:
            case Size():
                value = mask.sizes[node.name]
                return Interval(value, value, True, True)
            case Axis():
                if node.name in self.ranges:
                    return Interval(*self.ranges[node.name], True, True, TILE)
                at = mask.coordinates(1)[node.name][self.combination]
                return Interval(at, at, True, True, TILE)
            case _ if mask.is_vector(node):
                return self._read(node)
            case _ if mask.is_plane(node):
                return self._pair(node)
            case _ if not node.axes and node.kind == "i" and not reads_tensor(node):
                value = evaluator(node)(mask.sizes)
                return Interval(value, value, True, True)
            case _:
                return None

    def _pair(self, node: Node) -> Interval | Truth:
        mask, values = self.mask, self.mask.plane(node)
        batch = mask.coordinates(1)
        at = [batch[a][self.combination] if a in node.axes else torch.zeros_like(self.combination) for a in mask.batch]
        found = wide(values[(*at, self.ranges[mask.outer][0], self.ranges[mask.inner][0])])
        return bounded(found, found, TILE, node.kind)

    def _read(self, node: Node) -> Interval | Truth:
        values = self.mask.dense(node)
        axis = next(iter(node.axes & self.ranges.keys()), None)
        if axis is None:
            found = wide(values[self.combination, 0])
            return bounded(found, found, TILE, node.kind)
        first, last = self.ranges[axis]
        longest = int((last - first).max()) + 1 if len(first) else 1
        at = torch.minimum(first[:, None] + torch.arange(longest, device=first.device), last[:, None])
        found = wide(values[self.combination[:, None], at])
        return bounded(found.amin(1), found.amax(1), TILE, node.kind)
