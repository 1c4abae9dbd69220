"""Contraction order: every canonical sum over several axes becomes nested sums over one axis each.

Channels are contracted first (a dot product per pair of positions), then one sequence axis (the inner loop of a pass),
then the other sequence axis and the batch axes (sums of vectors). A plane sum that scatters by an index depending on
both positions keeps both axes: its kernel adds into a table.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import permutations

from attnc.diagnostics.diagnostic import InternalError
from attnc.ir.construct import add, axis, call, const, free_axes, iverson, max_over, mul, raw_prod, raw_sum
from attnc.ir.node import Axes, Axis, Call, Max, Node, Sum
from attnc.ir.walk import postorder, replace, rewrite
from attnc.passes.planes import Planes


def associate(roots: Iterable[Node], planes: Planes, *, grouped: bool = True) -> list[Node]:
    """Fix the contraction order of every sum below `roots`.

    With `grouped`, a sum over the query heads of a key head stays inside the pass that computes its terms.
    """

    def rule(node: Node) -> Node | None:
        if isinstance(node, Sum):
            return _order(node, planes, grouped)
        if isinstance(node, Max) and len(planes.sequences(node.bound)) == 2:
            inner = _inner_axis(planes.sequences(node.bound))
            return max_over(node.bound - {inner}, max_over({inner}, node.body, node.domain))
        return None

    return rewrite(roots, rule, canonical=False)


def product(factors: Sequence[Node]) -> Node:
    """A product kept as given."""
    flat = [x for f in factors for x in (f.children if type(f).__name__ == "Prod" else (f,))]
    return flat[0] if len(flat) == 1 else raw_prod(flat)


def _inner_axis(pair: Axes) -> str:
    """The axis a pass loops over when either would do: the keys of a query, the tokens of a group."""
    if "j" in pair:
        return "j"
    return sorted(pair - {"i"})[-1]


def _order(node: Sum, planes: Planes, grouped: bool) -> Node:
    """One sum as nested ones. A place of a scatter that no bound axis moves (a table's entry per row) is a bracket."""
    fixed = [s for s in node.scatter if planes.sequences(s[1].axes) and not s[1].axes & node.bound]
    if fixed:
        rest = raw_sum(node.bound, node.factors, node.domain, [s for s in node.scatter if s not in fixed])
        inner = _order(rest, planes, grouped) if rest.bound or rest.scatter else product([*rest.factors])
        return product([inner, *(iverson(call("eq", axis(a), index)) for a, index in fixed)])
    placed = planes.channels(node.bound & free_axes(index for _, index in node.scatter))
    batch = planes.batches(node.bound) | placed
    per_batch = [s for s in node.scatter if not planes.sequences(s[1].axes)]
    per_position = [s for s in node.scatter if planes.sequences(s[1].axes)]
    together = _joint_scatter(node, planes, per_position)
    group = _group(batch, per_batch) if grouped and not per_position else None
    factors: list[Node] = list(node.factors)
    domain: list[Node] = list(node.domain)
    steps = _elimination(node, planes, together)
    scattered = free_axes(n for _, n in per_position)
    last = len(steps) - 1
    for k, bound in enumerate(steps):
        limits = [c for c in domain if c.axes & bound]
        # What holds for some channels only is no condition on positions: it is a factor, as it was written.
        brackets = [c for c in limits if planes.channels(c.axes - bound)]
        inside = [*(f for f in factors if f.axes & bound), *map(iverson, brackets)]
        limits = [c for c in limits if c not in brackets]
        factors = [f for f in factors if not f.axes & bound]
        domain = [c for c in domain if not c.axes & bound]
        here = per_position if bound & scattered or (k == last and per_position and bound & together) else []
        if k == last and group is not None and not domain:
            total = _grouped([*inside], limits, bound | batch, *group, planes)
            return (
                product([*factors, total])
                if not any(f.axes & batch for f in factors)
                else _outer([raw_sum(bound, inside, limits), *factors], domain, batch, per_batch)
            )
        if here and k == last and not batch:
            return product([*factors, raw_sum(bound, inside, limits, [*here, *per_batch]), *map(iverson, domain)])
        factors.append(raw_sum(bound, inside, limits, here))
    return _outer(factors, domain, batch, per_batch)


def _outer(factors: list[Node], domain: Sequence[Node], batch: Axes, scatter: Sequence[tuple[str, Node]]) -> Node:
    """The sum over batch axes, and over channels that a scatter permutes, of what the other sums left."""
    if batch or scatter:
        return raw_sum(batch, factors, domain, scatter)
    return product([*factors, *(iverson(d) for d in domain)])


def _joint_scatter(node: Sum, planes: Planes, scatter: Sequence[tuple[str, Node]]) -> Axes:
    """The pair of sequence axes an index depends on together: they are summed in one pass that adds into a table."""
    pair: Axes = frozenset()
    for _, index in scatter:
        pair |= planes.sequences(index.axes) & node.bound
    return pair


def _elimination(node: Sum, planes: Planes, together: Axes) -> list[Axes]:
    """The order in which bound axes are summed, one at a time.

    Channels come first, unless that would bring three sequence axes together; then the cheapest order that does not.
    Where the cheapest order never brings two together, no plane is needed: (q k) v becomes q (k v).
    """
    scattered = free_axes(index for _, index in node.scatter)
    channels = [frozenset({c}) for c in sorted(planes.channels(node.bound) - scattered)]
    sequences = sorted(planes.sequences(node.bound) - together, key=lambda a: (a != _inner_axis_of(node, planes), a))
    units = [*channels, *(frozenset({a}) for a in sequences)] + ([together] if together else [])
    usual = tuple(units)
    widest = _widest(node, planes, usual)
    if len(units) <= 1 or widest <= 1:
        return list(usual)
    orders: Iterable[tuple[Axes, ...]] = permutations(units) if len(units) <= 5 else (usual,)

    def price(order: Iterable[Axes]) -> tuple[int, float]:
        steps = tuple(order)
        return max(2, _widest(node, planes, steps)), _cost(node, planes, steps)

    best = min(orders, key=price)
    return list(usual) if widest == 2 and _widest(node, planes, best) == 2 else list(best)


def _inner_axis_of(node: Sum, planes: Planes) -> str:
    bound = planes.sequences(node.bound)
    return _inner_axis(bound) if len(bound) >= 2 else next(iter(bound), "")


def _spans(node: Sum, order: Sequence[Axes]) -> list[Axes]:
    """The axes that meet in each step of an elimination order."""
    groups = [f.axes for f in (*node.factors, *node.domain)]
    spans = []
    for bound in order:
        touched = [g for g in groups if g & bound]
        span = frozenset().union(*touched) | bound
        groups = [g for g in groups if not g & bound] + [span - bound]
        spans.append(span)
    return spans


def _widest(node: Sum, planes: Planes, order: Sequence[Axes]) -> int:
    return max((len(planes.sequences(s)) for s in _spans(node, order)), default=0)


def _cost(node: Sum, planes: Planes, order: Sequence[Axes]) -> float:
    """Multiplications of an order, at nominal extents."""
    nominal = {"sequence": 4096, "channel": 64}
    total = 0.0
    for span in _spans(node, order):
        cost = 1.0
        for a in span:
            cost *= nominal.get(planes.role(a), 1)
        total += cost
    return total


def _group(batch: Axes, scatter: Sequence[tuple[str, Node]]) -> tuple[str, Call] | None:
    """A sum over the heads of a group: one batch axis h, delivered to ``g = h // n``."""
    if len(batch) != 1 or len(scatter) != 1:
        return None
    (name, index), h = scatter[0], next(iter(batch))
    if isinstance(index, Call) and index.fn == "floordiv" and index.args[0] is axis(h) and not index.args[1].axes:
        return name, index
    return None


def _grouped(factors: list[Node], domain: Sequence[Node], bound: Axes, name: str, index: Call, planes: Planes) -> Node:
    """The same sum over the heads whose group is g, with g in place of ``h // n``: keys and values load once a group.

    Reductions inside stay as they are: they are other passes' results, read by head.
    """
    inside: dict[Node, Node] = {n: n for n in postorder([*factors, *domain]) if planes.is_reduction(n)}
    new = replace([*factors, *domain], {**inside, index: axis(name)}, canonical=False)
    n = len(factors)
    return raw_sum(bound, new[:n], [*new[n:], call("eq", index, axis(name))])


def group_range(node: Sum | Max, looped: str) -> tuple[Node, Node]:
    """The heads a grouped sum ranges over, from its condition ``h // n == g``."""
    for c in node.domain:
        if isinstance(c, Call) and c.fn == "eq":
            for x, y in (c.args, c.args[::-1]):
                if isinstance(x, Call) and x.fn == "floordiv" and x.args[0] is axis(looped) and isinstance(y, Axis):
                    return mul(y, x.args[1]), mul(add(y, const(1)), x.args[1])
    raise InternalError(f"no group condition for {looped} in {node}")


def is_group_condition(condition: Node, looped: Axes) -> bool:
    """Whether a condition only says which heads belong to a group."""
    return (
        bool(condition.axes & looped)
        and isinstance(condition, Call)
        and condition.fn == "eq"
        and any(
            isinstance(x, Call) and x.fn == "floordiv" and x.args[0] in {axis(a) for a in looped}
            for x in condition.args
        )
    )
