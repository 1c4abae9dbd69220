"""Statements taken apart before they are printed: stores of expressions, and functions of a row inside a nest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeGuard

from attnc.codegen.cpu.layout import Layout, Mentions, reads
from attnc.codegen.cpu.nest import CHEAP
from attnc.codegen.cpu.segments import shape
from attnc.codegen.cpu.subexpressions import maximal
from attnc.codegen.cpu.transfer import affine
from attnc.codegen.tile import Accumulate, Assign, Stmt, Store
from attnc.ir.construct import var
from attnc.ir.node import NO_AXES, Axes, Call, Load, Max, Node, Sum, Var
from attnc.ir.walk import postorder
from attnc.ir.walk import replace as substitute


class Simple:
    """Takes statement lists apart; `stored` are the tiles it made for stores, which are read outside nests."""

    def __init__(self, layout: Layout, mentions: Mentions) -> None:
        self.layout = layout
        self.mentions = mentions
        self.stored: set[str] = set()

    def statements(
        self, body: tuple[Stmt, ...], scalars: frozenset[str], nests: Callable[[Stmt], bool]
    ) -> Iterator[Stmt]:
        """The statements of a list; `scalars` are the axes of enclosing `Each` loops, `nests` tells nests."""
        for s in body:
            if isinstance(s, Store) and affine(self.layout, s.index, scalars) and not is_tile(self.layout, s, scalars):
                yield from self._by_way_of_tile(s, scalars)
            elif isinstance(s, Assign | Accumulate) and not isinstance(s.value, Load | Sum | Max) and nests(s):
                yield from self._rows_apart(body, s, scalars)
            else:
                yield s

    def _by_way_of_tile(self, s: Store, scalars: frozenset[str]) -> Iterator[Stmt]:
        lanes = self.layout.kernel.layout(NO_AXES.union(s.value.axes, *(n.axes for n in s.index)) - scalars)
        if not lanes:
            yield s
            return
        stored = self._variable(f"{s.tensor}_stored", frozenset(lanes))
        self.stored.add(stored.name)
        yield Assign(stored, s.value, s.note)
        yield Store(s.tensor, s.index, stored)

    def _rows_apart(
        self, body: tuple[Stmt, ...], s: Assign | Accumulate, scalars: frozenset[str]
    ) -> Iterator[Assign | Accumulate]:
        """A statement, after the functions in it that depend on one axis alone, unlike its vectors.

        By themselves they are computed for a vector of positions at a time and once, not for each position in turn in
        every pass of the inner loop.
        """
        vector = shape(self.layout, s, scalars).vector
        rows: dict[Node, Node] = {}
        for node in maximal(s.value, lambda n: _is_of_row(n, vector, scalars)):
            (axis,) = node.axes - scalars
            fn = next(n.fn for n in postorder([node]) if _costs(n))
            rows[node] = row = self._variable(f"{fn}_{self.layout.axis(axis)}", frozenset({axis}))
            apart = Assign(row, node)
            self.mentions.add(body, [row.name, row.name, *reads(apart)])
            yield apart
        yield replace(s, value=substitute([s.value], rows, canonical=False)[0]) if rows else s

    def _variable(self, wish: str, axes: Axes) -> Var:
        name, count = wish, 1
        while name in self.layout.tiles:
            count += 1
            name = f"{wish}_{count}"
        self.layout.add(name, "f", axes)
        self.layout.writes[name] = 1
        return var(name, axes, "f")


def is_tile(layout: Layout, s: Store, scalars: frozenset[str]) -> bool:
    """Whether the value is a tile with just the axes of the subscripts, so that it can be copied out."""
    if not isinstance(s.value, Var) or s.value.name not in layout.tiles:
        return False
    lanes = layout.kernel.layout(NO_AXES.union(*(n.axes for n in s.index)) - scalars)
    return bool(lanes) and set(layout.tiles[s.value.name].lanes) == set(lanes)


def _is_of_row(node: Node, vector: str | None, scalars: frozenset[str]) -> bool:
    axes = node.axes - scalars
    if vector is None or node.kind != "f" or len(axes) != 1 or vector in axes:
        return False
    parts = postorder([node])
    return any(map(_costs, parts)) and not any(isinstance(n, Load | Sum | Max) for n in parts)


def _costs(node: Node) -> TypeGuard[Call]:
    """Whether a node is a function of reals that takes some instructions."""
    return isinstance(node, Call) and node.kind == "f" and node.fn not in CHEAP
