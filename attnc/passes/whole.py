"""Conditions on indices that are written with reals, in integers: ``2 ** floor(log2(n))``, ``floor(n / 8)``."""

from __future__ import annotations

from collections.abc import Iterable

from attnc.ir.construct import call, coefficient, const, mul
from attnc.ir.node import Call, Const, Node
from attnc.ir.walk import rewrite
from attnc.passes.inequality import is_positive


def in_integers(conditions: Iterable[Node]) -> list[Node]:
    """Conditions where what can only be a whole number is an integer."""
    return rewrite(list(conditions), lambda n: _rule(n) if isinstance(n, Call) else None)


def _rule(node: Call) -> Node | None:
    match node:
        case Call(fn="exp2", args=(Call(fn="floor", args=(Call(fn="log2", args=(x,)),)),)):
            return call("power_of_two", call("floor_log2", x)) if x.kind == "i" and is_positive(x) else None
        case Call(fn="floor", args=(x,)):
            return x if x.kind == "i" else _quotient(x)
        case Call(fn="le" | "lt" | "eq" | "mod" | "maximum" | "minimum", args=(x, y)) if x.kind != y.kind:
            whole = [_whole(z) for z in (x, y)]
            return None if None in whole else call(node.fn, *(z for z in whole if z is not None))
        case _:
            return None


def _whole(node: Node) -> Node | None:
    """An integer as it is, and a real constant that is one."""
    if isinstance(node, Const) and node.kind == "f":
        return const(int(node.value)) if float(node.value).is_integer() else None
    return node if node.kind == "i" else None


def _quotient(value: Node) -> Node | None:
    """``floor(n / d)`` where d is a number whose reciprocal is exact."""
    scale, factors = coefficient(value)
    rest = mul(*factors)
    if rest.kind != "i" or scale <= 0:
        return None
    divisor = round(1 / scale)
    return call("floordiv", rest, const(divisor)) if divisor * scale == 1 else None
