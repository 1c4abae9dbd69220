"""How a group of statements is cut into inner loops."""

from __future__ import annotations

from dataclasses import dataclass, field

from attnc.codegen.cpu.layout import Layout, reads, roots, written
from attnc.codegen.tile import Accumulate, AccumulateAt, Assign, Scatter, Store
from attnc.ir.node import NO_AXES, Axis, Const, Max, Node, Prod, Size, Sum, Var

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
    return Shape(vector, order[:-1], reduced)


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
    _recompute(layout, out)
    return out


def _recompute(layout: Layout, segments: list[Segment]) -> None:
    """Values that cost one multiplication are computed anew in every inner loop that reads them, not kept in memory."""
    writes: dict[str, int] = {}
    for name in (w for seg in segments for s in seg.statements if (w := written(s))):
        writes[name] = writes.get(name, 0) + 1
    for at, seg in enumerate(segments):
        for s in [s for s in seg.statements if isinstance(s, Assign) and writes[s.target.name] == 1]:
            tile = layout.tiles[s.target.name]
            if seg.alone or len(tile.lanes) < 2 or tile.element != "f" or not _scaled(s.value, writes):
                continue
            for later in segments[at + 1 :]:
                if later.axes == seg.axes and not later.alone and any(tile.name in reads(t) for t in later.statements):
                    later.statements.insert(0, s)


def _scaled(value: Node, writes: dict[str, int]) -> bool:
    """Whether a value is a variable set before the nest, times a factor that is the same in every lane."""
    if not isinstance(value, Prod) or not all(isinstance(f, Var | Const | Size | Axis) for f in value.factors):
        return False
    moving = [f for f in value.factors if isinstance(f, Var) and f.axes]
    known = not {f.name for f in value.factors if isinstance(f, Var)} & writes.keys()
    return len(value.factors) == 2 and len(moving) == 1 and known


def _conflict(s: NestStmt, earlier: NestStmt) -> bool:
    """Whether `s` must not come before `earlier`."""
    mine, theirs = written(s), written(earlier)
    if isinstance(s, Scatter | Store) and isinstance(earlier, Scatter | Store):
        return True
    return theirs in reads(s) or (mine is not None and (mine == theirs or mine in reads(earlier)))
