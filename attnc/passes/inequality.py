"""Proofs of integer inequalities between index expressions, where floors are replaced by what they round.

``x // c`` lies between ``(x - c + 1) / c`` and ``x / c``; a maximum is each of its arguments in turn, and so is a
minimum. What is left is linear, and at most 0 if no coefficient of what is never negative is above 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

from attnc.ir.construct import coefficient, const, sub, terms_of
from attnc.ir.node import Add, Axis, Call, Const, Node, Size, Var

ONE = const(1)
Terms = list[tuple[Fraction, Node]]
DEEPEST = 24
"""Maxima, minima and floors taken apart in one proof."""


def at_most_zero(node: Node, free: frozenset[Node] = frozenset()) -> bool:
    """Whether ``node <= 0`` is certain. Axes, sizes and variables are never negative, but for those in `free`."""
    return _bounded(Fraction(0), _expanded(Fraction(1), node), free, DEEPEST)


def _expanded(k: Fraction, node: Node) -> Terms:
    """A node as terms with coefficients."""
    found: Terms = []
    for t in terms_of(node):
        c, factors = coefficient(t)
        if not isinstance(c, int) or len(factors) > 1:
            found.append((k, t))
        elif not factors:
            found.append((k * c, ONE))
        elif isinstance(factors[0], Add):
            found += _expanded(k * c, factors[0])
        else:
            found.append((k * c, factors[0]))
    return found


def _bounded(total: Fraction, terms: Terms, free: frozenset[Node], left: int) -> bool:
    """Whether the sum of all terms is below 1; it is an integer."""
    sums: dict[Node, Fraction] = {}
    for k, t in terms:
        sums[t] = sums.get(t, Fraction(0)) + k
    total += sums.pop(ONE, Fraction(0))
    for t, k in sums.items():
        rest: Terms = [(c, x) for x, c in sums.items() if x is not t]
        match t:
            case _ if not k or left <= 0:
                continue
            case Call(fn="floordiv", args=(x, Const() as by)) if by.value > 0:
                unit = Fraction(int(by.value))
                lost = Fraction(0) if k > 0 else (unit - 1) / unit
                return _bounded(total - k * lost, [*rest, *_expanded(k / unit, x)], free, left - 1)
            case Call(fn="maximum" | "minimum", args=args):
                branches = (_bounded(total, [*rest, *_expanded(k, x)], free, left - 1) for x in args)
                return all(branches) if (t.fn == "maximum") == (k > 0) else any(branches)
            case _:
                pass
    return total < 1 and all(not k or (k < 0 and t not in free and _is_natural(t)) for t, k in sums.items())


def _is_natural(node: Node) -> bool:
    return isinstance(node, Axis | Size | Var)


def all_at_most(lows: Iterable[Node], highs: Iterable[Node], free: frozenset[Node] = frozenset()) -> bool:
    """Whether no value of `lows` is above any of `highs`."""
    above = tuple(highs)
    return all(at_most_zero(sub(a, b), free) for a in lows for b in above)
