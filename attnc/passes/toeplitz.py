"""Values that depend on the distance of two positions alone: once per distance, not once per pair.

``table[h, bucket(i - j)]`` with logarithms in its bucket, or ``log(1 + c abs(i - j))``, has one value per diagonal of
the plane. Where it takes many operations, a program is split in two: the first computes it for all M + N - 1 distances,
and the attention reads it at ``i - j + N - 1``, neighbours for neighbours. Gradients flow through the table by the
usual derivation. Values that separate into factors of one position are left to the rewrites that factors
open. Distances that no pair the mask leaves can have are 0, so that what is undefined there stays unseen.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from attnc.ir.construct import add, axis, call, const, iverson, load, mul, neg, size, sub
from attnc.ir.node import Call, Const, Iverson, Load, Max, Node, Sum
from attnc.ir.program import AxisInfo, Output, Program, Tensor
from attnc.ir.walk import postorder, rewrite, substitute
from attnc.passes.associate import associate
from attnc.passes.bias_cost import operations
from attnc.passes.planes import Planes
from attnc.passes.reuse import ordered
from attnc.passes.scan_unit import unit as scan_unit
from attnc.passes.separable import Expansion, Inseparable, under
from attnc.passes.separate import Split, fresh_axis, fresh_tensor, guaranteed, in_two

ROW, COLUMN = "i", "j"
COMPARISONS = ("lt", "le", "eq")
WORTH = 12
"""Operations per pair, in additions, from which reading a table costs less."""
GATHER = 16
"""What it costs in additions to read an element that is not next to that of the neighbouring pair."""
PER_PAIR = 0.25
"""Distances per pair of positions beyond which there are too few pairs."""


@dataclass(frozen=True, slots=True)
class Diagonal:
    """A value with one number per distance.

    Attributes:
        node: the value, as the program has it.
        at_distance: the same over the axis `ENTRY`, of the number of the diagonal.
        line: of the spec it came from, 1-based.
    """

    node: Node
    at_distance: Node
    line: int | None


ENTRY = "diagonal"
"""Stands for ``i - j + N - 1`` until the table has an axis of its own."""


def find(program: Program) -> tuple[Diagonal, ...]:
    """The values worth a table, largest expressions first. What conditions compare stays as it is."""
    planes = Planes(program)
    every = postorder(program.roots())
    compared = set(postorder([n for n in every if n.kind == "b"]))
    content = _content(every, planes)
    held = guaranteed(program.roots())
    found: dict[Node, Diagonal] = {}
    seen: set[Node] = set()
    stack: list[Node] = program.roots()
    while stack:
        node = stack.pop()
        if node in seen or node.kind == "b" or isinstance(node, Iverson):
            continue
        seen.add(node)
        whole = {ROW, COLUMN} <= node.axes and not planes.channels(node.axes)
        plain = whole and node not in content and node not in compared and (node.kind == "f" or _is_clipped(node))
        value = _at_distance(program, node, held[node]) if plain and _work(program, node) >= WORTH else None
        if value is not None:
            noted = [program.notes[n].line for n in postorder([node]) if n in program.notes]
            found[node] = Diagonal(node, value, next((n for n in reversed(noted) if n is not None), None))
        else:
            stack += _values(node)
    return () if found and _carries_states(program, planes) else tuple(found.values())


def _carries_states(program: Program, planes: Planes) -> bool:
    """Whether sums of a program run in linear time, which a table would prevent."""
    if not program.options.applies("scan"):
        return False
    roots = associate(program.roots(), planes, grouped=False)
    return any(isinstance(n, Sum) and scan_unit(n, planes) is not None for n in planes.plane_reductions(roots))


def _values(node: Node) -> tuple[Node, ...]:
    match node:
        case Sum():
            return node.factors
        case Max():
            return (node.body,)
        case _:
            return node.children


def _content(every: Iterable[Node], planes: Planes) -> set[Node]:
    """Nodes that read queries, keys or values, or reduce over positions."""
    found: set[Node] = set()
    for node in every:
        own = isinstance(node, Load) and node.tensor in ("q", "k", "v")
        if own or planes.is_reduction(node) or any(c in found for c in node.children):
            found.add(node)
    return found


def _work(program: Program, node: Node) -> int:
    """Operations per pair."""
    wide = [n for n in postorder([node]) if {ROW, COLUMN} <= n.axes]
    return sum(operations(program, n) + (GATHER if isinstance(n, Load) and _is_apart(n) else 0) for n in wide)


def _is_apart(node: Load) -> bool:
    """Whether a subscript is more than a distance, clipped or not."""
    return any(sum({ROW, COLUMN} <= n.axes for n in postorder([entry])) > 4 for entry in node.index)


def _is_clipped(node: Node) -> bool:
    """Whether an integer has numbers for bounds, and so fits in the 32 bits of a table."""
    bounds: set[str] = set()
    while isinstance(node, Call) and node.fn in ("minimum", "maximum"):
        rest = [a for a in node.args if not isinstance(a, Const)]
        if len(rest) != 1 or len(rest) == len(node.args):
            break
        bounds.add(node.fn)
        (node,) = rest
    return len(bounds) == 2


def _at_distance(program: Program, node: Node, conditions: frozenset[Node]) -> Node | None:
    """A value as a function of the diagonal alone, 0 where `conditions` rule the diagonal out; None if it is none."""
    wide = [c for c in sorted(conditions, key=lambda c: c.order) if {ROW, COLUMN} <= c.axes]
    to_diagonal = {ROW: add(axis(ENTRY), axis(COLUMN), const(1), neg(size("N")))}
    value, *moved = rewrite([substitute(n, to_diagonal) for n in (node, *wide)], _compared)
    if {ROW, COLUMN} & value.axes or _separates(program, node, conditions):
        return None
    visible = [c for c in moved if not {ROW, COLUMN} & c.axes and c.axes <= value.axes]
    return mul(value, *map(iverson, visible)) if node.kind == "f" else value


def _separates(program: Program, node: Node, conditions: frozenset[Node]) -> bool:
    """Whether a value is a sum of products of one position each: then linear time and low rank are open to it."""
    try:
        return node.kind == "f" and bool(Expansion(program, ROW, COLUMN).pairs(under(node, conditions)))
    except Inseparable:
        return False


def _compared(node: Node) -> Node | None:
    """``a < b`` of integers as ``a - b < 0``, where that leaves a position out."""
    if not isinstance(node, Call) or node.fn not in COMPARISONS or any(x.kind != "i" for x in node.args):
        return None
    difference = sub(*node.args)
    return None if COLUMN in difference.axes else call(node.fn, difference, const(0))


def with_diagonals(split: Split) -> Split:
    """A program in stages whose attention reads tables of distances; the same where none pays."""
    base = split.attention
    if not base.options.applies("toeplitz"):
        return split
    outputs: list[Output] = []
    mapping: dict[Node, Node] = {}
    extent = add(size("M"), size("N"), const(-1))
    for diagonal in find(base):
        entry = fresh_axis(base, "r")
        base = replace(base, axes=base.axes | {entry: AxisInfo(entry, extent, "sequence")})
        value = substitute(diagonal.at_distance, {ENTRY: axis(entry)})
        axes = ordered(value.axes | {entry})
        name = fresh_tensor(base, "of_distance")
        dtype = "real" if value.kind == "f" else "i32"
        output = Output(name, ((axes, value),), tuple(base.extent(a) for a in axes), dtype)
        base = replace(base, tensors=(*base.tensors, Tensor(name, output.dims, dtype)))
        at = add(axis(ROW), neg(axis(COLUMN)), size("N"), const(-1))
        outputs.append(output)
        mapping[diagonal.node] = load(name, [at if a == entry else axis(a) for a in axes], value.kind)
    if not outputs:
        return split
    return in_two("toeplitz", base, split, outputs, mapping, PER_PAIR)


def said(program: Program) -> tuple[str, str, int | None]:
    """What was found in a program that tables of distances serve, what is done about it, and the line of the spec."""
    found = find(program)
    one = len(found) == 1
    count = "a value depends" if one else f"{len(found)} values depend"
    return (
        f"{count} on the distance of two positions alone, and {'takes' if one else 'take'} many operations",
        f"computed first for the M + N - 1 distances, read once per pair; calls with few pairs compute "
        f"{'it' if one else 'them'} for each",
        next((d.line for d in found if d.line is not None), None),
    )
