"""Expressions of the tree to values."""

from __future__ import annotations

from attnc.grammar.tree import (
    Apply,
    Binary,
    Compare,
    Conditional,
    Expr,
    Name,
    Number,
    Subscript,
    Truth,
    Unary,
)
from attnc.ir.construct import call, conjuncts, const
from attnc.lowering import arithmetic, checks, functions, lookup, reductions
from attnc.lowering.state import Lowering
from attnc.lowering.value import POISON, Scope, Value, join


def lower_expression(state: Lowering, tree: Expr, scope: Scope) -> Value:
    """The value of `tree`, or the poison value after a mistake was reported."""
    match tree:
        case Number():
            return Value(const(tree.value))
        case Truth():
            return Value(const(tree.value))
        case Name():
            return state.named(tree, scope)
        case Subscript():
            return lookup.subscript(state, tree, scope)
        case Apply():
            return _apply(state, tree, scope)
        case Unary():
            value = state.expression(tree.operand, scope)
            return arithmetic.unary(state, tree.op, value, tree.operand, tree.span, scope)
        case Binary(op="and" | "or"):
            return _connective(state, tree, scope)
        case Binary():
            left, right = state.expression(tree.left, scope), state.expression(tree.right, scope)
            return arithmetic.binary(state, tree.op, left, right, (tree.left, tree.right), tree.span, scope)
        case Compare():
            return _chain(state, tree, scope)
        case Conditional():
            return _conditional(state, (tree.condition, tree.then, tree.otherwise), tree, scope)


def _connective(state: Lowering, tree: Binary, scope: Scope) -> Value:
    """`and`, `or`. The right side of an `and` may rely on the left: `i > 0 and t[i - 1] > 0`."""
    left = state.expression(tree.left, scope)
    known = conjuncts(left.node) if tree.op == "and" and left.node.kind == "b" and not left.poisoned else ()
    right = state.expression(tree.right, scope.assuming(known))
    fine = [
        checks.want_truth(state, left, tree.left, scope),
        checks.want_truth(state, right, tree.right, scope),
    ]
    if not all(fine):
        return POISON
    return arithmetic.built(state, scope, tree.span, (left, right), lambda: call(tree.op, left.node, right.node))


def _chain(state: Lowering, tree: Compare, scope: Scope) -> Value:
    values = [state.expression(operand, scope) for operand in tree.operands]
    links = []
    for k, op in enumerate(tree.ops):
        pair = (tree.operands[k], tree.operands[k + 1])
        links.append(arithmetic.compare(state, op, values[k], values[k + 1], pair, tree.span, scope))
    if any(link.poisoned for link in links):
        return POISON
    return Value(call("and", *(link.node for link in links)), join(links))


def _conditional(state: Lowering, trees: tuple[Expr, Expr, Expr], whole: Expr, scope: Scope) -> Value:
    """`a if c else b`; a subscript in a branch may rely on that branch's condition."""
    condition = state.expression(trees[0], scope)
    then_scope = else_scope = scope
    if not condition.poisoned and condition.node.kind == "b":
        then_scope = scope.assuming(conjuncts(condition.node))
        else_scope = scope.assuming(conjuncts(call("not", condition.node)))
    values = (condition, state.expression(trees[1], then_scope), state.expression(trees[2], else_scope))
    return arithmetic.select(state, values, trees, whole.span, scope)


def _apply(state: Lowering, tree: Apply, scope: Scope) -> Value:
    name = tree.fn.id
    if name in reductions.NAMES and (tree.axes or name in ("sum", "mean")):
        return reductions.reduction(state, tree, scope)
    if name == "where" and len(tree.args) == 3 and not tree.keywords and not tree.axes:
        condition, a, b = tree.args
        return _conditional(state, (condition, a, b), tree, scope)
    match name:
        case "dot":
            return reductions.dot(state, tree, scope)
        case "cumsum":
            return reductions.cumsum(state, tree, scope)
        case "repeat":
            return functions.repeat(state, tree, scope)
        case "uniform":
            return functions.uniform(state, tree, scope)
        case _ if functions.is_pointwise(name):
            return functions.pointwise(state, tree, scope)
        case _:
            return functions.expand(state, tree, scope)
