"""Vocabulary shared by the scheduling passes: which axes are sequences, what a plane reduction is, what depends on
what."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from attnc.ir.construct import add, coefficient, free_axes
from attnc.ir.functions import is_block
from attnc.ir.node import Axes, Call, Max, Node, Sum
from attnc.ir.program import Program
from attnc.ir.walk import postorder
from attnc.passes.exponents import exponent_terms

Reduction = Sum | Max


@dataclass
class Planes:
    """Axis roles of one program, with cached dependency queries.

    Nodes in `ready` are computed already: nothing below them is looked at.
    """

    program: Program
    ready: set[Node] = field(default_factory=set)
    _direct: dict[Node, frozenset[Reduction]] = field(default_factory=dict)

    def role(self, axis: str) -> str:
        return self.program.axis(axis).role

    def sequences(self, axes: Iterable[str]) -> Axes:
        return frozenset(a for a in axes if self.role(a) == "sequence")

    def channels(self, axes: Iterable[str]) -> Axes:
        return frozenset(a for a in axes if self.role(a) == "channel")

    def batches(self, axes: Iterable[str]) -> Axes:
        return frozenset(a for a in axes if self.role(a) == "batch")

    def span(self, node: Reduction) -> Axes:
        """The sequence axes a reduction ranges over or keeps."""
        return self.sequences(free_axes(node.children) | node.bound)

    def is_reduction(self, node: Node) -> bool:
        """A reduction over at least one sequence axis."""
        return isinstance(node, Sum | Max) and bool(self.sequences(node.bound))

    def is_plane(self, node: Node) -> bool:
        """A reduction over a plane: it must be computed tile by tile."""
        return isinstance(node, Sum | Max) and self.is_reduction(node) and len(self.span(node)) >= 2

    def plane_reductions(self, roots: Iterable[Node]) -> list[Reduction]:
        """All plane reductions below `roots`, producers first."""
        return [n for n in postorder(roots) if isinstance(n, Sum | Max) and self.is_plane(n)]

    def direct(self, node: Node) -> frozenset[Reduction]:
        """Plane reductions below `node` that can be reached without crossing another one; not `node` itself."""
        if node in self._direct:
            return self._direct[node]
        for n in postorder([node]):
            if n in self._direct:
                continue
            found: set[Reduction] = set()
            for c in n.children:
                if c in self.ready:
                    continue
                if isinstance(c, Sum | Max) and self.is_plane(c):
                    found.add(c)
                else:
                    found |= self._direct[c]
            self._direct[n] = frozenset(found)
        return self._direct[node]

    def needed(self, node: Node) -> frozenset[Reduction]:
        """The plane reductions that must be done before `node` is known: itself, if it is one."""
        return frozenset({node}) if isinstance(node, Sum | Max) and self.is_plane(node) else self.direct(node)

    def mentions(self, node: Node, reduction: Reduction) -> bool:
        return node is reduction or reduction in self.direct(node)

    def rescale(self, node: Reduction, running: Reduction) -> Node | None:
        """How `node` follows a running reduction of the same pass.

        If the factors of a sum that mention `running` multiply to ``exp2(A + c * t)`` with a row value t that mentions
        it, the result is ``c * t``: when t moves to t', the partial sum is multiplied by ``exp2(c * t' - c * t)``. None
        if there is no such form. Source: the online softmax of Milakov and Gimelshein (2018, arXiv:1805.02867),
        generalised.
        """
        if not self.program.options.applies("online"):
            return None
        if not isinstance(node, Sum) or node.scatter or any(self.mentions(c, running) for c in node.domain):
            return None
        moving: list[Node] = []
        for f in node.factors:
            if not self.mentions(f, running):
                continue
            if not (isinstance(f, Call) and f.fn == "exp2"):
                return None
            for t in exponent_terms(f.args[0]):
                if not self.mentions(t, running):
                    continue
                k, rest = coefficient(t)
                if k >= 0 or any(r.axes & node.bound for r in rest) or not self._pointwise_to(t, running):
                    return None
                moving.append(t)
        return add(*moving) if moving else None

    def _pointwise_to(self, node: Node, target: Reduction) -> bool:
        """Whether every path from `node` to `target` crosses pointwise functions only."""
        if node is target or not self.mentions(node, target):
            return True
        if isinstance(node, Sum | Max) or is_block(node):
            return False
        return all(self._pointwise_to(c, target) for c in node.children)
