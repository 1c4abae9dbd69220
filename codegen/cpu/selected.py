"""Operands of products less the rows that no lane of a block may read, where a block has such rows.

Lowering multiplies such an operand by a bracket: 0 times what a masked position holds, perhaps NaN, is not 0. In most
blocks that a mask cuts every position is read by some lane. Those multiply the operand as it was loaded: it need not be
copied, is in the packed or turned form that full blocks take, and products of bf16 stay products of bf16.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from attnc.codegen.cpu.layout import Layout, reads, written
from attnc.codegen.cpu.matrix import matrix_product
from attnc.codegen.tile import Accumulate, Assign, Each, Loop, Stmt, statements
from attnc.ir.node import Call, Const, Iverson, Load, Node, Prod, Var
from attnc.ir.walk import replace as replace_nodes


@dataclass(frozen=True, slots=True)
class Selected:
    """A variable that is `source` where `seen` is above 0, and 0 elsewhere."""

    target: Var
    source: Var
    seen: Var


def find_selected(layout: Layout) -> None:
    """Fill `layout.selected` and `layout.unselected`."""
    for s in statements(layout.kernel.body):
        found = _selected(s)
        if found is not None and _is_used(layout, found):
            layout.selected[found.target.name] = found
    for s in statements(layout.kernel.body):
        here: dict[Node, Node] = {x.target: x.source for x in layout.selected.values() if x.target.name in reads(s)}
        if here and isinstance(s, Assign | Accumulate):
            layout.unselected[id(s)] = _without(s, here)


def _selected(s: Stmt) -> Selected | None:
    if not isinstance(s, Assign) or not isinstance(s.value, Prod) or len(s.value.factors) != 2:
        return None
    sources = [f for f in s.value.factors if isinstance(f, Var)]
    brackets = [f.condition for f in s.value.factors if isinstance(f, Iverson)]
    match sources, brackets:
        case [source], [Call(fn="lt", args=(Const(), Var() as seen))] if (
            len(seen.axes) == 1 and seen.axes < source.axes
        ):
            return Selected(s.target, source, seen)
        case _:
            return None


def _is_used(layout: Layout, found: Selected) -> bool:
    """Whether the variable is such a one wherever it is set, products alone read it, and its source is loaded."""
    every = list(statements(layout.kernel.body))
    own = [s for s in every if written(s) == found.target.name]
    sources = [s for s in every if written(s) == found.source.name]
    readers = [s for s in every if found.target.name in reads(s)]
    return (
        all(_selected(s) == found for s in own)
        and all(isinstance(s, Assign) and isinstance(s.value, Load) for s in sources)
        and all(_multiplies(layout, s, found) for s in readers)
    )


def _multiplies(layout: Layout, s: Stmt, found: Selected) -> bool:
    if not isinstance(s, Assign | Accumulate) or matrix_product(layout, s, frozenset()) is None:
        return False
    return matrix_product(layout, _without(s, {found.target: found.source}), frozenset()) is not None


def _without(s: Assign | Accumulate, sources: dict[Node, Node]) -> Assign | Accumulate:
    return replace(s, value=replace_nodes([s.value], sources, canonical=False)[0])


def products(layout: Layout, body: tuple[Stmt, ...]) -> Iterator[Stmt]:
    """The statements of a list, and those that stand for them in blocks where everything is seen."""
    for s in body:
        yield s
        if not isinstance(s, Loop | Each) and id(s) in layout.unselected:
            yield layout.unselected[id(s)]
