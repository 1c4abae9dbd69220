"""Every rewrite weighed: the plans of a program with it and without it, and what each would move and compute.

This plans a program once more per rewrite, so it is done for explanations only. Passes that choose between ways of
their own record their decisions themselves, in `Plan.decisions`; those are left to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from attnc.ir.construct import coefficient, const, mul
from attnc.ir.node import Add, Call, Max, Node, Prod, Sum
from attnc.ir.options import REWRITES
from attnc.ir.printer import show
from attnc.ir.program import Program
from attnc.ir.walk import postorder
from attnc.passes import tables, toeplitz
from attnc.passes.bounds import inner_range
from attnc.passes.cost import Cost, common_conditions, plan_cost
from attnc.passes.decision import Alternative, Decision
from attnc.passes.plan import Pass, Plan
from attnc.passes.planes import Planes

Plans = tuple[Plan, Plan]
"""Of a program and of its gradient."""


def weighed(program: Program, chosen: Plans, plans: Callable[[Program], Plans]) -> tuple[Decision, ...]:
    """A decision for every rewrite that changes the plans of a program, or that was turned off and would.

    One that a pass recorded without costs is replaced by one of these.

    Args:
        program: the program, whose options say what is turned off.
        chosen: its plans, with all decisions on them.
        plans: makes the plans of a program and of its gradient.
    """
    costed = {d.rewrite for plan in chosen for d in plan.decisions if d.alternatives}
    found = (_weigh(name, program, plans, chosen) for name in REWRITES if name not in costed)
    return tuple(d for d in found if d is not None)


def _weigh(name: str, program: Program, plans: Callable[[Program], Plans], chosen: Plans) -> Decision | None:
    disabled = program.options.disabled
    applied = name not in disabled
    other = plans(replace(program, options=replace(program.options, disabled=disabled ^ {name})))
    on, off = (chosen, other) if applied else (other, chosen)
    seen: Found | None = None
    if name in _BEFORE and _differ(on, off):
        seen = _BEFORE[name](program)
    elif name in _INSIDE_KERNELS or _differ(on, off):
        seen = _FOUND.get(name, _anything)(on, off)
    if seen is None:
        return None
    found, gain, line = seen
    ways = [_alternative(f"with {name}", on), _alternative(f"without {name}", off)]
    if name == "runs":
        # How many blocks a table has is known at a call.
        ways[0] = _alternative("with runs, of a table that leaves 1 % of the pairs", on, percent=1)
    said = gain if applied else "nothing, as asked: this rewrite is disabled"
    return Decision(name, found, said, tuple(ways if applied else ways[::-1]), line)


def _differ(on: Plans, off: Plans) -> bool:
    return any(a.steps != b.steps or plan_cost(a) != plan_cost(b) for a, b in zip(on, off, strict=True))


def _alternative(name: str, plans: Plans, *, percent: int = 100) -> Alternative:
    cost: Cost = plan_cost(plans[0], percent=percent) + plan_cost(plans[1], percent=percent)
    return Alternative(name, cost.bytes, cost.flops)


# ------------------------------------------------------------------------------------------------ what was found

Found = tuple[str, str, int | None]
"""What was recognised, what is done about it, and the line of the spec."""


def _anything(on: Plans, off: Plans) -> Found:
    return "the plans differ with it", _passes(on, off), None


def _passes(on: Plans, off: Plans) -> str:
    """How many passes over planes there are, forward and backward."""

    def count(plans: Plans) -> str:
        return " + ".join(str(len(p.passes)) for p in plans)

    if count(on) == count(off):
        return f"{count(on)} passes, forward and backward, as without it"
    return f"{count(on)} passes, forward and backward, instead of {count(off)}"


def _online(on: Plans, off: Plans) -> Found:
    following: dict[str, None] = {}
    for plan in on:
        planes = Planes(plan.program)
        for item in plan.passes:
            leaders = [r for r in item.reductions if isinstance(r, Max)]
            for r in item.reductions:
                if isinstance(r, Sum) and any(planes.rescale(r, m) is not None for m in leaders):
                    following[_called(r, item, planes)] = None
    axes = sorted({str(item.inner) for plan in on for item in plan.passes if _leads(item)})
    found = f"{_list(following)} can follow the running maximum over {_list(axes)}"
    return found, f"one loop for all of them; {_passes(on, off)}", on[0].program.lines.get("normaliser")


def _leads(item: Pass) -> bool:
    return any(isinstance(r, Max) for r in item.reductions)


def _called(reduction: Sum, item: Pass, planes: Planes) -> str:
    """What people call a reduction: the output it becomes, or what its place in the formula says."""
    note = planes.program.notes.get(reduction)
    if note is not None:
        return note.name
    if not planes.channels(reduction.axes):
        reads = {x for _, _, node in item.stores for x in postorder([node])}
        divided = any(getattr(x, "fn", "") == "reciprocal_or_zero" and reduction in postorder([x]) for x in reads)
        if divided:
            return "the denominator"
    for store, _, node in item.stores:
        if reduction in planes.direct(node) or node is reduction:
            return store
    return "a sum"


def _reuse(on: Plans, off: Plans) -> Found:
    saved = [t.name for t in on[1].program.tensors if t.role == "saved"]
    kept = [b for b in on[0].buffers if b.role == "saved"]
    extra = _list(f"{b.name}[{', '.join(show(d) for d in b.dims)}]" for b in kept)
    found = f"the gradient needs {_list(saved)}, which the forward computes"
    return found, f"{_list(saved)} read instead of recomputed, {extra} kept; {_passes(on, off)}", _line_of(on, saved)


def _line_of(on: Plans, names: Iterable[str]) -> int | None:
    lines = on[0].program.lines
    return next((lines[n] for n in (*names, "normaliser") if n in lines), None)


def _expand(on: Plans, off: Plans) -> Found:
    """The outputs whose expressions were multiplied out."""
    names: dict[str, None] = {}
    for a, b in zip(on, off, strict=True):
        before = {o.name: o.parts for o in b.program.outputs}
        names |= dict.fromkeys(o.of or o.name for o in a.program.outputs if o.parts != before.get(o.name))
    found = f"sums in {_list(names)} wait for other reductions only because they are not multiplied out"
    return found, f"their parts follow online; {_passes(on, off)}", _line_of(on, names)


def _group(on: Plans, off: Plans) -> Found:
    stores = [s for plan in on for item in plan.passes if item.groups for s, _, _ in item.stores]
    found = f"{_list(dict.fromkeys(stores))} sum over the query heads of a key head"
    return found, "their kernel loops over these heads, and keys and values are loaded once a group", None


def _bounds(on: Plans, off: Plans) -> Found | None:
    """The closed ranges of all loops."""
    ranges: dict[str, None] = {}
    for plan in on:
        for item in plan.passes:
            conditions = common_conditions(plan, item)
            if conditions is None or item.inner is None or item.outer is None:
                continue
            extent = plan.program.extent(item.inner)
            found = inner_range(conditions, item.outer, item.inner, extent)
            if found.low is not const(0) or found.high is not extent:
                low, high = readable(found.low), readable(found.high)
                ranges[f"{low} <= {item.inner} < {high} for a block of {item.outer}"] = None
    if not ranges:
        return None
    gain = "loops run over these blocks alone, and those inside the mask do not evaluate it"
    return f"the mask leaves {_list(ranges)}", gain, on[0].program.lines.get("mask")


def _runs(on: Plans, off: Plans) -> Found | None:
    """What `attnc.passes.coverage` recorded: loops that follow a table."""
    recorded = (d for plan in on for d in plan.decisions if d.rewrite == "runs")
    return next(((d.found, d.chosen, d.line) for d in recorded), None)


def readable(node: Node) -> str:
    """An integer expression as people write it: ``i_last - q_start + 1``, ``max(a, b)``."""
    k, rest = coefficient(node)
    match node:
        case Add():
            parts = sorted((readable(t) for t in node.terms), key=lambda t: (t.startswith("-"), t[:1].isdigit()))
            return " + ".join(parts).replace("+ -", "- ")
        case Call() if node.fn in ("maximum", "minimum"):
            listed = dict.fromkeys(readable(x) for x in _flat(node, node.fn))
            return next(iter(listed)) if len(listed) == 1 else f"{node.fn[:3]}({', '.join(listed)})"
        case Call() if node.fn == "floordiv":
            return " // ".join(_bracketed(x) for x in node.args)
        case Prod() if k == -1:
            return f"-{_bracketed(mul(*rest))}"
        case Prod():
            return " * ".join(_bracketed(f) for f in node.factors)
        case _:
            return show(node)


def _flat(node: Node, fn: str) -> Iterator[Node]:
    if isinstance(node, Call) and node.fn == fn:
        for x in node.args:
            yield from _flat(x, fn)
    else:
        yield node


def _bracketed(node: Node) -> str:
    text = readable(node)
    plain = not isinstance(node, Add | Prod) and not (isinstance(node, Call) and node.fn == "floordiv")
    return text if plain else f"({text})"


def _list(names: Iterable[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    listed = list(names)
    return " and ".join([", ".join(listed[:-1]), listed[-1]]) if len(listed) > 1 else "".join(listed) or "nothing"


_FOUND: dict[str, Callable[[Plans, Plans], Found | None]] = {
    "online": _online,
    "reuse": _reuse,
    "expand": _expand,
    "group": _group,
    "bounds": _bounds,
    "runs": _runs,
}

_BEFORE: dict[str, Callable[[Program], Found]] = {"tables": tables.said, "toeplitz": toeplitz.said}
"""Rewrites that split a program before it is planned."""

_INSIDE_KERNELS = frozenset({"bounds", "runs"})
"""Rewrites of loops inside kernels, which leave the steps of a plan as they are."""
