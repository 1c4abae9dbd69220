"""Hash-consed nodes of the index-notation IR and the constructors that keep them canonical.

A program is a DAG over named axes. Equality is identity: two nodes that mean the same canonical expression are the same
object, so reuse is an `is` test. Every constructor below canonicalises; `raw_*` constructors do not and are used only
after contraction order has been fixed (`attnc.passes.associate`).

Kinds: ``"f"`` real, ``"i"`` integer, ``"b"`` boolean.
"""

from __future__ import annotations

import hashlib
import math
import threading
import weakref
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal

Kind = Literal["f", "i", "b"]
Axes = frozenset[str]
NO_AXES: Axes = frozenset()

_table: weakref.WeakValueDictionary[tuple[Any, ...], Node] = weakref.WeakValueDictionary()
_lock = threading.RLock()


class Node:
    """One interned IR node.

    Attributes:
        axes: the free axes of the value.
        kind: real, integer or boolean.
        digest: a stable hash of the structure, equal across processes; used for ordering and cache keys.
    """

    __slots__ = ("__weakref__", "axes", "digest", "fields", "kind", "order")
    axes: Axes
    kind: Kind
    digest: bytes
    fields: tuple[Any, ...]
    order: tuple[Any, ...]
    rank: ClassVar[int] = 0

    @classmethod
    def intern(cls, fields: tuple[Any, ...], axes: Axes, kind: Kind) -> Any:
        """The unique node of this class with these fields."""
        key = (cls, tuple(_identity(f) for f in fields))
        with _lock:
            found = _table.get(key)
            if found is None:
                found = object.__new__(cls)
                found.axes = axes
                found.kind = kind
                found.fields = fields
                found.digest = _digest(cls.__name__, fields)
                found.order = (cls.rank, len(axes), cls.__name__, found.digest)
                _table[key] = found
            return found

    @property
    def children(self) -> tuple[Node, ...]:
        """Direct sub-nodes, in field order."""
        return ()

    def __repr__(self) -> str:
        from attnc.ir.printer import show

        return show(self)

    def __copy__(self) -> Node:
        return self

    def __deepcopy__(self, memo: object) -> Node:
        return self

    def __reduce__(self) -> Any:
        return (_rebuild, (type(self), self.fields, self.axes, self.kind))


def _rebuild(cls: type[Node], fields: tuple[Any, ...], axes: Axes, kind: Kind) -> Node:
    return cls.intern(fields, axes, kind)  # type: ignore[no-any-return]


def _identity(field: Any) -> Any:
    if isinstance(field, Node):
        return (0, id(field))
    if isinstance(field, tuple):
        return tuple(_identity(f) for f in field)
    if isinstance(field, float):
        return (type(field), field.hex())
    return (type(field), field)


def _digest(name: str, fields: Iterable[Any]) -> bytes:
    h = hashlib.blake2b(name.encode(), digest_size=10)

    def feed(field: Any) -> None:
        if isinstance(field, Node):
            h.update(b"n" + field.digest)
        elif isinstance(field, tuple):
            h.update(b"(")
            for f in field:
                feed(f)
            h.update(b")")
        elif isinstance(field, frozenset):
            feed(tuple(sorted(field)))
        else:
            h.update(f"{type(field).__name__}:{field!r};".encode())

    for field in fields:
        feed(field)
    return h.digest()


# ------------------------------------------------------------------------------------------------------- leaves


class Const(Node):
    """A number or truth value."""

    __slots__ = ()
    rank = 0

    @property
    def value(self) -> float | int | bool:
        return self.fields[0]  # type: ignore[no-any-return]


class Axis(Node):
    """The position along an axis, counted from 0 (a query's absolute position is ``Axis('i') + Size('q_start')``)."""

    __slots__ = ()
    rank = 2

    @property
    def name(self) -> str:
        return self.fields[0]  # type: ignore[no-any-return]


class Size(Node):
    """A runtime integer: an extent (``N``) or a call argument (``q_start``)."""

    __slots__ = ()
    rank = 1

    @property
    def name(self) -> str:
        return self.fields[0]  # type: ignore[no-any-return]


class Load(Node):
    """An element of an input tensor, ``tensor[index...]``."""

    __slots__ = ()
    rank = 4

    @property
    def tensor(self) -> str:
        return self.fields[0]  # type: ignore[no-any-return]

    @property
    def index(self) -> tuple[Node, ...]:
        return self.fields[1]  # type: ignore[no-any-return]

    @property
    def children(self) -> tuple[Node, ...]:
        return self.index


class Var(Node):
    """A named value computed elsewhere: a tile variable inside a kernel, or a bound name of the printer."""

    __slots__ = ()
    rank = 3

    @property
    def name(self) -> str:
        return self.fields[0]  # type: ignore[no-any-return]


# -------------------------------------------------------------------------------------------------- inner nodes


class Call(Node):
    """A pointwise function of its arguments; the functions are listed in `attnc.ir.functions`."""

    __slots__ = ()
    rank = 5

    @property
    def fn(self) -> str:
        return self.fields[0]  # type: ignore[no-any-return]

    @property
    def args(self) -> tuple[Node, ...]:
        return self.fields[1]  # type: ignore[no-any-return]

    @property
    def children(self) -> tuple[Node, ...]:
        return self.args


