"""How a group of statements is cut into inner loops."""

from __future__ import annotations

from dataclasses import dataclass, field

from attnc.codegen.cpu.layout import Layout, Tile, reads, roots, written
from attnc.codegen.tile import Accumulate, AccumulateAt, Assign, Scatter, Store
from attnc.ir.node import NO_AXES, Max, Sum, Var

NestStmt = Assign | Accumulate | AccumulateAt | Scatter | Store


@dataclass
class Segment:
    """Statements inside one inner loop over `axes`; with `alone`, a reduction that needs its own loops."""

    axes: tuple[str, ...]
    statements: list[NestStmt] = field(default_factory=list)
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Shape:
    """How a statement runs: along which axis its vectors go, the other axes of its result, and the axis it reduces."""

    vector: str | None
    kept: tuple[str, ...]
    reduced: str | None


def shape(layout: Layout, s: NestStmt, scalars: frozenset[str]) -> Shape:
    """The loops a statement needs; `scalars` are the axes of enclosing `Each` loops."""
    reduced: str | None = None
    if isinstance(s, Scatter | Store):
        axes = NO_AXES.union(*(n.axes for n in roots(s)))
    else:
        axes = s.target.axes | s.value.axes
        if isinstance(s.value, Sum | Max):
            (reduced,) = s.value.bound
            axes -= {reduced}
    order = layout.storage_order(axes - scalars)
    vector = order[-1] if order else None
    if whole_maximum(layout, s) is not None:
        reduced = None
    return Shape(vector, order[:-1], reduced)


def whole_maximum(layout: Layout, s: NestStmt) -> Tile | None:
    """The array a maximum runs over, if it is one call of `largest`: an array with the result's one axis contiguous.

    A maximum inside another loop would wait for itself at every step; `largest` keeps four of them going.
    """
    if not isinstance(s, Assign) or not isinstance(s.value, Max) or not isinstance(s.value.body, Var):
        return None
    tile, target = layout.tiles[s.value.body.name], layout.tiles[s.target.name]
    fits = tile.element == "f" and len(target.lanes) == 1 and tile.lanes == (*s.value.bound, target.lanes[0])
    return tile if fits else None


def plan(layout: Layout, statements: list[NestStmt], scalars: frozenset[str]) -> list[Segment]:
    """Each statement goes into the first inner loop that runs over its axes and comes after all it depends on."""
    shapes = {id(s): shape(layout, s, scalars) for s in statements}

    def finished(s: NestStmt) -> str | None:
        """The variable that has its value only after the loop."""
        return written(s) if shapes[id(s)].reduced is not None else None

    def together(s: NestStmt, earlier: NestStmt) -> bool:
        after = finished(earlier)
        before = finished(s)
        return (after is None or after not in reads(s) | {written(s)}) and (
            before is None or before not in reads(earlier) | {written(earlier)}
        )

    out: list[Segment] = []
    for s in statements:
        sh = shapes[id(s)]
        axes = (*sh.kept, sh.reduced) if sh.reduced else sh.kept
        alone = sh.reduced is not None and bool(sh.kept)
        earliest = 0
        for k, seg in enumerate(out):
            if any(_conflict(s, t) for t in seg.statements):
                joinable = seg.axes == axes and not alone and not seg.alone
                earliest = k if joinable and all(together(s, t) for t in seg.statements) else k + 1
        home = next((g for g in out[earliest:] if g.axes == axes and not alone and not g.alone), None)
        if home is None:
            home = Segment(axes, [], alone)
            out.append(home)
        home.statements.append(s)
    return out


def _conflict(s: NestStmt, earlier: NestStmt) -> bool:
    """Whether `s` must not come before `earlier`."""
    mine, theirs = written(s), written(earlier)
    if isinstance(s, Scatter | Store) and isinstance(earlier, Scatter | Store):
        return True
    return theirs in reads(s) or (mine is not None and (mine == theirs or mine in reads(earlier)))
