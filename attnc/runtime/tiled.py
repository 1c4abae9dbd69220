"""Tile programs run by PyTorch, block by block: for CPUs without a compiler, and as the reference of both printers.

Grid axes are evaluated together as leading dimensions, unless a loop bound depends on them; blocks of the outer and the
inner axis are visited one after another, so memory stays that of a few tiles.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product

import torch
from torch import Tensor

from attnc.codegen.tile import (
    Accumulate,
    AccumulateAt,
    AddTo,
    Assign,
    Each,
    Kernel,
    Loop,
    Scatter,
    Stmt,
    Store,
    statements,
)
from attnc.ir.construct import free_axes
from attnc.ir.node import Axis, Node, Var
from attnc.ir.sizes import evaluator
from attnc.ir.walk import postorder
from attnc.runtime.tiled_values import Scope


class TiledKernel:
    """A tile program ready to run."""

    def __init__(self, kernel: Kernel, *, blocks: Mapping[str, int] | None = None, padded: bool = False) -> None:
        """Prepare `kernel`.

        Args:
            blocks: block lengths in place of the kernel's.
            padded: give blocks their full length at the end of an axis, as compiled kernels do, instead of cutting them
                short. Lanes outside then hold what loads outside their tensors give.
        """
        self.kernel = replace(kernel, blocks={**kernel.blocks, **(blocks or {})})
        self.padded = padded
        apart = _axes_of_bounds(kernel) | {kernel.shares}
        self.together = tuple(a for a in kernel.grid if a not in apart and a not in kernel.serial)
        self.apart = tuple(a for a in kernel.grid if a not in self.together)
        self._extents = {a: evaluator(x) for a, x in zip(kernel.grid, kernel.grid_extents, strict=True)}
        self._extents |= {lane.axis: evaluator(lane.extent) for lane in kernel.lanes}

    def blocks(self, tensors: Sequence[Tensor], sizes: Mapping[str, int]) -> Mapping[str, int]:
        """Block lengths."""
        return self.kernel.blocks

    def __call__(self, tensors: Sequence[Tensor], sizes: Mapping[str, int]) -> None:
        """Run every grid point.

        Args:
            tensors: one per argument; ``add`` arguments hold zeros.
            sizes: every size symbol.
        """
        k = self.kernel
        known = {**sizes, **k.constants, **{f"BLOCK_{a.upper()}": n for a, n in k.blocks.items()}}
        extents = {a: f(known) for a, f in self._extents.items()}
        named = {a.name: t for a, t in zip(k.arguments, tensors, strict=True)}
        real = torch.float64 if k.real == "f64" else torch.float32
        dims = (*self.together, *(lane.axis for lane in k.lanes))
        for point in product(*(range(extents[a]) for a in self.apart)):
            for block in self._blocks(extents, dict(zip(self.apart, point, strict=True))):
                scope = Scope(dims, named, known, real, tensors[0].device)
                scope.scalars |= dict(zip(self.apart, point, strict=True))
                scope.ranges |= {a: range(extents[a]) for a in self.together}
                scope.ranges |= {lane.axis: range(extents[lane.axis]) for lane in k.lanes if lane.role == "channel"}
                if k.outer is not None:
                    scope.ranges[k.outer] = block
                    last = min(block.stop, extents[k.outer]) - 1
                    scope.scalars |= {f"{k.outer}_first": block.start, f"{k.outer}_last": last}
                    scope.counts[k.outer] = last + 1 - block.start
                _Run(self, scope, extents).body(k.body)

    def _blocks(self, extents: Mapping[str, int], point: Mapping[str, int]) -> Iterator[range]:
        """The blocks of the outer axis at a grid point."""
        outer, shares = self.kernel.outer, self.kernel.shares
        if outer is None:
            yield range(1)
            return
        length = self.kernel.blocks[outer]
        begin, step = (0, 1) if shares is None else (point[shares], extents[shares])
        for start in range(begin * length, extents[outer], step * length):
            yield self.positions(outer, start, extents[outer])

    def positions(self, axis: str, start: int, extent: int) -> range:
        """The positions of the block that begins at `start`."""
        stop = start + self.kernel.blocks[axis]
        return range(start, stop if self.padded else min(stop, extent))


class _Run:
    """One block of a kernel."""

    def __init__(self, owner: TiledKernel, scope: Scope, extents: Mapping[str, int]) -> None:
        self.owner = owner
        self.scope = scope
        self.extents = extents

    def body(self, body: Sequence[Stmt]) -> None:
        for statement in body:
            self.statement(statement)

    def statement(self, s: Stmt) -> None:
        variables = self.scope.variables
        match s:
            case Assign():
                typed = s.target.kind == "f"
                variables[s.target.name] = self.scope.typed(s.value, "f") if typed else self.scope.value(s.value)
            case Accumulate():
                variables[s.target.name] = variables[s.target.name] + self.scope.value(s.value)
            case AccumulateAt():
                self._accumulate_at(s)
            case Loop():
                self._loop(s)
            case Each():
                start, stop = self.scope.integer(s.start), self.scope.integer(s.stop)
                for position in range(start, stop):
                    self.scope.scalars[s.axis] = position
                    self.body(s.body)
                self.scope.scalars.pop(s.axis, None)
            case Store():
                self._write(s.tensor, s.index, s.value, None, add=False)
            case Scatter():
                self._write(s.tensor, s.index, s.value, s.condition, add=True)
            case AddTo():
                self._write(s.tensor, s.index, s.value, None, add=True)

    def _loop(self, s: Loop) -> None:
        start, stop = self.scope.integer(s.start), self.scope.integer(s.stop)
        for first in range(start, stop, self.owner.kernel.blocks[s.axis]):
            self.scope.ranges[s.axis] = self.owner.positions(s.axis, first, self.extents[s.axis])
            self.body(s.body)

    def _accumulate_at(self, s: AccumulateAt) -> None:
        scope = self.scope
        whole = scope.spread(scope.variables[s.target.name], s.target.axes)
        at = scope.dims.index(s.axis)
        part = scope.tensor(scope.value(s.value))
        full = list(torch.broadcast_shapes(whole.shape, part.shape))
        full[at] = self.extents[s.axis]
        whole = whole.expand(full).clone()
        whole.select(at, scope.scalars[s.axis]).add_(part.expand([*full[:at], 1, *full[at + 1 :]]).squeeze(at))
        scope.variables[s.target.name] = whole

    def _write(self, name: str, index: Sequence[Node], value: Node, condition: Node | None, *, add: bool) -> None:
        scope = self.scope
        tensor = scope.tensors[name]
        nodes = [*index, value, *([condition] if condition is not None else [])]
        axes = frozenset(self._lanes(nodes))
        values, *subscripts = scope.place(index, scope.value(value), axes, tensor)
        keep = self._inside(axes, values.shape)
        if condition is not None:
            holds = scope.tensor(scope.value(condition)).expand(values.shape)
            keep = holds if keep is None else keep & holds
        if keep is not None:
            values, subscripts = values[keep], [x[keep] for x in subscripts]
        tensor.index_put_(tuple(subscripts), values, accumulate=add)

    def _lanes(self, nodes: Sequence[Node]) -> Iterator[str]:
        """Tile dimensions these expressions vary over."""
        yield from (a for a in free_axes(nodes) if self.scope.varies(a))
        for node in postorder(nodes):
            if not isinstance(node, Var):
                continue
            held = self.scope.variables.get(node.name)
            if isinstance(held, Tensor) and held.dim():
                yield from (a for a, n in zip(self.scope.dims, held.shape, strict=True) if n > 1)

    def _inside(self, axes: frozenset[str], shape: Sequence[int]) -> Tensor | None:
        """Lanes inside their extents; None where all are."""
        if not self.owner.padded:
            return None
        keep: Tensor | None = None
        for a in axes & {self.owner.kernel.outer or "", *self.owner.kernel.blocks}:
            if self.scope.ranges[a].stop > self.extents[a]:
                good = self.scope.tensor(self.scope.positions(a)) < self.extents[a]
                keep = good if keep is None else keep & good
        return None if keep is None else keep.expand(shape)


def _axes_of_bounds(kernel: Kernel) -> frozenset[str]:
    """Grid axes that a loop bound depends on, also through variables."""
    depends: dict[str, frozenset[str]] = {}

    def axes(node: Node) -> frozenset[str]:
        found = frozenset(n.name for n in postorder([node]) if isinstance(n, Axis) and n.name in kernel.grid)
        return found.union(*(depends.get(n.name, frozenset()) for n in postorder([node]) if isinstance(n, Var)))

    bounds: frozenset[str] = frozenset()
    for s in statements(kernel.body):
        match s:
            case Assign() | Accumulate() | AccumulateAt():
                depends[s.target.name] = depends.get(s.target.name, frozenset()) | axes(s.value)
            case Loop() | Each():
                bounds |= axes(s.start) | axes(s.stop)
            case _:
                pass
    return bounds
