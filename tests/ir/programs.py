"""Programs written by hand for tests."""

from __future__ import annotations

from attnc.ir.construct import add, axis, call, load, max_over, mul, size, sub, sum_over
from attnc.ir.node import Node
from attnc.ir.program import AxisInfo, AxisRole, Note, Output, Program, SizeBinding, Tensor

AXES: dict[str, tuple[str, AxisRole]] = {
    "b": ("B", "batch"),
    "h": ("H", "batch"),
    "g": ("G", "batch"),
    "i": ("M", "sequence"),
    "j": ("N", "sequence"),
    "d": ("D", "channel"),
    "e": ("E", "channel"),
}
BINDINGS = (("B", "q", 0), ("H", "q", 1), ("M", "q", 2), ("D", "q", 3), ("G", "k", 1), ("N", "k", 2), ("E", "v", 3))


def dims(names: str) -> tuple[Node, ...]:
    return tuple(size(n) for n in names)


def at(names: str) -> tuple[Node, ...]:
    return tuple(axis(n) for n in names)


def score() -> Node:
    group = call("floordiv", axis("h"), call("floordiv", size("H"), size("G")))
    k = load("k", (axis("b"), group, axis("j"), axis("d")))
    return mul(sum_over({"d"}, [load("q", at("bhid")), k]), call("rsqrt", size("D")))


def value() -> Node:
    group = call("floordiv", axis("h"), call("floordiv", size("H"), size("G")))
    return load("v", (axis("b"), group, axis("j"), axis("e")))


def causal() -> Node:
    return call("le", axis("j"), add(axis("i"), size("q_start")))


def weights(s: Node, over: str, domain: list[Node]) -> Node:
    shift = call("finite_or_zero", call("detach", max_over({over}, s, domain)))
    x = call("exp", sub(s, shift))
    return mul(x, call("reciprocal_or_zero", sum_over({over}, [x], domain)))


def attention(name: str, outputs: tuple[Output, ...], notes: dict[Node, Note] | None = None) -> Program:
    """A program over q, k and v in the layout of scaled_dot_product_attention, and a mask seen[b, j]."""
    return Program(
        name=name,
        tensors=(
            Tensor("q", dims("BHMD"), "q"),
            Tensor("k", dims("BGND"), "q"),
            Tensor("v", dims("BGNE"), "q"),
            Tensor("seen", dims("BN"), "bool"),
        ),
        outputs=outputs,
        axes={a: AxisInfo(a, size(extent), role) for a, (extent, role) in AXES.items()},
        sizes=tuple(SizeBinding(n, t, d) for n, t, d in BINDINGS),
        notes=notes or {},
    )


def softmax_program(domain: list[Node] | None = None, over: str = "j") -> Program:
    """Softmax attention, causal unless another domain is given, normalised over keys or (`over="i"`) over queries."""
    conditions = [causal()] if domain is None else domain
    s = score()
    w = weights(s, over, conditions)
    o = sum_over({"j"}, [w, value()], conditions)
    return attention("softmax", (Output("o", ((tuple("bhie"), o),), dims("BHME")),), {s: Note("s", 3)})
