"""Predicted memory traffic and floating-point operations of plans, as integer expressions over sizes.

The model is that of a kernel that runs once per block of its outer axis and keeps nothing between blocks:

* A value is computed once where it lives: with both axes of a plane per visited pair, with the outer axis alone per
  row, with the inner axis alone per inner position *and block of the outer axis*, with neither per block.
* A real sum or product of n values is n - 1 operations, a pointwise function of reals one, a term of a reduction one
  for each factor but the first and one for adding it. Selections, comparisons and integers are not counted. Values with
  fewer axes are combined first, where they cost less, as the tile program does.
* An accumulator that follows a running maximum is rescaled once per block of the inner axis.
* An element is read once where its value lives, so that tiles of the inner axis are read again for every block of the
  outer axis; a table that every pair reads at its own place is read at most whole per block. Buffers are written once.
* A pass visits the pairs that the mask leaves where the loop's range is a closed form over sizes: its length is
  sampled at `SAMPLES` evenly spaced rows. Otherwise it visits all pairs.
* What a pass adds to memory (`Pass.adds`) is read and written once per block of the outer axis.

Caches are not modelled: the bytes are what the blocks ask for. This is the counting of Dao et al. (2022,
arXiv:2205.14135, section 3.2) with the block length in place of the size of the on-chip memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import gcd

from attnc.ir.construct import ONE, add, call, const, mul, neg, sub
from attnc.ir.construct import axis as axis_node
from attnc.ir.node import NO_AXES, Add, Axes, Axis, Call, Const, Iverson, Load, Max, Node, Prod, Sum
from attnc.ir.program import Program
from attnc.ir.walk import postorder, replace
from attnc.passes.associate import is_group_condition
from attnc.passes.bounds import first, inner_range, last
from attnc.passes.coverage import has_channels
from attnc.passes.plan import Finish, Pass, Plan, expressions
from attnc.passes.planes import Planes

BLOCK = 64
"""Block length of the outer and the inner axis."""

SAMPLES = 16
"""Positions of the outer axis at which the length of a masked loop is taken."""

WIDTHS = {"f64": 8, "f32": 4, "f16": 2, "bf16": 2, "i64": 8, "i32": 4, "i16": 2, "i8": 1, "u8": 1, "bool": 1, "real": 4}
"""Bytes of an element; a tensor of the query's dtype takes what the caller says."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Memory traffic in bytes and floating-point operations of one call, integer expressions over sizes."""

    bytes: Node
    flops: Node

    def __add__(self, other: Cost) -> Cost:
        return Cost(add(self.bytes, other.bytes), add(self.flops, other.flops))


FREE = Cost(const(0), const(0))


def plan_cost(plan: Plan, *, width: int = 4, block: int = BLOCK, percent: int = 100) -> Cost:
    """The cost of one call of a plan, for queries of `width` bytes a number, whose loops visit `percent` of the pairs
    that their ranges leave."""
    total = FREE
    for step in plan.steps:
        total += step_cost(plan, step, width=width, block=block, percent=percent)
    return total


def step_cost(plan: Plan, step: Pass | Finish, *, width: int = 4, block: int = BLOCK, percent: int = 100) -> Cost:
    """The cost of one step of a plan."""
    counter = _Pass(plan, step, block, percent) if isinstance(step, Pass) else _Tensors(plan.program)
    roots = expressions(step)
    flops = _flops(roots, counter.points)
    if isinstance(counter, _Pass):
        flops = add(flops, counter.rescaling())
    sizes = _Bytes(plan, width)
    moved = [mul(counter.reads(n), const(sizes.of(n.tensor))) for n in postorder(roots) if isinstance(n, Load)]
    for name, _, node in step.adds if isinstance(step, Pass) else ():
        moved.append(mul(counter.points(node.axes), const(2 * sizes.of(name))))
    for name, node in _stores(step):
        moved.append(mul(*plan.buffer(name).dims, const(sizes.of(name))))
        if isinstance(node, Sum) and node.scatter:
            moved.append(mul(counter.scattered(node, plan.buffer(name).dims), const(2 * sizes.of(name))))
    return Cost(add(const(0), *moved), flops)


def _stores(step: Pass | Finish) -> list[tuple[str, Node]]:
    if isinstance(step, Finish):
        return [(step.buffer, step.parts[0][1])]
    return [(name, node) for name, _, node in step.stores]


