"""Values of positions that queries and keys both read are computed once.

``exp(total[i] - total[j])`` with a sum ``total`` over earlier positions names two reductions, that of a query and that
of a key, which are one table read at two places. Computed twice they would also be rounded twice, and the difference of
neighbours would not be that of the table.

A sum over many positions is large where its differences are small, so that one number would leave few digits to them.
Where such a sum can be carried from chunk to chunk, its table has two parts: what all chunks before add up to, the
same number throughout a chunk, and the rest, which is small. Differences are taken part by part.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from attnc.ir.construct import add, axis, call, coefficient, const, load, mul, neg, size, sum_over
from attnc.ir.node import Load, Max, Node, Sum
from attnc.ir.program import Output, Program, Tensor
from attnc.ir.walk import postorder, substitute
from attnc.ir.walk import replace as replace_nodes
from attnc.passes.associate import associate
from attnc.passes.planes import Planes, Reduction
from attnc.passes.reuse import ordered
from attnc.passes.scan_unit import unit as scan_unit

KEY, QUERY = "j", "i"


@dataclass(frozen=True, slots=True)
class Staged:
    """A program for the values that are read at queries and at keys, and the rest reading those as tensors.

    `rests` names, for tables in two parts, the tensor of what is small, by that of what chunks before add up to.
    """

    tables: Program
    program: Program
    rests: dict[str, str]


def table_values(units: Sequence[Reduction], planes: Planes) -> set[Node]:
    """The reductions that are read at keys and at queries, at both: every program makes its own table of them."""
    return {x for pair in _pairs(units, planes) for x in pair}


def _pairs(units: Sequence[Reduction], planes: Planes) -> list[tuple[Reduction, Node]]:
    """Reductions with a value per key, and the same at queries, where both are read."""
    found: list[tuple[Reduction, Node]] = []
    for unit in units:
        at_queries = _at_queries(unit, planes)
        if at_queries is not None and at_queries in units:
            found.append((unit, at_queries))
    return found


def shared(program: Program) -> Staged | None:
    """The two programs; None where there are no values read at queries and at keys. A spec that reads a value of keys
    at queries has a check that these exist."""
    planes = Planes(program)
    units = planes.plane_reductions(program.roots())
    pairs: list[tuple[Node, Node]] = [*_pairs(units, planes)] or _scores(program, planes)
    if not pairs:
        return None
    taken = {t.name for t in program.tensors} | {o.name for o in program.outputs}
    outputs: list[Output] = []
    mapping: dict[Node, Node] = {}
    tensors: list[Tensor] = []
    rests: dict[str, str] = {}
    for k, (unit, at_queries) in enumerate(pairs):
        axes = ordered(unit.axes)
        name, rest = (_unused(f"{stem}{k or ''}", taken) for stem in ("table", "table_rest"))
        scale = _scale(program.roots(), (unit, at_queries)) if unit in units else 1.0
        outputs.append(Output(name, ((axes, _scaled(unit, scale)),), tuple(map(program.extent, axes)), "real"))
        tensors.append(Tensor(name, outputs[-1].dims, "real", "saved"))
        if _carried(unit, planes):
            rests[name] = rest
            tensors.append(replace(tensors[-1], name=rest))
        for node, key in ((unit, axis(KEY)), (at_queries, _position())):
            place = [key if a == KEY else axis(a) for a in axes]
            value: Node = load(name, place)
            if name in rests:
                value = add(value, call("rounded", load(rest, place)))
            mapping[node] = value
            if scale != 1:
                mapping[node] = mul(const(1 / scale), value)
                mapping |= {mul(const(scale), node): value, mul(const(-scale), node): neg(value)}
    remaining = _replaced(program, mapping)
    return Staged(program.with_outputs(tuple(outputs)), replace(remaining, tensors=(*program.tensors, *tensors)), rests)


def _unused(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name


def _carried(unit: Node, planes: Planes) -> bool:
    """Whether a sum is carried from chunk to chunk."""
    if not isinstance(unit, Sum) or not planes.program.options.applies("scan"):
        return False
    (root,) = associate([unit], planes, grouped=False)
    return isinstance(root, Sum) and scan_unit(root, planes) is not None


def _scale(roots: Iterable[Node], values: Sequence[Node]) -> float:
    """The number, up to its sign, that everything multiplies some values by: the table has the product."""
    scales: set[float] = set()
    for node in postorder(roots):
        k, rest = coefficient(node)
        if len(rest) == 1 and rest[0] in values and node is not rest[0]:
            scales.add(abs(float(k)))
        elif any(c in values for c in node.children):
            scales.add(1.0)
    return scales.pop() if len(scales) == 1 else 1.0


def _scaled(unit: Node, scale: float) -> Node:
    """A reduction times a positive number, multiplied before anything is added up."""
    if scale == 1:
        return unit
    if isinstance(unit, Sum):
        return sum_over(unit.bound, [call("rounded", mul(const(scale), *unit.factors))], unit.domain, unit.scatter)
    return mul(const(scale), unit)


def _scores(program: Program, planes: Planes) -> list[tuple[Node, Node]]:
    """Scores whose maximum is taken over the keys, and which are read at a query too.

    The weight of a query would be ``exp(s - m)`` with another s than that of m and of the sum that divides.
    """
    every = postorder(program.roots())
    known = set(every)
    bodies = dict.fromkeys(n.body for n in every if isinstance(n, Max) and n.bound == frozenset({KEY}))
    found = [s for s in bodies if planes.sequences(s.axes) == frozenset({KEY}) and not isinstance(s, Load)]
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
