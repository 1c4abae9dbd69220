"""What a value must be where it stands: a number, a truth value, an integer, without leftover indices."""

from __future__ import annotations

from attnc.grammar.tree import Expr
from attnc.ir.node import Axes
from attnc.lowering.names import INDEX_EXTENTS
from attnc.lowering.state import Lowering
from attnc.lowering.value import Scope, Value


def want_number(state: Lowering, value: Value, tree: Expr, scope: Scope) -> bool:
    """Whether the value is a number; a truth value is reported."""
    if value.poisoned:
        return False
    if value.node.kind != "b":
        return True
    remedy = "write `1 if … else 0` to count it, or `x if … else 0` to select"
    state.error("E111", scope, tree.span, "a number is wanted here, and this is a truth value", remedy)
    return False


def want_truth(state: Lowering, value: Value, tree: Expr, scope: Scope) -> bool:
    """Whether the value is a truth value; a number is reported."""
    if value.poisoned:
        return False
    if value.node.kind == "b":
        return True
    remedy = "compare it with something, as in `x != 0`"
    state.error("E112", scope, tree.span, "a truth value is wanted here, and this is a number", remedy)
    return False


def want_integer(state: Lowering, value: Value, tree: Expr, scope: Scope, what: str) -> bool:
    """Whether the value is an integer; anything else is reported."""
    if not want_number(state, value, tree, scope):
        return False
    if value.node.kind == "i":
        return True
    remedy = "use `//` for whole division, or `floor(x)`"
    state.error("E113", scope, tree.span, f"{what} must be an integer, and this is a real number", remedy)
    return False


def no_leftover(state: Lowering, value: Value, allowed: Axes, keyword: str, tree: Expr, scope: Scope) -> Value:
    left = sorted(value.axes - allowed)
    if not left:
        return value
    has = ", ".join(a for a in (*INDEX_EXTENTS, *state.names.indices[7:]) if a in allowed)
    message = f"the index `{left[0]}` is left over in `{keyword}`, which has the indices {has}"
    remedy = "sum over it: " + ("`dot(x, y)` or " if left[0] == "d" else "") + f"`sum[{left[0]}](…)`"
    if left[0] in "ij":
        remedy = f"`{keyword}` is computed once per {'query' if 'i' in allowed else 'key'}; {remedy}"
    return state.error("E110", scope, tree.span, message, remedy)


def spelled(tree: Expr, scope: Scope) -> str:
    """The source text of an expression on one line."""
    return " ".join(scope.source.text[tree.span.start : tree.span.end].split())