class _Bytes:
    """Bytes of an element of any tensor or buffer of a plan."""

    def __init__(self, plan: Plan, width: int) -> None:
        self.dtypes = {t.name: t.dtype for t in plan.program.tensors} | {b.name: b.dtype for b in plan.buffers}
        self.widths = WIDTHS | {"q": width, "real": max(4, width)}

    def of(self, name: str) -> int:
        return self.widths[self.dtypes[name]]


# -------------------------------------------------------------------------------------------------- operations

Points = Callable[[Axes], Node]
"""How often a value with these axes is computed, every element counted."""


def _flops(roots: Iterable[Node], points: Points) -> Node:
    return add(const(0), *(_node_flops(n, points) for n in postorder(roots)))


def _node_flops(node: Node, points: Points) -> Node:
    if node.kind != "f":
        return const(0)
    match node:
        case Call() if node.fn != "where":
            return points(node.axes)
        case Add() | Prod():
            groups = _by_axes(node.children)
            inner = [mul(const(len(g) - 1), points(a)) for a, g in groups.items()]
            return add(*inner, mul(const(len(groups) - 1), points(node.axes)))
        case Sum():
            return _sum_flops(node, points)
        case Max():
            return points(node.body.axes | node.bound)
        case _:
            return const(0)


def _sum_flops(node: Sum, points: Points) -> Node:
    """Factors are multiplied with others of the same axes, then into a factor that has all of theirs; what is left is
    multiplied at every term."""
    groups = _by_axes(node.factors)
    total = [mul(const(len(g) - 1), points(a)) for a, g in groups.items()]
    left = sorted(groups, key=len)
    operands = []
    for k, axes in enumerate(left):
        host = next((a for a in left[k + 1 :] if axes < a), None)
        if host is None:
            operands.append(axes)
        else:
            total.append(points(host))
    terms = node.bound.union(*(f.axes for f in node.factors))
    return add(*total, mul(const(len(operands)), points(terms)))


def _by_axes(nodes: Sequence[Node]) -> dict[Axes, list[Node]]:
    """Reals grouped by their axes; constants go with the group of fewest axes, signs and brackets cost nothing."""
    groups: dict[Axes, list[Node]] = {}
    constants = [n for n in nodes if isinstance(n, Const) and n.value not in (1, -1)]
    for n in nodes:
        if not isinstance(n, Const | Iverson):
            groups.setdefault(n.axes, []).append(n)
    if constants:
        smallest = min(groups, key=len, default=NO_AXES)
        groups.setdefault(smallest, []).extend(constants)
    return groups or {NO_AXES: [ONE]}


# ------------------------------------------------------------------------------------------------------- places


class _Tensors:
    """Counts of a step done by tensor operations: every value once."""

    def __init__(self, program: Program) -> None:
        self.program = program

    def points(self, axes: Axes) -> Node:
        return mul(const(1), *(self.program.extent(a) for a in sorted(axes)))

    def reads(self, node: Load) -> Node:
        return self.points(node.axes)

    def scattered(self, node: Sum, dims: Sequence[Node]) -> Node:
        return self.points(node.bound.union(*(f.axes for f in node.factors)))


