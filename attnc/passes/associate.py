"""Contraction order: every canonical sum over several axes becomes nested sums over one axis each.

Channels are contracted first (a dot product per pair of positions), then one sequence axis (the inner loop of a pass),
then the other sequence axis and the batch axes (sums of vectors). A plane sum that scatters by an index depending on both
positions keeps both axes: its kernel adds into a table.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from attnc.ir.node import Axes, Max, Node, Sum, free_axes, iverson, max_over, raw_prod, raw_sum
from attnc.ir.walk import rewrite
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
    inner = raw_sum(sequence, *_split(factors, node.domain, sequence), per_position)
    outer_factors = [f for f in factors if not f.axes & sequence]
    outer_domain = [d for d in node.domain if not d.axes & sequence]
    return raw_sum(batch, [inner, *outer_factors], outer_domain, per_batch)


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
