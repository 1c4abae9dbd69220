"""Row values that several passes read are stored as one number instead of as the reductions they are made of.

A threshold that takes ten passes to find is ``t0 + step1 + ... + step10``, two reductions a step. Written out, a later
pass would read twenty vectors and add them up for every block; and it might add them up in another order than the pass
before it, which rounds differently. So sums of row values are stored as they grow, each as the one before plus a step.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from attnc.ir.construct import raw_add, terms_of
from attnc.ir.node import Axes, Const, Node
from attnc.passes.planes import Planes


@dataclass
class RowSums:
    """Sums of terms over one row, each built on the largest one that came before."""

    known: dict[frozenset[Node], Node] = field(default_factory=dict)

    def of(self, terms: Iterable[Node]) -> Node:
        """The node for a sum of `terms`."""
        wanted = frozenset(terms)
        if wanted not in self.known:
            parts = [t for t in self.known if t < wanted]
            base = max(parts, key=lambda t: (len(t), self.known[t].digest), default=frozenset[Node]())
            rest = sorted(wanted - base, key=lambda n: n.order)
            first = [self.known[base]] if base else []
            self.known[wanted] = raw_add([*first, *rest]) if len(first) + len(rest) > 1 else rest[0]
        return self.known[wanted]


def row_terms(node: Node, planes: Planes) -> dict[tuple[Axes, Axes], list[Node]]:
    """The terms of a sum that belong to one row and mention reductions over a plane, by sequence axis and batch axes.

    Numbers go with them if there is only one such row.
    """
    found: dict[tuple[Axes, Axes], list[Node]] = {}
    for t in terms_of(node):
        place = planes.sequences(t.axes)
        if len(place) == 1 and not planes.channels(t.axes) and planes.needed(t):
            found.setdefault((place, planes.batches(t.axes)), []).append(t)
    if len(found) == 1:
        next(iter(found.values())).extend(t for t in terms_of(node) if isinstance(t, Const))
    return found
