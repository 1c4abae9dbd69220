"""Which parts of the expressions of a loop nest deserve a name."""

from __future__ import annotations

from collections.abc import Callable

from attnc.codegen.cpu.layout import is_trivial, roots
from attnc.codegen.cpu.segments import NestStmt
from attnc.codegen.tile import Scatter, Store
from attnc.ir.node import Iverson, Load, Max, Node, Sum, Var
from attnc.ir.walk import postorder


def pointwise_roots(s: NestStmt) -> list[Node]:
    """The pointwise expressions in a statement."""
    if isinstance(s, Scatter | Store) or not isinstance(s.value, Load | Sum | Max):
        return roots(s)
    return list(s.value.index) if isinstance(s.value, Load) else []


def variables(node: Node) -> set[str]:
    return {n.name for n in postorder([node]) if isinstance(n, Var)}


def maximal(root: Node, good: Callable[[Node], bool]) -> list[Node]:
    """The largest sub-expressions that are `good`, left to right."""
    out: list[Node] = []
    stack = [root]
    while stack:
        node = stack.pop()
        if good(node):
            if node not in out:
                out.append(node)
        else:
            stack.extend(reversed(node.children))
    return out


def repeated(statements: list[NestStmt]) -> set[Node]:
    """Sub-expressions used more than once."""
    counts: dict[Node, int] = {}
    seen: set[Node] = set()
    for s in statements:
        for root in pointwise_roots(s):
            counts[root] = counts.get(root, 0) + 1
            for n in postorder([root]):
                if n not in seen:
                    seen.add(n)
                    for c in n.children:
                        counts[c] = counts.get(c, 0) + 1
    return {n for n, c in counts.items() if c > 1 and not is_trivial(n) and not isinstance(n, Iverson)}
