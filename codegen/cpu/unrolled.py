"""Short loops over channels written out, so that what they add up for pairs of positions stays in registers."""

from __future__ import annotations

from dataclasses import replace

from attnc.codegen.tile import Accumulate, Assign, Each, Kernel, Loop, Stmt, statements
from attnc.ir.construct import axis, const, var
from attnc.ir.node import Const, Node, Var
from attnc.ir.walk import replace as replace_nodes

LONGEST = 4
"""Turns of a loop that is written out."""


def with_short_loops_unrolled(kernel: Kernel) -> Kernel:
    """The same kernel without loops of a few turns over single channels whose bodies compute values of pairs."""
    names = {s.target.name for s in statements(kernel.body) if isinstance(s, Assign)}
    body = _body(kernel.body, names)
    return kernel if body == kernel.body else replace(kernel, body=body)


def _body(body: tuple[Stmt, ...], names: set[str]) -> tuple[Stmt, ...]:
    out: list[Stmt] = []
    for s in body:
        turns = _turns(s) if isinstance(s, Each) else None
        if isinstance(s, Each) and turns is not None:
            for k in turns:
                out += _turn(s, k, names)
        elif isinstance(s, Loop | Each):
            out.append(replace(s, body=_body(s.body, names)))
        else:
            out.append(s)
    return tuple(out)


def _turns(s: Each) -> range | None:
    """The positions of a loop to write out; None if it stays."""
    if not isinstance(s.start, Const) or not isinstance(s.stop, Const):
        return None
    turns = range(int(s.start.value), int(s.stop.value))
    simple = all(isinstance(t, Assign | Accumulate) for t in s.body)
    pairs = any(isinstance(t, Accumulate) and len(t.target.axes) > 1 for t in s.body)
    return turns if simple and pairs and len(turns) <= LONGEST else None


def _turn(s: Each, position: int, names: set[str]) -> list[Stmt]:
    """The body at one position, what it assigns under names of its own."""
    known: dict[Node, Node] = {axis(s.axis): const(position)}
    for t in s.body:
        if isinstance(t, Assign) and t.target not in known:
            name = f"{t.target.name}_at_{position}"
            while name in names:
                name += "_"
            names.add(name)
            known[t.target] = var(name, t.target.axes, t.target.kind)
    out: list[Stmt] = []
    for t in s.body:
        assert isinstance(t, Assign | Accumulate)
        target = known.get(t.target, t.target)
        assert isinstance(target, Var)
        (value,) = replace_nodes([t.value], known, canonical=False)
        out.append(replace(t, target=target, value=value))
    return out