class Iverson(Node):
    """``[condition]``: 1 where true, else 0. As a factor it *selects*: whatever the other factors hold there is never
    seen."""

    __slots__ = ()
    rank = 5

    @property
    def condition(self) -> Node:
        return self.fields[0]  # type: ignore[no-any-return]

    @property
    def children(self) -> tuple[Node, ...]:
        return self.fields


class Add(Node):
    """A sum of terms."""

    __slots__ = ()
    rank = 7

    @property
    def terms(self) -> tuple[Node, ...]:
        return self.fields[0]  # type: ignore[no-any-return]

    @property
    def children(self) -> tuple[Node, ...]:
        return self.terms


class Prod(Node):
    """A product of factors."""

    __slots__ = ()
    rank = 6

    @property
    def factors(self) -> tuple[Node, ...]:
        return self.fields[0]  # type: ignore[no-any-return]

    @property
    def children(self) -> tuple[Node, ...]:
        return self.factors


class Sum(Node):
    """``sum over bound, where every domain condition holds, of the product of factors``.

    With `scatter` pairs ``(axis, index)`` the result has one more axis each: element r collects the positions whose
    index equals r. That is the adjoint of a gather; the adjoint of a scatter is a gather again.
    """

    __slots__ = ()
    rank = 8

    @property
    def bound(self) -> Axes:
        return self.fields[0]  # type: ignore[no-any-return]

    @property
    def factors(self) -> tuple[Node, ...]:
        return self.fields[1]  # type: ignore[no-any-return]

    @property
    def domain(self) -> tuple[Node, ...]:
        return self.fields[2]  # type: ignore[no-any-return]

    @property
    def scatter(self) -> tuple[tuple[str, Node], ...]:
        return self.fields[3]  # type: ignore[no-any-return]

    @property
    def children(self) -> tuple[Node, ...]:
        return (*self.factors, *self.domain, *(n for _, n in self.scatter))


class Max(Node):
    """The maximum of `body` over the bound axes where the domain holds; -inf over nothing."""

    __slots__ = ()
    rank = 8

    @property
    def bound(self) -> Axes:
        return self.fields[0]  # type: ignore[no-any-return]

    @property
    def body(self) -> Node:
        return self.fields[1]  # type: ignore[no-any-return]

    @property
    def domain(self) -> tuple[Node, ...]:
        return self.fields[2]  # type: ignore[no-any-return]

    @property
    def children(self) -> tuple[Node, ...]:
        return (self.body, *self.domain)


# ------------------------------------------------------------------------------------------------- constructors


def free_axes(nodes: Iterable[Node]) -> Axes:
    return NO_AXES.union(*(n.axes for n in nodes))


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
    return "f" if any(n.kind == "f" for n in nodes) else "i"


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
    value: float | int = 1
    rest: list[Node] = []
    for f in factors_of(node):
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
    built = tuple(sorted((_raw_product(c, r, kind) for c, r in terms), key=lambda n: n.order))
    return Add.intern((built,), free_axes(built), kind)  # type: ignore[no-any-return]


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
    ordered = tuple(sorted(factors, key=lambda n: n.order))
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
    """``x * reciprocal(x)`` is 1; ``x * reciprocal_or_zero(x)`` is ``[x != 0]``, implied by a second such factor."""
    out = list(factors)
    for f in factors:
        if not (isinstance(f, Call) and f.fn in ("reciprocal", "reciprocal_or_zero")):
            continue
        if f not in out or f.args[0] not in out:
            continue
        out.remove(f)
        out.remove(f.args[0])
        if f.fn == "reciprocal_or_zero" and f not in out:
            nonzero = iverson(call("not", call("eq", f.args[0], ZERO)))
            if nonzero not in out:
                out.append(nonzero)
    return out


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
    factors = tuple(sorted(factors, key=lambda n: n.order)) or (ONE,)
    dom = tuple(sorted(set(domain), key=lambda n: n.order))
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
        return mul(_number(value, kind), *kept, *(iverson(c) for c in sorted(conditions, key=lambda n: n.order)))
    outer = [f for f in kept if not f.axes & bound]
    inner = [f for f in kept if f.axes & bound]
    dom_outer = [c for c in conditions if not c.axes & bound]
    dom_inner = [c for c in conditions if c.axes & bound]
    outer += [iverson(c) for c in sorted(dom_outer, key=lambda n: n.order)]
    merged, bound, dom_inner = _merge_nested(inner, bound, dom_inner, scatter)
    again = [f for f in merged if not f.axes & bound]
    outer += again
    merged = [f for f in merged if f.axes & bound]
    node = raw_sum(bound, merged, dom_inner, scatter)
    return mul(_number(value, kind), *outer, node)


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
    return merged, bound, sorted(conditions, key=lambda n: n.order)


def _same_domain(inner: Sum, bound: Axes, outer: set[Node]) -> bool:
    """Channel sums always merge; a restricted sum merges only where that leaves its restriction unchanged."""
    return not inner.domain or not (free_axes(inner.domain) & bound) or set(inner.domain) <= outer


def max_over(bound: Iterable[str], body: Node, domain: Iterable[Node] = ()) -> Node:
    """The canonical maximum: one axis at a time, over a set of conditions."""
    bound = frozenset(bound)
    dom = tuple(sorted({c for d in domain for c in conjuncts(d)}, key=lambda n: n.order))
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
