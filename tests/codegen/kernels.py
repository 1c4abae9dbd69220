"""Tile kernels written by hand, as the lowering would make them, for testing the printers."""

from __future__ import annotations

from attnc.codegen.tile import Accumulate, Argument, Assign, Kernel, Lane, Loop, Stmt, Store
from attnc.ir.construct import ZERO, add, axis, call, const, iverson, load, mul, raw_sum, size, sub, var
from attnc.ir.node import Max, Node

LOG2E = 1.4426950408889634
b, h, i, j, d, e = (axis(x) for x in "bhijde")
B, H, M, N, D, E = (size(x) for x in "BHMNDE")


def contract(bound: str, *factors: Node) -> Node:
    return raw_sum((bound,), factors)


def largest(bound: str, body: Node) -> Node:
    node: Node = Max.intern((frozenset((bound,)), body, ()), body.axes - {bound}, body.kind)
    return node


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
            Assign(
                p, mul(iverson(inside), call("exp2", sub(s, shift))) if masked else call("exp2", sub(s, shift)), "p"
            ),
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


def softmax_columns(*, dtype: str = "f32", real: str = "f32") -> Kernel:
    """dk and dv of causal softmax attention, for blocks of keys, from lse (base 2) and delta."""
    names = {"q": "id", "k": "jd", "v": "je", "go": "ie", "lse": "i", "delta": "i", "qk": "ij", "dp": "ij", "p": "ij"}
    names |= {"ds": "ij", "dk": "jd", "dv": "je"}
    t = {n: var(n, a) for n, a in names.items()}
    scale = var("scale")
    allowed = call("and", call("le", j, add(i, size("q_start"))), call("lt", i, M))
    plane = call("exp2", sub(mul(t["qk"], scale, const(LOG2E)), t["lse"]))
    first = var("j_first", kind="i")
    body: tuple[Stmt, ...] = (
        Assign(scale, call("rsqrt", D)),
        Assign(t["k"], load("k", (b, h, j, d))),
        Assign(t["v"], load("v", (b, h, j, e))),
        Assign(t["dk"], ZERO),
        Assign(t["dv"], ZERO),
        Loop("i", call("maximum", const(0), sub(first, size("q_start"))), M, True, (
            Assign(t["q"], load("q", (b, h, i, d))),
            Assign(t["go"], load("go", (b, h, i, e))),
            Assign(t["lse"], load("lse", (b, h, i))),
            Assign(t["delta"], load("delta", (b, h, i))),
            Assign(t["qk"], contract("d", t["q"], t["k"])),
            Assign(t["dp"], contract("e", t["go"], t["v"])),
            Assign(t["p"], mul(iverson(allowed), plane)),
            Assign(t["ds"], mul(t["p"], sub(t["dp"], t["delta"]), scale)),
            Accumulate(t["dv"], contract("i", t["p"], t["go"])),
            Accumulate(t["dk"], contract("i", t["ds"], t["q"])),
        )),
        Store("dk", (b, h, j, d), t["dk"]),
        Store("dv", (b, h, j, e), t["dv"]),
    )  # fmt: skip
    inputs = {"q": (B, H, M, D), "k": (B, H, N, D), "v": (B, H, N, E), "go": (B, H, M, E)}
    return Kernel(
        name="softmax_columns",
        doc="dk and dv",
        arguments=(
            *(Argument(n, dtype, dims) for n, dims in inputs.items()),
            *(Argument(n, real, (B, H, M)) for n in ("lse", "delta")),
            Argument("dk", dtype, (B, H, N, D), "out"),
            Argument("dv", dtype, (B, H, N, E), "out"),
        ),
        sizes=("B", "H", "M", "N", "D", "E", "q_start"),
        grid=("b", "h"),
        grid_extents=(B, H),
        outer="j",
        lanes=(Lane("j", "outer", N), Lane("i", "inner", M), Lane("d", "channel", D), Lane("e", "channel", E)),
        blocks={"j": 32, "i": 64},
        body=body,
        real=real,
    )


def vectors(
    arguments: tuple[Argument, ...],
    body: tuple[Stmt, ...],
    *,
    inner: bool = False,
    outer: bool = True,
    grid: tuple[str, ...] = (),
    serial: tuple[str, ...] = (),
    real: str = "f32",
) -> Kernel:
    """A small kernel over rows i [and j] and channels d, e."""
    lanes = [Lane("i", "outer", M)] if outer else []
    lanes += [Lane("j", "inner", N)] if inner else []
    lanes += [Lane("d", "channel", D), Lane("e", "channel", E)]
    return Kernel(
        name="vectors",
        doc="a test",
        arguments=arguments,
        sizes=("B", "M", "N", "D", "E"),
        grid=grid,
        grid_extents=tuple({"b": B}[g] for g in grid),
        outer="i" if outer else None,
        lanes=tuple(lanes),
        blocks={"i": 32, "j": 48},
        body=body,
        real=real,
        serial=serial,
    )
