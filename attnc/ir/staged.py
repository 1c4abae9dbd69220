"""Evaluation in blocks, so that planes of long sequences fit in memory.

Planes larger than a budget are evaluated in blocks of rows, heads and batch entries. Reductions over an axis cut into
blocks are computed first, level by level; everything else is recomputed inside each block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product

import torch
from torch import Tensor

from attnc.ir.contraction import axis_order, scatter_axes
from attnc.ir.dense_block import Block
from attnc.ir.node import Max, Node, Sum
from attnc.ir.program import Program
from attnc.ir.walk import postorder

WHOLE_LIMIT = 1 << 23
"""Elements of the widest value above which evaluation goes block by block (64 MB in float64)."""

BLOCK_TARGET = 1 << 19
"""Elements of the widest value within one block."""


def choose_blocks(
    program: Program, roots: Sequence[Node], extents: Mapping[str, int], rows: int | None = None
) -> dict[str, int]:
    """Block length of every axis that is cut: batch axes first, then the query axis, until the widest value fits."""
    wide = {axes for n in postorder(roots) for axes in _axes_made(n, extents)}
    blocks = {} if rows is None else {"i": min(rows, extents.get("i", rows))}

    def length(axis: str) -> int:
        base = axis.rstrip("'")
        return blocks.get(base, extents[base])

    def widest(axes: Iterable[frozenset[str]]) -> int:
        return max((math.prod(length(a) for a in w) for w in axes), default=0)

    if widest(wide) <= WHOLE_LIMIT:
        return blocks
    cuttable = [n for n, a in program.axes.items() if a.role == "batch" and n in extents]
    for axis in [*cuttable, *(["i"] if rows is None and "i" in extents else [])]:
        over = widest(w for w in wide if any(a.rstrip("'") == axis for a in w))
        if over > BLOCK_TARGET:
            blocks[axis] = max(1, length(axis) * BLOCK_TARGET // over)
    return blocks


def _axes_made(node: Node, extents: Mapping[str, int]) -> Iterator[frozenset[str]]:
    """The axes of the values made while evaluating a node."""
    yield node.axes
    if isinstance(node, Max):
        yield node.axes.union(*(c.axes for c in node.children))
    if isinstance(node, Sum) and node.scatter:
        yield from scatter_axes(node, lambda a: extents[a.rstrip("'")])[1]


class Staged:
    """Evaluation in blocks.

    Reductions over a cut axis ("cuts") get a level: one more than the deepest cut inside them. Each level is a sweep
    over the blocks in which its cuts accumulate; the roots come last. A sweep cuts only the axes its nodes mention.
    """

    def __init__(
        self,
        roots: Sequence[Node],
        axes: Iterable[str],
        extents: Mapping[str, int],
        blocks: Mapping[str, int],
        tensors: Mapping[str, Tensor],
        sizes: Mapping[str, int],
        dtype: torch.dtype,
    ) -> None:
        self.roots = list(roots)
        self.order = axis_order(list(axes))
        self.extents = extents
        self.blocks = {a: b for a, b in blocks.items() if a in extents and b < extents[a]}
        self.tensors = dict(tensors)
        self.sizes = sizes
        self.dtype = dtype
        self.store: dict[Node, Tensor] = {}
        self.attained: dict[Node, Tensor] = {}
        """Where maxima over cut axes lie (see `strides`); -1 over nothing."""

    def run(self) -> dict[Node, Tensor]:
        """The values of the roots, each over all of its free axes."""
        for cut_axes, targets in self.stages():
            for limits in self.positions(cut_axes):
                self._visit(limits, targets)
        return {r: self.store[r] for r in self.roots}

    def stages(self) -> list[tuple[tuple[str, ...], list[Node]]]:
        """Groups of nodes to compute in one sweep, with the axes the sweep cuts, each after what it depends on."""
        level: dict[Node, int] = {}
        targets: dict[tuple[int, tuple[str, ...]], list[Node]] = {}
        for n in postorder(self.roots):
            level[n] = max((level[c] for c in n.children), default=0)
            if self.is_cut(n):
                targets.setdefault((level[n], self._cut_axes(n)), []).append(n)
                level[n] += 1
        last = max(level.values(), default=0) + 1
        for r in self.roots:
            if not self.is_cut(r):
                targets.setdefault((last, self._cut_axes(r)), []).append(r)
        return [(axes, nodes) for (_, axes), nodes in sorted(targets.items(), key=lambda item: item[0])]

    def is_cut(self, node: Node) -> bool:
        """Whether a block holds only a part of this reduction."""
        if not isinstance(node, Sum | Max):
            return False
        scattered = {a for a, _ in node.scatter} if isinstance(node, Sum) else set()
        return any(a.rstrip("'") in self.blocks for a in node.bound | scattered)

    def _cut_axes(self, node: Node) -> tuple[str, ...]:
        """The cut axes (of any number of primes) a block of this node's operands ranges over."""
        names = set(node.axes)
        if isinstance(node, Sum | Max):
            names = set(node.bound.union(*(c.axes for c in node.children)))
        return self.order(a for a in names if a.rstrip("'") in self.blocks)

    def positions(self, axes: Sequence[str]) -> Iterator[dict[str, range]]:
        """Every block: a range of each of `axes`."""
        pieces = []
        for a in axes:
            n, step = self.extents[a.rstrip("'")], self.blocks[a.rstrip("'")]
            pieces.append([range(k, min(k + step, n)) for k in range(0, n, step)])
        for chosen in product(*pieces):
            yield dict(zip(axes, chosen, strict=True))

    def window(self, node: Node, limits: Mapping[str, range]) -> tuple[slice, ...]:
        """Where a block of `node` lies in its whole value. A scattered axis is always whole."""
        scattered = {a for a, _ in node.scatter} if isinstance(node, Sum) else set()
        return tuple(
            slice(limits[a].start, limits[a].stop) if a in limits and a not in scattered else slice(None)
            for a in self.order(node.axes)
        )

    def seen(self, node: Node, limits: Mapping[str, range]) -> tuple[slice, ...]:
        """The part of a finished value that a block reads."""
        axes = self.order(node.axes)
        return tuple(slice(limits[a].start, limits[a].stop) if a in limits else slice(None) for a in axes)

    def known(self, node: Node, limits: Mapping[str, range]) -> Tensor:
        return self.store[node][self.seen(node, limits)]

    def _visit(self, limits: Mapping[str, range], targets: Sequence[Node]) -> None:
        known = {n: self.known(n, limits) for n in self.store if n not in targets}
        located = [n for n in targets if isinstance(n, Max) and self.is_cut(n)]
        ranges, whole = self.ranges(limits), self.ranges({})
        block = Block(ranges, self.order, self.tensors, self.sizes, self.dtype, known, whole, located)
        for node, value in zip(targets, block.run(targets), strict=True):
            if node in block.places:
                self._locate(node, self.window(node, limits), value, self._position(node, block))
            self._accumulate(node, self.window(node, limits), value)

    def strides(self, bound: Iterable[str]) -> list[tuple[str, int]]:
        """The bound axes of a maximum, by name, with what a step along each adds to the number of a position."""
        names = sorted(bound)
        lengths = [self.extents[a.rstrip("'")] for a in names]
        return [(a, math.prod(lengths[k + 1 :])) for k, a in enumerate(names)]

    def _position(self, node: Node, block: Block) -> Tensor:
        """The number of the position where a maximum lies, for a block that has found it."""
        assert isinstance(node, Max)
        place, number = block.places[node], torch.zeros((), dtype=torch.int64, device=block.device)
        for a, step in reversed(self.strides(node.bound)):
            r = block.ranges(a)
            number = number + (place % len(r) + r.start) * step
            place = place // len(r)
        return number

    def _locate(self, node: Node, window: tuple[slice, ...], value: Tensor, position: Tensor) -> None:
        """Keep where a maximum lies, if that is larger than in earlier blocks, or as large and before it."""
        if node not in self.store:
            shape = [self.extents[a.rstrip("'")] for a in self.order(node.axes)]
            self.attained[node] = torch.full(shape, -1, dtype=torch.int64, device=value.device)
            before, known = torch.full_like(value, _lowest(value)), self.attained[node][window]
        else:
            before, known = self.store[node][window], self.attained[node][window]
        closer = (value > before) | ((value == before) & (known > position))
        self.attained[node][window] = torch.where(closer, position, known)

    def ranges(self, limits: Mapping[str, range]) -> Callable[[str], range]:
        return lambda name: limits[name] if name in limits else range(self.extents[name.rstrip("'")])

    def _accumulate(self, node: Node, window: tuple[slice, ...], value: Tensor) -> None:
        if node not in self.store:
            shape = [self.extents[a.rstrip("'")] for a in self.order(node.axes)]
            if list(value.shape) == shape and not self.is_cut(node):
                self.store[node] = value
                return
            neutral = _lowest(value) if isinstance(node, Max) and self.is_cut(node) else 0
            self.store[node] = value.new_full(shape, neutral)
        whole = self.store[node]
        if not self.is_cut(node):
            whole[window] = value
        elif isinstance(node, Max):
            whole[window] = torch.maximum(whole[window], value)
        else:
            whole[window] += value


def _lowest(value: Tensor) -> float | int:
    return -math.inf if value.is_floating_point() else torch.iinfo(value.dtype).min
