"""Which matrix products multiply bf16 numbers as they are, and the packed copies of their operands.

A product of two tiles read from bf16 tensors loses nothing: the numbers are bf16 already, and sums are taken in f32.
Weights of pairs of positions (a plane), which exist only between two products, are rounded to bf16 where they meet such
a tile, as in FlashAttention. Everything else (states, factors of a bias, tables) is multiplied in f32.
"""

from __future__ import annotations

from collections.abc import Iterator

from attnc.codegen.cpu.layout import Form, Layout, Mentions, Pack, Tile, reads, written
from attnc.codegen.cpu.matrix import MatrixPlan, matrix_product
from attnc.codegen.cpu.selected import products
from attnc.codegen.cpu.transfer import affine
from attnc.codegen.tile import Accumulate, AccumulateAt, Assign, Each, Loop, Stmt, statements
from attnc.ir.node import Load, Max, Sum


def find_packs(layout: Layout) -> None:
    """Fill `layout.pairs_of`, `layout.packs` and `layout.packed_only`, for a target that multiplies pairs of bf16."""
    packs, carried = layout.packs, Mentions(layout.kernel).carried
    by_products: dict[str, int] = {}
    alternatives = {id(s) for s in layout.unselected.values()}
    here: dict[tuple[int, str], int] = {}
    for body, s, scalars in _with_scalars(layout, layout.kernel.body, frozenset()):
        plan = matrix_product(layout, s, scalars)
        if plan is None or plan.m is None or not _fits(layout, plan, scalars):
            continue
        if plan.broadcast.name in carried and not _is_set_outside(layout, plan.broadcast.name):
            continue
        layout.pairs_of.add(id(s))
        operands: tuple[tuple[Tile, Form, str], ...] = (
            (plan.broadcast, "rows", plan.m),
            (plan.vectors, "pairs", plan.n),
        )
        for tile, form, other in operands:
            key = tile.name, form, plan.depth
            if key not in packs:
                array = layout.names.get("pack", " ".join(key), f"{tile.name}_{form}")
                packs[key] = pack = Pack(tile.name, form, plan.depth, other, array)
                if form == "rows":  # named now, for good
                    layout.left(pack)
                    layout.source(pack)
            if id(s) in alternatives:
                continue
            by_products[tile.name] = by_products.get(tile.name, 0) + 1
            here[id(body), tile.name] = here.get((id(body), tile.name), 0) + 1
    all_reads: dict[str, int] = {}
    for s in statements(layout.kernel.body):
        for name in reads(s):
            all_reads[name] = all_reads.get(name, 0) + 1
    layout.packed_only = {n for n, c in by_products.items() if _is_read(layout, n) and all_reads[n] == c}
    for body in {id(b): b for b, _, _ in _with_scalars(layout, layout.kernel.body, frozenset())}.values():
        loaded = [s.target.name for s in body if isinstance(s, Assign) and isinstance(s.value, Load)]
        for n in loaded:
            count = sum(n in reads(s) for s in body)
            if here.get((id(body), n)) == count and _is_read(layout, n) and n not in carried:
                layout.packed_here.add((id(body), n))


def packs_of(layout: Layout, name: str) -> list[Pack]:
    """The packed copies of a variable."""
    return [p for p in layout.packs.values() if p.name == name]


def _with_scalars(
    layout: Layout, body: tuple[Stmt, ...], scalars: frozenset[str]
) -> Iterator[tuple[tuple[Stmt, ...], Stmt, frozenset[str]]]:
    for s in products(layout, body):
        if isinstance(s, Loop | Each):
            yield from _with_scalars(layout, s.body, scalars | {s.axis} if isinstance(s, Each) else scalars)
        else:
            yield body, s, scalars


def _fits(layout: Layout, plan: MatrixPlan, scalars: frozenset[str]) -> bool:
    if plan.others or len(plan.broadcast.lanes) != 2 or len(plan.vectors.lanes) != 2:
        return False
    loaded = [_is_read(layout, t.name, scalars) for t in (plan.broadcast, plan.vectors)]
    if loaded[1] and plan.broadcast.lanes[-1] == plan.depth and _is_weight(layout, plan.broadcast.name):
        return True
    return loaded[0] and (loaded[1] or (not plan.packed and _is_weight(layout, plan.vectors.name)))


def _assigned(layout: Layout, name: str) -> list[Stmt]:
    kinds = (Assign, Accumulate, AccumulateAt)
    return [s for s in statements(layout.kernel.body) if isinstance(s, kinds) and s.target.name == name]


def _is_read(layout: Layout, name: str, scalars: frozenset[str] = frozenset()) -> bool:
    """Whether a variable only ever holds part of a bf16 tensor."""
    return all(
        isinstance(s, Assign)
        and isinstance(s.value, Load)
        and layout.kernel.argument(s.value.tensor).dtype == "bf16"
        and affine(layout, s.value.index, scalars) is not None
        for s in _assigned(layout, name)
    )


def _is_set_outside(layout: Layout, name: str) -> bool:
    """Whether a variable is set once, in the kernel's own list of statements."""
    return layout.writes.get(name) == 1 and any(written(s) == name for s in layout.kernel.body)


def _is_weight(layout: Layout, name: str) -> bool:
    """Whether a variable is computed for every pair of positions."""
    axes = {lane.axis for lane in layout.kernel.lanes if lane.role in ("outer", "inner")}
    found = _assigned(layout, name)
    pointwise = all(isinstance(s, Assign) and not isinstance(s.value, Load | Sum | Max) for s in found)
    return pointwise and len(axes) == 2 and set(layout.tiles[name].lanes) == axes
