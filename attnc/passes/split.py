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

from dataclasses import dataclass, replace
from typing import Literal

from attnc.ir.node import Max, Node, Sum, position_of, size
from attnc.ir.program import AxisInfo
from attnc.passes.decision import Decision
from attnc.passes.plan import Buffer, Pass, Plan

PARTS = "PARTS"
"""The size that says how many parts there are."""
ROWS = 16
"""Positions of the outer axis up to which a pass is split: the least that a matrix product takes on a GPU."""

Form = Literal["block", "single"]
"""How parts hold rows: a block of them as the pass itself does, or one per program, whose lanes are then channels and
positions of the inner axis."""


@dataclass(frozen=True, slots=True)
class Split:
    """Two passes that together do what one does.

    Attributes:
        plan: the plan with what these passes need besides: the axis of the parts, and a buffer per accumulator.
        partial: stores the accumulators of every part.
        merge: merges them, and stores what the pass stores.
        part: the axis of the parts.
        buffers: names of the accumulators' buffers, in the order of the pass's reductions.
    """

    plan: Plan
    partial: Pass
    merge: Pass
    part: str
    buffers: tuple[str, ...]


def is_splittable(plan: Plan, item: Pass) -> bool:
    """Whether the loop of a pass may be cut into parts: it carries reductions alone, and stores nothing inside."""
    if not plan.program.options.applies("split") or item.outer is None or item.inner is None:
        return False
    if item.carries or item.chunks or item.groups or not item.reductions:
        return False
    if any(item.inner in axes for _, axes, _ in item.stores):
        return False
    return all(isinstance(r, Max) or (isinstance(r, Sum) and not r.scatter) for r in item.reductions)


def split(plan: Plan, item: Pass, form: Form = "block") -> Split:
    """The two passes for a pass that `is_splittable`."""
    program = plan.program
    outer, inner = item.outer, item.inner
    assert outer is not None and inner is not None
    taken = {*program.axes, *(t.name for t in program.tensors), *(b.name for b in plan.buffers)}
    part = _fresh(f"{inner}_part", taken)
    axes = {**program.axes, part: AxisInfo(part, size(PARTS), "batch")}
    buffers = []
    for k, r in enumerate(item.reductions):
        kept = (*item.grid, part, outer, *sorted(a for a in r.axes if program.axis(a).role == "channel"))
        dims = tuple(axes[a].extent for a in kept)
        buffers.append(Buffer(_fresh(f"{inner}_parts{k}", taken), kept, dims, "real", "scratch"))
    partial = replace(
        item,
        name=f"{item.name}_parts" if form == "block" else f"{item.name}_row_parts",
        grid=(*item.grid, part) if form == "block" else (*item.grid, outer, part),
        outer=outer if form == "block" else None,
        stores=tuple((b.name, b.axes, r) for b, r in zip(buffers, item.reductions, strict=True)),
        part=part,
    )
    merge = replace(item, name=f"{item.name}_merge", reads=(*item.reads, *(b.name for b in buffers)))
    whole = replace(plan, program=replace(program, axes=axes), buffers=(*plan.buffers, *buffers))
    return Split(whole, partial, merge, part, tuple(b.name for b in buffers))


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
