"""Sums expanded where that lets them share an online pass.

``sum(e * (s - m - log l))`` needs m and l before it can start; ``sum(e * s) - (m + log l) * sum(e)`` needs neither, so
the entropy of a softmax is one more accumulator of its forward pass. Sums that keep a channel are left alone: every
part would be one more matrix product, and a second pass costs less.
"""

from __future__ import annotations

from collections.abc import Iterable

from attnc.ir.construct import add, sum_over
from attnc.ir.node import Add, Node, Sum
from attnc.ir.walk import rewrite
from attnc.passes.planes import Planes


def expand_online(roots: Iterable[Node], planes: Planes) -> list[Node]:
    """Expand sums over a plane whose sum factors mention a reduction of the same direction, when every part then
    follows it online."""

    def rule(node: Node) -> Node | None:
        if not isinstance(node, Sum) or not planes.is_plane(node) or node.scatter:
            return None
        if planes.channels(node.axes) or not _late(node, planes):
            return None
        for k, f in enumerate(node.factors):
            if isinstance(f, Add):
                rest = [*node.factors[:k], *node.factors[k + 1 :]]
                expanded = add(*(sum_over(node.bound, [*rest, t], node.domain) for t in f.terms))
                parts = planes.direct(expanded)
                if not any(isinstance(p, Sum) and p.bound & node.bound and _late(p, planes) for p in parts):
                    return expanded
        return None

    return rewrite(roots, rule)


def _late(node: Sum, planes: Planes) -> bool:
    """Whether the sum must wait for another reduction over the same axis."""
    channel = node.factors
    return any(
        r.bound & node.bound and planes.rescale(node, r) is None
        for f in (*channel, *node.domain)
        for r in (planes.direct(f) | ({f} if isinstance(f, Sum) and planes.is_plane(f) else set()))
    )
