"""Which kind the value of a primitive function has."""

from __future__ import annotations

from collections.abc import Iterable

from attnc.ir.node import Kind, Node

COMPARISONS = ("lt", "le", "eq")
LOGIC = ("and", "or", "not")
INTEGRAL = ("floor", "hash", "bitand", "bitor", "bitxor", "floor_log2", "power_of_two")
KIND_PRESERVING = ("abs", "maximum", "minimum", "floordiv", "mod")


def result_kind(fn: str, args: tuple[Node, ...]) -> Kind:
    """The kind of a primitive function's value."""
    if fn in COMPARISONS or fn in LOGIC:
        return "b"
    if fn in INTEGRAL:
        return "i"
    if fn in KIND_PRESERVING:
        return joint_kind(args)
    if fn == "where":
        return "b" if args[1].kind == "b" else joint_kind(args[1:])
    return "f"


def joint_kind(nodes: Iterable[Node]) -> Kind:
    """Real if anything is real."""
    return "f" if any(n.kind == "f" for n in nodes) else "i"
