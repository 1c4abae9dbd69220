"""Which reductions can be split into what is near and what acts through a state."""

from __future__ import annotations

from dataclasses import dataclass

from attnc.ir.node import Max, Node, Sum
from attnc.passes.planes import Planes, Reduction
from attnc.passes.scan_factors import Causal, Product, Separation, causal


@dataclass(frozen=True, slots=True)
class Unit:
    """A reduction that can be split: its ordering, the conditions on the inner axis alone, its separated factors."""

    outer: str
    inner: str
    ordering: Causal
    alone: tuple[Node, ...]
    product: Product | None


def unit(node: Reduction, planes: Planes) -> Unit | None:
    """What `node` is as a scan, or None."""
    span = planes.span(node)
    if len(span) != 2 or len(node.bound) != 1 or (isinstance(node, Sum) and node.scatter):
        return None
    (inner,) = node.bound
    (outer,) = span - {inner}
    ordered = causal(node.domain, outer, inner)
    if ordered is None:
        return None
    ordering, alone = ordered
    if isinstance(node, Max):
        fits = outer not in node.body.axes and node.kind == "f"
        return Unit(outer, inner, ordering, tuple(alone), None) if fits else None
    separated = Separation(planes, outer, inner).product(node)
    if separated is None:
        return None
    follows = any(side.exponentials for side in separated.sides)
    if follows and not planes.program.options.applies("online"):
        return None
    return Unit(outer, inner, ordering, tuple(alone), separated)
