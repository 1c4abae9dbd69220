"""Row terms made to cancel: what rounding leaves of a sum that is 0 is taken out of the gradients it would add up in.

The gradient of normalised weights ``p = w / sum_j(w)`` is ``p * (x - D)`` with the row term ``D = sum_j(p * x)``, and
adds up to 0 over a row. In floating point D is computed from other numbers than x (from the output, as delta), so the
sum is a small N instead of 0:

N = sum_j(w * (x - D)) / sum_j(w)

D + N is the row term that does cancel. Two kinds of gradients need it. One that sums whole rows (a slope per head)
multiplies what is left by distances. And where weights are not exponentials the sum that divides may be near 0; then a
row that attends to one key has gradient 0, which N leaves, and D would not.

Every sum over the keys has ``N * sum_j(rest)`` taken away, in the pass that finds N; sums over the queries, which
run later, read D + N.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from attnc.ir.construct import add, factors_of, free_axes, mul, neg, sum_over
from attnc.ir.node import Add, Axes, Call, Node, Sum
from attnc.ir.walk import postorder, rewrite, substitute
from attnc.passes.planes import Planes


@dataclass(frozen=True, slots=True)
class Row:
    """A factor ``x - D`` of a gradient: the axes D sums over, and N."""

    bound: Axes
    left: Node


def balance(roots: Iterable[Node], planes: Planes, *, rows: bool) -> list[Node]:
    """Balance the row terms below `roots`.

    Args:
        roots: gradients in base 2, before saved values enter.
        planes: axis roles.
        rows: whether a root sums whole rows, so that softmax's row terms matter as well.
    """
    roots = list(roots)
    found = {n: row for n in postorder(roots) if isinstance(n, Add) and (row := _row(n, planes)) is not None}
    if not found:
        return roots

    def rule(node: Node) -> Node | None:
        if not isinstance(node, Sum) or any(planes.sequences(x.axes) for _, x in node.scatter):
            return None
        for whole in (node, *_opened(node)):
            for f in whole.factors:
                if isinstance(f, Add) and f in found and _matters(whole, found[f], planes, rows=rows):
                    return _balanced(whole, f, found[f])
        return None

    return rewrite(roots, rule)


def _opened(node: Sum) -> Iterator[Sum]:
    """The sum as one over all axes, for each sum among its factors; what rows are summed with may stand outside."""
    for inner in node.factors:
        if not isinstance(inner, Sum):
            continue
        index = dict(inner.scatter)
        rest = [substitute(f, index) for f in node.factors if f is not inner]
        domain = [substitute(c, index) for c in node.domain]
        outer = node.bound - index.keys()
        if inner.bound & (outer | free_axes([*rest, *domain])):
            continue
        scatter = [*node.scatter, *(pair for pair in inner.scatter if pair[0] not in node.bound)]
        whole = sum_over(outer | inner.bound, [*rest, *inner.factors], [*domain, *inner.domain], scatter)
        if isinstance(whole, Sum):
            yield whole


def _row(node: Add, planes: Planes) -> Row | None:
    """The row term of a sum and what it leaves, if some of its terms are ``x`` and ``-sum_j(p * x)``."""
    for t in node.terms:
        for r in factors_of(t):
            z = r.args[0] if isinstance(r, Call) and r.fn == "reciprocal_or_zero" else None
            if not isinstance(z, Sum) or z.scatter or not planes.is_plane(z):
                continue
            matched = _matched(node, r, z)
            if matched:
                rest = add(*matched)
                return Row(z.bound, mul(r, sum_over(z.bound, [*z.factors, rest], z.domain)))
    return None


def _matched(node: Add, r: Node, z: Sum) -> list[Node]:
    """The terms x with the terms ``-sum_j(w * x) / z`` that go with them."""
    matched: list[Node] = []
    for x in node.terms:
        if x.axes & z.bound:
            term = neg(mul(r, sum_over(z.bound, [*z.factors, x], z.domain)))
            if term in node.terms:
                matched += [x, term]
    return matched


def _matters(node: Sum, row: Row, planes: Planes, *, rows: bool) -> bool:
    exponential = any(isinstance(f, Call) and f.fn == "exp2" for f in _weight(row))
    if not exponential:
        return True
    return rows and row.bound <= node.bound and not planes.channels(node.axes)


def _weight(row: Row) -> tuple[Node, ...]:
    return next((f.factors for f in factors_of(row.left) if isinstance(f, Sum)), ())


def _balanced(node: Sum, factor: Node, row: Row) -> Node:
    rest = list(node.factors)
    rest.remove(factor)
    if row.bound <= node.bound:
        return add(node, neg(sum_over(node.bound, [*rest, row.left], node.domain, node.scatter)))
    return sum_over(node.bound, [*rest, add(factor, neg(row.left))], node.domain, node.scatter)
