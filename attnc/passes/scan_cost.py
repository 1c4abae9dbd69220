"""What carrying states costs beside visiting all pairs, as decisions for `explain`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from attnc.ir.construct import add, call, const, mul
from attnc.ir.node import Node, Sum
from attnc.ir.printer import show
from attnc.ir.program import Program
from attnc.ir.walk import postorder
from attnc.passes.chunks import Chunks
from attnc.passes.decision import Alternative, Decision
from attnc.passes.planes import Planes, Reduction

BYTES = 4
BLOCK = 64
"""Positions of the outer axis that share one reading of the inner axis's operands in a dense pass."""


def carried(planes: Planes, chunks: Chunks, units: Sequence[Reduction], states: Sequence[Reduction]) -> Decision:
    """The decision to split `units`, whose states are `states`."""
    program = planes.program
    batch = mul(*(program.extent(a) for a in sorted(planes.batches(_axes(units, planes)))), const(1))
    outer, inner = program.extent(chunks.outer), program.extent(chunks.inner)
    room = add(*(_elements(program, planes, s) for s in states), const(0))
    width = add(*(_width(program, planes, u) for u in units), const(0))
    operands = mul(const(BYTES), batch, add(outer, inner), width)
    pairs = mul(const(2), batch, outer, width)
    count = chunks.count(outer)
    scan = Alternative(
        f"states per chunk of {chunks.length}",
        add(operands, mul(const(2 * BYTES), batch, count, room)),
        add(mul(const(2), batch, add(outer, inner), room), mul(pairs, const(chunks.length))),
    )
    blocks = mul(const(BYTES), batch, outer, inner, width)
    dense = Alternative("all pairs", _halved(blocks, BLOCK), _halved(mul(pairs, inner), 1))
    shapes = dict.fromkeys(_shape(program, planes, s) for s in states)
    before = "earlier" if chunks.forward else "later"
    return Decision(
        "scan",
        f"sums over {before} {chunks.inner} for each {chunks.outer} whose weights separate ({len(units)} of them)",
        f"what is far from a chunk of {chunks.length} {chunks.outer} acts through a state: {', '.join(shapes)}",
        (scan, dense),
        line_of(program, units),
    )


def left(planes: Planes, fitting: Sequence[Reduction], other: Reduction) -> Decision:
    """The decision not to split reductions that could be, because another one of their pass cannot."""
    program = planes.program
    line = line_of(program, [other])
    where = "" if line is None else f" (line {line})"
    (inner,) = other.bound
    return Decision(
        "scan",
        f"{len(fitting)} of the sums over {inner} could carry a state, and another one of the same pass{where} cannot",
        "all pairs: the pass visits them anyway",
        (),
        line_of(program, fitting),
    )


def line_of(program: Program, nodes: Iterable[Node]) -> int | None:
    """The line of the spec that some nodes come from, if one is known."""
    notes = (program.notes[n] for n in reversed(postorder(nodes)) if n in program.notes)
    return next((n.line for n in notes if n.line is not None), None)


def _halved(node: Node, further: int) -> Node:
    return call("floordiv", node, const(2 * further))


def _axes(nodes: Iterable[Reduction], planes: Planes) -> frozenset[str]:
    return frozenset(a for u in nodes for n in postorder([u]) for a in planes.batches(n.axes))


def _elements(program: Program, planes: Planes, state: Reduction) -> Node:
    return mul(*(program.extent(a) for a in sorted(planes.channels(state.axes))), const(1))


def _width(program: Program, planes: Planes, unit: Reduction) -> Node:
    """Channels that meet in one pair: those of inner products, and those of the result."""
    inner = {a for n in postorder([unit]) if isinstance(n, Sum) for a in planes.channels(n.bound)}
    return add(const(1), *(program.extent(a) for a in sorted(inner | planes.channels(unit.axes))))


def _shape(program: Program, planes: Planes, state: Reduction) -> str:
    channels = sorted(planes.channels(state.axes))
    return f"[{', '.join(show(program.extent(a)) for a in channels)}]" if channels else "a number"
