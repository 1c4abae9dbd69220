"""Integer expressions over sizes, compiled to closures that run on Python integers and on torch's symbolic ones."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

from attnc.diagnostics.diagnostic import InternalError
from attnc.ir.node import Add, Call, Const, Node, Prod, Size

Values = Mapping[str, Any]
"""Sizes by name: ``int`` in eager calls, ``torch.SymInt`` while torch traces."""

Evaluator = Callable[[Values], Any]

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "floordiv": operator.floordiv,
    "mod": operator.mod,
    "abs": operator.abs,
    "pow": operator.pow,
    "lt": operator.lt,
    "le": operator.le,
    "eq": operator.eq,
    "not": operator.not_,
    "maximum": lambda a, b: a if a >= b else b,
    "minimum": lambda a, b: a if a <= b else b,
    "where": lambda c, a, b: a if c else b,
    "and": lambda *xs: all(xs),
    "or": lambda *xs: any(xs),
    "reciprocal": lambda x: 1 / x,
    "floor": lambda x: x // 1,
    "bitand": operator.and_,
    "bitor": operator.or_,
    "bitxor": operator.xor,
    "floor_log2": lambda x: int(x).bit_length() - 1,
    "power_of_two": lambda n: 2**n,
}


def evaluator(node: Node) -> Evaluator:
    """A function from sizes to the value of `node`, an expression without axes and tensors.

    A relation evaluates to a truth value, an extent to an integer.
    """
    match node:
        case Const():
            value = node.value
            return lambda sizes: value
        case Size():
            return operator.itemgetter(node.name)
        case Add():
            return _fold(operator.add, [evaluator(t) for t in node.terms])
        case Prod():
            return _fold(operator.mul, [evaluator(f) for f in node.factors])
        case Call() if node.fn in _FUNCTIONS:
            return _call(_FUNCTIONS[node.fn], [evaluator(a) for a in node.args])
        case _:
            raise InternalError(f"not an expression over sizes: {node!r}")


def _fold(combine: Callable[[Any, Any], Any], parts: list[Evaluator]) -> Evaluator:
    first, rest = parts[0], parts[1:]

    def value(sizes: Values) -> Any:
        total = first(sizes)
        for part in rest:
            total = combine(total, part(sizes))
        return total

    return value


def _call(function: Callable[..., Any], args: list[Evaluator]) -> Evaluator:
    return lambda sizes: function(*[a(sizes) for a in args])
