"""Constructors of IR nodes. Each keeps what it makes canonical, so that equal expressions are one node.

`raw_*` constructors do not; they are used only after contraction order has been fixed (`attnc.passes.associate`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from operator import attrgetter

from attnc.ir.node import NO_AXES, Add, Axes, Axis, Call, Const, Iverson, Kind, Load, Max, Node, Prod, Size, Sum, Var

_order = attrgetter("order")


def free_axes(nodes: Iterable[Node]) -> Axes:
    return NO_AXES.union(*[n.axes for n in nodes])


def const(value: float | int | bool) -> Const:
    """A constant; its kind follows the Python type."""
    kind: Kind = "b" if isinstance(value, bool) else "i" if isinstance(value, int) else "f"
    return Const.intern((value,), NO_AXES, kind)  # type: ignore[no-any-return]


def axis(name: str) -> Axis:
    return Axis.intern((name,), frozenset((name,)), "i")  # type: ignore[no-any-return]


def size(name: str) -> Size:
    return Size.intern((name,), NO_AXES, "i")  # type: ignore[no-any-return]


def load(tensor: str, index: Sequence[Node], kind: Kind = "f") -> Load:
    return Load.intern((tensor, tuple(index), kind), free_axes(index), kind)  # type: ignore[no-any-return]


def var(name: str, axes: Iterable[str] = (), kind: Kind = "f") -> Var:
    axes = frozenset(axes)
    return Var.intern((name, axes, kind), axes, kind)  # type: ignore[no-any-return]


ZERO = const(0.0)
ONE = const(1.0)
TRUE = const(True)
FALSE = const(False)


def is_const(node: Node, value: float | None = None) -> bool:
    return isinstance(node, Const) and (value is None or (not isinstance(node.value, bool) and node.value == value))


def call(fn: str, *args: Node) -> Node:
    """A pointwise function, folded when its arguments are constants (see `attnc.ir.functions`)."""
    from attnc.ir.functions import FUNCTIONS

    return FUNCTIONS[fn].build(args)


def raw_call(fn: str, args: Sequence[Node], kind: Kind) -> Call:
    return Call.intern((fn, tuple(args), kind), free_axes(args), kind)  # type: ignore[no-any-return]


def iverson(condition: Node) -> Node:
    if isinstance(condition, Const):
        return ONE if condition.value else ZERO
    return Iverson.intern((condition,), condition.axes, "f")  # type: ignore[no-any-return]


def _joint_kind(nodes: Iterable[Node]) -> Kind:
    for n in nodes:
        if n.kind == "f":
            return "f"
    return "i"


def _number(value: float | int, kind: Kind) -> Const:
    return const(int(value)) if kind == "i" else const(float(value))


def factors_of(node: Node) -> tuple[Node, ...]:
    """The factors of a product, or the node itself."""
    return node.factors if isinstance(node, Prod) else (node,)


def terms_of(node: Node) -> tuple[Node, ...]:
    """The terms of a sum, or the node itself."""
    return node.terms if isinstance(node, Add) else (node,)


def coefficient(node: Node) -> tuple[float | int, tuple[Node, ...]]:
    """Split a node into its constant coefficient and its other factors."""
    factors = factors_of(node)
    if Const not in map(type, factors):
        return 1, factors
    value: float | int = 1
    rest: list[Node] = []
    for f in factors:
        if isinstance(f, Const) and f.kind != "b":
            value *= f.value
        else:
            rest.append(f)
    return value, tuple(rest)


def add(*nodes: Node) -> Node:
    """The canonical sum: flattened, constants and equal terms collected, common factors taken out."""
    flat = [t for n in nodes for t in terms_of(n)]
    kind = _joint_kind(flat)
    collected: dict[tuple[Node, ...], float | int] = {}
    for term in flat:
        value, rest = coefficient(term)
        collected[rest] = collected.get(rest, 0) + value
    _open_products(collected)
    terms: list[tuple[float | int, tuple[Node, ...]]] = [(c, r) for r, c in collected.items() if c != 0]
    if not terms:
        return _number(0, kind)
    if len(terms) == 1:
        c, rest = terms[0]
        return mul(_number(c, kind), *rest)
    common = _common_factors([r for _, r in terms])
    if common:
        inner = add(*(mul(_number(c, kind), *_without(r, common)) for c, r in terms))
        return mul(*common, inner)
    built = tuple(sorted((_raw_product(c, r, kind) for c, r in terms), key=_order))
    return Add.intern((built,), free_axes(built), kind)  # type: ignore[no-any-return]


def _open_products(collected: dict[tuple[Node, ...], float | int]) -> None:
    """Multiply out ``c * (a + b)`` where ``c * a`` and ``c * b`` are terms too: what cancels is seen to cancel."""
    for product in [r for r in collected if len(r) > 1]:
        for f in product:
            if not isinstance(f, Add):
                continue
            parts = [coefficient(mul(*_without(product, (f,)), t)) for t in f.terms]
            if all(rest in collected for _, rest in parts):
                value = collected.pop(product)
                for c, rest in parts:
                    collected[rest] += value * c
                break


def _raw_product(c: float | int, rest: tuple[Node, ...], kind: Kind) -> Node:
    if c == 1 and len(rest) == 1:
        return rest[0]
    if not rest:
        return _number(c, kind)
    rest_kind = _joint_kind(rest)
    scale = () if c == 1 else (_number(c, "i" if rest_kind == "i" and float(c).is_integer() and kind == "i" else "f"),)
    return raw_prod((*scale, *rest))


def _common_factors(terms: list[tuple[Node, ...]]) -> tuple[Node, ...]:
    common: list[Node] = []
    remaining = [list(t) for t in terms]
    for f in terms[0]:
        if all(f in r for r in remaining):
            common.append(f)
            for r in remaining:
                r.remove(f)
    return tuple(common)


def _without(items: Sequence[Node], removed: Iterable[Node]) -> tuple[Node, ...]:
    left = list(items)
    for r in removed:
        left.remove(r)
    return tuple(left)


def raw_prod(factors: Sequence[Node]) -> Node:
    ordered = tuple(sorted(factors, key=_order))
    return Prod.intern((ordered,), free_axes(ordered), _joint_kind(ordered))  # type: ignore[no-any-return]


def raw_add(terms: Sequence[Node]) -> Node:
    return Add.intern((tuple(terms),), free_axes(terms), _joint_kind(terms))  # type: ignore[no-any-return]


def mul(*nodes: Node) -> Node:
    """The canonical product: flattened, constants collected, ``x * reciprocal(x)`` cancelled, ``[c]*[c]`` merged."""
    kind = _joint_kind(nodes)
    value: float | int = 1
    rest: list[Node] = []
    for n in nodes:
        c, fs = coefficient(n)
        value *= c
        rest += fs
    if value == 0:
        return _number(0, kind)
    rest = _merge_brackets(rest)
    rest = _cancel_reciprocals(rest)
    if not rest:
        return _number(value, kind)
    if value == 1 and len(rest) == 1:
        return rest[0]
    if len(rest) == 1 and isinstance(rest[0], Add) and value == -1:
        return add(*(mul(const(-1), t) for t in rest[0].terms))
    scale: tuple[Node, ...] = () if value == 1 else (_number(value, kind if float(value).is_integer() else "f"),)
    return raw_prod((*scale, *rest))


def _merge_brackets(factors: list[Node]) -> list[Node]:
    if Iverson not in map(type, factors):
        return factors
    seen: set[Node] = set()
    out = []
    for f in factors:
        if isinstance(f, Iverson):
            if f in seen:
                continue
            seen.add(f)
        out.append(f)
    return out


def _cancel_reciprocals(factors: list[Node]) -> list[Node]:
    """``x * reciprocal(x)`` is 1; ``x * reciprocal_or_zero(x)`` is ``[x != 0]``, implied by a second such factor.

    x may be a product. What was divided by first is cancelled first, so that equal products stay equal: of weights
    normalised twice, the second sum has the first one's reciprocal in it.
    """
    reciprocals = [f for f in factors if isinstance(f, Call) and f.fn in ("reciprocal", "reciprocal_or_zero")]
    out = list(factors)
    for f in sorted(reciprocals, key=_order):
        left = Counter(out)
        needed = Counter((f, *factors_of(f.args[0])))
        if not needed <= left:
            continue
        for x in (f, *factors_of(f.args[0])):
            out.remove(x)
        if f.fn == "reciprocal_or_zero" and not _implies_nonzero(out, f):
            nonzero = iverson(call("not", call("eq", f.args[0], ZERO)))
            if nonzero not in out:
                out.append(nonzero)
    return out


def _implies_nonzero(factors: Iterable[Node], reciprocal: Call) -> bool:
    """Whether some factor is 0 where the reciprocal is: itself, or one over a product that has it as a factor."""
    for f in factors:
        if f is reciprocal:
            return True
        if isinstance(f, Call) and f.fn == "reciprocal_or_zero" and _implies_nonzero(factors_of(f.args[0]), reciprocal):
            return True
    return False


def neg(node: Node) -> Node:
    return mul(const(-1), node)


def sub(a: Node, b: Node) -> Node:
    return add(a, neg(b))


def conjuncts(condition: Node) -> tuple[Node, ...]:
    if isinstance(condition, Call) and condition.fn == "and":
        return tuple(c for a in condition.args for c in conjuncts(a))
    if isinstance(condition, Const) and condition.value is True:
        return ()
    return (condition,)


def raw_sum(
    bound: Iterable[str], factors: Sequence[Node], domain: Iterable[Node] = (), scatter: Sequence[tuple[str, Node]] = ()
) -> Sum:
    """A sum node exactly as given: nothing is merged or hoisted."""
    bound = frozenset(bound)
    factors = tuple(sorted(factors, key=_order)) or (ONE,)
    dom = tuple(sorted(set(domain), key=_order))
    scatter = tuple(sorted(scatter, key=lambda s: s[0]))
    axes = (free_axes([*factors, *dom, *(n for _, n in scatter)]) - bound) | {a for a, _ in scatter}
    return Sum.intern((bound, factors, dom, scatter), axes, _joint_kind(factors))  # type: ignore[no-any-return]


def sum_over(
    bound: Iterable[str],
    factors: Sequence[Node],
    domain: Iterable[Node] = (),
    scatter: Sequence[tuple[str, Node]] = (),
) -> Node:
    """The canonical sum of a product over `bound`, restricted to `domain`.

    Constants and factors without a bound axis move out, brackets move into the domain, nested sums merge when no axis
    is captured. A factor that moves out stays multiplied by the restricted sum, so emptiness is still seen.
    """
    bound = frozenset(bound)
    flat: list[Node] = []
    value: float | int = 1
    for f in factors:
        c, fs = coefficient(f)
        value *= c
        flat += fs
    kind = _joint_kind(factors) if factors else "f"
    if value == 0:
        return ZERO if kind == "f" else const(0)
    conditions = {c for d in domain for c in conjuncts(d)}
    kept: list[Node] = []
    for f in _cancel_reciprocals(_merge_brackets(flat)):
        if isinstance(f, Iverson) and f.axes & bound:
            conditions.update(conjuncts(f.condition))
        else:
            kept.append(f)
    if not bound and not scatter:
        return mul(_number(value, kind), *kept, *(iverson(c) for c in sorted(conditions, key=_order)))
    read = _read_where_scattered(kept, bound, conditions, scatter)
    if read is not None:
        left, arguments, limits = read
        return mul(_number(value, kind), sum_over(left, arguments, limits, scatter))
    outer = [f for f in kept if not f.axes & bound]
    inner = [f for f in kept if f.axes & bound]
    dom_outer = [c for c in conditions if not c.axes & bound]
    dom_inner = [c for c in conditions if c.axes & bound]
    outer += [iverson(c) for c in sorted(dom_outer, key=_order)]
    merged, bound, dom_inner = _merge_nested(inner, bound, dom_inner, scatter)
    again = [f for f in merged if not f.axes & bound]
    outer += again
    merged = [f for f in merged if f.axes & bound]
    node = raw_sum(bound, merged, dom_inner, scatter)
    return mul(_number(value, kind), *outer, node)


def _read_where_scattered(
    factors: list[Node], bound: Axes, conditions: set[Node], scatter: Sequence[tuple[str, Node]]
) -> tuple[Axes, list[Node], list[Node]] | None:
    """``sum_r c[r] sum_j [r = f(j)] x[j]`` as ``sum_j c[f(j)] x[j]``: the axes, factors and conditions that are left.

    None where no factor is scattered along a bound axis that the places of `scatter` leave free.
    """
    from attnc.ir.walk import substitute

    removable = bound - free_axes(index for _, index in scatter)
    for k, f in enumerate(factors):
        moved = {a: index for a, index in f.scatter if a in removable} if isinstance(f, Sum) else {}
        if not isinstance(f, Sum) or not moved:
            continue
        others = [x for t, x in enumerate(factors) if t != k]
        along, apart = ([x for x in others if bool(x.axes & moved.keys()) == inside] for inside in (True, False))
        limits, rest = ([c for c in conditions if bool(c.axes & moved.keys()) == inside] for inside in (True, False))
        if f.bound & free_axes([*along, *limits]):
            continue
        inside = [substitute(x, moved) for x in (*along, *limits)]
        places = [s for s in f.scatter if s[0] not in moved]
        total = sum_over(f.bound, [*f.factors, *inside[: len(along)]], [*f.domain, *inside[len(along) :]], places)
        return bound - moved.keys(), [*apart, total], rest
    return None


def _merge_nested(
    inner: list[Node], bound: Axes, domain: list[Node], scatter: Sequence[tuple[str, Node]]
) -> tuple[list[Node], Axes, list[Node]]:
    merged: list[Node] = []
    conditions = set(domain)
    fixed = free_axes([*domain, *(n for _, n in scatter)]) | {a for a, _ in scatter}
    for k, f in enumerate(inner):
        if isinstance(f, Sum) and not f.scatter and f.kind == "f":
            others = [x for t, x in enumerate(inner) if t != k]
            used = free_axes(others) | fixed | bound | free_axes(merged)
            used = used.union(*(x.bound for x in others if isinstance(x, Sum)))
            if not f.bound & used and _same_domain(f, bound, conditions):
                merged += [x for x in f.factors if not is_const(x, 1)]
                bound |= f.bound
                conditions |= set(f.domain)
                continue
        merged.append(f)
    return merged, bound, sorted(conditions, key=_order)


def _same_domain(inner: Sum, bound: Axes, outer: set[Node]) -> bool:
    """Channel sums always merge; a restricted sum merges only where that leaves its restriction unchanged."""
    return not inner.domain or not (free_axes(inner.domain) & bound) or set(inner.domain) <= outer


def max_over(bound: Iterable[str], body: Node, domain: Iterable[Node] = ()) -> Node:
    """The canonical maximum: one axis at a time, over a set of conditions."""
    bound = frozenset(bound)
    dom = tuple(sorted({c for d in domain for c in conjuncts(d)}, key=_order))
    if not (body.axes | free_axes(dom)) & bound and (not dom or body.kind == "f"):
        return where(call("and", *dom), body, const(-math.inf)) if dom else body
    if len(bound) > 1:
        first = min(bound)
        outside = [c for c in dom if not c.axes & (bound - {first})]
        rest = max_over(bound - {first}, body, [c for c in dom if c not in outside])
        return max_over({first}, rest, outside)
    axes = (body.axes | free_axes(dom)) - bound
    return Max.intern((bound, body, dom), axes, body.kind)  # type: ignore[no-any-return]


def first_attained(node: Max) -> Node:
    """The lowest position along the one axis a maximum binds where it is attained, as a real; +inf over nothing."""
    (x,) = node.bound
    attained = call("eq", node.body, node)
    return neg(max_over({x}, mul(const(-1.0), axis(x)), [*node.domain, attained]))


def position_of(node: Node) -> Max | None:
    """The maximum whose first position `node` finds, if it is the (negated) maximum inside `first_attained`."""
    if not isinstance(node, Max) or len(node.bound) != 1:
        return None
    (x,) = node.bound
    if node.body is not mul(const(-1.0), axis(x)):
        return None
    for c in node.domain:
        if isinstance(c, Call) and c.fn == "eq":
            for m, body in (c.args, c.args[::-1]):
                same = isinstance(m, Max) and m.bound == node.bound and m.body is body
                if same and isinstance(m, Max) and set(m.domain) == set(node.domain) - {c}:
                    return m
    return None


def where(condition: Node, a: Node, b: Node) -> Node:
    return call("where", condition, a, b)
