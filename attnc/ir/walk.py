"""Traversal, rebuilding and substitution of IR nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from attnc.ir.construct import (
    add,
    axis,
    call,
    free_axes,
    iverson,
    load,
    max_over,
    mul,
    raw_add,
    raw_call,
    raw_prod,
    raw_sum,
    sum_over,
)
from attnc.ir.functions import is_block
from attnc.ir.node import Add, Axes, Axis, Call, Iverson, Load, Max, Node, Prod, Sum
from attnc.ir.notes import carry

Rule = Callable[[Node], "Node | None"]


def postorder(roots: Iterable[Node]) -> list[Node]:
    """Every node below `roots`, children first, each once. Iterative, so depth is not bounded by Python's stack."""
    done: dict[Node, None] = {}
    stack = list(roots)
    stack.reverse()
    while stack:
        node = stack[-1]
        missing = [c for c in node.children if c not in done] if node not in done else ()
        if missing:
            stack.extend(reversed(missing))
        else:
            done[stack.pop()] = None
    return list(done)


def rebuild(node: Node, children: tuple[Node, ...], *, canonical: bool = True) -> Node:
    """The same node over new children; `canonical=False` keeps the contraction order as it is."""
    if children == node.children:
        return node
    match node:
        case Load():
            return load(node.tensor, children, node.kind)
        case Call():
            return call(node.fn, *children) if canonical else raw_call(node.fn, children, node.kind)
        case Iverson():
            return iverson(children[0])
        case Add():
            return add(*children) if canonical else raw_add(children)
        case Prod():
            return mul(*children) if canonical else raw_prod(children)
        case Sum():
            n, m = len(node.factors), len(node.domain)
            scatter = tuple((a, c) for (a, _), c in zip(node.scatter, children[n + m :], strict=True))
            build = sum_over if canonical else raw_sum
            return build(node.bound, children[:n], children[n : n + m], scatter)
        case Max():
            return max_over(node.bound, children[0], children[1:])
        case _:
            raise TypeError(f"leaf {type(node).__name__} has no children")


def rewrite(roots: Iterable[Node], rule: Rule, *, canonical: bool = True) -> list[Node]:
    """Apply `rule` bottom-up to every node; None means no change. Shared nodes are rewritten once."""
    memo: dict[Node, Node] = {}
    roots = list(roots)
    for node in postorder(roots):
        new = rebuild(node, tuple(memo[c] for c in node.children), canonical=canonical)
        changed = rule(new)
        memo[node] = new if changed is None else changed
        carry(node, memo[node])
    return [memo[r] for r in roots]


def replace(roots: Iterable[Node], mapping: Mapping[Node, Node], *, canonical: bool = True) -> list[Node]:
    """Replace whole nodes, topmost match first; nothing inside a replaced node is visited."""
    memo: dict[Node, Node] = dict(mapping)
    roots = list(roots)
    stack: list[tuple[Node, bool]] = [(r, False) for r in reversed(roots)]
    while stack:
        node, ready = stack.pop()
        if node in memo:
            continue
        if ready:
            memo[node] = rebuild(node, tuple(memo[c] for c in node.children), canonical=canonical)
            carry(node, memo[node])
            continue
        stack.append((node, True))
        stack.extend((c, False) for c in node.children if c not in memo)
    return [memo[r] for r in roots]


def substitute(node: Node, mapping: Mapping[str, Node]) -> Node:
    """Replace free occurrences of axes by expressions, renaming bound axes that would capture them."""
    memo: dict[tuple[Node, frozenset[tuple[str, Node]]], Node] = {}

    def go(n: Node, env: Mapping[str, Node]) -> Node:
        live = {a: e for a, e in env.items() if a in n.axes}
        if not live:
            return n
        key = (n, frozenset(live.items()))
        if key in memo:
            return memo[key]
        memo[key] = out = build(n, live)
        return out

    def build(n: Node, env: dict[str, Node]) -> Node:
        if isinstance(n, Axis):
            return env[n.name]
        if is_block(n):
            return in_block(n, env)
        if not isinstance(n, Sum | Max):
            return rebuild(n, tuple(go(c, env) for c in n.children))
        arriving = free_axes(env.values())
        scattered = {a for a, _ in n.scatter} if isinstance(n, Sum) else set()
        inner: dict[str, Node] = {a: e for a, e in env.items() if a not in scattered}
        rename: dict[str, str] = {}
        for a in sorted(n.bound & arriving):
            taken = arriving | n.axes | n.bound | free_axes(n.children) | set(rename.values())
            rename[a] = fresh_axis(a, taken)
            inner[a] = axis(rename[a])
        bound = frozenset(rename.get(a, a) for a in n.bound)
        children = tuple(go(c, inner) for c in n.children)
        if isinstance(n, Max):
            return max_over(bound, children[0], children[1:])
        k, m = len(n.factors), len(n.domain)
        # A scattered axis that is replaced, or whose name arrives from outside, becomes a condition on the index.
        given = {a: env.get(a, axis(a)) for a in scattered if a in env or a in arriving}
        if not given:
            scatter = tuple((a, c) for (a, _), c in zip(n.scatter, children[k + m :], strict=True))
            return sum_over(bound, children[:k], children[k : k + m], scatter)
        keep, equal = [], []
        for (a, _), c in zip(n.scatter, children[k + m :], strict=True):
            if a in given:
                equal.append(call("eq", c, given[a]))
            else:
                keep.append((a, c))
        return sum_over(bound, children[:k], (*children[k : k + m], *equal), keep)

    def in_block(n: Node, env: dict[str, Node]) -> Node:
        """Read at another position, a value of a block is a reduction over the positions of that one's block."""
        assert isinstance(n, Call)
        body, place, length = n.args
        assert isinstance(place, Axis)
        target = env.get(place.name, place)
        others = {a: e for a, e in env.items() if a != place.name}
        arriving = free_axes(others.values())
        if isinstance(target, Axis) and target.name not in arriving | (body.axes - {place.name}):
            return call(n.fn, go(body, {**others, place.name: target}), target, length)
        new = fresh_axis(place.name, arriving | body.axes | target.axes)
        inside = call("eq", call("floordiv", axis(new), length), call("floordiv", target, length))
        moved = go(body, {**others, place.name: axis(new)})
        return sum_over({new}, [moved], [inside]) if n.fn == "block_sum" else max_over({new}, moved, [inside])

    return go(node, mapping)


def base_axis(name: str) -> str:
    """The declared axis a (possibly renamed) axis ranges over: ``j'`` ranges over what ``j`` does."""
    return name.rstrip("'")


def fresh_axis(name: str, taken: Axes | set[str]) -> str:
    while name in taken:
        name += "'"
    return name
