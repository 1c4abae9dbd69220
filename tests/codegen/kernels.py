"""Tile kernels written by hand, as the lowering would make them, for testing the printers."""

from __future__ import annotations

from attnc.codegen.tile import Accumulate, Argument, Assign, Kernel, Lane, Loop, Stmt, Store
from attnc.ir.node import ONE, ZERO, Node, add, axis, call, const, iverson, load, mul, neg, raw_sum, size, sub, var
from attnc.ir.node import Max

LOG2E = 1.4426950408889634
b, h, i, j, d, e = (axis(x) for x in "bhijde")
B, H, M, N, D, E = (size(x) for x in "BHMNDE")


def contract(bound: str, *factors: Node) -> Node:
    return raw_sum((bound,), factors)


def largest(bound: str, body: Node) -> Node:
    return Max.intern((frozenset((bound,)), body, ()), body.axes - {bound}, body.kind)


def softmax_forward(*, causal: bool, dtype: str = "f32", real: str = "f32", channels: int | None = 64) -> Kernel:
    """o and the log-sum-exp (base 2) of causal or full softmax attention."""
    q, k, v = (var(n, a) for n, a in (("q", "id"), ("k", "jd"), ("v", "je")))
    raw, s, p = var("raw", "ij"), var("s", "ij"), var("p", "ij")
    top, old, shift, follow, total = (var(x, "i") for x in ("top", "old", "shift", "follow", "total"))
    fresh = var("fresh", "i")
    acc = var("acc", "ie")
    scale = var("scale")

    def body(masked: bool) -> tuple[Stmt, ...]:
        allowed = call("le", j, add(i, size("q_start")))
        inside = call("and", allowed, call("lt", j, N)) if causal else call("lt", j, N)
        scores = mul(raw, scale)
        limited = call("where", inside, scores, const(float("-inf"))) if masked else scores
        return (
            Assign(k, load("k", (b, h, j, d))),
            Assign(v, load("v", (b, h, j, e))),
            Assign(raw, contract("d", q, k), "s = q . k"),
            Assign(s, limited),
            Assign(old, top),
            Assign(fresh, largest("j", s)),
            Assign(top, call("maximum", old, fresh), "m follows the largest score"),
            Assign(shift, call("finite_or_zero", top)),
            Assign(follow, call("exp2", sub(call("finite_or_zero", old), shift))),
            Assign(p, mul(iverson(inside), call("exp2", sub(s, shift))) if masked else call("exp2", sub(s, shift)), "p"),
            Assign(total, mul(total, follow)),
            Accumulate(total, contract("j", p)),
            Assign(acc, mul(acc, follow), "rescale"),
            Accumulate(acc, contract("j", p, v), "o += p v"),
        )

    first, last = var("i_first", kind="i"), var("i_last", kind="i")
    block = size("BLOCK_J")
    stop = call("minimum", N, add(last, size("q_start"), const(1))) if causal else N
    full = call("floordiv", add(first, size("q_start"), const(1)), block) if causal else call("floordiv", N, block)
    full = call("minimum", full, call("floordiv", N, block))
    statements: tuple[Stmt, ...] = (
        Assign(scale, mul(const(LOG2E), call("rsqrt", D)), "log2(e) / sqrt(D)"),
        Assign(q, load("q", (b, h, i, d))),
        Assign(top, const(float("-inf"))),
        Assign(total, ZERO),
        Assign(acc, ZERO),
        Loop("j", const(0), mul(full, block), False, body(False), "blocks allowed throughout"),
        Loop("j", mul(full, block), stop, True, body(True), "the rest"),
        Store("o", (b, h, i, e), mul(acc, call("reciprocal_or_zero", total)), "o = acc / l"),
        Store("lse", (b, h, i), add(call("log2", total), call("finite_or_zero", top))),
    )
    constants = {} if channels is None else {"D": channels, "E": channels}
    return Kernel(
        name="softmax_forward",
        doc="o = softmax(q k / sqrt(D)) v",
        arguments=(
            Argument("q", dtype, (B, H, M, D)),
            Argument("k", dtype, (B, H, N, D)),
            Argument("v", dtype, (B, H, N, E)),
            Argument("o", dtype, (B, H, M, E), "out"),
            Argument("lse", real, (B, H, M), "out"),
        ),
        sizes=("B", "H", "M", "N", "D", "E", "q_start"),
        grid=("b", "h"),
        grid_extents=(B, H),
        outer="i",
        lanes=(Lane("i", "outer", M), Lane("j", "inner", N), Lane("d", "channel", D), Lane("e", "channel", E)),
        blocks={"i": 64, "j": 64},
        body=statements,
        real=real,
        constants=constants,
    )
