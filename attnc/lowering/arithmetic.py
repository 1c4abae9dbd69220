"""Operators: which kinds they take and the node they make."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attnc.diagnostics.source import Span
from attnc.grammar.tree import Apply, Binary, Expr, Number, Unary
from attnc.ir.construct import ZERO, add, call, const, is_const, mul, neg, sub
from attnc.ir.functions import contains_reduction
from attnc.ir.node import Const, Node
from attnc.lowering import checks
from attnc.lowering.forms import form_of
from attnc.lowering.proofs import relation_node, relation_text, settle
from attnc.lowering.ranges import Facts, facts_of
from attnc.lowering.state import Lowering
from attnc.lowering.value import POISON, Scope, Value, join

LARGEST_INT = 2**63 - 1
TOO_LARGE = "the result is not a number that fits 64 bits"
COMPARISONS = {"<": "lt", "<=": "le", ">": "gt", ">=": "ge", "==": "eq", "!=": "ne"}
BITS = ("&", "|", "^", "<<", ">>")
WIDEST_SHIFT = 62
_BITWISE = {"&": "bitand", "|": "bitor", "^": "bitxor"}
_CONNECTIVES = {"&": "and", "|": "or"}
_WHAT = {"f": "a number", "i": "a number", "b": "a truth value"}


def built(state: Lowering, scope: Scope, span: Span, values: Sequence[Value], make: Callable[[], Node]) -> Value:
    """The node made by `make` over the index sets of `values`; arithmetic that has no result is reported."""
    try:
        node = make()
    except (OverflowError, ZeroDivisionError, ValueError, TypeError):
        return state.error("E126", scope, span, "this cannot be computed", "check the numbers in it")
    if isinstance(node, Const) and (isinstance(node.value, complex) or _too_large(node.value)):
        return state.error(
            "E126", scope, span, "the result is not a number that fits 64 bits", "check the numbers in it"
        )
    return state.grown(Value(node, join(values)), scope, span)


def _too_large(value: float | int | bool) -> bool:
    return isinstance(value, int) and abs(value) > LARGEST_INT


def binary(
    state: Lowering, op: str, left: Value, right: Value, trees: tuple[Expr, Expr], span: Span, scope: Scope
) -> Value:
    """``left op right`` for an arithmetic operator."""
    if op in BITS:
        return _bits(state, op, (left, right), trees, span, scope)
    fine = [checks.want_number(state, v, t, scope) for v, t in zip((left, right), trees, strict=True)]
    if not all(fine):
        return POISON
    a, b = left.node, right.node
    if op == "/" and is_const(b, 0) and (scope.prelude or _reduces(trees[1])):
        return Value(ZERO, join((left, right)))
    if op in ("/", "//", "%") and is_const(b, 0):
        return state.error("E121", scope, trees[1].span, "division by zero", "divide by something else")
    if op in ("//", "%") and "f" not in (a.kind, b.kind) and not _divisor_is_positive(state, right, trees[1], scope):
        return POISON
    if op == "**" and isinstance(a, Const) and isinstance(b, Const) and _huge_power(a.value, b.value):
        return state.error(
            "E126", scope, span, "the result is not a number that fits 64 bits", "check the numbers in it"
        )
    operations: dict[str, Callable[[], Node]] = {
        "+": lambda: add(a, b),
        "-": lambda: sub(a, b),
        "*": lambda: mul(a, b),
        "/": lambda: divide(a, b),
        "//": lambda: call("floordiv", a, b),
        "%": lambda: call("mod", a, b),
        "**": lambda: call("pow", a, b),
    }
    return built(state, scope, span, (left, right), operations[op])


def _bits(
    state: Lowering, op: str, values: tuple[Value, Value], trees: tuple[Expr, Expr], span: Span, scope: Scope
) -> Value:
    """``a & b``, ``a | b``, ``a ^ b``, ``a << n`` and ``a >> n`` of integers, in two's complement."""
    if not any(v.poisoned for v in values) and all(v.node.kind == "b" for v in values) and op in _CONNECTIVES:
        message = f"`{op}` works on integers, and these are truth values"
        return state.error("E111", scope, span, message, f"write `{_CONNECTIVES[op]}`")
    if op == "^" and any(v.node.kind == "f" for v in values):
        message = "`^` is the exclusive or of two integers, and there is a real number here"
        return state.error("E113", scope, span, message, "a power is written `**`")
    what = f"an operand of `{op}`"
    fine = [checks.want_integer(state, v, t, scope, what) for v, t in zip(values, trees, strict=True)]
    if not all(fine):
        return POISON
    if op == "^" and any(isinstance(t, Number) for t in trees):
        message = "`^` is the exclusive or of two integers"
        state.report.warning("E193", scope, span, message, "if a power is meant, write `**`")
    a, b = (v.node for v in values)
    if op not in ("<<", ">>"):
        return built(state, scope, span, values, lambda: call(_BITWISE[op], a, b))
    if not _shift_is_small(state, values[1], trees[1], scope):
        return POISON
    power = call("power_of_two", b)
    if op == "<<":
        return built(state, scope, span, values, lambda: mul(a, power))
    return built(state, scope, span, values, lambda: call("floordiv", a, power))


