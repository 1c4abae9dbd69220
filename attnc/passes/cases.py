"""Quotients and remainders of bounded numbers, case by case, and conditions on rows and places of a grid kept apart.

``x // m`` takes few values where x lies within few multiples of m. In each case it is a number, and so is what x must
be at least and at most. That leaves conditions on rows alone and on places alone where a mask mixes both: the length
of a class of positions that are a step apart depends on which class it is, but has two values only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from attnc.ir.construct import FALSE, add, axis, call, coefficient, const, is_const, mul, neg, sub, terms_of
from attnc.ir.node import Axis, Call, Const, Node
from attnc.ir.walk import postorder, replace, rewrite
from attnc.passes.bounds import ZERO
from attnc.passes.conditions import excess, plain
from attnc.passes.progression import alternatives
from attnc.passes.rows import Line

MOST = 8
"""Alternatives that conditions are taken apart into."""
VALUES = 4
"""Values of a quotient that are told apart."""
SPLITS = 16
"""Choices one after another that may separate conditions."""

Tops = Mapping[Node, int]
Interval = tuple[int, int]


def reach(node: Node, tops: Tops) -> Interval | None:
    """The least and the greatest value of an integer, where axes go from 0 to a number."""
    match node:
        case Const(kind="i"):
            return int(node.value), int(node.value)
        case Axis():
            return (0, tops[node]) if node in tops else None
        case Call(fn="mod", args=(_, Const() as by)) if by.value > 0:
            return 0, int(by.value) - 1
        case Call(fn="floordiv", args=(x, Const() as by)) if by.value > 0:
            inside = reach(x, tops)
            return None if inside is None else (inside[0] // int(by.value), inside[1] // int(by.value))
        case Call(fn="minimum" | "maximum", args=args):
            found = [reach(x, tops) for x in args]
            pick = min if node.fn == "minimum" else max
            ends = [(pick(x[0] for x in found if x), pick(x[1] for x in found if x))] if None not in found else []
            return ends[0] if ends else None
        case _:
            return _reach_of_sum(node, tops)


def _reach_of_sum(node: Node, tops: Tops) -> Interval | None:
    low = high = 0
    for t in terms_of(node):
        k, factors = coefficient(t)
        if not isinstance(k, int) or len(factors) > 1 or factors == (node,):
            return None
        inside = reach(factors[0], tops) if factors else (1, 1)
        if inside is None:
            return None
        low += min(k * inside[0], k * inside[1])
        high += max(k * inside[0], k * inside[1])
    return low, high


def cases(conditions: Sequence[Node], among: Iterable[Node], tops: Tops) -> list[list[Node]] | None:
    """All conditions for each value of a quotient that some of them, `among`, mention. None where there is none that
    has few values; cases that cannot be are left out."""
    for n in postorder(among):
        match n:
            case Call(fn="floordiv" | "mod", args=(x, Const(kind="i") as by)) if by.value > 0:
                bounds = reach(x, tops)
            case _:
                continue
        if bounds is None:
            continue
        unit = int(by.value)
        values = range(bounds[0] // unit, bounds[1] // unit + 1)
        if len(values) > VALUES:
            continue
        found = []
        for k in values:
            start = const(unit * k)
            known = {call("floordiv", x, by): const(k), call("mod", x, by): sub(x, start)}
            inside = [call("le", start, x), call("le", x, const(unit * k + unit - 1))]
            found.append(settled([*replace(list(conditions), known), *inside], tops))
        return [c for c in found if FALSE not in c]
    return None


def settled(conditions: Iterable[Node], tops: Tops) -> list[Node]:
    """Conditions in plain form without those that hold anyway; never is among them if they contradict each other."""
    found = rewrite(list(conditions), lambda n: _equation(n, tops) if isinstance(n, Call) and n.fn == "eq" else None)
    found = plain(found, (), tops)
    return _tightest((c for c in found if not isinstance(c, Const) or not c.value), tops)


def _equation(condition: Call, tops: Tops) -> Node | None:
    """An equation that no number solves as never, ``x % m == r`` that only one x solves as that."""
    x, y = condition.args
    if x.kind != "i" or y.kind != "i":
        return None
    apart = reach(sub(x, y), tops)
    if apart is not None and not apart[0] <= 0 <= apart[1]:
        return FALSE
    for rest, value in ((x, y), (y, x)):
        match rest, value:
            case Const(), Call(fn="mod", args=(inside, Const() as by)) if by.value > 0:
                bounds = reach(inside, tops)
            case _:
                continue
        if bounds is None:
            return None
        unit = int(by.value)
        least = bounds[0] + (int(rest.value) - bounds[0]) % unit
        if least > bounds[1]:
            return FALSE
        return call("eq", inside, const(least)) if bounds[1] < least + unit else None
    return None


def _tightest(conditions: Iterable[Node], tops: Tops) -> list[Node]:
    """Conditions where, of several bounds of one number, the tightest is left; never alone if no number is within
    its bounds."""
    most: dict[Node, int] = {**tops, **{neg(a): 0 for a in tops}}
    found: dict[Node, Node] = {}
    for c in conditions:
        value = excess(c)
        if value is None:
            found[c] = c
            continue
        number = add(ZERO, *(t for t in terms_of(value) if not isinstance(t, Const)))
        bound = sub(number, value)
        if not isinstance(bound, Const) or int(bound.value) >= most.get(number, int(bound.value) + 1):
            continue
        if int(bound.value) + most.get(neg(number), -int(bound.value)) < 0:
            return [FALSE]
        most[number] = int(bound.value)
        found[number] = c
    return list(found.values())


def separated(
    conditions: Sequence[Node], a: Line, b: Line, tops: Tops, left: int = SPLITS
) -> list[tuple[tuple[Node, ...], tuple[Node, ...]]] | None:
    """Alternatives of conditions on the rows of a grid and of conditions on its places; None where they cannot be kept
    apart by `left` choices. `tops` are the greatest places, and the greatest rows where these are known."""
    rows, places = {a.row, b.row}, {a.place, b.place}

    def mixes(node: Node) -> bool:
        return bool(node.axes & rows) and bool(node.axes & places)

    def rule(node: Node) -> Node | None:
        return _of_rows(node, a.columns, places) if isinstance(node, Call) and mixes(node) else None

    conditions = _one_place(rewrite(list(conditions), rule), a, b)
    mixed = [c for c in conditions if mixes(c)]
    if not mixed:
        on_places = tuple(c for c in conditions if c.axes & places)
        return [(tuple(c for c in conditions if c not in on_places), on_places)]
    choices = cases(conditions, mixed, tops) if left else None
    if choices is None and left:
        choices = _chosen(conditions, mixed)
    if choices is None:
        return None
    found = []
    for choice in choices:
        inside = separated(settled(choice, tops), a, b, tops, left - 1) if FALSE not in choice else []
        if inside is None:
            return None
        found += inside
        if len(found) > MOST:
            return None
    return found


def _of_rows(condition: Call, columns: int, places: set[str]) -> Node | None:
    """``columns * rows + places <= 0`` as ``rows <= -places // columns``."""
    value = excess(condition)
    if value is None or columns == 1:
        return None
    row: list[Node] = []
    rest: list[Node] = []
    for t in terms_of(value):
        k, factors = coefficient(t)
        if not factors or t.axes & places:
            rest.append(t)
        elif isinstance(k, int) and k % columns == 0:
            row.append(mul(const(k // columns), *factors))
        else:
            return None
    return call("le", add(ZERO, *row), call("floordiv", neg(add(ZERO, *rest)), const(columns)))


def _one_place(conditions: Sequence[Node], a: Line, b: Line) -> list[Node]:
    """Conditions of which one asks for the same place in both rows: then only one place is spoken of in the others."""
    here, there = axis(a.place), axis(b.place)

    def same(c: Node) -> bool:
        match c:
            case Call(fn="eq", args=(x, y)):
                return {x, y} == {here, there} or any(
                    is_const(z, 0) and w in (sub(here, there), sub(there, here)) for z, w in ((x, y), (y, x))
                )
            case _:
                return False

    found = [c for c in conditions if same(c)]
    if not found:
        return list(conditions)
    return [found[0], *replace([c for c in conditions if c not in found], {there: here})]


def _chosen(conditions: Sequence[Node], mixed: Sequence[Node]) -> list[list[Node]] | None:
    """Alternatives that the first of the mixed conditions offers."""
    for c in mixed:
        choices = alternatives([c], MOST)
        if choices is not None and len(choices) > 1:
            return [[*(x for x in conditions if x is not c), *choice] for choice in choices]
    return None