class _Pass:
    """Counts of one kernel."""

    def __init__(self, plan: Plan, item: Pass, block: int, percent: int) -> None:
        self.program, self.item, self.block = plan.program, item, const(block)
        self.planes = Planes(plan.program)
        # What shares out the blocks of a pass that adds to memory makes them no more.
        self.grid = mul(const(1), *(self.program.extent(a) for a in (item.grid[:-1] if item.adds else item.grid)))
        self.blocks = const(1) if item.outer is None else self._blocks_of(self.program.extent(item.outer))
        self.rows = const(1) if item.outer is None else self.program.extent(item.outer)
        found = visited(plan, item)
        self.visits = Visits(found.lengths, percent) if found is not None and item.outer is not None else found
        self._points: dict[Axes, Node] = {}

    def _blocks_of(self, length: Node) -> Node:
        """Blocks in a length, the last one perhaps partial."""
        return neg(call("floordiv", neg(length), self.block))

    def points(self, axes: Axes) -> Node:
        if axes not in self._points:
            self._points[axes] = self._count(axes)
        return self._points[axes]

    def _count(self, axes: Axes) -> Node:
        item = self.item
        inside = item.inner is not None and item.inner in axes
        groups = [sub(stop, start) for a, start, stop in item.groups if inside or a in axes]
        rows = self.rows if item.outer in axes else self.blocks
        fixed = {item.outer, item.inner, *item.grid, *(a for a, _, _ in item.groups)}
        channels = [self.program.extent(a) for a in sorted(axes) if a not in fixed]
        times = mul(self.grid, rows, *groups, *channels)
        return times if self.visits is None or not inside else self.visits.of(times)

    def reads(self, node: Load) -> Node:
        count = self.points(node.axes)
        if self.item.inner is None or not {self.item.outer, self.item.inner} <= node.axes:
            return count
        if all(isinstance(x, Axis) or not x.axes & {self.item.outer, self.item.inner} for x in node.index):
            return count
        return call("minimum", count, self._whole(node.index, self._dims(node.tensor)))

    def scattered(self, node: Sum, dims: Sequence[Node]) -> Node:
        count = self.points(node.bound.union(*(f.axes for f in node.factors)))
        found: dict[str, Node] = dict(node.scatter)
        axes = next(axes for _, axes, stored in self.item.stores if stored is node)
        return call("minimum", count, self._whole([found.get(a, axis_node(a)) for a in axes], dims))

    def _dims(self, tensor: str) -> Sequence[Node]:
        return self.program.tensor(tensor).dims

    def _whole(self, index: Sequence[Node], dims: Sequence[Node]) -> Node:
        """What of a tensor all blocks together can read if each reads all it can reach."""
        reached = [d for x, d in zip(index, dims, strict=True) if not x.axes <= set(self.item.grid)]
        return mul(self.grid, self.blocks, *reached)

    def rescaling(self) -> Node:
        """What accumulators that follow a running maximum cost: a factor per row, and its product with each number."""
        leaders = [r for r in self.item.reductions if isinstance(r, Max)]
        total: list[Node] = []
        changes: set[Node] = set()
        for r in self.item.reductions:
            if not isinstance(r, Sum):
                continue
            moving = [c for c in (self.planes.rescale(r, m) for m in leaders) if c is not None]
            if moving:
                total.append(self._per_block(r.axes))
                changes.update(moving)
        total += [mul(const(2), self._per_block(c.axes)) for c in changes]
        return add(const(0), *total)

    def _per_block(self, axes: Axes) -> Node:
        """Points of a row value that is computed again for every block of the inner axis."""
        assert self.item.inner is not None
        return call("floordiv", add(self.points(axes | {self.item.inner}), sub(self.block, const(1))), self.block)


@dataclass(frozen=True, slots=True)
class Visits:
    """Inner positions that a loop visits: `percent` of `lengths` at evenly spaced positions of the outer axis."""

    lengths: tuple[Node, ...]
    percent: int = 100

    def of(self, rows: Node) -> Node:
        """Pairs visited by `rows` rows."""
        parts = 100 // gcd(self.percent, 100)
        share = self.percent // gcd(self.percent, 100)
        return call("floordiv", mul(rows, const(share), add(*self.lengths)), const(parts * len(self.lengths)))


def visited(plan: Plan, item: Pass) -> Visits | None:
    """What the mask leaves of a pass's loop; None for a vector pass."""
    if item.inner is None:
        return None
    program = plan.program
    extent = program.extent(item.inner)
    everything = Visits((extent,))
    common = common_conditions(plan, item)
    if common is None or item.outer is None:
        return everything
    found = inner_range(common, item.outer, item.inner, extent)
    length = call("maximum", sub(found.high, found.low), const(0))
    if length is extent or any(isinstance(n, Load) for n in postorder([length])):
        return everything
    rows = program.extent(item.outer)
    middle: dict[Node, Node] = {axis_node(a): call("floordiv", program.extent(a), const(2)) for a in length.axes}
    lengths = []
    for k in range(SAMPLES):
        row = call("floordiv", mul(const(2 * k + 1), rows), const(2 * SAMPLES))
        lengths += replace([length], middle | {first(item.outer): row, last(item.outer): row})
    return Visits(tuple(lengths))


def common_conditions(plan: Plan, item: Pass) -> list[Node] | None:
    """The conditions under which a pass's loop may skip pairs; None if it must see all of them."""
    plane_stores = any({item.outer, item.inner} <= set(axes) for _, axes, _ in item.stores)
    if item.inner is None or plane_stores or not plan.program.options.applies("bounds"):
        return None
    domains = [set(r.domain) for r in item.sums if isinstance(r, Sum | Max)]
    looped = frozenset(a for a, _, _ in item.groups)
    common = set.intersection(*domains) if domains else set[Node]()
    kept = (c for c in common if not is_group_condition(c, looped) and not has_channels(plan.program, c))
    return sorted(kept, key=lambda n: n.order)
