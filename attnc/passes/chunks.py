"""Chunks of an axis, and which positions of another axis are far from each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from attnc.ir.construct import add, axis, call, const, mul, neg, sub
from attnc.ir.node import Node
from attnc.ir.program import Program
from attnc.ir.walk import replace as replace_nodes
from attnc.passes.scan_factors import Causal

CHUNK = 64
"""Positions of the outer axis that share a state."""
CHUNK_OF_CHANNELS = 16
"""The same where a decay differs between channels: then weights near the diagonal are no matrix product."""


@dataclass(frozen=True, slots=True)
class Chunks:
    """How an axis is cut into chunks, and which positions of the other axis are far from a chunk.

    Attributes:
        forward: whether earlier positions are far (else later ones).
        length: positions per chunk.
        cut: the first position that is not far (`forward`), or the first that is, given the chunk's number.
        edge: the far position next to the chunk, to which decays are counted.
    """

    outer: str
    inner: str
    forward: bool
    length: int
    cut: Node
    edge: Node

    @property
    def number(self) -> Node:
        """The number of the chunk that a position is in."""
        return call("floordiv", axis(self.outer), const(self.length))

    @property
    def axis(self) -> str:
        return f"{self.outer}_chunk" if self.length == CHUNK else f"{self.outer}_chunk_{self.length}"

    def count(self, extent: Node) -> Node:
        """How many chunks there are."""
        return call("floordiv", add(extent, const(self.length - 1)), const(self.length))

    def visited(self, program: Program) -> Node:
        """The number of a chunk, given its place in the order in which a scan visits them."""
        place = axis(self.axis)
        return place if self.forward else sub(sub(self.count(program.extent(self.outer)), const(1)), place)

    @property
    def far(self) -> Node:
        inner = axis(self.inner)
        return call("lt", inner, self.cut) if self.forward else call("le", self.cut, inner)

    @property
    def near(self) -> Node:
        inner = axis(self.inner)
        return call("le", self.cut, inner) if self.forward else call("lt", inner, self.cut)


def chunks(program: Program, outer: str, inner: str, ordering: Causal, length: int) -> Chunks:
    """The chunks for an ordering of two axes. Where either axis fits into one chunk, nothing is far."""
    start = mul(const(length), call("floordiv", axis(outer), const(length)))
    if ordering.forward:
        cut = add(ordering.reach, start)
        edge = sub(cut, const(1))
    else:
        cut = edge = add(start, const(length), neg(ordering.reach))
    nothing = const(0) if ordering.forward else program.extent(inner)
    long = call("and", *(call("lt", const(length), program.extent(a)) for a in (outer, inner)))
    return Chunks(outer, inner, ordering.forward, length, call("where", long, cut, nothing), edge)


def numbered(nodes: Sequence[Node], chunks: Chunks, number: Node) -> list[Node]:
    """Expressions with the number of the chunk in place of ``outer // length``."""
    mapping: Mapping[Node, Node] = {chunks.number: number}
    return replace_nodes(nodes, mapping, canonical=False)
