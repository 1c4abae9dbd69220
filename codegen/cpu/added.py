"""Tiles added to memory block by block (`AddTo`), and loaded operands that products take with their axes exchanged.

A matrix product whose result is only added to memory is accumulated right there, where the lanes of memory are
contiguous. Its operand of vectors is a tile of the outer axis, held with that axis contiguous for the other products:
it is read a second time, row by row, once per block of the outer axis instead of being transposed in every product.
"""

from __future__ import annotations

from collections.abc import Iterator

from attnc.codegen.cpu.layout import Layout, Tile, reads, written
from attnc.codegen.cpu.matrix import MatrixPlan, matrix_product
from attnc.codegen.cpu.transfer import Subscript, affine
from attnc.codegen.tile import AddTo, Assign, Each, Loop, Stmt, statements
from attnc.ir.node import Load, Size
from attnc.ir.sizes import evaluator
from attnc.ir.walk import postorder


def find_turned(layout: Layout) -> dict[str, Tile]:
    """Copies of loaded tiles with their axes exchanged, by variable: of those that a product in a loop would transpose
    each time, and of those that nothing but such products reads (`layout.turned_only`)."""
    out: dict[str, Tile] = {}
    others: set[str] = set()
    for s in (*statements(layout.kernel.body), *layout.unselected.values()):
        plan = None if isinstance(s, Loop | Each) else matrix_product(layout, s, frozenset())
        if plan is None or not plan.packed or id(s) in layout.pairs_of or plan.broadcast is plan.vectors:
            others |= reads(s)
            continue
        others.add(plan.broadcast.name)
        tile, lanes = plan.vectors, (plan.depth, plan.n)
        if tile.name in out:
            others |= {tile.name} if out[tile.name].lanes != lanes else set()
        elif _is_loaded_outside(layout, tile.name) or _is_loaded(layout, tile.name):
            name = f"{tile.name} turned"
            array = layout.names.get("var", name, f"{tile.name}_rows")
            out[tile.name] = Tile(name, "f", lanes, array)
    layout.turned_only = {n for n in out if n not in others and _is_loaded(layout, n)}
    out = {n: t for n, t in out.items() if n in layout.turned_only or _is_loaded_outside(layout, n)}
    layout.tiles |= {t.name: t for t in out.values()}
    return out


def _is_loaded_outside(layout: Layout, name: str) -> bool:
    """Whether a variable is set once, by a load of the kernel's own list of statements."""
    own = [s for s in layout.kernel.body if written(s) == name]
    if layout.writes.get(name) != 1 or len(own) != 1:
        return False
    (s,) = own
    return (
        isinstance(s, Assign) and isinstance(s.value, Load) and affine(layout, s.value.index, frozenset()) is not None
    )


def _is_loaded(layout: Layout, name: str) -> bool:
    """Whether a variable only ever holds part of a tensor."""
    return all(
        isinstance(s, Assign) and isinstance(s.value, Load) and affine(layout, s.value.index, frozenset()) is not None
        for s in statements(layout.kernel.body)
        if written(s) == name
    )


def products_in_memory(layout: Layout) -> dict[int, AddTo]:
    """Products that nothing but an `AddTo` reads, by identity, with that."""
    out: dict[int, AddTo] = {}
    for body in _lists(layout.kernel.body):
        for s in body:
            if not isinstance(s, Assign) or sum(s.target.name in reads(t) for t in body) != 1:
                continue
            reader = next(t for t in body if s.target.name in reads(t))
            plan = matrix_product(layout, s, frozenset())
            if isinstance(reader, AddTo) and plan is not None and _fits(layout, plan, reader):
                subscripts = affine(layout, reader.index, frozenset())
                if subscripts is not None and _reaches(layout, reader.tensor, subscripts):
                    out[id(s)] = reader
    return out


def _lists(body: tuple[Stmt, ...]) -> Iterator[tuple[Stmt, ...]]:
    yield body
    for s in body:
        if isinstance(s, Loop | Each):
            yield from _lists(s.body)


def _fits(layout: Layout, plan: MatrixPlan, added: AddTo) -> bool:
    """Whether whole vectors of the result lie in memory: the lanes are channels, as many as fill vectors."""
    if plan.others or plan.m is None or layout.roles[plan.n].role != "channel":
        return False
    extent = layout.roles[plan.n].extent
    sizes = {n.name for n in postorder([extent]) if isinstance(n, Size)}
    known = sizes <= layout.kernel.constants.keys() and evaluator(extent)(layout.kernel.constants) % 16 == 0
    return known and layout.kernel.argument(added.tensor).dtype == layout.kernel.real


def _reaches(layout: Layout, tensor: str, subscripts: list[Subscript]) -> bool:
    """Whether lanes inside their extents are inside the tensor."""
    dims = layout.kernel.argument(tensor).dims
    plain = (s.offset is None and layout.extent(s.axis) is d for s, d in zip(subscripts, dims, strict=True) if s.axis)
    return all(plain)
