"""Tiles that share memory: one that is no longer read gives its room to the next of the same shape.

A score then overwrites the product it was computed from, and a weight the score: less memory to keep close, and no
loads that wait for stores some multiple of 4 kB away.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product

from attnc.codegen.cpu.layout import Layout, Mentions
from attnc.codegen.tile import Each, Loop, Stmt


@dataclass(frozen=True, slots=True)
class Access:
    """Where a tile is read or written: the loop nest or single statement, the inner loop of the nest, and the line.

    `in_place` tells that only the elements of the current lanes are touched.
    """

    unit: int
    segment: int = 0
    line: int = 0
    in_place: bool = False


@dataclass
class Trace:
    """The accesses to every tile, by statement list, in the order they are printed."""

    unit: int = 0
    found: dict[int, dict[str, list[Access]]] = field(default_factory=dict)

    def note(
        self, body: tuple[Stmt, ...], name: str, segment: int = 0, line: int = 0, *, in_place: bool = False
    ) -> None:
        access = Access(self.unit, segment, line, in_place)
        self.found.setdefault(id(body), {}).setdefault(name, []).append(access)


def shared_rooms(layout: Layout, trace: Trace, absent: set[str]) -> dict[str, str]:
    """For each tile that takes the room of another, that other one; those `absent` have no room."""
    carried = Mentions(layout.kernel).carried
    bodies = dict(_bodies(layout.kernel.body))
    slots: list[list[str]] = []
    out: dict[str, str] = {}
    names = dict.fromkeys(name for found in trace.found.values() for name in found)
    halves = set(filter(layout.is_half, layout.viewed))
    for name in names:
        tile = layout.tiles[name]
        lists = [k for k, found in trace.found.items() if name in found]
        straight = all(not any(isinstance(s, Loop | Each) for s in bodies[k]) for k in lists)
        if name in absent | halves or tile.element != "f" or len(tile.lanes) < 2 or name in carried or not straight:
            continue
        for slot in slots:
            same = layout.tiles[slot[0]].lanes == tile.lanes
            if same and all(_apart(trace, name, other) for other in slot):
                out[name] = slot[0]
                slot.append(name)
                break
        else:
            slots.append([name])
    return out


def _bodies(body: tuple[Stmt, ...]) -> Iterator[tuple[int, tuple[Stmt, ...]]]:
    yield id(body), body
    for s in body:
        if isinstance(s, Loop | Each):
            yield from _bodies(s.body)


def _apart(trace: Trace, a: str, b: str) -> bool:
    """Whether wherever both occur, one is done with before the other begins."""
    for found in trace.found.values():
        if a in found and b in found and not (_before(found[a], found[b]) or _before(found[b], found[a])):
            return False
    return True


def _before(earlier: list[Access], later: list[Access]) -> bool:
    def ordered(a: Access, b: Access) -> bool:
        if a.unit != b.unit:
            return a.unit < b.unit
        return a.in_place and b.in_place and (a.segment, a.line) < (b.segment, b.line)

    return all(ordered(a, b) for a, b in product(earlier, later))
