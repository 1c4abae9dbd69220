"""How the loop of a pass keeps to its mask: by bounds evaluated in the kernel, by a table of runs, or not at all.

Bounds are taken where they visit exactly the blocks with an allowed pair (`attnc.passes.bounds`), and so are lists of
ranges in closed form (`attnc.passes.block_list`): they cost nothing and hold for every length. Any other mask that can
be analysed over a tile gets a table, planned when the kernel is launched (`attnc.runtime.planner`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from attnc.ir.construct import axis, call, const, sub
from attnc.ir.node import Add, Axis, Call, Const, Iverson, Load, Max, Node, Prod, Size, Sum
from attnc.ir.printer import show
from attnc.ir.program import Program
from attnc.ir.walk import postorder
from attnc.passes.associate import is_group_condition
from attnc.passes.block_list import BlockList, closed_form
from attnc.passes.bounds import Range, inner_range
from attnc.passes.decision import Decision
from attnc.passes.interval_walk import has_rule
from attnc.passes.plan import Pass, Plan

_PLANNED = (Const, Size, Axis, Load, Call, Add, Prod, Iverson)


@dataclass(frozen=True, slots=True)
class Coverage:
    """The mask of a pass and how its loop follows it.

    Attributes:
        conditions: what all reductions of the pass are restricted to.
        bounds: the range they leave, without them if nothing may be skipped.
        ranges: several ranges inside it, if those are known in closed form.
        runs: the condition a table is planned for; None where there is no table.
        batch: the batch axes it mentions, the table's leading dimensions.
        whole: whether `runs` is all of `conditions`; if not, no block is known to be full.
    """

    conditions: tuple[Node, ...]
    bounds: Range
    runs: Node | None
    batch: tuple[str, ...] = ()
    whole: bool = True
    ranges: BlockList | None = None


def coverage(program: Program, item: Pass) -> Coverage:
    """How the loop of a pass over a plane follows the mask."""
    assert item.inner is not None
    groups = frozenset(a for a, _, _ in item.groups)
    conditions = common_conditions(program, item.sums, groups)
    extent = program.extent(item.inner)
    everything = Range(const(0), extent, None, None)
    if any({item.outer, item.inner} <= set(axes) for _, axes, _ in item.stores):
        return Coverage(conditions, everything, None)
    if item.range is not None:
        return Coverage(conditions, item.range, None)
    options = program.options
    bounds = inner_range(conditions, item.outer, item.inner, extent) if options.applies("bounds") else everything
    if bounds.exact or item.outer is None:
        return Coverage(conditions, bounds, None)
    closed = closed_form(conditions, item.outer, item.inner, extent) if options.applies("bounds") else None
    if isinstance(closed, Range):
        return Coverage(conditions, closed, None)
    if closed is not None:
        return Coverage(conditions, bounds, None, ranges=closed)
    if not options.applies("runs"):
        return Coverage(conditions, bounds, None)
    batch = (*item.grid, *groups)
    axes = frozenset({item.outer, item.inner, *batch})
    planned = [c for c in conditions if _is_planned(program, c, axes)]
    if not planned:
        return Coverage(conditions, bounds, None)
    condition = call("and", *planned)
    mentioned = tuple(a for a in batch if a in condition.axes)
    return Coverage(conditions, bounds, condition, mentioned, len(planned) == len(conditions))


def common_conditions(program: Program, reductions: Iterable[Node], groups: frozenset[str]) -> tuple[Node, ...]:
    """The conditions that restrict every reduction of a pass, except those that say which heads form a group, and those
    that differ from channel to channel."""
    domains = [set(r.domain) for r in reductions if isinstance(r, Sum | Max)]
    common = set.intersection(*domains) if domains else set()
    kept = (c for c in common if not is_group_condition(c, groups) and not has_channels(program, c))
    return tuple(sorted(kept, key=lambda n: n.order))


def has_channels(program: Program, node: Node) -> bool:
    return any(program.axis(a).role == "channel" for a in node.axes)


def _is_planned(program: Program, condition: Node, axes: frozenset[str]) -> bool:
    """Whether intervals can tell a condition over tiles: it is made of indices, sizes and the caller's tensors, each
    read at positions of one axis, or pair by pair, by functions that have a rule."""
    operands = {t.name for t in program.tensors if t.role == "operand"}
    for n in postorder([condition]):
        match n:
            case Load() if n.tensor not in operands or (_on_plane(program, n) and not _pair_by_pair(n)):
                return False
            case Call() if not has_rule(n):
                return False
            case _ if not isinstance(n, _PLANNED):
                return False
            case _:
                pass
    return condition.axes <= axes


def _on_plane(program: Program, node: Node) -> bool:
    """Whether a value depends on two positions."""
    return sum(program.axis(a).role != "batch" for a in node.axes) > 1


def _pair_by_pair(node: Load) -> bool:
    """Whether each subscript is an axis of its own, plus what no axis moves: reading every value once tells the
    extremes over tiles."""
    axes = [next(iter(x.axes), "") for x in node.index]
    fixed = (sub(x, axis(a)) for x, a in zip(node.index, axes, strict=True) if a)
    return all(axes) and len(set(axes)) == len(axes) and not any(x.axes for x in fixed)


# ------------------------------------------------------------------------------------------------------ for people


def decisions(plan: Plan) -> tuple[Decision, ...]:
    """How the passes of a masked plan follow the mask: one decision."""
    program = plan.program
    found = [c for c in (coverage(program, p) for p in plan.passes) if c.conditions]
    if not found:
        return ()
    mask = " and ".join(dict.fromkeys(show(c, limit=80) for x in found for c in x.conditions))
    line = program.lines.get("mask")
    if any(c.runs is not None for c in found):
        return (Decision("runs", f"no loop bounds fit the mask {mask}", RUNS, line=line),)
    if any(c.ranges is not None for c in found):
        return (Decision("bounds", f"the mask {mask} leaves ranges of blocks in closed form", RANGES, line=line),)
    if any(c.bounds.exact for c in found):
        return (Decision("bounds", f"the mask {mask} leaves one range of blocks", BOUNDS, line=line),)
    return (Decision("bounds", f"the mask {mask} is not analysed", "every block in the loop evaluates it", line=line),)


RUNS = "a table of runs of blocks, planned at launch from the mask's boundary; full runs do not evaluate it"
RANGES = "a loop over these ranges, computed in the kernel; each begins where the last one ended"
BOUNDS = "loop bounds in closed form, evaluated in the kernel; full blocks do not evaluate it"


def described(program: Program, item: Pass) -> Sequence[str]:
    """The loop of a pass, for listings of a plan."""
    if item.inner is None:
        return []
    c = coverage(program, item)
    lines = []
    if c.runs is not None:
        over = f" per {', '.join(c.batch)}" if c.batch else ""
        lines.append(f"blocks of {item.inner}: runs from a table{over}, planned for {show(c.runs)}")
    if c.ranges is not None:
        lines.append(f"blocks of {item.inner}: ranges in closed form, {show(c.ranges.count, limit=80)} turns over them")
    elif c.bounds.exact and c.conditions:
        lines.append(f"blocks of {item.inner}: one range in closed form")
    if c.conditions:
        lines.append(f"{item.inner} in {show(c.bounds.low)} .. {show(c.bounds.high)}")
    if c.runs is None and c.bounds.full_low is not None and c.bounds.full_high is not None and c.conditions:
        lines.append(f"all allowed: {item.inner} in {show(c.bounds.full_low)} .. {show(c.bounds.full_high)}")
    return lines
