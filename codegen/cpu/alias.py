"""Tiles that need no copy: operands that matrix products read one element at a time, straight from their tensor."""

from __future__ import annotations

from attnc.codegen.cpu.bounds import within
from attnc.codegen.cpu.layout import Layout, reads
from attnc.codegen.cpu.matrix import matrix_product
from attnc.codegen.cpu.transfer import Subscript, affine
from attnc.codegen.tile import Assign, Each, Loop, Stmt, statements
from attnc.ir.node import Load


def find_aliases(layout: Layout) -> None:
    """Give `layout.aliases` the step in memory of every axis of each variable that can be a pointer into its tensor.

    Such a variable is only ever the broadcast operand of products, has the dtype of reals, and lies inside its tensor
    for every lane inside the extents.
    """
    uses = _products(layout, layout.kernel.body, frozenset())
    for name, tile in layout.tiles.items():
        loads = [s for s in statements(layout.kernel.body) if isinstance(s, Assign) and s.target.name == name]
        if not tile.lanes or uses.get(name) is not True or len({s.value for s in loads}) != 1:
            continue
        value = loads[0].value
        if not isinstance(value, Load) or layout.kernel.argument(value.tensor).dtype != layout.kernel.real:
            continue
        subscripts = affine(layout, value.index, frozenset())
        if subscripts is not None and _inside(layout, value.tensor, subscripts):
            steps = {s.axis: layout.stride(value.tensor, k) for k, s in enumerate(subscripts) if s.axis is not None}
            if set(steps) == set(tile.lanes):
                layout.aliases[name] = steps


def _products(layout: Layout, body: tuple[Stmt, ...], scalars: frozenset[str]) -> dict[str, bool]:
    """For every variable read, whether all reads are as the broadcast operand of a product."""
    out: dict[str, bool] = {}
    for s in body:
        if isinstance(s, Loop | Each):
            inner = scalars | {s.axis} if isinstance(s, Each) else scalars
            found = _products(layout, s.body, inner)
            for name, good in found.items():
                out[name] = out.get(name, True) and good
        plan = matrix_product(layout, s, scalars)
        for name in reads(s):
            good = plan is not None and plan.broadcast.name == name and plan.vectors.name != name
            out[name] = out.get(name, True) and good
    return out


def _inside(layout: Layout, tensor: str, subscripts: list[Subscript]) -> bool:
    """Whether lanes inside their extents are inside the tensor."""
    dims = layout.kernel.argument(tensor).dims
    return all(
        (sub.offset is None and layout.extent(sub.axis) is extent)
        if sub.axis is not None
        else sub.offset is not None and within(layout.kernel, sub.offset, extent)
        for sub, extent in zip(subscripts, dims, strict=True)
    )
