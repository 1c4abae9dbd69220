"""Exponentials and logarithms to base 2, with the scales folded into their arguments.

``exp(0.125 * dot - m)`` becomes ``exp2(0.18 * dot - m')`` where m' is the maximum of the scaled score, so the
hardware's base-2 exponential needs one multiply-add; a score of several terms keeps its units, see
`attnc.passes.exponents`. `detach` is dropped: derivatives have been taken when this pass runs.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

from attnc.ir.construct import add, call, coefficient, const, is_const, max_over, mul, neg, terms_of
from attnc.ir.node import Add, Call, Max, Node
from attnc.ir.notes import carry
from attnc.ir.walk import rewrite
from attnc.passes.exponents import exponent_of, keeps_unit, unit_and_terms

LOG2E = 1 / math.log(2.0)
LN2 = math.log(2.0)


def to_base2(roots: Iterable[Node], whole: Collection[Node] = ()) -> list[Node]:
    """Rewrite exp, log and detach away; see the module docstring. Exponents in `whole` keep their units."""
    roots = list(roots)
    inner = {e: rewrite([e], _rule)[0] for e in whole}
    kept = frozenset(inner.values())
    return rewrite(roots, lambda node: _exponential(node, kept) or _rule(node))


def _exponential(node: Node, whole: Collection[Node]) -> Node | None:
    if isinstance(node, Call) and node.fn == "exp" and node.args[0] in whole:
        return call("exp2", exponent_of(LOG2E, node.args[0]))
    return None


def _rule(node: Node) -> Node | None:
    match node:
        case Call(fn="detach"):
            return node.args[0]
        case Call(fn="exp"):
            (x,) = node.args
            return call("exp2", exponent_of(LOG2E, x) if keeps_unit(x) else scale(LOG2E, x))
        case Call(fn="log"):
            return _ln(node.args[0])
        case Call(fn="log2"):
            simple = _log2(node.args[0])
            return simple if simple is not node else None
        case Call(fn="eq"):
            return _zero_test(node)
        case _:
            return None


def scale(c: float, node: Node) -> Node:
    """``c * node`` for positive c, moved inside sums, maxima and guards so that both sides of a shift agree."""
    if abs(c - 1) < 1e-12:
        return node
    scaled = _scale(c, node)
    carry(node, scaled)
    return scaled


def _scale(c: float, node: Node) -> Node:
    match node:
        case Add():
            return add(*(scale(c, t) for t in node.terms))
        case Max():
            return max_over(node.bound, scale(c, node.body), node.domain)
        case Call(fn="finite_or_zero"):
            return call("finite_or_zero", scale(c, node.args[0]))
        case Call(fn="maximum" | "minimum"):
            return call(node.fn, *(scale(c, a) for a in node.args))
        case _:
            k, rest = coefficient(node)
            if isinstance(k, float) or c != 1:
                total = c * k
                if abs(total - round(total)) < 1e-15 * max(1.0, abs(total)):
                    total = float(round(total))
                shiftable = [f for f in rest if isinstance(f, Max | Add) or _is_guard(f)]
                if len(rest) == 1 and shiftable and total > 0:
                    return scale(total, rest[0])
                if len(rest) == 1 and shiftable and total < 0:
                    return neg(scale(-total, rest[0]))
                return mul(const(total), *rest)
            return mul(const(c), node)


def _is_guard(node: Node) -> bool:
    return isinstance(node, Call) and node.fn in ("finite_or_zero", "maximum", "minimum")


def _log2(x: Node) -> Node:
    """log2 of a product containing an exponential: the exponent plus the logarithms of the rest."""
    k, rest = coefficient(x)
    exponents = [f.args[0] for f in rest if isinstance(f, Call) and f.fn == "exp2"]
    if not exponents or k <= 0:
        return call("log2", x)
    others = [f for f in rest if not (isinstance(f, Call) and f.fn == "exp2")]
    logs = [_log2_factor(f) for f in others]
    offset = [] if k == 1 else [const(math.log2(k))]
    return add(*exponents, *logs, *offset)


def _ln(x: Node) -> Node:
    """The natural logarithm; that of an exponential in units of the score is the score."""
    logarithm = _log2(x)
    scaled = [t for t in terms_of(logarithm) if unit_and_terms(t)[0] == LOG2E]
    if not scaled:
        return mul(const(LN2), logarithm)
    rest = [mul(const(LN2), t) for t in terms_of(logarithm) if t not in scaled]
    return add(*(n for t in scaled for n in unit_and_terms(t)[1]), *rest)


def _log2_factor(f: Node) -> Node:
    """A reciprocal's logarithm, negated; where a sum over no keys was divided by, the weight is 0 and so is this."""
    if isinstance(f, Call) and f.fn == "reciprocal_or_zero":
        return neg(call("finite_or_zero", call("log2", f.args[0])))
    if isinstance(f, Call) and f.fn == "reciprocal":
        return neg(call("log2", f.args[0]))
    return call("log2", f)


def _is_reciprocal(node: Node) -> bool:
    return isinstance(node, Call) and node.fn in ("reciprocal", "reciprocal_or_zero")


def _zero_test(node: Call) -> Node | None:
    """``exp2(x) / z == 0`` asks whether x is -inf: an underflowing weight times its finite logarithm is 0 anyway.

    That form does not mention z or the row maximum, so the test can share their pass.
    """
    a, b = node.args
    if not is_const(a, 0):
        a, b = b, a
    if not is_const(a, 0):
        return None
    _, rest = coefficient(b)
    exponents = [f for f in rest if isinstance(f, Call) and f.fn == "exp2"]
    if len(exponents) != 1 or any(not _is_reciprocal(f) for f in rest if f is not exponents[0]):
        return None
    _, terms = unit_and_terms(exponents[0].args[0])
    kept = [t for t in terms if not any(_is_guard(f) for f in coefficient(t)[1])]
    return call("le", add(*kept), const(-math.inf))
