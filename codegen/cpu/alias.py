"""Tiles that need no copy, because they are read straight from their tensor.

Operands that matrix products read one element at a time, with any strides; and rows of channels that are read once,
where a call finds them contiguous (views); with few queries also rows that are read a few times.
"""

from __future__ import annotations

from collections.abc import Iterator

from attnc.codegen.cpu.across import across
from attnc.codegen.cpu.bounds import within
from attnc.codegen.cpu.layout import Layout, Mentions, reads, written
from attnc.codegen.cpu.matrix import matrix_product
from attnc.codegen.cpu.transfer import Subscript, affine
from attnc.codegen.tile import Assign, Each, Loop, Stmt
from attnc.ir.node import Load


def find_aliases(layout: Layout) -> None:
    """Fill `layout.aliases_of`.

    In a list of statements, a variable needs no copy that is only ever the broadcast operand of products, has the dtype
    of reals, lies inside its tensor for every lane inside the extents, and is set anew wherever it is read. Views keep
    the dtype of their tensor, half precision too; the step from row to row is a variable: that of the tensor, or of the
    copy.
    """
    carried = Mentions(layout.kernel).carried
    for body in _lists(layout.kernel.body):
        found: dict[str, dict[str, str]] = {}
        for s in body:
            if isinstance(s, Assign) and isinstance(s.value, Load) and s.target.name not in carried:
                dtype = layout.kernel.argument(s.value.tensor).dtype
                half = dtype != layout.kernel.real
                steps = _steps(layout, s.value)
                tile = layout.tiles[s.target.name]
                if not steps or set(steps) != set(tile.lanes):
                    continue
                if not half and _only_broadcast(layout, body, s):
                    found[tile.name] = steps
                elif layout.viewed.get(tile.name, dtype) == dtype and _read_once(layout, body, s, half):
                    found[tile.name] = {tile.lanes[0]: layout.view_row(tile.name), tile.lanes[1]: "1"}
                    layout.viewed[tile.name] = dtype
        layout.aliases_of[id(body)] = found
    for body in _lists(layout.kernel.body):  # what is copied and converted elsewhere is so everywhere
        copied = {s.target.name for s in body if isinstance(s, Assign)} - set(layout.aliases_of[id(body)])
        for name in filter(layout.is_half, copied):
            del layout.viewed[name]
            for found in layout.aliases_of.values():
                found.pop(name, None)


def always_aliased(layout: Layout) -> set[str]:
    """Variables that need no array at all."""
    copied = set(layout.viewed)
    for body in _lists(layout.kernel.body):
        copied |= {s.target.name for s in body if isinstance(s, Assign)} - set(layout.aliases_of[id(body)])
    return {name for names in layout.aliases_of.values() for name in names} - copied


def _lists(body: tuple[Stmt, ...]) -> Iterator[tuple[Stmt, ...]]:
    yield body
    for s in body:
        if isinstance(s, Loop | Each):
            yield from _lists(s.body)


def _only_broadcast(layout: Layout, body: tuple[Stmt, ...], loaded: Assign) -> bool:
    """Whether products read the variable element by element, nothing else reads it, and only `loaded` sets it."""
    name = loaded.target.name
    for s in body:
        if s is not loaded and written(s) == name:
            return False
        if name in reads(s):
            plan = matrix_product(layout, s, frozenset())
            if plan is None or plan.broadcast.name != name or plan.vectors.name == name:
                return False
    return True


def _read_once(layout: Layout, body: tuple[Stmt, ...], loaded: Assign, half: bool) -> bool:
    """Whether rows of channels are read once, as rows of a sum or of a matrix that a vector is multiplied by; those of
    `half` precision only by products."""
    name = loaded.target.name
    tile = layout.tiles[name]
    readers = [s for s in body if name in reads(s)]
    if len(tile.lanes) != 2 or layout.roles[tile.lanes[1]].role != "channel" or len(readers) != 1:
        return False
    if any(written(s) == name for s in body if s is not loaded):
        return False
    plan = matrix_product(layout, readers[0], frozenset())
    if plan is not None:
        few = plan.m is None or (layout.kernel.narrow and not half)
        return few and not plan.packed and plan.vectors is tile
    rows = across(layout, readers[0], frozenset())
    return rows is not None and (len(rows) == 2 or not half)


def _steps(layout: Layout, value: Load) -> dict[str, str] | None:
    """The stride of each lane axis, if the load is of plain subscripts inside a tensor of reals."""
    real = layout.kernel.real
    if layout.kernel.argument(value.tensor).dtype not in ((real, "f16", "bf16") if real == "f32" else (real,)):
        return None
    subscripts = affine(layout, value.index, frozenset())
    if subscripts is None or not _inside(layout, value.tensor, subscripts):
        return None
    return {s.axis: layout.stride(value.tensor, k) for k, s in enumerate(subscripts) if s.axis is not None}


def _inside(layout: Layout, tensor: str, subscripts: list[Subscript]) -> bool:
    """Whether lanes inside their extents are inside the tensor."""
    dims = layout.kernel.argument(tensor).dims
    return all(
        (sub.offset is None and layout.extent(sub.axis) is extent)
        if sub.axis is not None
        else sub.offset is not None and within(layout.kernel, sub.offset, extent)
        for sub, extent in zip(subscripts, dims, strict=True)
    )