def _shift_is_small(state: Lowering, count: Value, tree: Expr, scope: Scope) -> bool:
    """Whether a shift is by 0 to 62 places, whatever the sizes and positions."""
    facts = Facts(tuple(f for c in scope.facts for f in facts_of(c)))
    form = form_of(count.node)
    if all(state.ranges.nonnegative(side, facts) for side in (form, form.scaled(-1).shifted(WIDEST_SHIFT))):
        return True
    remedy = f"write `clamp(…, 0, {WIDEST_SHIFT})`, or shift by a number"
    state.error(
        "E130", scope, tree.span, f"this shift may be by less than 0 or more than {WIDEST_SHIFT} places", remedy
    )
    return False


def floor_log2(state: Lowering, tree: Apply, value: Value, scope: Scope) -> Value:
    """``floor_log2(x)`` of an integer that is at least 1."""
    if not checks.want_integer(state, value, tree.args[0], scope, "the argument of `floor_log2`"):
        return POISON
    facts = Facts(tuple(f for c in scope.facts for f in facts_of(c)))
    if not state.ranges.nonnegative(form_of(value.node).shifted(-1), facts):
        text = checks.spelled(tree.args[0], scope)
        message = "the logarithm of an integer that can be zero or negative"
        return state.error("E130", scope, tree.args[0].span, message, f"write `floor_log2(max({text}, 1))`")
    return built(state, scope, tree.span, (value,), lambda: call("floor_log2", value.node))


def divide(a: Node, b: Node) -> Node:
    """``a / b`` as a real number; a sum over no keys divides to 0."""
    if isinstance(b, Const):
        return const(a.value / b.value) if isinstance(a, Const) else mul(a, const(1 / b.value))
    if contains_reduction(b):
        return mul(a, call("reciprocal_or_zero", b))
    return call("divide", a, b)


def _reduces(tree: Expr) -> bool:
    """Whether a reduction is written in the expression: one over an empty mask folds to 0, which divides to 0."""
    match tree:
        case Apply():
            return bool(tree.axes) or any(_reduces(a) for a in tree.args)
        case Binary():
            return _reduces(tree.left) or _reduces(tree.right)
        case Unary():
            return _reduces(tree.operand)
        case _:
            return False


def _huge_power(base: float | int | bool, exponent: float | int | bool) -> bool:
    return isinstance(base, int) and isinstance(exponent, int) and abs(exponent) * abs(base).bit_length() > 128


def _divisor_is_positive(state: Lowering, divisor: Value, tree: Expr, scope: Scope) -> bool:
    """Whether a whole division can never meet 0; what depends on sizes alone is left to a check at each call."""
    node = divisor.node
    if isinstance(node, Const):
        return True
    facts = Facts(tuple(f for c in scope.facts for f in facts_of(c)))
    verdict = settle(state.ranges, form_of(node).shifted(-1), facts)
    if verdict.state == "proved":
        return True
    if verdict.state == "check":
        text = relation_text(verdict.relations)
        state.require(relation_node(verdict.relations), f"a divisor would be 0: this needs {text}", tree.span)
        if len(verdict.relations) == 1:
            state.ranges.assume(verdict.relations[0])
        return True
    remedy = "divide by `max(x, 1)`, or by a number or size"
    state.error("E121", scope, tree.span, "this divisor can be zero or negative", remedy)
    return False


def unary(state: Lowering, op: str, value: Value, tree: Expr, span: Span, scope: Scope) -> Value:
    """``-x``, ``+x`` or ``not x``."""
    if op == "not":
        if not checks.want_truth(state, value, tree, scope):
            return POISON
        return built(state, scope, span, (value,), lambda: call("not", value.node))
    if not checks.want_number(state, value, tree, scope):
        return POISON
    return value if op == "+" else built(state, scope, span, (value,), lambda: neg(value.node))


def compare(
    state: Lowering, op: str, left: Value, right: Value, trees: tuple[Expr, Expr], span: Span, scope: Scope
) -> Value:
    """``left op right`` for a comparison; truth values can only be compared for equality."""
    if left.poisoned or right.poisoned:
        return POISON
    kinds = {left.node.kind == "b", right.node.kind == "b"}
    if kinds == {True} and op in ("==", "!="):
        return built(state, scope, span, (left, right), lambda: call(COMPARISONS[op], left.node, right.node))
    fine = [checks.want_number(state, v, t, scope) for v, t in zip((left, right), trees, strict=True)]
    if not all(fine):
        return POISON
    return built(state, scope, span, (left, right), lambda: call(COMPARISONS[op], left.node, right.node))


def select(
    state: Lowering,
    values: tuple[Value, Value, Value],
    trees: tuple[Expr, Expr, Expr],
    span: Span,
    scope: Scope,
) -> Value:
    """``where(condition, a, b)``."""
    condition, a, b = values
    fine = checks.want_truth(state, condition, trees[0], scope)
    if not fine or a.poisoned or b.poisoned:
        return POISON
    if (a.node.kind == "b") != (b.node.kind == "b"):
        message = f"one branch is {_WHAT[a.node.kind]} and the other {_WHAT[b.node.kind]}"
        return state.error("E111", scope, span, message, "make both branches numbers, or both truth values")
    return built(state, scope, span, values, lambda: call("where", condition.node, a.node, b.node))
