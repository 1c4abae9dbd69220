"""Weights that nothing but products of bf16 reads: rounded as they are computed, and held as pairs in their own array.

Two rows are computed in a turn. Their pairs take the place of the first of the two rows, which has just been read: they
are written where memory is close already, and no second pass over the tile packs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attnc.codegen.cpu.layout import PACKED_DEPTH, Layout, Mentions, Pack, Tile, reads, written
from attnc.codegen.cpu.packs import packs_of
from attnc.codegen.cpu.segments import NestStmt, Segment
from attnc.codegen.tile import Assign, Stmt
from attnc.ir.node import Max

if TYPE_CHECKING:
    from attnc.codegen.cpu.nest import Nest


def find_weights(
    layout: Layout, body: Sequence[Stmt], group: Sequence[NestStmt], mentions: Mentions
) -> dict[str, Pack]:
    """The variables of a group that only products of bf16 read beyond it, as their vectors, with that packed copy."""
    out: dict[str, Pack] = {}
    for s in group:
        packs = packs_of(layout, written(s) or "") if isinstance(s, Assign) and layout.packs else []
        if [p.form for p in packs] != ["pairs"]:
            continue
        (pack,) = packs
        name = pack.name
        readers = [t for t in body if name in reads(t) and t not in group]
        multiplied = (*readers, *(layout.unselected.get(id(t), t) for t in readers))
        once = sum(written(t) == name for t in body) == 1 and name not in mentions.carried
        room = layout.pitch(pack.depth)
        whole = room.isdigit() and int(room) % PACKED_DEPTH == 0
        if readers and once and whole and all(id(t) in layout.pairs_of for t in multiplied):
            out[name] = pack
    return out


def computed_in_turns(nest: Nest, segments: Sequence[Segment]) -> dict[str, Pack]:
    """Those that one inner loop along the depth of their products computes, and no other mentions."""
    out = {}
    for name, pack in nest.weights.items():
        homes = [seg for seg in segments if any(name in reads(s) | {written(s)} for s in seg.statements)]
        if pack.other != nest.vector or [seg.axes for seg in homes] != [(pack.depth,)] or homes[0].alone:
            continue
        found = [s for s in homes[0].statements if isinstance(s, Assign) and isinstance(s.value, Max)]
        if not found:  # those may take several rows in a turn
            out[name] = pack
    return out


def print_turns(nest: Nest, seg: Segment, weights: Sequence[Pack], start: str, stop: str) -> None:
    """The loop of a segment along one axis from `start`, an even number, to `stop`, two rows in a turn."""
    layout, out, fresh = nest.layout, nest.out, nest.layout.names.fresh
    (axis,) = {p.depth for p in weights}
    at = fresh(f"{layout.axis(axis)}_pair")
    with layout.names.scope(), out.block(f"for (int64_t {at} = {start}; {at} < {stop}; {at} += 2)"):
        halves = {p.name: (fresh(f"{p.name}_low"), fresh(f"{p.name}_high")) for p in weights}
        out.line(f"vec {', '.join(f'{x} = {{}}' for pair in halves.values() for x in pair)};")
        for side in (0, 1):
            nest.half = {name: pair[side] for name, pair in halves.items()}
            if side:
                out.line(f"if ({at} + 1 < {stop})")
            with nest.one_of(axis, f"{at} + 1" if side else at):
                nest.print_body(seg)
            nest.forget_lanes()
        nest.half = {}
        for pack in weights:
            low, high = halves[pack.name]
            out.line(f"put({_place(nest, layout.tiles[pack.name], pack, at)}, paired({low}, {high}));")
            nest.touch(pack.name, nest.segment, len(out.lines), True)


def print_rest(nest: Nest, weights: Sequence[Pack]) -> None:
    """Zeros up to a whole packed depth."""
    layout, out = nest.layout, nest.out
    for pack in weights:
        count = layout.count(pack.depth)
        at = layout.names.fresh(f"{layout.axis(pack.depth)}_rest")
        tile = layout.tiles[pack.name]
        head = f"for (int64_t {at} = round_up({count}, 2); {at} < round_up({count}, {PACKED_DEPTH}); {at} += 2)"
        out.line(f"{head} put({_place(nest, tile, pack, at)}, pairs{{}});")


def held_in_place(layout: Layout, pack: Pack) -> tuple[str, str]:
    """The array of such pairs, and how far apart its rows are."""
    return f"(const bf16 *){layout.tiles[pack.name].array}", f"4 * {layout.pitch(pack.other)}"


def _place(nest: Nest, tile: Tile, pack: Pack, at: str) -> str:
    places = {pack.depth: at, pack.other: nest.layout.axis(pack.other)}
    return f"(bf16 *)({' + '.join([tile.array, *nest.layout.offset(tile, places)])})"
