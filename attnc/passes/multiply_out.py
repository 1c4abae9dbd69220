"""Sums multiplied out where that lets them carry a state.

``sum_j(p * (dp - delta))`` with a separable p does not separate, ``sum_j(p * dp) - delta * sum_j(p)`` does; and
``cos(a[i] - b[j])`` is ``cos(a[i]) * cos(b[j]) + sin(a[i]) * sin(b[j])`` (Qin et al. 2022, arXiv:2202.08791). A sum is
multiplied out only if every part of it can then be split into near and far.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

from attnc.ir.construct import add, call, factors_of, mul, neg, sum_over, terms_of
from attnc.ir.node import Add, Call, Node, Sum
from attnc.ir.walk import rewrite
from attnc.passes.associate import associate
from attnc.passes.planes import Planes, Reduction
from attnc.passes.scan_unit import Unit, unit

MOST_TERMS = 16
"""A sum that falls into more parts than this is left as it is."""


def multiply_out(roots: Iterable[Node], planes: Planes) -> list[Node]:
    """Multiply out the sums below `roots` that can be carried then and cannot before."""

    def rule(node: Node) -> Node | None:
        if not isinstance(node, Sum) or not planes.is_plane(node) or _carried(node, frozenset(), planes):
            return None
        expanded = _expanded(node, planes)
        return expanded if expanded is not None and _carried(expanded, frozenset(), planes) else None

    return rewrite(roots, rule)


@dataclass(frozen=True, slots=True)
class Parts:
    """A reduction as an expression of reductions that carry a state: itself, or what it is when multiplied out."""

    root: Node
    units: Mapping[Reduction, Unit]


def parts_of(node: Reduction, planes: Planes) -> Parts | None:
    """What of a reduction, its contraction order fixed, can be split; None if something cannot."""
    own = unit(node, planes)
    if own is not None:
        return Parts(node, {node: own})
    expanded = _expanded(node, planes) if isinstance(node, Sum) else None
    if expanded is None:
        return None
    read = planes.direct(node)
    made = {f for t in terms_of(expanded) for f in factors_of(t)}
    return None if made & read else _carried(expanded, read, planes)  # what it reads is not split, what it makes is


def _expanded(node: Sum, planes: Planes) -> Node | None:
    if any(planes.sequences(index.axes) for _, index in node.scatter):
        return None
    parts = list(_parts(list(node.factors), planes))
    if not 1 < len(parts) <= MOST_TERMS:
        return None
    return add(*(sum_over(node.bound, factors, node.domain, node.scatter) for factors in parts))


def _carried(node: Node, known: Set[Node], planes: Planes) -> Parts | None:
    """A value, its contraction order fixed, if all plane reductions that make it up can be split; `known` are given."""
    (root,) = associate([node], planes, grouped=False)
    needed = {*planes.needed(root)} - known
    units = {u: found for u in needed if (found := unit(u, planes)) is not None}
    return Parts(root, units) if units and len(units) == len(needed) else None


def _parts(factors: Sequence[Node], planes: Planes) -> Iterator[list[Node]]:
    """The products of a product of sums."""
    for k, f in enumerate(factors):
        terms = _terms(f, planes)
        if terms:
            rest = [*factors[:k], *factors[k + 1 :]]
            for t in terms:
                yield from _parts([*rest, *factors_of(t)], planes)
            return
    yield list(factors)


def _terms(f: Node, planes: Planes) -> Sequence[Node]:
    """The terms of a factor that mixes the two axes of a plane and is a sum of products."""
    pair = sorted(planes.sequences(f.axes))
    if len(pair) != 2 or f.kind != "f":
        return ()
    if isinstance(f, Add):
        return f.terms
    if isinstance(f, Call) and f.fn in ("cos", "sin"):
        parts = _two_parts(f.args[0], *pair)
        if parts is not None:
            a, b = parts
            cosines, sines = mul(call("cos", a), call("cos", b)), mul(call("sin", a), call("sin", b))
            crossed = mul(call("sin", a), call("cos", b)), mul(call("cos", a), call("sin", b))
            return (cosines, neg(sines)) if f.fn == "cos" else crossed
    return ()


def _two_parts(node: Node, x: str, y: str) -> tuple[Node, Node] | None:
    """A sum as what does not depend on y and what does, if nothing depends on both.

    With x the queries' axis and y that of keys, both parts are functions of absolute positions: ``q_start + i``, and j.
    """
    terms = [t for term in terms_of(node) for t in _distributed(term, x, y)]
    if any({x, y} <= t.axes for t in terms):
        return None
    return add(*(t for t in terms if y not in t.axes)), add(*(t for t in terms if y in t.axes))


def _distributed(term: Node, x: str, y: str) -> list[Node]:
    """The terms of a product with one sum of both axes among its factors."""
    mixed = [f for f in factors_of(term) if isinstance(f, Add) and {x, y} <= f.axes]
    if len(mixed) != 1:
        return [term]
    rest = [f for f in factors_of(term) if f is not mixed[0]]
    return [mul(*rest, t) for t in mixed[0].terms]
