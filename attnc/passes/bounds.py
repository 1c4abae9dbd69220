"""Loop bounds from masks: for a block of the outer axis, which inner positions can be allowed and which all are.

Each condition is solved for the inner position at one outer position: what it allows is a range whose ends are
expressions of that position. Over a block the ends move; where they never fall, or never rise, their extremes are their
values at the ends of the block. If the ranges of neighbouring positions also leave no gap between them, the loop visits
exactly the blocks that hold an allowed pair (`Range.exact`). What cannot be solved bounds nothing and makes every block
partial, which is always sound; `attnc.passes.coverage` gives such masks a table of runs instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from attnc.ir.construct import FALSE, add, axis, call, coefficient, const, is_const, mul, neg, sub, terms_of, var
from attnc.ir.node import Add, Axes, Axis, Call, Const, Load, Node, Prod, Size, Var
from attnc.ir.walk import postorder, replace, rewrite
from attnc.passes.inequality import all_at_most, is_positive
from attnc.passes.interval_bits import as_division

Interval = tuple[Node, Node]
ZERO = const(0)


@dataclass(frozen=True, slots=True)
class Range:
    """Inner positions of one block: outside [low, high) none is allowed; inside [full_low, full_high) all are.

    None in the last two means that nothing is known to be full. `exact`: every block in [low, high) holds an allowed
    pair, and outside the full range none is all allowed.
    """

    low: Node
    high: Node
    full_low: Node | None
    full_high: Node | None
    exact: bool = False


@dataclass(frozen=True, slots=True)
class End:
    """An end of what is allowed at one outer position. Where the condition `open` on that position holds there is none:
    the range reaches the end of the axis; `value` then lies inside the axis."""

    value: Node
    open: Node = FALSE

    def node(self, limit: Node) -> Node:
        """The end as one expression, given the end of the axis on this side."""
        return call("where", self.open, limit, self.value)

    def trend(self, outer: str, side: int) -> int | None:
        """As `trend`; `side` is 1 for an upper end, which an open condition moves up, and -1 for a lower one."""
        switches, rising = trend(self.open, outer), trend(self.value, outer)
        return _common([None if switches is None else side * switches, rising])

    @property
    def plain(self) -> bool:
        """Whether the range always ends here."""
        return self.open is FALSE

    @property
    def axes(self) -> Axes:
        return self.value.axes | self.open.axes


@dataclass(frozen=True, slots=True)
class Solution:
    """What a condition allows at one outer position: nothing outside the range from the largest of `lows` to the
    smallest of `highs`, and with `exact` everything inside it."""

    lows: tuple[End, ...] = ()
    highs: tuple[End, ...] = ()
    exact: bool = True


def first(axis: str) -> Var:
    """The first position of the current block of an outer axis."""
    return var(f"{axis}_first", (), "i")


def last(axis: str) -> Var:
    """The last position of the current block of an outer axis, inside its extent."""
    return var(f"{axis}_last", (), "i")


def inner_range(
    conditions: Iterable[Node], outer: str | None, inner: str, extent: Node, size: int | None = None
) -> Range:
    """The range that all conditions leave, within 0 and `extent`; `size` is that of the outer axis, if it is known."""
    solution = solved(conditions, inner, extent)
    lows = [extremes(x, ZERO, outer, -1) for x in solution.lows]
    highs = [extremes(x, extent, outer, 1) for x in solution.highs]
    low = ends("maximum", [ZERO, *(x[0] for x in lows if x)])
    high = ends("minimum", [extent, *(x[1] for x in highs if x)])
    if not solution.exact or None in (*lows, *highs):
        return Range(low, high, None, None)
    full_low = ends("maximum", [ZERO, *(x[1] for x in lows if x)])
    full_high = ends("minimum", [extent, *(x[0] for x in highs if x)])
    gates: list[Node] | None = [] if outer is None else _gapless(solution, outer, extent, size)
    if gates:
        high = call("where", call("and", *gates), high, ZERO)
    return Range(low, high, full_low, full_high, gates is not None)


def shortened(choice: Sequence[Node], outer: str, inner: str, extent: Node, size: int | None = None) -> Range | None:
    """What is left where conditions on the outer position alone shorten its block; None where that is not known."""
    alone = [c for c in choice if inner not in c.axes]
    limits = solved(alone, outer, add(last(outer), const(1)))
    found = inner_range([c for c in choice if c not in alone], outer, inner, extent, size)
    if not limits.exact or not found.exact:
        return None
    from_ = ends("maximum", [first(outer), *(x.node(first(outer)) for x in limits.lows)])
    stop = add(last(outer), const(1))
    to = add(ends("minimum", [stop, *(x.node(stop) for x in limits.highs)]), const(-1))
    low, high = replace([found.low, found.high], {first(outer): from_, last(outer): to})
    high = call("where", call("le", from_, to), high, ZERO)
    if found.full_low is None or found.full_high is None:
        return Range(low, high, None, None, exact=True)
    whole = call("and", call("le", from_, first(outer)), call("le", last(outer), to))
    return Range(low, high, found.full_low, call("where", whole, found.full_high, ZERO), exact=True)


# -------------------------------------------------------------------------------------------------------- solving


def solved(conditions: Iterable[Node], inner: str, extent: Node) -> Solution:
    """What all conditions allow at one outer position."""
    return _both([_solve(c, inner, extent) for c in without_bits(conditions)])


def without_bits(conditions: Iterable[Node]) -> list[Node]:
    """Conditions with masks of leading or trailing bits as divisions."""
    return rewrite(list(conditions), lambda n: as_division(n) if isinstance(n, Call) else None)


def _both(parts: Sequence[Solution]) -> Solution:
    lows = tuple(dict.fromkeys(x for p in parts for x in p.lows))
    highs = tuple(dict.fromkeys(x for p in parts for x in p.highs))
    return Solution(lows, highs, all(p.exact for p in parts))


UNSOLVED = Solution(exact=False)


def _solve(condition: Node, inner: str, extent: Node) -> Solution:
    if isinstance(condition, Const):
        return Solution() if condition.value else Solution(highs=(End(ZERO),))
    if inner not in condition.axes:
        return Solution(highs=(End(ZERO, condition),)) if _is_index(condition) else UNSOLVED
    if not isinstance(condition, Call):
        return UNSOLVED
    match condition.fn:
        case "and":
            return _both([_solve(c, inner, extent) for c in condition.args])
        case "or":
            return _either(condition.args, inner, extent)
        case "not" if isinstance(condition.args[0], Call) and condition.args[0].fn in ("and", "or"):
            inside = condition.args[0]
            return _solve(
                call("or" if inside.fn == "and" else "and", *(call("not", a) for a in inside.args)), inner, extent
            )
        case "le" | "lt" if all(a.kind == "i" for a in condition.args):
            a, b = condition.args
            return _at_most_zero(add(a, neg(b), const(1 if condition.fn == "lt" else 0)), inner, extent)
        case "eq" if all(a.kind == "i" for a in condition.args):
            a, b = _without_abs(*condition.args)
            return _both([_at_most_zero(sub(a, b), inner, extent), _at_most_zero(sub(b, a), inner, extent)])
        case _:
            return UNSOLVED


def _without_abs(a: Node, b: Node) -> tuple[Node, Node]:
    """``abs(x) == 0`` as ``x == 0``."""
    for x, y in ((a, b), (b, a)):
        if is_const(x, 0) and isinstance(y, Call) and y.fn == "abs":
            return x, y.args[0]
    return a, b


def _either(conditions: Sequence[Node], inner: str, extent: Node) -> Solution:
    """Ranges that all begin, or all end, with the axis make one range; conditions on the outer position open it."""
    fixed = call("or", *(c for c in conditions if inner not in c.axes))
    parts = [_solve(c, inner, extent) for c in conditions if inner in c.axes]
    if not _is_index(fixed):
        return UNSOLVED
    if not parts:
        return Solution(highs=(End(ZERO, fixed),))
    exact = all(p.exact for p in parts)
    if any(not p.lows and not p.highs for p in parts):
        return Solution(exact=exact)
    lows: tuple[End, ...] = ()
    highs: tuple[End, ...] = ()
    if all(p.lows for p in parts):
        value = ends("minimum", [ends("maximum", [ZERO, *(x.node(ZERO) for x in p.lows)]) for p in parts])
        lows = (End(value, fixed),)
    if all(p.highs for p in parts):
        value = ends("maximum", [ends("minimum", [extent, *(x.node(extent) for x in p.highs)]) for p in parts])
        highs = (End(value, fixed),)
    one_sided = not any(p.lows for p in parts) or not any(p.highs for p in parts)
    return Solution(lows, highs, exact and (len(parts) == 1 or one_sided))


def _is_index(node: Node) -> bool:
    """Whether a condition compares integers that a kernel knows before its loop."""
    kinds = (Const, Size, Axis, Var, Load, Call, Add, Prod)
    return all(isinstance(n, kinds) and n.kind != "f" for n in postorder([node]))


def ends(fn: str, nodes: Sequence[Node]) -> Node:
    """The least or the greatest of several numbers, by the name of the function."""
    total = nodes[0]
    for n in nodes[1:]:
        total = call(fn, total, n)
    return total


def _at_most_zero(value: Node, inner: str, extent: Node) -> Solution:
    """Solve ``value <= 0`` for the inner position."""
    moving = [t for t in terms_of(value) if inner in t.axes]
    rest = add(ZERO, *(t for t in terms_of(value) if inner not in t.axes))
    if len(moving) != 1:
        return Solution() if not moving else UNSOLVED
    return _branches(moving[0], rest, inner, extent) or _isolate(moving[0], rest, inner, extent)


def _branches(term: Node, rest: Node, inner: str, extent: Node) -> Solution | None:
    """``max(x, y) + rest <= 0`` is both, ``min(x, y) + rest <= 0`` either of the two inequalities; so for abs."""
    k, factors = coefficient(term)
    if len(factors) != 1 or not isinstance(factors[0], Call) or not isinstance(k, int):
        return None
    inside = factors[0]
    if inside.fn not in ("abs", "maximum", "minimum"):
        return None
    values = (inside.args[0], neg(inside.args[0])) if inside.fn == "abs" else inside.args
    conditions = [call("le", add(mul(const(k), x), rest), ZERO) for x in values]
    together = (inside.fn != "minimum") == (k > 0)
    return _solve(call("and" if together else "or", *conditions), inner, extent)


def _isolate(term: Node, rest: Node, inner: str, extent: Node) -> Solution:
    """Solve ``k * u(j) + rest <= 0``, where u is j, j plus something, or either of these divided by a number."""
    k, factors = coefficient(term)
    scales = [f for f in factors if inner not in f.axes and is_positive(f)]
    if len(factors) == 2 and len(scales) == 1 and isinstance(k, int):
        (value,) = (f for f in factors if f is not scales[0])
        return _at_most_zero(sub(mul(const(k), value), call("floordiv", neg(rest), scales[0])), inner, extent)
    if len(factors) != 1 or not isinstance(k, int):
        return UNSOLVED
    unit: Node = const(1)
    u = factors[0]
    if isinstance(u, Call) and u.fn == "floordiv" and is_positive(u.args[1]):
        unit, u = u.args[1], u.args[0]
    shift = sub(u, axis(inner))
    if inner in shift.axes:
        return UNSOLVED
    # At most floor(-rest / k), or at least ceil(rest / -k), whole units.
    edge = call("floordiv", neg(rest), const(k)) if k > 0 else neg(call("floordiv", neg(rest), const(-k)))
    edge = add(mul(unit, edge), unit if k > 0 else ZERO, neg(shift))
    return Solution(highs=(End(edge),)) if k > 0 else Solution(lows=(End(edge),))


# ----------------------------------------------------------------------------------------------------- exactness


def _gapless(solution: Solution, outer: str, extent: Node, size: int | None) -> list[Node] | None:
    """Conditions, the same for all outer positions, under which the ranges of those of a block make one range together
    and without which they are empty; None if there are none such.

    Ends that do not move cut all ranges alike. Of the others, each range must begin no later than just after any of its
    neighbours ends: a lower end may not rise, from one position to the next, by more than any range is long.
    """
    lows = [x for x in solution.lows if outer in x.axes]
    highs = [x for x in solution.highs if outer in x.axes]
    for moving, side in ((lows, -1), (highs, 1)):
        if _common([x.trend(outer, side) for x in moving]) is None:
            return None
    gates: list[Node] = []
    for low in lows:
        for high in highs:
            length = sub(high.value, low.value)
            step = _step(low.value, outer)
            if not low.plain or not high.plain or step is None or outer in length.axes:
                return [] if _touching(lows, highs, outer, extent, size) else None
            if isinstance(length, Const) and step <= length.value:
                continue
            if isinstance(length, Const) or step > 1:
                return [] if _touching(lows, highs, outer, extent, size) else None
            gates.append(call("lt", ZERO, length))
    return gates


def _touching(lows: Sequence[End], highs: Sequence[End], outer: str, extent: Node, size: int | None) -> bool:
    """As `_gapless`, where all ends move the same way: each range begins no later than its neighbour below ends.

    Where an end is open, so is that of the neighbour on one side, and one of the two ranges lies in the other.
    """
    way = _common([*(x.trend(outer, -1) for x in lows), *(x.trend(outer, 1) for x in highs)])
    if way is None:
        return False
    below = [uncut(x.value, "maximum", ZERO) for x in lows]
    above = [uncut(x.value, "minimum", extent) for x in highs]
    after: dict[Node, Node] = {axis(outer): add(axis(outer), const(1))}
    below, above = (replace(below, after), above) if way >= 0 else (below, replace(above, after))
    return all_at_most(below, above, tops={} if size is None else {axis(outer): size - 2})


def uncut(value: Node, fn: str, limit: Node) -> Node:
    """An end before it was cut to the axis: what cuts all ranges alike leaves no gap, nor does an end that is none."""
    match value:
        case Call(fn="where", args=(_, x, y)) if limit in (x, y):
            return uncut(y if x is limit else x, fn, limit)
        case Call(fn="maximum" | "minimum", args=args):
            kept = [uncut(x, fn, limit) for x in args if value.fn != fn or x is not limit]
            return ends(value.fn, kept) if kept else value
        case _:
            return value


def _step(node: Node, outer: str) -> int | None:
    """The most that an expression changes when the outer position moves by one; None if unknown."""
    if outer not in node.axes:
        return 0
    match node:
        case Axis():
            return 1
        case Add():
            steps = [_step(t, outer) for t in node.terms]
            return None if None in steps else sum(s for s in steps if s is not None)
        case Call(fn="floordiv", args=(x, Const() as by)) if is_positive(by):
            step = _step(x, outer)
            return None if step is None else -(-step // int(by.value))
        case Call(fn="maximum" | "minimum" | "abs", args=args):
            steps = [_step(x, outer) for x in args]
            return None if None in steps else max(s for s in steps if s is not None)
        case _:
            k, rest = coefficient(node)
            if len(rest) != 1 or rest[0] is node or not isinstance(k, int):
                return None
            step = _step(rest[0], outer)
            return None if step is None else abs(k) * step


def trend(node: Node, outer: str) -> int | None:
    """1 if an expression never falls along the outer axis, -1 if it never rises, 0 if it does neither; else None. A
    condition rises where it becomes true."""
    if outer not in node.axes:
        return 0
    match node:
        case Axis():
            return 1
        case Add():
            return _common([trend(t, outer) for t in node.terms])
        case Call(fn="floordiv", args=(x, by)) if is_positive(by):
            return trend(x, outer)
        case Call(fn="maximum" | "minimum" | "and" | "or", args=args):
            return _common([trend(x, outer) for x in args])
        case Call(fn="where", args=(c, a, b)) if outer not in c.axes:
            return _common([trend(a, outer), trend(b, outer)])
        case Call(fn="le" | "lt", args=(a, b)) if a.kind == b.kind == "i":
            return trend(sub(b, a), outer)
        case Call(fn="not", args=(x,)):
            rising = trend(x, outer)
            return None if rising is None else -rising
        case _:
            k, rest = coefficient(node)
            if len(rest) != 1 or rest[0] is node or not isinstance(k, int):
                return None
            rising = trend(rest[0], outer)
            return None if rising is None else rising * (1 if k > 0 else -1)


def _common(trends: Sequence[int | None]) -> int | None:
    """The trend of what is made of parts with these trends and rises with each of them."""
    if None in trends:
        return None
    moving = {t for t in trends if t}
    return None if len(moving) == 2 else next(iter(moving), 0)


def extremes(end: End, limit: Node, outer: str | None, side: int) -> Interval | None:
    """The least and the greatest value of an end of a range over the block; None if it is not known to move one way."""
    node = end.node(limit)
    if outer is None or outer not in node.axes:
        return node, node
    rising = end.trend(outer, side)
    if rising is None:
        return None
    at_first, at_last = (replace([node], {axis(outer): x})[0] for x in (first(outer), last(outer)))
    return (at_first, at_last) if rising >= 0 else (at_last, at_first)
