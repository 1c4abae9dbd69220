"""Sums, maxima, minima and means over indices; `dot`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from attnc.grammar.tree import Apply, Blocks, Name
from attnc.ir.construct import FALSE, ONE, axis, call, const, free_axes, iverson, max_over, mul, neg, sum_over
from attnc.ir.functions import BLOCK_LENGTHS
from attnc.ir.node import Axes, Const, Node
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
    blocks = in_blocks(state, tree, scope)
    bound = resolve_axes(state, tree.axes, scope)
    body = state.expression(tree.args[0], scope)
    if blocks is None or bound is None or not checks.want_number(state, body, tree.args[0], scope):
        return POISON
    over = body.axes | bound if blocks else body.axes
    masked = free_axes(domain(state, over, bound, scope.mode))  # what a sum leaves out varies with them
    if blocks:
        whole = Value(body.node, over | masked)
        return arithmetic.built(
            state, scope, tree.span, (whole,), lambda: reduced_in_blocks(state, name, bound, blocks, whole, scope)
        )
    rest = Value(body.node, (over | masked) - bound)
    return arithmetic.built(state, scope, tree.span, (rest,), lambda: reduced(state, name, bound, body, scope))


def cumsum(state: Lowering, tree: Apply, scope: Scope) -> Value:
    """``cumsum[j](x)``: at j, the sum of x over all positions up to and including j."""
    if len(tree.axes) != 1:
        message = "`cumsum` needs to know along which index"
        return state.error("E118", scope, tree.fn.span, message, "write `cumsum[j](…)`")
    if len(tree.args) != 1 or tree.keywords:
        message = f"`cumsum[…]` takes one value, and {len(tree.args) + len(tree.keywords)} were given"
        return state.error("E103", scope, tree.span, message, "write `cumsum[j](x)`")
    blocks = in_blocks(state, tree, scope)
    if blocks:
        remedy = "write `cumsum[j](…)`"
        return state.error("E118", scope, tree.fn.span, "`cumsum` runs over all positions, not within blocks", remedy)
    along = resolve_axis(state, tree.axes[0], scope)
    body = state.expression(tree.args[0], scope)
    if blocks is None or along is None or not checks.want_number(state, body, tree.args[0], scope):
        return POISON
    before = fresh_axis(along, body.axes)

    def build() -> Node:
        earlier = call("le", axis(before), axis(along))
        return sum_over({before}, [substitute(body.node, {along: axis(before)})], [earlier])

    return arithmetic.built(state, scope, tree.span, (Value(body.node, body.axes | {along}),), build)


def in_blocks(state: Lowering, tree: Apply, scope: Scope) -> int | None:
    """The length of the blocks a reduction keeps to, 0 if it keeps to none; None after a mistake."""
    found = [block_length(state, place, scope) for place in tree.axes]
    if None in found:
        return None
    if len(found) > 1 and any(found):
        message = "blocks run along one index at a time"
        state.error("E132", scope, tree.span, message, "write one reduction inside the other")
        return None
    return found[0] if found else 0


def block_length(state: Lowering, place: Name | Blocks | str, scope: Scope) -> int | None:
    """The n of `j by n`, 0 for a plain index; None after a mistake."""
    if isinstance(place, str):
        return 0
    if isinstance(place, Name):
        return scope.blocks.get(place.id, 0)
    length = state.expression(place.length, scope)
    if length.poisoned:
        return None
    if place.axis.id in scope.blocks:
        state.error("E132", scope, place.span, "these are blocks already", "name one length")
        return None
    index = resolve_axis(state, place.axis, scope)
    if index is None:
        return None
    if index in ("b", "h", "g", "i"):
        message = f"`{index}` has no blocks: they are of keys, or of a declared index"
        state.error("E132", scope, place.span, message, "write `j by 64`")
        return None
    if not isinstance(length.node, Const) or length.node.kind != "i" or length.node.value not in BLOCK_LENGTHS:
        message = f"the length of a block is one of {', '.join(map(str, BLOCK_LENGTHS))}"
        state.error("E132", scope, place.length.span, message, "write such a number, or a const that is one")
        return None
    known = state.blocks.setdefault(index, int(length.node.value))
    if known != length.node.value:
        message = f"`{index}` has blocks of {known} already, and a kernel holds one of them"
        state.error("E132", scope, place.length.span, message, f"write `{index} by {known}`")
        return None
    return known


def resolve_axes(state: Lowering, names: Sequence[Name | Blocks], scope: Scope) -> Axes | None:
    """The indices named in the brackets of a reduction; None when one of them is no index."""
    found = [resolve_axis(state, name, scope) for name in names]
    return None if None in found else frozenset(a for a in found if a is not None)


def resolve_axis(state: Lowering, name: Name | Blocks, scope: Scope) -> str | None:
    name = name.axis if isinstance(name, Blocks) else name
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


def reduced_in_blocks(state: Lowering, name: str, bound: Axes, length: int, body: Value, scope: Scope) -> Node:
    """A reduction over the allowed positions of each block, at every position of the block."""
    where = domain(state, body.axes, bound, scope.mode)
    (along,) = bound
    place = axis(along), const(length)
    inside = call("and", *where)

    def added(node: Node) -> Node:
        return call("block_sum", mul(node, iverson(inside)), *place)

    def highest(node: Node) -> Node:
        return call("block_max", call("where", inside, node, const(-math.inf)), *place)

    match name:
        case "sum":
            return added(body.node)
        case "mean":
            return mul(added(body.node), call("reciprocal_or_zero", added(ONE)))
        case "max":
            return highest(body.node)
        case _:
            return neg(highest(neg(body.node)))


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
