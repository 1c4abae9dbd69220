"""The pointwise functions of the IR: how each folds, what kind it has, and its derivative as IR.

A function is one `Function` entry. Printers and evaluators spell the *primitive* ones; every other name expands to
primitives when it is built, so adding e.g. `gelu` touches this file alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from attnc.ir import hashing
from attnc.ir.construct import FALSE, ONE, TRUE, ZERO, add, call, const, is_const, iverson, mul, neg, raw_call, sub
from attnc.ir.node import Call, Const, Kind, Max, Node

Build = Callable[[Sequence[Node]], Node]
Gradient = Callable[[Call, Node], "Sequence[Node | None]"]


@dataclass(frozen=True, slots=True)
class Function:
    """A pointwise function.

    Attributes:
        name: its name in the IR and in the language.
        arity: number of arguments.
        build: makes the canonical node from arguments.
        gradient: given the node and the incoming gradient, one gradient per argument; None where it is zero.
        primitive: whether nodes of this name exist (printers must spell them).
        doc: one line for people.
    """

    name: str
    arity: int
    build: Build
    gradient: Gradient | None
    primitive: bool
    doc: str


FUNCTIONS: dict[str, Function] = {}


def _register(
    name: str, arity: int, build: Build, gradient: Gradient | None = None, *, primitive: bool = True, doc: str = ""
) -> None:
    FUNCTIONS[name] = Function(name, arity, build, gradient, primitive, doc)


def _real(node: Node) -> Node:
    return const(float(node.value)) if isinstance(node, Const) and node.kind == "i" else node


def _unary(
    name: str, fold: Callable[[float], float], derivative: Callable[[Node, Node], Node] | None, doc: str
) -> None:
    """A real function of one argument; `derivative(x, y)` is dy/dx written with x and y = f(x)."""

    def build(args: Sequence[Node]) -> Node:
        (x,) = args
        if isinstance(x, Const):
            try:
                return const(float(fold(float(x.value))))
            except (ValueError, OverflowError, ZeroDivisionError):
                pass
        return raw_call(name, (x,), "f")

    def gradient(node: Call, g: Node) -> Sequence[Node | None]:
        return [None if derivative is None else mul(g, derivative(node.args[0], node))]

    _register(name, 1, build, gradient, doc=doc)


def _sign(x: float) -> float:
    return float((x > 0) - (x < 0))


LN2 = math.log(2.0)
_unary("exp", math.exp, lambda x, y: y, "e to the power x")
_unary("exp2", lambda x: 2.0**x, lambda x, y: mul(const(LN2), y), "2 to the power x")
_unary("log", math.log, lambda x, y: call("reciprocal", x), "natural logarithm")
_unary("log2", math.log2, lambda x, y: mul(const(1 / LN2), call("reciprocal", x)), "logarithm to base 2")
_unary("sqrt", math.sqrt, lambda x, y: mul(const(0.5), call("reciprocal", y)), "square root")
_unary("rsqrt", lambda x: 1 / math.sqrt(x), lambda x, y: mul(const(-0.5), y, y, y), "1 / sqrt(x)")
_unary("reciprocal", lambda x: 1 / x, lambda x, y: neg(mul(y, y)), "1 / x")
_unary(
    "reciprocal_or_zero",
    lambda x: 1 / x if x else 0.0,
    lambda x, y: neg(mul(y, y)),
    "1 / x, and 0 where x is 0: how a sum over no keys divides",
)
_unary("tanh", math.tanh, lambda x, y: sub(ONE, mul(y, y)), "hyperbolic tangent")
_unary("sigmoid", lambda x: 1 / (1 + math.exp(-x)), lambda x, y: mul(y, sub(ONE, y)), "1 / (1 + exp(-x))")
_unary("softplus", lambda x: math.log1p(math.exp(x)), lambda x, y: call("sigmoid", x), "log(1 + exp(x))")
_unary(
    "erf",
    math.erf,
    lambda x, y: mul(const(2 / math.sqrt(math.pi)), call("exp", neg(mul(x, x)))),
    "the error function",
)
_unary("sin", math.sin, lambda x, y: call("cos", x), "sine, radians")
_unary("cos", math.cos, lambda x, y: neg(call("sin", x)), "cosine, radians")
_unary("sign", _sign, None, "-1, 0 or 1")
_unary("finite_or_zero", lambda x: x if x != -math.inf else 0.0, lambda x, y: ONE, "x, and 0 where x is -inf")
_unary("rounded", lambda x: x, None, "x by itself: no factor moves across, and a sum adds it after its other terms")
_unary("lost", lambda x: 0.0, None, "what rounding takes from a running sum: 0, but for kernels")
_unary("detach", lambda x: x, None, "x, treated as a constant by derivatives")


def _kind_preserving(name: str, fold: Callable[[float], float], gradient: Gradient, doc: str) -> None:
    def build(args: Sequence[Node]) -> Node:
        (x,) = args
        if isinstance(x, Const):
            value = fold(x.value)
            return const(int(value) if x.kind == "i" else float(value))
        return raw_call(name, (x,), x.kind)

    _register(name, 1, build, gradient, doc=doc)


_kind_preserving("abs", abs, lambda n, g: [mul(g, call("sign", n.args[0]))], "absolute value")


def _floor(args: Sequence[Node]) -> Node:
    (x,) = args
    if x.kind == "i":
        return x
    return const(math.floor(x.value)) if isinstance(x, Const) else raw_call("floor", (x,), "i")


_register("floor", 1, _floor, lambda n, g: [None], doc="the largest integer not above x")


def _extreme(name: str, pick: Callable[[float, float], float], strict: str) -> None:
    def build(args: Sequence[Node]) -> Node:
        a, b = args
        if a is b:
            return a
        kind: Kind = "f" if "f" in (a.kind, b.kind) else "i"
        if isinstance(a, Const) and isinstance(b, Const):
            value = pick(a.value, b.value)
            return const(float(value) if kind == "f" else int(value))
        return raw_call(name, tuple(sorted((a, b), key=lambda n: n.order)), kind)

    def gradient(node: Call, g: Node) -> Sequence[Node | None]:
        a, b = node.args
        first = call(strict, a, b)
        tie = call("eq", a, b)
        half = mul(const(0.5), g, iverson(tie))
        return [add(mul(g, iverson(first)), half), add(mul(g, iverson(call(strict, b, a))), half)]

    _register(name, 2, build, gradient, doc=f"the {'larger' if name == 'maximum' else 'smaller'} of two values")


_extreme("maximum", max, "gt")
_extreme("minimum", min, "lt")


def _integers(name: str, fold: Callable[[int, int], int], doc: str) -> None:
    def build(args: Sequence[Node]) -> Node:
        a, b = args
        if isinstance(a, Const) and isinstance(b, Const) and b.value:
            return const(fold(a.value, b.value))  # type: ignore[arg-type]
        if name == "floordiv" and is_const(b, 1):
            return a
        if name == "mod" and is_const(b, 1) and a.kind == b.kind == "i":
            return const(0)
        if is_const(a, 0) and a.kind == "i":
            return a
        kind: Kind = "f" if "f" in (a.kind, b.kind) else "i"
        return raw_call(name, (a, b), kind)

    def gradient(node: Call, g: Node) -> Sequence[Node | None]:
        if name == "floordiv" or node.kind == "i":
            return [None, None]
        a, b = node.args
        return [g, neg(mul(g, call("floordiv", a, b)))]

    _register(name, 2, build, gradient, doc=doc)


_integers("floordiv", lambda a, b: a // b, "a // b, rounded down")
_integers("mod", lambda a, b: a % b, "a % b, with the sign of b")


def _hash(args: Sequence[Node]) -> Node:
    x, y = args
    if isinstance(x, Const) and isinstance(y, Const):
        return const(hashing.mixed(int(x.value), int(y.value)))
    return raw_call("hash", (x, y), "i")


def _unit(args: Sequence[Node]) -> Node:
    (x,) = args
    return const(hashing.unit(int(x.value))) if isinstance(x, Const) else raw_call("unit", (x,), "f")


_register("hash", 2, _hash, lambda n, g: [None, None], doc="a random-looking integer from two integers, 31 bits")
_register("unit", 1, _unit, lambda n, g: [None], doc="a hash as a number in [0, 1)")


def _bitwise(name: str, fold: Callable[[int, int], int], doc: str) -> None:
    def build(args: Sequence[Node]) -> Node:
        a, b = args
        if a is b and name != "bitxor":
            return a
        if isinstance(a, Const) and isinstance(b, Const):
            return const(fold(int(a.value), int(b.value)))
        return raw_call(name, tuple(sorted((a, b), key=lambda n: n.order)), "i")

    _register(name, 2, build, lambda n, g: [None, None], doc=doc)


_bitwise("bitand", lambda a, b: a & b, "bitwise and of two integers, in two's complement")
_bitwise("bitor", lambda a, b: a | b, "bitwise or of two integers, in two's complement")
_bitwise("bitxor", lambda a, b: a ^ b, "bitwise exclusive or of two integers, in two's complement")


def _of_integer(name: str, fold: Callable[[int], int], doc: str) -> None:
    def build(args: Sequence[Node]) -> Node:
        (x,) = args
        return const(fold(int(x.value))) if isinstance(x, Const) else raw_call(name, (x,), "i")

    _register(name, 1, build, lambda n, g: [None], doc=doc)


_of_integer(
    "floor_log2",
    lambda x: x.bit_length() - 1 if x > 0 else 0,
    "the largest integer n with 2 ** n <= x, for an integer x >= 1; 0 for others, which only lanes nobody sees hold",
)
_of_integer(
    "power_of_two",
    lambda n: 1 << min(max(n, 0), 62),
    "the integer 2 ** n, for an integer n from 0 to 62; that of the nearer end for others",
)


def _pow(args: Sequence[Node]) -> Node:
    x, y = args
    if isinstance(x, Const) and isinstance(y, Const):
        return const(x.value**y.value) if y.value >= 0 or x.kind == "f" else const(float(x.value) ** y.value)
    if isinstance(y, Const):
        if float(y.value).is_integer() and 0 <= y.value <= 4:
            return mul(*([x] * int(y.value))) if y.value else (const(1) if x.kind == "i" else ONE)
        if y.value == 0.5:
            return call("sqrt", x)
        if y.value == -0.5:
            return call("rsqrt", x)
        if y.value == -1:
            return call("reciprocal", x)
    if is_const(x, 2):
        return call("exp2", y)
    return raw_call("pow", (_real(x), y), "f")


def _pow_gradient(node: Call, g: Node) -> Sequence[Node | None]:
    x, y = node.args
    down = call("where", call("eq", y, const(0)), ZERO, mul(y, call("pow", x, sub(y, const(1)))))
    up = None if y.kind == "i" else mul(g, node, call("log", x))
    return [mul(g, down), up]


_register("pow", 2, _pow, _pow_gradient, doc="x ** y")


def _where(args: Sequence[Node]) -> Node:
    c, a, b = args
    if isinstance(c, Const):
        return a if c.value else b
    if a is b:
        return a
    kind: Kind = "f" if "f" in (a.kind, b.kind) else a.kind
    if kind == "f":
        a, b = _real(a), _real(b)
        if is_const(b, 0):
            return mul(iverson(c), a)
        if is_const(a, 0):
            return mul(iverson(call("not", c)), b)
    return raw_call("where", (c, a, b), kind)


_register(
    "where",
    3,
    _where,
    lambda n, g: [None, mul(g, iverson(n.args[0])), mul(g, iverson(call("not", n.args[0])))],
    doc="a where the condition holds, else b",
)


def _compare(name: str, fold: Callable[[float, float], bool]) -> None:
    def build(args: Sequence[Node]) -> Node:
        a, b = args
        if isinstance(a, Const) and isinstance(b, Const):
            return const(fold(a.value, b.value))
        if a is b:
            return const(fold(0, 0))
        if name == "eq":
            a, b = sorted((a, b), key=lambda n: n.order)
        return raw_call(name, (a, b), "b")

    _register(name, 2, build, lambda n, g: [None, None], doc=f"comparison ({name})")


_compare("lt", lambda a, b: a < b)
_compare("le", lambda a, b: a <= b)
_compare("eq", lambda a, b: a == b)
_register("gt", 2, lambda a: call("lt", a[1], a[0]), primitive=False, doc="a > b")
_register("ge", 2, lambda a: call("le", a[1], a[0]), primitive=False, doc="a >= b")
_register("ne", 2, lambda a: call("not", call("eq", *a)), primitive=False, doc="a != b")


def _logic(name: str, neutral: Const) -> None:
    absorbing = FALSE if neutral is TRUE else TRUE

    def build(args: Sequence[Node]) -> Node:
        flat: set[Node] = set()
        for a in args:
            flat.update(a.args if isinstance(a, Call) and a.fn == name else (a,))
        flat.discard(neutral)
        if absorbing in flat:
            return absorbing
        ordered = tuple(sorted(flat, key=lambda n: n.order))
        if not ordered:
            return neutral
        return ordered[0] if len(ordered) == 1 else raw_call(name, ordered, "b")

    _register(name, -1, build, lambda n, g: [None] * len(n.args), doc=f"logical {name}")


_logic("and", TRUE)
_logic("or", FALSE)


def _not(args: Sequence[Node]) -> Node:
    (x,) = args
    if isinstance(x, Const):
        return const(not x.value)
    if isinstance(x, Call) and x.fn == "not":
        return x.args[0]
    if isinstance(x, Call) and x.fn in ("lt", "le") and all(a.kind == "i" for a in x.args):
        return call("le" if x.fn == "lt" else "lt", x.args[1], x.args[0])
    return raw_call("not", (x,), "b")


_register("not", 1, _not, lambda n, g: [None], doc="logical not")


BLOCK_LENGTHS = (16, 32, 64, 128, 256)
"""A kernel holds a block whole, and tiles have these lengths."""


def _block_sum_gradient(node: Call, g: Node) -> Sequence[Node | None]:
    return [call("block_sum", g, *node.args[1:]), None, None]


def _block_max_gradient(node: Call, g: Node) -> Sequence[Node | None]:
    """The gradient goes to the first position of the block that attains the maximum."""
    body, place, length = node.args
    before = call("where", call("eq", body, node), mul(const(-1.0), place), const(-math.inf))
    first = neg(call("block_max", before, place, length))
    return [mul(call("block_sum", g, place, length), iverson(call("eq", place, first))), None, None]


# What every position of a block of an axis gets from the whole block: `args` are the value, the axis and the length.
_register(
    "block_sum",
    3,
    lambda a: raw_call("block_sum", (_real(a[0]), *a[1:]), "f"),
    _block_sum_gradient,
    doc="the sum over the positions j' with j' // n == j // n",
)
_register(
    "block_max",
    3,
    lambda a: raw_call("block_max", (_real(a[0]), *a[1:]), "f"),
    _block_max_gradient,
    doc="the maximum over the positions j' with j' // n == j // n",
)


def is_block(node: Node) -> bool:
    """Whether a value reads all positions of a block of an axis rather than one."""
    return isinstance(node, Call) and node.fn in ("block_sum", "block_max")


def _derived(name: str, arity: int, build: Build, doc: str) -> None:
    _register(name, arity, build, primitive=False, doc=doc)


_derived("relu", 1, lambda a: call("where", call("gt", a[0], ZERO), a[0], ZERO), "max(x, 0)")
_derived("silu", 1, lambda a: mul(a[0], call("sigmoid", a[0])), "x * sigmoid(x)")
_derived(
    "gelu",
    1,
    lambda a: mul(const(0.5), a[0], add(ONE, call("erf", mul(const(math.sqrt(0.5)), a[0])))),
    "x * Phi(x), exact",
)
_derived("clamp", 3, lambda a: call("minimum", call("maximum", a[0], a[1]), a[2]), "x limited to [low, high]")
_derived(
    "xlogy",
    2,
    lambda a: call("where", call("eq", a[0], ZERO), ZERO, mul(a[0], call("log", a[1]))),
    "x * log(y), and 0 where x is 0",
)
_derived("divide", 2, lambda a: mul(a[0], call("reciprocal", _real(a[1]))), "a / b")


def contains_reduction(node: Node) -> bool:
    """Whether a sum or maximum occurs in `node`."""
    from attnc.ir.node import Sum
    from attnc.ir.walk import postorder

    return any(isinstance(n, Sum | Max) for n in postorder([node]))
