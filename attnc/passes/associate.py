"""Contraction order: every canonical sum over several axes becomes nested sums over one axis each.

Channels are contracted first (a dot product per pair of positions), then one sequence axis (the inner loop of a pass),
then the other sequence axis and the batch axes (sums of vectors). A plane sum that scatters by an index depending on both
positions keeps both axes: its kernel adds into a table.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from attnc.diagnostics.diagnostic import InternalError
from attnc.ir.node import (
    Axes,
    Axis,
    Call,
    Max,
    Node,
    Sum,
    add,
    axis,
    call,
    const,
    free_axes,
    iverson,
    max_over,
    mul,
    raw_prod,
    raw_sum,
)
from attnc.ir.walk import replace, rewrite
from attnc.passes.planes import Planes


def associate(roots: Iterable[Node], planes: Planes) -> list[Node]:
    """Fix the contraction order of every sum below `roots`."""

    def rule(node: Node) -> Node | None:
        if isinstance(node, Sum):
            return _order(node, planes)
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
    rest = sorted(pair - {"i"})
    return rest[-1]


def _order(node: Sum, planes: Planes) -> Node:
    factors = list(node.factors)
    bound = node.bound
    for c in sorted(planes.channels(bound)):
        factors = _contract(factors, c)
        bound -= {c}
    if not bound and not node.scatter:
        return product([*factors, *(iverson(d) for d in node.domain)])
    batch = planes.batches(bound)
    sequence = planes.sequences(bound)
    per_batch = [s for s in node.scatter if not planes.sequences(s[1].axes)]
    per_position = [s for s in node.scatter if planes.sequences(s[1].axes)]
    if len(sequence) == 2 and not any(sequence <= s[1].axes for s in per_position):
        return _nest(factors, node.domain, node.scatter, sequence, batch)
    if not batch or not sequence:
        return raw_sum(bound, factors, node.domain, node.scatter)
    group = _group(batch, per_batch)
    if group is not None and len(sequence) == 1 and not per_position:
        return _grouped(factors, node.domain, bound, *group)
    inner = raw_sum(sequence, *_split(factors, node.domain, sequence), per_position)
    outer_factors = [f for f in factors if not f.axes & sequence]
    outer_domain = [d for d in node.domain if not d.axes & sequence]
    return raw_sum(batch, [inner, *outer_factors], outer_domain, per_batch)


def _group(batch: Axes, scatter: Sequence[tuple[str, Node]]) -> tuple[str, Call] | None:
    """A sum over the heads of a group: one batch axis h, delivered to ``g = h // n``."""
    if len(batch) != 1 or len(scatter) != 1:
        return None
    (name, index), h = scatter[0], next(iter(batch))
    if isinstance(index, Call) and index.fn == "floordiv" and index.args[0] is axis(h) and not index.args[1].axes:
        return name, index
    return None


def _grouped(factors: list[Node], domain: Sequence[Node], bound: Axes, name: str, index: Call) -> Node:
    """The same sum over the heads whose group is g, with g in place of ``h // n``: keys and values load once a group."""
    new = replace([*factors, *domain], {index: axis(name)}, canonical=False)
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
    return bool(condition.axes & looped) and isinstance(condition, Call) and condition.fn == "eq" and any(
        isinstance(x, Call) and x.fn == "floordiv" and x.args[0] in {axis(a) for a in looped} for x in condition.args
    )


def _split(factors: Sequence[Node], domain: Sequence[Node], inner: Axes) -> tuple[list[Node], list[Node]]:
    return [f for f in factors if f.axes & inner], [d for d in domain if d.axes & inner]


def _nest(
    factors: list[Node], domain: Sequence[Node], scatter: Sequence[tuple[str, Node]], pair: Axes, batch: Axes
) -> Node:
    """Both axes of a plane are summed: the inner one in a pass, the other over the resulting vector."""
    scattered = free_axes(n for _, n in scatter) & pair
    last = _inner_axis(pair) if not scattered else next(iter(sorted(pair - scattered)))
    inner = raw_sum({last}, *_split(factors, domain, frozenset({last})))
    rest = [f for f in factors if last not in f.axes]
    outer_domain = [d for d in domain if last not in d.axes]
    return raw_sum((pair - {last}) | batch, [inner, *rest], outer_domain, scatter)


def _contract(factors: list[Node], channel: str) -> list[Node]:
    """Sum the factors that have `channel` over it."""
    inside = [f for f in factors if channel in f.axes]
    outside = [f for f in factors if channel not in f.axes]
    return [*outside, raw_sum({channel}, inside)] if inside else factors
