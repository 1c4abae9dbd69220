"""Proofs of integer inequalities between index expressions, where floors are replaced by what they round.

``x // c`` lies between ``(x - c + 1) / c`` and ``x / c``; a maximum is each of its arguments in turn, and so are a
minimum and a choice. What is left is linear, and at most 0 if no coefficient of what is never negative is above 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction

from attnc.ir.construct import coefficient, const, neg, sub, terms_of
from attnc.ir.node import Add, Axis, Call, Const, Node, Size, Var

ONE = const(1)
Terms = list[tuple[Fraction, Node]]
NO_TOPS: Mapping[Node, int] = {}
DEEPEST = 24
"""Maxima, minima and floors taken apart in one proof."""


def at_most_zero(node: Node, free: frozenset[Node] = frozenset(), tops: Mapping[Node, int] = NO_TOPS) -> bool:
    """Whether ``node <= 0`` is certain. Axes, sizes and variables are never negative, but for those in `free`; those in
    `tops` are never above the number there."""
    return _bounded(Fraction(0), _expanded(Fraction(1), node), free, tops, DEEPEST)


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


def _bounded(total: Fraction, terms: Terms, free: frozenset[Node], tops: Mapping[Node, int], left: int) -> bool:
    """Whether the sum of all terms is below 1; it is an integer."""
    sums: dict[Node, Fraction] = {}
    for k, t in terms:
        sums[t] = sums.get(t, Fraction(0)) + k
    total += sums.pop(ONE, Fraction(0))
    opened = _to_open(sums) if left > 0 else []
    if opened:
        return any(_by_parts(t, total, sums, free, tops, left - 1) for t in opened)
    for t, k in sums.items():
        if k > 0 and t in tops:
            total += k * tops[t]
        elif k > 0 or (k < 0 and (t in free or not _is_natural(t))):
            return False
    return total < 1


def _to_open(sums: Mapping[Node, Fraction]) -> list[Node]:
    """What to take apart next, or several of which any may come first: first that of which every case must do, so that
    another one can be chosen for each, and floors last, since equal ones cancel."""
    every: list[Node] = []
    some: list[Node] = []
    floors: list[Node] = []
    for t, k in sums.items():
        match t:
            case Call(fn="maximum" | "minimum") if k:
                (every if (t.fn == "maximum") == (k > 0) else some).append(t)
            case Call(fn="where") if k:
                every.append(t)
            case Call(fn="floordiv", args=(_, Const() as by)) if k and by.value > 0:
                floors.append(t)
            case _:
                pass
    return every[:1] or some or floors[:1]


def _by_parts(
    node: Node,
    total: Fraction,
    sums: Mapping[Node, Fraction],
    free: frozenset[Node],
    tops: Mapping[Node, int],
    left: int,
) -> bool:
    """As `_bounded`, with an extreme or a choice replaced by its cases, a floor by what it rounds."""
    k = sums[node]
    rest: Terms = [(c, x) for x, c in sums.items() if x is not node]
    match node:
        case Call(fn="maximum" | "minimum", args=args):
            branches = (_bounded(total, [*rest, *_expanded(k, x)], free, tops, left) for x in args)
            return all(branches) if (node.fn == "maximum") == (k > 0) else any(branches)
        case Call(fn="where", args=(_, *choices)):
            return all(_bounded(total, [*rest, *_expanded(k, x)], free, tops, left) for x in choices)
        case Call(fn="floordiv", args=(x, Const() as by)):
            unit = Fraction(int(by.value))
            lost = Fraction(0) if k > 0 else (unit - 1) / unit
            return _bounded(total - k * lost, [*rest, *_expanded(k / unit, x)], free, tops, left)
        case _:
            return False


def _is_natural(node: Node) -> bool:
    """Whether a number is never negative."""
    match node:
        case Axis() | Size() | Var() | Call(fn="abs" | "power_of_two" | "floor_log2"):
            return True
        case Call(fn="mod", args=(_, Const() as by)):
            return by.value > 0
        case Call(fn="floordiv", args=(x, by)):
            return is_positive(by) and at_most_zero(neg(x))
        case _:
            return False


def is_positive(node: Node) -> bool:
    """Whether a number is certainly above 0."""
    match node:
        case Const():
            return node.value > 0
        case Size():
            return node.name != "q_start"
        case Call(fn="power_of_two"):
            return True
        case Call(fn="maximum", args=args):
            return any(is_positive(x) for x in args)
        case _:
            return False


def all_at_most(
    lows: Iterable[Node],
    highs: Iterable[Node],
    free: frozenset[Node] = frozenset(),
    tops: Mapping[Node, int] = NO_TOPS,
) -> bool:
    """Whether no value of `lows` is above any of `highs`."""
    above = tuple(highs)
    return all(at_most_zero(sub(a, b), free, tops) for a in lows for b in above)
