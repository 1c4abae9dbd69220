"""Hash-consed nodes of the index-notation IR.

A program is a DAG over named axes. Equality is identity: two nodes that mean the same canonical expression are the same
object, so reuse is an `is` test. Nodes are made by `attnc.ir.construct`, which keeps them canonical.

Kinds: ``"f"`` real, ``"i"`` integer, ``"b"`` boolean.
"""

from __future__ import annotations

import hashlib
import threading
import weakref
from collections.abc import Iterable
from typing import Any, ClassVar, Literal

Kind = Literal["f", "i", "b"]
Axes = frozenset[str]
NO_AXES: Axes = frozenset()

_table: weakref.WeakValueDictionary[tuple[Any, ...], Node] = weakref.WeakValueDictionary()
_lock = threading.RLock()


class Node:
    """One interned IR node.

    Attributes:
        fields: what the node is made of; what the properties of its class name.
        children: direct sub-nodes, in field order.
        axes: the free axes of the value.
        kind: real, integer or boolean.
        digest: a stable hash of the structure, equal across processes; used for ordering and cache keys.
    """

    __slots__ = ("__weakref__", "axes", "children", "digest", "fields", "kind", "order")
    children: tuple[Node, ...]
    axes: Axes
    kind: Kind
    digest: bytes
    fields: tuple[Any, ...]
    order: tuple[Any, ...]
    rank: ClassVar[int] = 0

    @classmethod
    def intern(cls, fields: tuple[Any, ...], axes: Axes, kind: Kind) -> Any:
        """The unique node of this class with these fields."""
        key = (cls, cls._key(fields))
        with _lock:
            found = _table.get(key)
            if found is None:
                found = object.__new__(cls)
                found.axes = axes
                found.kind = kind
                found.fields = fields
                found.children = cls._children(fields)
                found.digest = _digest(cls.__name__, fields)
                found.order = (cls.rank, len(axes), cls.__name__, found.digest)
                _table[key] = found
            return found

    @staticmethod
    def _key(fields: tuple[Any, ...]) -> tuple[Any, ...]:
        """What is equal exactly if the fields of two nodes of this class are; nodes are equal if they are one."""
        return fields

    @staticmethod
    def _children(fields: tuple[Any, ...]) -> tuple[Node, ...]:
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


def _digest(name: str, fields: Iterable[Any]) -> bytes:
    parts = [name.encode()]
    for field in fields:
        _feed(parts, field)
    return hashlib.blake2b(b"".join(parts), digest_size=10).digest()


def _feed(parts: list[bytes], field: Any) -> None:
    """Append what stands for a field in a digest."""
    if isinstance(field, Node):
        parts.append(b"n" + field.digest)
    elif isinstance(field, tuple):
        parts.append(b"(")
        for f in field:
            _feed(parts, f)
        parts.append(b")")
    elif isinstance(field, frozenset):
        _feed(parts, tuple(sorted(field)))
    else:
        parts.append(f"{type(field).__name__}:{field!r};".encode())


# ------------------------------------------------------------------------------------------------------- leaves


class Const(Node):
    """A number or truth value."""

    __slots__ = ()
    rank = 0

    @staticmethod
    def _key(fields: tuple[Any, ...]) -> tuple[Any, ...]:
        """Numbers of different types are different; so are 0.0 and -0.0, and NaN is one."""
        (value,) = fields
        return type(value), value.hex() if isinstance(value, float) else value

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

    @staticmethod
    def _children(fields: tuple[Any, ...]) -> tuple[Node, ...]:
        return fields[1]  # type: ignore[no-any-return]


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

    @staticmethod
    def _children(fields: tuple[Any, ...]) -> tuple[Node, ...]:
        return fields[1]  # type: ignore[no-any-return]


class Iverson(Node):
    """``[condition]``: 1 where true, else 0. As a factor it *selects*: whatever the other factors hold there is never
    seen."""

    __slots__ = ()
    rank = 5

    @property
    def condition(self) -> Node:
        return self.fields[0]  # type: ignore[no-any-return]

    @staticmethod
    def _children(fields: tuple[Any, ...]) -> tuple[Node, ...]:
        return fields


class Add(Node):
    """A sum of terms."""

    __slots__ = ()
    rank = 7

    @property
    def terms(self) -> tuple[Node, ...]:
        return self.fields[0]  # type: ignore[no-any-return]

    @staticmethod
    def _children(fields: tuple[Any, ...]) -> tuple[Node, ...]:
        return fields[0]  # type: ignore[no-any-return]


class Prod(Node):
    """A product of factors."""

    __slots__ = ()
    rank = 6

    @property
    def factors(self) -> tuple[Node, ...]:
        return self.fields[0]  # type: ignore[no-any-return]

    @staticmethod
    def _children(fields: tuple[Any, ...]) -> tuple[Node, ...]:
        return fields[0]  # type: ignore[no-any-return]


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

    @staticmethod
    def _children(fields: tuple[Any, ...]) -> tuple[Node, ...]:
        return (*fields[1], *fields[2], *(n for _, n in fields[3]))


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

    @staticmethod
    def _children(fields: tuple[Any, ...]) -> tuple[Node, ...]:
        return (fields[1], *fields[2])
