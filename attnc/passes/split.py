"""Few rows: the loop of a pass in parts that run side by side, and a pass that merges what they found.

A pass with few positions along its outer axis fills a processor with too few programs, each with a long loop. Its loop
is shared out over a new batch axis of the grid. Every part stores its accumulators as they stand at the end of the
loop, and the merge makes of them what one loop over everything would have made: maxima of maxima, positions of the part
that attains them first, and sums that follow a maximum by the factor by which they follow it from block to block
(`Planes.rescale`). So whatever the scheduler puts into one loop can be split, with any normaliser.

How many parts there are is a size: a launch chooses it by lengths, and another choice compiles nothing.
Source: Dao, Haziza, Massa and Sizov (2023), "Flash-Decoding for long-context inference", for softmax.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from attnc.ir.construct import add, axis, call, const, mul, position_of, size, sub
from attnc.ir.node import Axis, Call, Max, Node, Size, Sum
from attnc.ir.program import AxisInfo
from attnc.ir.walk import postorder
from attnc.ir.walk import replace as replace_nodes
from attnc.passes.bounds import Range, first, inner_range, last
from attnc.passes.coverage import common_conditions
from attnc.passes.decision import Decision
from attnc.passes.plan import Buffer, Pass, Plan

PARTS = "PARTS"
"""The size that says how many parts there are."""
ROWS = 16
"""Positions of the outer axis up to which a pass is split: the least that a matrix product takes on a GPU."""

Form = Literal["block", "single", "narrow", "packed"]
"""How parts hold rows: a block of them as the pass itself does; one per program, whose lanes are then channels and
positions of the inner axis; a block of them of which printers know that they are few (`Kernel.narrow`); or such a block
of the rows of all query heads that share a key head (`Packing`)."""


@dataclass(frozen=True, slots=True)
class Split:
    """Two passes that together do what one does.

    Attributes:
        plan: the plan with what these passes need besides: the axis of the parts, and a buffer per accumulator.
        partial: stores the accumulators of every part.
        merge: merges them, and stores what the pass stores.
        part: the axis of the parts.
        buffers: names of the accumulators' buffers, in the order of the pass's reductions.
        places: where an accumulator lies in its buffer along axes that the pass itself does not have.
        narrow: whether the parts hold few rows to a block.
    """

    plan: Plan
    partial: Pass
    merge: Pass
    part: str
    buffers: tuple[str, ...]
    places: Mapping[str, Node]
    narrow: bool = False


@dataclass(frozen=True, slots=True)
class Packing:
    """The query heads that share a key head, as rows of one block: the keys are then read once for all of them.

    Attributes:
        head: the batch axis of query heads.
        key_head: the key head of a query head, ``h // (H // G)``.
        shared: how many query heads share a key head.
        key_heads: how many key heads there are.
    """

    head: str
    key_head: Node
    shared: Node
    key_heads: Node


def is_splittable(plan: Plan, item: Pass) -> bool:
    """Whether the loop of a pass may be cut into parts: it carries reductions alone, and stores nothing inside."""
    if not plan.program.options.applies("split") or item.outer is None or item.inner is None:
        return False
    if item.carries or item.chunks or item.groups or item.adds or not item.reductions:
        return False
    if any(item.inner in axes for _, axes, _ in item.stores):
        return False
    return all(isinstance(r, Max) or (isinstance(r, Sum) and not r.scatter) for r in item.reductions)


def packing(plan: Plan, item: Pass) -> Packing | None:
    """How the query heads of a pass may be packed; None where it reads nothing that they share, or where what a loop
    visits differs between them."""
    found: set[Packing] = set()
    for n in postorder([*item.reductions, *(x for _, _, x in item.stores)]):
        match n:
            case Call(fn="floordiv", args=(Axis() as h, Call(fn="floordiv", args=(Size(), Size() as g)) as shared)):
                found |= {Packing(h.name, n, shared, g)} if h.name in item.grid else set()
            case _:
                pass
    if len(found) != 1:
        return None
    (one,) = found
    visited = _range(plan, item, one, "")
    return None if any(one.head in x.axes for x in _ends(visited)) else one


def _ends(visited: Range) -> list[Node]:
    return [x for x in (visited.low, visited.high, visited.full_low, visited.full_high) if x is not None]


def _range(plan: Plan, item: Pass, packing: Packing, group: str) -> Range:
    """What a block visits that holds all rows of a key head."""
    program = plan.program
    assert item.inner is not None and item.outer is not None
    extent = program.extent(item.inner)
    if not program.options.applies("bounds"):
        return Range(const(0), extent, None, None)
    conditions = common_conditions(program, item.reductions, frozenset())
    found = inner_range(conditions, item.outer, item.inner, extent)
    whole: dict[Node, Node] = {
        first(item.outer): const(0),
        last(item.outer): sub(program.extent(item.outer), const(1)),
        packing.key_head: axis(group),
    }
    low, high = replace_nodes([found.low, found.high], whole)
    full_low, full_high = (
        None if x is None else replace_nodes([x], whole)[0] for x in (found.full_low, found.full_high)
    )
    return Range(low, high, full_low, full_high)


def split(plan: Plan, item: Pass, form: Form = "block") -> Split:
    """The two passes for a pass that `is_splittable`; ``packed`` is for those that have a `packing`."""
    program = plan.program
    outer, inner = item.outer, item.inner
    assert outer is not None and inner is not None
    taken = {*program.axes, *(t.name for t in program.tensors), *(b.name for b in plan.buffers)}
    part = _fresh(f"{inner}_part", taken)
    axes = {**program.axes, part: AxisInfo(part, size(PARTS), "batch")}
    loop, places = item, dict[str, Node]()
    if form == "packed":
        loop, places = _packed(plan, item, axes, taken)
    buffers = []
    for k, r in enumerate(loop.reductions):
        rows = loop.outer or outer
        kept = (*loop.grid, part, rows, *sorted(a for a in r.axes if axes[a].role == "channel"))
        dims = tuple(axes[a].extent for a in kept)
        buffers.append(Buffer(_fresh(f"{inner}_parts{k}", taken), kept, dims, "real", "scratch"))
    partial = replace(
        loop,
        name=f"{item.name}_{'' if form == 'block' else f'{form}_'}parts",
        grid=(*loop.grid, outer, part) if form == "single" else (*loop.grid, part),
        outer=None if form == "single" else loop.outer,
        stores=tuple((b.name, b.axes, r) for b, r in zip(buffers, loop.reductions, strict=True)),
        part=part,
    )
    merge = replace(item, name=f"{item.name}_merge", reads=(*item.reads, *(b.name for b in buffers)))
    whole = replace(plan, program=replace(program, axes=axes), buffers=(*plan.buffers, *buffers))
    names = tuple(b.name for b in buffers)
    return Split(whole, partial, merge, part, names, places, narrow=form in ("narrow", "packed"))


def _packed(plan: Plan, item: Pass, axes: dict[str, AxisInfo], taken: set[str]) -> tuple[Pass, dict[str, Node]]:
    """The pass over key heads and rows of all their query heads; where it keeps what the pass has at a head and row."""
    found = packing(plan, item)
    assert found is not None and item.outer is not None
    count = plan.program.extent(item.outer)
    group, rows = _fresh(f"{found.head}_group", taken), _fresh(f"{item.outer}_row", taken)
    axes[group] = AxisInfo(group, found.key_heads, "batch")
    axes[rows] = AxisInfo(rows, mul(found.shared, count), "sequence")
    nodes = replace_nodes(item.reductions, {found.key_head: axis(group)}, canonical=False)
    head = add(mul(axis(group), found.shared), call("floordiv", axis(rows), count))
    unpacked: dict[Node, Node] = {axis(found.head): head, axis(item.outer): call("mod", axis(rows), count)}
    nodes = replace_nodes(nodes, unpacked, canonical=False)
    packed = replace(
        item,
        grid=tuple(group if a == found.head else a for a in item.grid),
        outer=rows,
        reductions=tuple(nodes),
        range=_range(plan, item, found, group),
    )
    place = add(mul(call("mod", axis(found.head), found.shared), count), axis(item.outer))
    return packed, {group: found.key_head, rows: place}


def _fresh(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def decisions(plan: Plan) -> tuple[Decision, ...]:
    """That passes of a plan are split where they have few rows: one decision."""
    loops = [p for p in plan.passes if is_splittable(plan, p)]
    if not loops:
        return ()
    names = ", ".join(dict.fromkeys(s for p in loops for s, _, _ in p.stores))
    kinds = ", ".join(dict.fromkeys(_kind(r) for p in loops for r in p.reductions))
    found = f"{names} come of loops that keep {kinds}, which can be merged"
    return (Decision("split", found, f"calls with at most {ROWS} rows share a loop out where processors are idle"),)


def _kind(r: Node) -> str:
    if isinstance(r, Max):
        return "maxima" if position_of(r) is None else "positions"
    return "sums"
