"""Reads the IR's definition off the page: one number at a time, in Python arithmetic. Slow, and free of torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from attnc.ir import hashing
from attnc.ir.node import Add, Axis, Call, Const, Iverson, Load, Max, Node, Prod, Size, Sum

Number = float | int | bool
Table = Mapping[tuple[int, ...], Number]


@dataclass
class World:
    """Extents of axes, sizes, and tensors as tables from position to element."""

    extents: Mapping[str, int]
    sizes: Mapping[str, int]
    tensors: Mapping[str, Table]
    memo: dict[tuple[Node, tuple[tuple[str, int], ...]], Number] = field(default_factory=dict)

    def value(self, node: Node, at: Mapping[str, int]) -> Number:
        """The value of a node at one position of its free axes."""
        here = tuple(sorted((a, p) for a, p in at.items() if a in node.axes))
        if (node, here) not in self.memo:
            self.memo[node, here] = self._compute(node, dict(here))
        return self.memo[node, here]

    def _compute(self, n: Node, at: dict[str, int]) -> Number:
        match n:
            case Const():
                return n.value
            case Axis():
                return at[n.name]
            case Size():
                return self.sizes[n.name]
            case Load():
                return self.tensors[n.tensor][tuple(int(self.value(x, at)) for x in n.index)]
            case Iverson():
                return 1.0 if self.value(n.condition, at) else 0.0
            case Add():
                return sum(self.value(t, at) for t in n.terms)
            case Prod():
                return self._product(n.factors, at)
            case Call():
                return self._call(n, at)
            case Sum():
                return self._sum(n, at)
            case Max():
                inside = [self.value(n.body, p) for p in self._positions(n, at)]
                return max(inside, default=-math.inf)
        raise TypeError(type(n).__name__)

    def _product(self, factors: tuple[Node, ...], at: Mapping[str, int]) -> Number:
        if any(isinstance(f, Iverson) and not self.value(f, at) for f in factors):
            return 0.0
        return math.prod(self.value(f, at) for f in factors)

    def _positions(self, n: Sum | Max, at: Mapping[str, int]) -> Iterator[dict[str, int]]:
        names = sorted(n.bound)
        for chosen in product(*(range(self.extents[a.rstrip("'")]) for a in names)):
            inside = {**at, **dict(zip(names, chosen, strict=True))}
            if all(self.value(c, inside) for c in n.domain):
                yield inside

    def _sum(self, n: Sum, at: dict[str, int]) -> Number:
        wanted = [at[a] for a, _ in n.scatter]
        outer = {a: p for a, p in at.items() if a not in {s for s, _ in n.scatter}}
        total: Number = 0.0 if n.kind == "f" else 0
        for inside in self._positions(n, outer):
            if [self.value(x, inside) for _, x in n.scatter] == wanted:
                total += self._product(n.factors, inside)
        return total

    def _call(self, n: Call, at: Mapping[str, int]) -> Number:
        x = [self.value(a, at) for a in n.args]
        match n.fn:
            case "where":
                return x[1] if x[0] else x[2]
            case "and":
                return all(x)
            case "or":
                return any(x)
            case "not":
                return not x[0]
            case "lt":
                return x[0] < x[1]
            case "le":
                return x[0] <= x[1]
            case "eq":
                return x[0] == x[1]
            case "floordiv":
                return x[0] // x[1]
            case "mod":
                return x[0] % x[1]
            case "bitand":
                return int(x[0]) & int(x[1])
            case "bitor":
                return int(x[0]) | int(x[1])
            case "bitxor":
                return int(x[0]) ^ int(x[1])
            case "pow":
                return x[0] ** x[1]
            case "hash":
                return hashing.mixed(int(x[0]), int(x[1]))
            case "maximum":
                return max(x)
            case "minimum":
                return min(x)
        return UNARY[n.fn](x[0])


UNARY: dict[str, Callable[[Any], Number]] = {
    "floor_log2": lambda x: max(x, 1).bit_length() - 1,
    "power_of_two": lambda n: 2 ** min(max(n, 0), 62),
    "exp": math.exp,
    "exp2": lambda x: 2.0**x,
    "log": math.log,
    "log2": math.log2,
    "sqrt": math.sqrt,
    "rsqrt": lambda x: 1 / math.sqrt(x),
    "reciprocal": lambda x: 1 / x,
    "reciprocal_or_zero": lambda x: 1 / x if x else 0.0,
    "tanh": math.tanh,
    "sigmoid": lambda x: (1 + math.tanh(x / 2)) / 2,
    "softplus": lambda x: max(x, 0.0) + math.log1p(math.exp(-abs(x))),
    "erf": math.erf,
    "sin": math.sin,
    "cos": math.cos,
    "sign": lambda x: float((x > 0) - (x < 0)),
    "abs": abs,
    "floor": math.floor,
    "finite_or_zero": lambda x: 0.0 if x == -math.inf else x,
    "detach": lambda x: x,
    "unit": hashing.unit,
}
