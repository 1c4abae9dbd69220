"""Values of positions that queries and keys both read are computed once.

``exp(total[i] - total[j])`` with a sum ``total`` over earlier positions names two reductions, that of a query and that
of a key, which are one table read at two places. Computed twice they would also be rounded twice, and the difference of
neighbours would not be that of the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from attnc.ir.node import Load, Max, Node, add, axis, load, size
from attnc.ir.program import Output, Program, Tensor
from attnc.ir.walk import postorder, substitute
from attnc.ir.walk import replace as replace_nodes
from attnc.passes.planes import Planes, Reduction
from attnc.passes.reuse import ordered

KEY, QUERY = "j", "i"


def shared(program: Program) -> tuple[Program, Program] | None:
    """A program for the values that are read at queries and at keys, and the rest reading those as tensors.

    None where there are no such values. A spec that reads a value of keys at queries has a check that these exist.
    """
    planes = Planes(program)
    units = planes.plane_reductions(program.roots())
    pairs = [(u, q) for u in units if (q := _at_queries(u, planes)) in units] or _scores(program, planes)
    if not pairs:
        return None
    taken = {t.name for t in program.tensors} | {o.name for o in program.outputs}
    outputs: list[Output] = []
    mapping: dict[Node, Node] = {}
    for k, (unit, at_queries) in enumerate(pairs):
        axes = ordered(unit.axes)
        name = next(n for n in (f"table{'_' * t}{k or ''}" for t in range(len(taken) + 1)) if n not in taken)
        outputs.append(Output(name, ((axes, unit),), tuple(program.extent(a) for a in axes), "real"))
        mapping[unit] = load(name, [axis(a) for a in axes])
        mapping[at_queries] = load(name, [_position() if a == KEY else axis(a) for a in axes])
    rest = _replaced(program, mapping)
    tables = tuple(Tensor(o.name, o.dims, "real", "saved") for o in outputs)
    return program.with_outputs(tuple(outputs)), replace(rest, tensors=(*program.tensors, *tables))


def _scores(program: Program, planes: Planes) -> list[tuple[Node, Node]]:
    """Scores whose maximum is taken over the keys, and which are read at a query too.

    The weight of a query would be ``exp(s - m)`` with another s than that of m and of the sum that divides.
    """
    every = postorder(program.roots())
    known = set(every)
    bodies = dict.fromkeys(n.body for n in every if isinstance(n, Max) and n.bound == {KEY})
    found = [s for s in bodies if planes.sequences(s.axes) == {KEY} and not isinstance(s, Load)]
    return [(s, at) for s in found if (at := substitute(s, {KEY: _position()})) in known]


def _at_queries(unit: Reduction, planes: Planes) -> Node | None:
    """The same reduction at the position of a query, if it has one value per key."""
    free = planes.sequences(unit.axes)
    return substitute(unit, {KEY: _position()}) if free == frozenset({KEY}) and QUERY not in planes.span(unit) else None


def _position() -> Node:
    return add(axis(QUERY), size("q_start"))


def _replaced(program: Program, mapping: dict[Node, Node]) -> Program:
    values: Sequence[Node] = replace_nodes(program.roots(), mapping)
    parts = iter(values)
    return program.with_outputs(
        tuple(replace(o, parts=tuple((axes, next(parts)) for axes, _ in o.parts)) for o in program.outputs)
    )
