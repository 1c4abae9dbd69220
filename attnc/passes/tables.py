"""Products of a query or a key with rows of a table that both positions choose: all of them first, then one per pair.

``sum_d q[i, d] rel[f(i, j), d]`` reads a whole row of `rel` for every pair of positions. There are only as many
different products as the table has rows, so a program that has such a term is split in two: the first computes
``rel_dots[i, r] = sum_d q[i, d] rel[r, d]``, a product of matrices, and the attention reads ``rel_dots[i, f(i, j)]``.
Both are ordinary programs, so gradients flow through the products by the usual derivation: one number per pair is
scattered, and not a row. Source: Huang et al. (2018), arXiv:1809.04281, section 3.4.1, for subscripts that are
distances.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from attnc.ir.construct import axis, load, sum_over
from attnc.ir.node import Axes, Const, Load, Node, Sum
from attnc.ir.program import AxisInfo, Output, Program, Tensor
from attnc.ir.walk import postorder
from attnc.passes.planes import Planes
from attnc.passes.reuse import ordered
from attnc.passes.separate import Split, fresh_axis, fresh_tensor, in_two

SHORTEST = 8
"""Channels from which a row costs more to read and to multiply than one product of a table costs to read."""

PER_PAIR = 8
"""Products per pair of positions beyond which few of them are read."""


@dataclass(frozen=True, slots=True)
class Gathered:
    """A sum over channels with a factor whose row both positions choose.

    Attributes:
        node: the sum.
        row: the factor.
        places: the subscripts of `row` that depend on both positions.
        line: of the spec it came from, 1-based.
    """

    node: Sum
    row: Load
    places: tuple[int, ...]
    line: int | None


def find(program: Program) -> tuple[Gathered, ...]:
    """The sums of a program that tables can replace, in order. What conditions compare stays as it is."""
    planes = Planes(program)
    every = postorder(program.roots())
    compared = set(postorder([n for n in every if n.kind == "b"]))
    found = (_gathered(n, planes) for n in every if isinstance(n, Sum) and n not in compared)
    return tuple(g for g in found if g is not None)


def _gathered(node: Sum, planes: Planes) -> Gathered | None:
    if node.domain or node.scatter or planes.channels(node.bound) != node.bound or _is_short(node.bound, planes):
        return None
    row, *more = [f for f in node.factors if len(planes.sequences(f.axes)) > 1] or [node]
    if more or not isinstance(row, Load) or row.kind != "f":
        return None
    others = planes.sequences(_axes(f for f in node.factors if f is not row))
    places = tuple(k for k, entry in enumerate(row.index) if len(planes.sequences(entry.axes)) > 1)
    fixed = planes.sequences(_axes(e for k, e in enumerate(row.index) if k not in places))
    # Kernels loop over two axes at a time: those of the places and of the position that is multiplied.
    if not places or len(places) + len(fixed | others) > 2 or any(row.index[k].axes & node.bound for k in places):
        return None
    noted = [planes.program.notes[n].line for n in (node, row) if n in planes.program.notes]
    return Gathered(node, row, places, next((n for n in noted if n is not None), None))


def _axes(nodes: Iterable[Node]) -> Axes:
    return frozenset[str]().union(*(n.axes for n in nodes))


def _is_short(bound: Axes, planes: Planes) -> bool:
    extents = [planes.program.extent(a) for a in bound]
    length = 1
    for e in extents:
        if not isinstance(e, Const):
            return False
        length *= int(e.value)
    return length < SHORTEST


def with_tables(split: Split) -> Split:
    """A program in stages whose attention reads products with the rows of tables; the same where there are none."""
    base = split.attention
    if not base.options.applies("tables"):
        return split
    outputs: list[Output] = []
    mapping: dict[Node, Node] = {}
    for gathered in find(base):
        base, output, value = _table(base, gathered)
        base = replace(base, tensors=(*base.tensors, Tensor(output.name, output.dims, output.dtype)))
        outputs.append(output)
        mapping[gathered.node] = value
    if not outputs:
        return split
    return in_two("tables", base, split, outputs, mapping, PER_PAIR)


def _table(program: Program, gathered: Gathered) -> tuple[Program, Output, Node]:
    """The program with an axis per place, the table, and the element of it that stands for the sum."""
    node, row = gathered.node, gathered.row
    dims = program.tensor(row.tensor).dims
    names: dict[int, str] = {}
    for k in gathered.places:
        names[k] = fresh_axis(program, "r")
        info = AxisInfo(names[k], dims[k], "sequence")
        program = replace(program, axes=program.axes | {names[k]: info})
    every = load(row.tensor, [axis(names[k]) if k in names else e for k, e in enumerate(row.index)])
    value = sum_over(node.bound, [every if f is row else f for f in node.factors])
    axes = ordered(value.axes)
    name = fresh_tensor(program, f"{row.tensor}_dots")
    output = Output(name, ((axes, value),), tuple(program.extent(a) for a in axes), "real")
    chosen = {names[k]: row.index[k] for k in names}
    return program, output, load(name, [chosen.get(a, axis(a)) for a in axes])


def said(program: Program) -> tuple[str, str, int | None]:
    """What was found in a program that tables serve, what is done about it, and the line of the spec."""
    found = find(program)
    names = " and ".join(dict.fromkeys(f"`{g.row.tensor}`" for g in found))
    return (
        f"channels are multiplied by rows of {names} that both positions choose",
        f"products with all rows of {names}, computed first, of which a pair reads one; calls with few pairs read rows",
        next((g.line for g in found if g.line is not None), None),
    )
