"""Sums, maxima, minima and means over indices; `dot`."""

from __future__ import annotations

import math

from attnc.grammar.tree import Apply, Name
from attnc.ir.node import FALSE, ONE, Axes, Node, axis, call, const, free_axes, max_over, mul, neg, sum_over
from attnc.ir.walk import fresh_axis, substitute
from attnc.lowering import arithmetic, checks
from attnc.lowering.masks import domain
from attnc.lowering.report import did_you_mean
from attnc.lowering.state import Lowering
from attnc.lowering.value import POISON, Scope, Value, join

NAMES = ("sum", "max", "min", "mean")


def reduction(state: Lowering, tree: Apply, scope: Scope) -> Value:
    """``sum[j](x)`` and its like; restricted to the mask where x is a value of the plane."""
    name = tree.fn.id
    if not tree.axes:
        message = f"`{name}` needs to know over which index"
        return state.error("E118", scope, tree.fn.span, message, f"write `{name}[j](…)`")
    if len(tree.args) != 1 or tree.keywords:
        message = f"`{name}[…]` takes one value, and {len(tree.args) + len(tree.keywords)} were given"
        return state.error("E103", scope, tree.span, message, f"write `{name}[j](x)`")
    bound = resolve_axes(state, tree.axes, scope)
    body = state.expression(tree.args[0], scope)
    if bound is None or not checks.want_number(state, body, tree.args[0], scope):
        return POISON
    rest = Value(body.node, body.axes - bound)
    return arithmetic.built(state, scope, tree.span, (rest,), lambda: reduced(state, name, bound, body, scope))


def cumsum(state: Lowering, tree: Apply, scope: Scope) -> Value:
    """``cumsum[j](x)``: at j, the sum of x over all positions up to and including j."""
    if len(tree.axes) != 1:
        message = "`cumsum` needs to know along which index"
        return state.error("E118", scope, tree.fn.span, message, "write `cumsum[j](…)`")
    if len(tree.args) != 1 or tree.keywords:
        message = f"`cumsum[…]` takes one value, and {len(tree.args) + len(tree.keywords)} were given"
        return state.error("E103", scope, tree.span, message, "write `cumsum[j](x)`")
    along = resolve_axis(state, tree.axes[0], scope)
    body = state.expression(tree.args[0], scope)
    if along is None or not checks.want_number(state, body, tree.args[0], scope):
        return POISON
    before = fresh_axis(along, body.axes)

    def build() -> Node:
        earlier = call("le", axis(before), axis(along))
        return sum_over({before}, [substitute(body.node, {along: axis(before)})], [earlier])

    return arithmetic.built(state, scope, tree.span, (Value(body.node, body.axes | {along}),), build)


def resolve_axes(state: Lowering, names: tuple[Name, ...], scope: Scope) -> Axes | None:
    """The indices named in the brackets of a reduction; None when one of them is no index."""
    found = [resolve_axis(state, name, scope) for name in names]
    return None if None in found else frozenset(a for a in found if a is not None)


def resolve_axis(state: Lowering, name: Name, scope: Scope) -> str | None:
    if name.id in scope.axes:
        return scope.axes[name.id]
    if name.id == "g" and state.names.is_index("g"):
        state.error("E118", scope, name.span, "there is no reduction over key heads `g`", "reduce over `h`")
        return None
    if state.names.is_index(name.id) and name.id not in scope.params and not scope.prelude:
        state.names.used.add(name.id)
        return name.id
    remedy = did_you_mean(name.id, state.names.indices) or f"declare it, as in `index {name.id}: 3`"
    state.error("E118", scope, name.span, f"`{name.id}` is no index", remedy)
    return None


def reduced(state: Lowering, name: str, bound: Axes, body: Value, scope: Scope) -> Node:
    """The node of a reduction of `body` over `bound`."""
    where = domain(state, body.axes, bound, scope.mode)
    match name:
        case "sum":
            return total(state, bound, body.node, where)
        case "mean":
            count = total(state, bound, ONE, where)
            inverse = call("reciprocal_or_zero" if where else "reciprocal", count)
            return mul(total(state, bound, body.node, where), inverse)
        case "max":
            return largest(bound, body.node, where)
        case _:
            return neg(largest(bound, neg(body.node), where))


def total(state: Lowering, bound: Axes, node: Node, domain: tuple[Node, ...]) -> Node:
    """The sum of `node`; an index that occurs nowhere multiplies by its extent."""
    seen = node.axes | free_axes(domain)
    extents = [state.names.extents[a] for a in sorted(bound - seen)]
    inner = sum_over(bound & seen, [node], domain) if bound & seen or domain else node
    return mul(*extents, inner)


def largest(bound: Axes, node: Node, domain: tuple[Node, ...]) -> Node:
    if FALSE in domain:
        return const(-math.inf)
    return max_over(bound & (node.axes | free_axes(domain)), node, domain)


def dot(state: Lowering, tree: Apply, scope: Scope) -> Value:
    """``dot(x, y)``, the sum over d of the product."""
    if len(tree.args) != 2 or tree.keywords or tree.axes:
        message = f"`dot` takes two values, and {len(tree.args) + len(tree.keywords)} were given"
        return state.error("E103", scope, tree.span, message, "write `dot(x, y)`")
    values = [state.expression(a, scope) for a in tree.args]
    fine = [checks.want_number(state, v, t, scope) for v, t in zip(values, tree.args, strict=True)]
    if not all(fine):
        return POISON
    axes = join(values)
    if "d" not in axes:
        remedy = "write `sum[e](x * y)`" if "e" in axes else "write `x * y`, or give them the index d"
        return state.error("E110", scope, tree.span, "`dot` sums over d, and neither value has the index d", remedy)
    body = Value(mul(*(v.node for v in values)), axes)
    return arithmetic.built(
        state,
        scope,
        tree.span,
        (Value(body.node, axes - {"d"}),),
        lambda: reduced(state, "sum", frozenset("d"), body, scope),
    )
