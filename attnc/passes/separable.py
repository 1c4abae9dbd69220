"""Values of two positions as sums of products of values of one: ``x(i, j) = sum_r f_r(i) g_r(j)``, exactly.

Sums, products, whole powers, sums over channels, sines and cosines of sums, bounded exponentials of sums, and choices
that one position makes are followed; anything else is `Inseparable`. A difference of positions or coordinates is first
centred, ``x - y = (x - m) - (y - m)``: expanded, its square is a difference of large numbers when both lie far from 0.
These are the decompositions of Wu et al. (FlashBias, 2025, arXiv:2505.12044) as rules of an algebra.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from attnc.ir.construct import ONE, ZERO, add, call, coefficient, const, iverson, mul, sub, sum_over
from attnc.ir.node import NO_AXES, Add, Axes, Call, Const, Iverson, Node, Prod, Sum
from attnc.ir.printer import show
from attnc.ir.program import Program
from attnc.ir.walk import rewrite, substitute

T = TypeVar("T")

MOST_TERMS = 64
"""Products that an expansion may have: beyond it, factors cost more than what they replace."""
LARGEST = 1e30
"""Coordinates beyond this, and NaN, do not count towards the centre: rows of padding may hold anything."""
SAFE_EXPONENT = 40.0
"""exp(x + y) may be split where neither x nor y exceeds this: f32 holds e to the power 80."""


class Inseparable(Exception):
    """No exact expansion was found; the message says what stands in the way."""


@dataclass(frozen=True, slots=True)
class Pair:
    """``left(i) * right(j)``, summed over the channels `along`, which both sides have."""

    left: Node
    right: Node
    along: Axes = NO_AXES

    @property
    def exact(self) -> bool:
        """Whether both sides are integers."""
        return self.left.kind == self.right.kind == "i"


@dataclass(frozen=True, slots=True)
class Expansion:
    """Expands values over the positions `row` and `column` of one program, with differences centred or as they are."""

    program: Program
    row: str
    column: str
    centre: bool = True

    def pairs(self, node: Node) -> list[Pair]:
        """`node` as a sum of pairs, as few as the rules give.

        Raises:
            Inseparable: if the rules do not reach it.
        """
        return collected(self._expand(node))

    # --------------------------------------------------------------------------------------------------- rules

    def _expand(self, node: Node) -> list[Pair]:
        one = const(1) if node.kind == "i" else ONE
        if self.column not in node.axes:
            return [Pair(node, one)]
        if self.row not in node.axes:
            return [Pair(one, node)]
        match node:
            case Add():
                return self._sum(node)
            case Prod():
                return self._product([self._expand(f) for f in node.factors])
            case Sum() if not node.domain and not node.scatter:
                return self._over_channels(node)
            case Call(fn="sin" | "cos"):
                return self._wave(node)
            case Call(fn="exp" | "exp2"):
                return self._exponential(node)
            case Call(fn="where"):
                return self._choice(node)
            case Call(fn="detach"):
                return [
                    Pair(call("detach", p.left), call("detach", p.right), p.along) for p in self._expand(node.args[0])
                ]
            case _:
                raise Inseparable(f"{_short(node)} is no sum of products of one position each")

    def _sum(self, node: Add) -> list[Pair]:
        rows = [t for t in node.terms if self.column not in t.axes]
        columns = [t for t in node.terms if self.column in t.axes and self.row not in t.axes]
        mixed = [t for t in node.terms if {self.row, self.column} <= t.axes]
        found = [p for t in mixed for p in self._expand(t)]
        if rows and columns and self.centre:
            at_row, at_column = self.centred(add(*rows), add(*columns))
            found += [*self._expand(at_row), *self._expand(at_column)]
        else:
            found += [p for t in (*rows, *columns) for p in self._expand(t)]
        return _limited(found)

    def centred(self, at_row: Node, at_column: Node) -> tuple[Node, Node]:
        """Two values with the same sum, the second of mean 0 or nearly: what is moved is constant to derivatives."""
        mean = self._mean(at_column)
        return (at_row, at_column) if mean is None else (add(at_row, mean), sub(at_column, mean))

    def _mean(self, node: Node) -> Node | None:
        count = self.program.extent(self.column)
        if node.kind == "i":
            return substitute(node, {self.column: call("floordiv", count, const(2))})
        counted = call("where", call("le", call("abs", node), const(LARGEST)), node, ZERO)
        return mul(call("detach", sum_over({self.column}, [counted])), call("reciprocal", count))

    def _product(self, parts: Sequence[list[Pair]]) -> list[Pair]:
        total = [Pair(const(1), const(1))]
        for part in parts:
            pairs = _limited([(a, b) for a in total for b in part])
            if any(a.along & b.along for a, b in pairs):
                raise Inseparable("two sums over the same channels are multiplied")
            total = collected(Pair(mul(a.left, b.left), mul(a.right, b.right), a.along | b.along) for a, b in pairs)
        return total

    def _over_channels(self, node: Sum) -> list[Pair]:
        if any(self.program.axis(a).role != "channel" for a in node.bound):
            raise Inseparable(f"{_short(node)} sums over positions")
        return [self._summed(p, node.bound) for p in self._product([self._expand(f) for f in node.factors])]

    def _summed(self, pair: Pair, bound: Axes) -> Pair:
        """The sum of a pair over channels: those that one side lacks are summed on the other."""
        both = bound & pair.left.axes & pair.right.axes
        right = bound & pair.right.axes - both
        left = bound - both - right
        summed = [sum_over(a, [x]) if a else x for a, x in ((left, pair.left), (right, pair.right))]
        return Pair(summed[0], summed[1], pair.along | both)

    def _parts(self, node: Node) -> tuple[Node, Node]:
        """A value as the sum of one of the row and one of the column."""
        rows, columns = [], []
        for p in self.pairs(node):
            if not p.along and self.row not in p.left.axes:
                columns.append(mul(p.left, p.right))
            elif not p.along and self.column not in p.right.axes:
                rows.append(mul(p.left, p.right))
            else:
                raise Inseparable(f"{_short(node)} is no sum of a value of {self.row} and one of {self.column}")
        return add(ZERO, *rows), add(ZERO, *columns)

    def _wave(self, node: Call) -> list[Pair]:
        a, b = self._parts(node.args[0])
        sin_a, cos_a, sin_b, cos_b = (call(f, x) for x in (a, b) for f in ("sin", "cos"))
        if node.fn == "sin":
            return [Pair(sin_a, cos_b), Pair(cos_a, sin_b)]
        return [Pair(cos_a, cos_b), Pair(mul(const(-1.0), sin_a), sin_b)]

    def _exponential(self, node: Call) -> list[Pair]:
        a, b = replace(self, centre=False)._parts(node.args[0])
        largest = max(abs(x) for part in (a, b) for x in interval(part))
        if largest > SAFE_EXPONENT:
            raise Inseparable(f"{_short(node)} may overflow when split: its exponents are not bounded")
        return [Pair(call(node.fn, a), call(node.fn, b))]

    def _choice(self, node: Call) -> list[Pair]:
        condition, yes, no = node.args
        if {self.row, self.column} <= condition.axes:
            raise Inseparable(f"{_short(node)} chooses by both positions")
        ways = ((condition, yes), (call("not", condition), no))
        return [p for c, value in ways for p in self._product([self._expand(iverson(c)), self._expand(value)])]


def _short(node: Node) -> str:
    text = show(node)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _limited(found: list[T]) -> list[T]:
    if len(found) > MOST_TERMS:
        raise Inseparable(f"it expands to more than {MOST_TERMS} products")
    return found


# ------------------------------------------------------------------------------------------------------ collecting


def collected(pairs: Iterable[Pair]) -> list[Pair]:
    """The same sum with few pairs: pairs that share a side are added on the other.

    As edges between left and right sides, the sides that are kept are a cover of the edges; each step takes the side
    with most edges left.
    """
    left = [_unscaled(p) for p in pairs]
    done: list[Pair] = []
    while left:
        counts: dict[tuple[bool, Node, Axes], int] = {}
        for p in left:
            for key in ((True, p.left, p.along), (False, p.right, p.along)):
                counts[key] = counts.get(key, 0) + 1
        on_left, side, along = max(counts, key=lambda k: counts[k])
        taken = [p for p in left if p.along == along and (p.left if on_left else p.right) is side]
        left = [p for p in left if p not in taken]
        merged = add(*((p.right if on_left else p.left) for p in taken))
        if not (isinstance(merged, Const) and merged.value == 0):
            done.append(replace(taken[0], right=merged) if on_left else replace(taken[0], left=merged))
    return done


def _unscaled(pair: Pair) -> Pair:
    """Constants belong to the left side where the right one depends on the column, and else to the right."""
    c, rest = coefficient(pair.right)
    if c == 1 or not rest:
        return pair
    one = const(1) if pair.right.kind == "i" else ONE
    return Pair(mul(const(c), pair.left), mul(one, *rest), pair.along)


# -------------------------------------------------------------------------------------------------------- bounds


def interval(node: Node) -> tuple[float, float]:
    """The least and greatest value of a real, as far as its form tells; infinite where it does not."""
    match node:
        case Const():
            return float(node.value), float(node.value)
        case Call(fn="tanh" | "sin" | "cos" | "erf"):
            return -1.0, 1.0
        case Call(fn="sigmoid") | Iverson():
            return 0.0, 1.0
        case Call(fn="minimum" | "maximum"):
            pick = min if node.fn == "minimum" else max
            (a, b), (c, d) = (interval(x) for x in node.args)
            return pick(a, c), pick(b, d)
        case Call(fn="detach"):
            return interval(node.args[0])
        case Add():
            lows, highs = zip(*(interval(t) for t in node.terms), strict=True)
            return sum(lows), sum(highs)
        case Prod():
            low, high = 1.0, 1.0
            for f in node.factors:
                ends = [_times(x, y) for x in (low, high) for y in interval(f)]
                low, high = min(ends), max(ends)
            return low, high
        case _:
            return -math.inf, math.inf


def _times(x: float, y: float) -> float:
    return 0.0 if x == 0 or y == 0 else x * y


# --------------------------------------------------------------------------------------------------------- facts


def under(node: Node, conditions: Iterable[Node]) -> Node:
    """The value where all `conditions` hold: absolute values, maxima and minima of integers whose sign they settle."""
    known = [const(0), *(_slack(c) for c in conditions if isinstance(c, Call) and _orders(c))]

    def nonnegative(x: Node) -> bool:
        return any(isinstance(rest := sub(x, k), Const) and rest.value >= 0 for k in known)

    def rule(n: Node) -> Node | None:
        match n:
            case Call(fn="abs") if n.kind == "i":
                (x,) = n.args
                negated = mul(const(-1), x)
                return x if nonnegative(x) else negated if nonnegative(negated) else None
            case Call(fn="maximum" | "minimum") if n.kind == "i":
                a, b = n.args
                if nonnegative(sub(b, a)):
                    a, b = b, a
                elif not nonnegative(sub(a, b)):
                    return None
                return a if n.fn == "maximum" else b
            case _:
                return None

    return rewrite([node], rule)[0]


def _orders(condition: Call) -> bool:
    return condition.fn in ("lt", "le") and all(a.kind == "i" for a in condition.args)


def _slack(condition: Call) -> Node:
    """What an ordering of integers says is at least 0."""
    a, b = condition.args
    return sub(sub(b, a), const(1 if condition.fn == "lt" else 0))
