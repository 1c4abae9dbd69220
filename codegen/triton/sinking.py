"""Loops: what only the end of a kernel needs is computed behind them, rather than held in registers all along; those
over few channels are written out."""

from __future__ import annotations

from collections.abc import Iterator

from attnc.codegen.tile import Accumulate, AccumulateAt, Assign, Each, Loop, Scatter, Stmt, Store, statements
from attnc.ir.node import Const, Node, Var
from attnc.ir.walk import postorder

UNROLLED = 4
"""Channels of an `Each` that are written out by the compiler: only loops without loops inside are pipelined."""


def sunk(body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
    """The statements with values that no loop reads behind the last loop, in their order.

    Values are loads and what is computed from them; loops write to no tensor that a kernel reads.
    """
    loops = [k for k, s in enumerate(body) if isinstance(s, Loop | Each)]
    if not loops:
        return body
    first, end = loops[0], loops[-1] + 1
    once = _assigned_once(body)
    needed = {v for s in body[first:end] for v in _read(s)}
    before: list[Stmt] = []
    after: list[Stmt] = []
    for s in reversed(body[:first]):
        if isinstance(s, Assign) and s.target in once and s.target not in needed and s.target.axes:
            after.append(s)
        else:
            before.append(s)
            needed.update(_read(s))
    return (*reversed(before), *body[first:end], *reversed(after), *body[end:])


def _assigned_once(body: tuple[Stmt, ...]) -> set[Var]:
    seen: set[Var] = set()
    again: set[Var] = set()
    for s in statements(body):
        if isinstance(s, Assign | Accumulate | AccumulateAt):
            (again if s.target in seen else seen).add(s.target)
    return seen - again


def _read(s: Stmt) -> Iterator[Var]:
    """The variables that a statement reads, those it adds to included."""
    for t in statements((s,)):
        if isinstance(t, Accumulate | AccumulateAt):
            yield t.target
        for n in postorder(_nodes(t)):
            if isinstance(n, Var):
                yield n


def _nodes(s: Stmt) -> list[Node]:
    match s:
        case Loop() | Each():
            return [s.start, s.stop]
        case Store():
            return [*s.index, s.value]
        case Scatter():
            return [*s.index, s.value, *([] if s.condition is None else [s.condition])]
        case _:
            return [s.value]


def is_unrolled(s: Each) -> bool:
    """Whether a loop over single channels is known to be short."""
    match s.start, s.stop:
        case Const(value=first), Const(value=last):
            return int(last) - int(first) <= UNROLLED
        case _:
            return False
