"""Exponents in units of the score: ``exp2(c * (s - m))``.

A score of several terms, or with a factor read from a tensor, is added up as the spec wrote it and multiplied by
log2(e) once, after its maximum is taken away. Folded into each coefficient, log2(e) would be rounded there: a relative
error of half an eps, the same in every pair of positions, which a gradient that sums over all of them (that of a slope)
adds up. Behind the difference it is multiplied by what is small where weights are not.

So is the score of weights that are summed over rows and over columns (`shared_exponents`): scores in their own units
are rounded alike by every pass (`attnc.passes.values`), and these weights are made from the sums of several.
"""

from __future__ import annotations

from collections.abc import Iterable

from attnc.ir.construct import add, coefficient, const, factors_of, mul, raw_add, raw_prod, terms_of
from attnc.ir.node import Add, Axes, Call, Const, Load, Node, Prod, Sum
from attnc.ir.walk import postorder


def keeps_unit(exponent: Node) -> bool:
    """Whether an exponent is worth the multiplication: what is moved by its maximum is no number times one value."""
    moved = [t for t in terms_of(exponent) if not _is_shift(t)]
    return len(moved) > 1 or any(sum(map(_reads, factors_of(t))) > 1 for t in moved)


def shared_exponents(roots: Iterable[Node], sequences: Axes) -> frozenset[Node]:
    """The exponents of exponentials that are factors of sums over different sequence axes."""
    over: dict[Node, set[str]] = {}
    for n in postorder(roots):
        if not isinstance(n, Sum):
            continue
        for f in n.factors:
            if isinstance(f, Call) and f.fn == "exp" and len(f.axes & sequences) > 1:
                over.setdefault(f.args[0], set()).update(n.bound & sequences & f.axes)
    return frozenset(x for x, axes in over.items() if len(axes) > 1)


def _is_shift(term: Node) -> bool:
    k, rest = coefficient(term)
    return k < 0 and len(rest) == 1 and isinstance(rest[0], Call) and rest[0].fn == "finite_or_zero"


def _reads(node: Node) -> bool:
    return any(isinstance(n, Load) for n in postorder([node]))


def unit_and_terms(exponent: Node) -> tuple[float | int, tuple[Node, ...]]:
    """A sum behind a number as that number and its terms; any other exponent as 1 and its terms."""
    if isinstance(exponent, Prod) and len(exponent.factors) == 2:
        unit, rest = exponent.factors
        if isinstance(unit, Const) and isinstance(rest, Add):
            return unit.value, rest.terms
    return 1, terms_of(exponent)


def exponent_terms(exponent: Node) -> tuple[Node, ...]:
    """The terms of an exponent, multiplied out."""
    unit, terms = unit_and_terms(exponent)
    return terms if unit == 1 else tuple(mul(const(unit), t) for t in terms)


def exponent_of(unit: float | int, *terms: Node) -> Node:
    """The exponent with these terms, which are in this unit."""
    return add(*terms) if unit == 1 else mul(const(unit), add(*terms))


def with_unit(node: Node) -> Node:
    """A sum whose terms have one number in common, with that number in front."""
    if not isinstance(node, Add):
        return node
    parts = [coefficient(t) for t in node.terms]
    unit = abs(parts[0][0])
    if unit == 1 or any(abs(k) != unit or not rest for k, rest in parts):
        return node
    signed: list[tuple[Node, ...]] = [rest if k > 0 else (const(-1.0), *rest) for k, rest in parts]
    return raw_prod([const(unit), raw_add([raw_prod(f) if len(f) > 1 else next(iter(f)) for f in signed])])
