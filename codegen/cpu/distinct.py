"""One name, one array: variables that share a name but differ in axes or kind get names of their own."""

from __future__ import annotations

from dataclasses import replace

from attnc.codegen.tile import (
    Accumulate,
    AccumulateAt,
    AddTo,
    Assign,
    Each,
    Kernel,
    Loop,
    Scatter,
    Stmt,
    Store,
    statements,
)
from attnc.ir.construct import var
from attnc.ir.node import Node, Var
from attnc.ir.walk import replace as replace_nodes


def with_distinct_names(kernel: Kernel) -> Kernel:
    """The same kernel, every variable name standing for one set of axes and one kind."""
    known: dict[str, list[Var]] = {}
    for s in statements(kernel.body):
        if isinstance(s, Assign) and s.target not in known.setdefault(s.target.name, []):
            known[s.target.name].append(s.target)
    renamed: dict[Node, Node] = {}
    for name, variants in known.items():
        for number, v in enumerate(variants[1:], 2):
            fresh = f"{name}_{number}"
            while fresh in known:
                fresh += "_"
            renamed[v] = var(fresh, v.axes, v.kind)
    return replace(kernel, body=_body(kernel.body, renamed)) if renamed else kernel


def _body(body: tuple[Stmt, ...], renamed: dict[Node, Node]) -> tuple[Stmt, ...]:
    def swap(node: Node) -> Node:
        return replace_nodes([node], renamed, canonical=False)[0]

    def target(v: Var) -> Var:
        new = renamed.get(v, v)
        assert isinstance(new, Var)
        return new

    out: list[Stmt] = []
    for s in body:
        match s:
            case Assign() | Accumulate() | AccumulateAt():
                out.append(replace(s, target=target(s.target), value=swap(s.value)))
            case Loop() | Each():
                out.append(replace(s, start=swap(s.start), stop=swap(s.stop), body=_body(s.body, renamed)))
            case Store():
                out.append(replace(s, index=tuple(swap(x) for x in s.index), value=swap(s.value)))
            case AddTo():
                out.append(replace(s, index=tuple(swap(x) for x in s.index), value=target(s.value)))
            case Scatter():
                condition = None if s.condition is None else swap(s.condition)
                index = tuple(swap(x) for x in s.index)
                out.append(replace(s, index=index, value=swap(s.value), condition=condition))
    return tuple(out)
