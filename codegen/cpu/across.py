"""Reductions along the axis that is contiguous in memory: vectors side by side, then across their lanes."""

from __future__ import annotations

from contextlib import ExitStack

from attnc.codegen.cpu.emitter import Emitter
from attnc.codegen.cpu.layout import Layout, Tile
from attnc.codegen.tile import Accumulate, Assign, Stmt
from attnc.ir.node import Max, Sum, Var


def across(layout: Layout, s: Stmt, scalars: frozenset[str]) -> list[Tile] | None:
    """The one or two arrays reduced, if they have the axes of the result and then the reduced one; else None.

    One of two may have the reduced axis alone: a vector that every row is multiplied by.
    """
    if not isinstance(s, Assign | Accumulate) or not isinstance(s.value, Sum | Max):
        return None
    (axis,) = s.value.bound
    target = layout.tiles[s.target.name]
    found: list[Tile] = []
    for f in s.value.factors if isinstance(s.value, Sum) else (s.value.body,):
        tile = layout.tiles.get(f.name) if isinstance(f, Var) else None
        if tile is None or tile.element != "f" or axis in scalars:
            return None
        if tile.lanes not in ((*target.lanes, axis), (axis,)):
            return None
        found.append(tile)
    if all(t.lanes != (*target.lanes, axis) for t in found):
        return None
    good = target.element == "f" and not any(a in scalars for a in target.lanes)
    return found if good else None


def print_across(layout: Layout, needs: set[str], out: Emitter, s: Assign | Accumulate, tiles: list[Tile]) -> None:
    """One call per element of the result."""
    target, adds = layout.tiles[s.target.name], isinstance(s, Accumulate)
    reduced = tiles[0].lanes[-1]
    out.note(s.note)
    with ExitStack() as loops:
        by_row = [t for t in tiles if target.lanes and target.lanes[-1] not in t.lanes]
        for axis in target.lanes[:-1] if by_row else target.lanes:
            lane, count = layout.axis(axis), layout.count(axis)
            loops.enter_context(out.block(f"for (int64_t {lane} = 0; {lane} < {count}; ++{lane})"))
        places = {axis: layout.axis(axis) for axis in (target.lanes[:-1] if by_row else target.lanes)}
        rows = [" + ".join([t.array, *layout.offset(t, places)]) for t in tiles]
        if by_row:  # one vector times many rows
            needs.add("dots")
            (one,), (many,) = (
                [r for r, t in zip(rows, tiles, strict=True) if (t in by_row) is wanted] for wanted in (True, False)
            )
            matrix = next(t for t in tiles if t not in by_row)
            step, count = layout.step(matrix, target.lanes[-1]), layout.count(target.lanes[-1])
            into = " + ".join([target.array, *layout.offset(target, places)])
            end = f"{count}, {layout.count(reduced)}, {'true' if adds else 'false'}"
            out.line(f"dots({into}, {one}, {many}, {step}, {end});")
            return
        name = "largest_across" if isinstance(s.value, Max) else "sum_across" if len(tiles) == 1 else "dot"
        needs |= {"dots" if name == "dot" else name} | ({"maximum"} if name == "largest_across" else set())
        value = f"{name}({', '.join([*rows, layout.count(reduced)])})"
        sign = "+=" if adds else "="
        if target.lanes:
            out.line(f"{target.array}[{' + '.join(layout.offset(target, places))}] {sign} {value};")
        else:
            single = layout.writes[target.name] == 1
            out.line(f"{'const real ' if single else ''}{target.array} {sign} {value};")
