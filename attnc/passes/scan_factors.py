"""Weights that separate: a product over a plane written as factors of one axis times factors of the other.

``sum_d(q[i, d] * k[j, d]) * gamma ** (i - j) * v[j, e]`` is, for any position r between j and i, a product of
``q[i, d] * gamma ** (i - r)`` and ``gamma ** (r - j) * k[j, d] * v[j, e]``, summed over d. That is what lets everything
far from a block of queries be summed up ahead, in a state indexed by d and e.

Exponentials of two parts, ``exp2(G[i] - G[j])``, meet in the running maximum of one of them instead of in a position,
so that neither factor ever overflows where their product does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from attnc.ir.construct import (
    ONE,
    ZERO,
    add,
    axis,
    call,
    coefficient,
    const,
    factors_of,
    iverson,
    mul,
    neg,
    sub,
    terms_of,
)
from attnc.ir.node import Add, Call, Node, Prod, Sum
from attnc.passes.exponents import exponent_of, unit_and_terms
from attnc.passes.planes import Planes

WIDEST_STATE = 2
"""Channels a state may have: a state is a matrix held in one tile."""


@dataclass(frozen=True, slots=True)
class Linear:
    """An integer ``sign * (inner - outer) + rest`` that a decay depends on, and the position-free rest."""

    sign: int
    rest: Node


@dataclass(frozen=True, slots=True)
class Decay:
    """A factor that depends on the distance alone: ``pow(base, distance)``, ``exp2(base * distance)`` or the same with
    ``exp``."""

    fn: str
    base: Node
    distance: Linear

    def at(self, exponent: Node) -> Node:
        """The factor for a given distance."""
        return call("pow", self.base, exponent) if self.fn == "pow" else call(self.fn, mul(self.base, exponent))


@dataclass(frozen=True, slots=True)
class Exponential:
    """A factor ``exp2(unit * (outer + inner))``, or ``exp`` of it, each part depending on one of the axes.

    The unit is multiplied in behind the difference, as where both positions are near: a sum of hundreds that is rounded
    in two ways would not cancel.
    """

    fn: str
    outer: Node
    inner: Node
    unit: float | int = 1

    def of(self, *terms: Node) -> Node:
        """The exponential of other terms in the same unit."""
        return call(self.fn, exponent_of(self.unit, *terms))


@dataclass
class Side:
    """Factors that meet in one contraction: over a channel, or (channel None) outside all of them."""

    channel: str | None
    outer: list[Node] = field(default_factory=list)
    inner: list[Node] = field(default_factory=list)
    decays: list[Decay] = field(default_factory=list)
    exponentials: list[Exponential] = field(default_factory=list)

    def __iter__(self) -> Iterator[Node]:
        """Every expression."""
        yield from (*self.outer, *self.inner, *(d.base for d in self.decays))
        yield from (x for e in self.exponentials for x in (e.outer, e.inner))


@dataclass
class Product:
    """A separated product: one side per contracted channel, the last one outside all of them; and at most one factor
    that is the distance itself."""

    sides: list[Side]
    distance: Linear | None = None

    per_channel: bool = False
    """Whether a decay differs between channels."""

    def mapped(self, change: Callable[[Node], Node]) -> Product:
        """The product with every expression replaced."""
        sides = [
            Side(
                s.channel,
                [change(f) for f in s.outer],
                [change(f) for f in s.inner],
                [replace(d, base=change(d.base)) for d in s.decays],
                [replace(e, outer=change(e.outer), inner=change(e.inner)) for e in s.exponentials],
            )
            for s in self.sides
        ]
        return replace(self, sides=sides)


def linear(node: Node, outer: str, inner: str) -> Linear | None:
    """The form of an integer that depends on the two positions through their difference only."""
    signs: dict[str, int] = {}
    rest: list[Node] = []
    for t in terms_of(node):
        k, factors = coefficient(t)
        name = next((a for a in (outer, inner) if len(factors) == 1 and factors[0] is axis(a)), None)
        if name is not None and k in (1, -1):
            signs[name] = int(k)
        elif t.axes & {outer, inner} or t.kind != "i":
            return None
        else:
            rest.append(t)
    if signs.get(outer, 0) * signs.get(inner, 0) != -1:
        return None
    return Linear(signs[inner], add(const(0), *rest))


class Separation:
    """Separates the factors of one reduction over `inner` for positions of `outer`."""

    def __init__(self, planes: Planes, outer: str, inner: str) -> None:
        self.planes, self.outer, self.inner = planes, outer, inner

    def product(self, node: Sum) -> Product | None:
        """The factors of a sum over `inner`, separated; None where they are not separable into a state."""
        found = Product([Side(None)])
        for f in node.factors:
            if not self._place(f, found, found.sides[0]):
                return None
        found.sides = [*found.sides[1:], found.sides[0]]
        return found if self._fits(found) else None

    def exponent(self, terms: Iterable[Node]) -> tuple[list[Node], list[Node], list[tuple[Node, Linear]]] | None:
        """The terms of an exponent by what they depend on: outer, inner, or the distance times a coefficient."""
        outer: list[Node] = []
        inner: list[Node] = []
        distances: list[tuple[Node, Linear]] = []
        for t in terms:
            if self.inner not in t.axes:
                outer.append(t)
            elif self.outer not in t.axes:
                inner.append(t)
            elif (found := self._scaled_distance(t)) is not None:
                distances.append(found)
            else:
                return None
        return outer, inner, distances

    def _scaled_distance(self, term: Node) -> tuple[Node, Linear] | None:
        plane = {self.outer, self.inner}
        moving = [f for f in factors_of(term) if f.axes & plane]
        form = linear(moving[0], self.outer, self.inner) if len(moving) == 1 else None
        if form is None:
            return None
        scale = mul(const(1.0), *(f for f in factors_of(term) if f is not moving[0]))
        return scale, form

    def _place(self, f: Node, found: Product, side: Side) -> bool:
        if self.inner not in f.axes:
            side.outer.append(f)
            return True
        if self.outer not in f.axes:
            side.inner.append(f)
            return True
        match f:
            case Prod():
                return all(self._place(x, found, side) for x in f.factors)
            case Call(fn="exp2" | "exp"):
                return self._place_exponential(f, side)
            case Call(fn="pow"):
                return self._place_power(f, side)
            case Add() if f.kind == "i" and found.distance is None:
                found.distance = linear(f, self.outer, self.inner)
                return found.distance is not None
            case Sum():
                return self._place_contraction(f, found, side)
            case _:
                return False

    def _place_exponential(self, f: Call, side: Side) -> bool:
        unit, terms = unit_and_terms(f.args[0])
        parts = self.exponent(terms)
        if parts is None:
            return False
        outer, inner, distances = parts
        side.decays += [Decay(f.fn, mul(const(unit), scale), form) for scale, form in distances]
        if outer and inner:
            side.exponentials.append(Exponential(f.fn, add(*outer), add(*inner), unit))
        elif outer or inner:
            (side.outer if outer else side.inner).append(call(f.fn, exponent_of(unit, *outer, *inner)))
        return True

    def _place_power(self, f: Call, side: Side) -> bool:
        base, exponent = f.args
        form = None if base.axes & {self.outer, self.inner} else linear(exponent, self.outer, self.inner)
        if form is None:
            return False
        side.decays.append(Decay("pow", base, form))
        return True

    def _place_contraction(self, f: Sum, found: Product, side: Side) -> bool:
        if side.channel is not None or f.scatter or len(f.bound) != 1:
            return False
        (channel,) = f.bound
        if any(s.channel == channel for s in found.sides) or channel not in self.planes.channels(f.bound):
            return False
        inside = Side(channel)
        found.sides.append(inside)
        return all(self._place(x, found, inside) for x in (*f.factors, *map(iverson, f.domain)))

    def _fits(self, product: Product) -> bool:
        """Whether the state is a matrix at most, each of its factors being spread over one of its channels.

        A channel that is contracted is not one that another factor keeps, though they share the name.
        """
        if any(s.channel in x.axes for s in product.sides if s.channel for t in product.sides if t is not s for x in t):
            return False
        decays = [x for s in product.sides for x in (*(d.base for d in s.decays), *(e.inner for e in s.exponentials))]
        product.per_channel = any(self.planes.channels(x.axes) for x in decays)
        spread = [self.planes.channels(x.axes) for x in (*decays, *(f for s in product.sides for f in s.inner))]
        channels = frozenset[str]().union(*spread)
        return all(len(own) <= 1 for own in spread) and len(channels) <= WIDEST_STATE


@dataclass
class Apart:
    """A separated product on both sides of an edge between far positions and near ones.

    Attributes:
        sides: per contracted channel (None: outside all) the factors of a near position.
        inner: the factors of a far position, whose products add up to a state.
        decays: the decays among them.
        sign: of the distance, where the product has it as a factor; `remaining` is its part on the near side.
    """

    sides: list[tuple[str | None, list[Node]]]
    inner: list[Node]
    decays: list[Decay]
    sign: int = 0
    remaining: Node = ZERO

    def step(self, moved: Node) -> Node:
        """What a state is multiplied by when the edge moves by so many inner positions."""
        return mul(ONE, *(d.at(mul(const(-d.distance.sign), moved)) for d in self.decays))


def apart(product: Product, outer: Node, inner: Node, edge: Node, largest: Callable[[Node], Node]) -> Apart:
    """The factors of a product on either side of the edge.

    Args:
        outer, inner: the positions of the two axes.
        edge: an inner position between the near and the far ones.
        largest: the running maximum, over far positions, of the inner part of an exponent.
    """
    found = Apart([], [], [])

    def outside(form: Linear) -> Node:
        return add(mul(const(form.sign), sub(edge, outer)), form.rest)

    def inside(form: Linear) -> Node:
        return mul(const(form.sign), sub(inner, edge))

    for side in product.sides:
        near = [*side.outer]
        found.inner += side.inner
        found.decays += side.decays
        for decay in side.decays:
            near.append(decay.at(outside(decay.distance)))
            found.inner.append(decay.at(inside(decay.distance)))
        for e in side.exponentials:
            top = largest(e.inner)
            near.append(e.of(e.outer, top))
            found.inner.append(e.of(e.inner, neg(call("finite_or_zero", top))))
        found.sides.append((side.channel, near))
    if product.distance is not None:
        found.sign, found.remaining = product.distance.sign, outside(product.distance)
    return found


@dataclass(frozen=True, slots=True)
class Causal:
    """The condition that orders the two axes: ``inner <= reach + outer`` (`forward`), or ``outer <= reach + inner``."""

    condition: Node
    forward: bool
    reach: Node


def causal(domain: Iterable[Node], outer: str, inner: str) -> tuple[Causal, list[Node]] | None:
    """The ordering among some conditions and the conditions on `inner` alone; None where there is anything else.

    That the positions differ may be asked as well: it only matters inside a block.
    """
    ordering: Causal | None = None
    alone: list[Node] = []
    unequal: list[Node] = []
    for c in domain:
        if outer not in c.axes:
            alone.append(c)
        elif (found := _ordering(c, outer, inner)) is not None and ordering is None:
            ordering = found
        elif (difference := _unequal(c)) is not None:
            unequal.append(difference)
        else:
            return None
    if ordering is None:
        return None
    ahead = sub(axis(outer), axis(inner)) if ordering.forward else sub(axis(inner), axis(outer))
    distance = add(ordering.reach, ahead)
    if any(d is not distance and neg(d) is not distance for d in unequal):
        return None
    return ordering, alone


def _ordering(condition: Node, outer: str, inner: str) -> Causal | None:
    if not (isinstance(condition, Call) and condition.fn in ("le", "lt")):
        return None
    a, b = condition.args
    if a.kind != "i" or b.kind != "i":
        return None
    form = linear(add(sub(a, b), const(1 if condition.fn == "lt" else 0)), outer, inner)
    return None if form is None else Causal(condition, form.sign == 1, neg(form.rest))


def _unequal(condition: Node) -> Node | None:
    """x, for ``not(x == 0)``."""
    if not (isinstance(condition, Call) and condition.fn == "not"):
        return None
    (inside,) = condition.args
    if not (isinstance(inside, Call) and inside.fn == "eq" and all(a.kind == "i" for a in inside.args)):
        return None
    return sub(*inside.args)
