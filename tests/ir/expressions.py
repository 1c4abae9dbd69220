"""Random expressions of the IR. A recipe is a nested tuple; it is built raw, exactly as drawn, or canonically."""

from __future__ import annotations

from typing import Any, cast

import torch
from hypothesis import strategies as st

from attnc.ir.construct import (
    add,
    axis,
    call,
    const,
    free_axes,
    iverson,
    load,
    max_over,
    mul,
    raw_add,
    raw_call,
    raw_prod,
    raw_sum,
    size,
    sum_over,
)
from attnc.ir.kinds import result_kind
from attnc.ir.node import Iverson, Kind, Max, Node
from tests.ir.naive import Number, World

Recipe = tuple[Any, ...]

EXTENTS = {"b": 2, "i": 3, "j": 4, "d": 2, "r": 5}
ORDER = tuple(EXTENTS)
SIZES = {"N": 4, "q_start": 2}
SHAPES = {"q": ("b", "i", "d"), "k": ("b", "j", "d"), "slope": ("b",), "table": ("b", "r")}
KINDS: dict[str, Kind] = {"q": "f", "k": "f", "slope": "f", "table": "f", "mark": "i", "seen": "b"}
AXES = ("b", "i", "j", "d", "r", "i'", "j'")


def make_tensors() -> dict[str, torch.Tensor]:
    """Inputs for every name the recipes load; `table` has a dimension of extent 1, which broadcasts."""
    g = torch.Generator().manual_seed(7)

    def real(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    return {
        "q": real(2, 3, 2),
        "k": real(2, 4, 2),
        "slope": real(2).abs() + 0.5,
        "table": real(1, 5),
        "mark": torch.tensor([1, 0, 2, 1], dtype=torch.int32),
        "seen": torch.tensor([[True, False, True, True], [False, False, False, False]]),
    }


def make_world(tensors: dict[str, torch.Tensor]) -> World:
    wide = {n: t.expand(2, 5) if n == "table" else t for n, t in tensors.items()}
    tables: dict[str, dict[tuple[int, ...], Number]] = {
        n: {tuple(p): t[tuple(p)].item() for p in torch.ones(t.shape).nonzero().tolist()} for n, t in wide.items()
    }
    return World(EXTENTS, SIZES, tables)


@st.composite
def integers(draw: st.DrawFn, depth: int = 2) -> Recipe:
    leaves = ["axis", "const", "size", "mark"]
    kind = draw(st.sampled_from(leaves if depth == 0 else [*leaves, "add", "mul", "call", "divide"]))
    match kind:
        case "axis":
            return "axis", draw(st.sampled_from(AXES))
        case "const":
            return "const", draw(st.integers(-3, 3))
        case "size":
            return "size", draw(st.sampled_from(["N", "q_start"]))
        case "mark":
            return "load", "mark", (("call", "mod", draw(integers(0)), ("const", 4)),)
        case "divide":
            fn = draw(st.sampled_from(["floordiv", "mod"]))
            return "call", fn, draw(integers(depth - 1)), ("const", draw(st.integers(1, 3)))
        case "call":
            fn = draw(st.sampled_from(["maximum", "minimum", "bitand", "bitor", "bitxor", "floor_log2"]))
            first = draw(integers(depth - 1))
            return ("call", fn, first) if fn == "floor_log2" else ("call", fn, first, draw(integers(depth - 1)))
        case _:
            return kind, *draw(st.lists(integers(depth - 1), min_size=2, max_size=3))


@st.composite
def conditions(draw: st.DrawFn, depth: int = 2) -> Recipe:
    kind = draw(
        st.sampled_from(["compare", "seen", "constant"] if depth == 0 else ["compare", "compare", "logic", "not"])
    )
    match kind:
        case "compare":
            fn = draw(st.sampled_from(["lt", "le", "eq"]))
            return "call", fn, draw(integers(max(depth - 1, 0))), draw(integers(0))
        case "seen":
            return "load", "seen", (("axis", "b"), ("axis", draw(st.sampled_from(["j", "j'"]))))
        case "constant":
            return "const", draw(st.booleans())
        case "not":
            return "call", "not", draw(conditions(depth - 1))
        case _:
            fn = draw(st.sampled_from(["and", "or"]))
            return "call", fn, draw(conditions(depth - 1)), draw(conditions(depth - 1))


@st.composite
def reals(draw: st.DrawFn, depth: int = 3) -> Recipe:
    leaves = ["const", "load", "gather"]
    inner = [
        "add",
        "mul",
        "unary",
        "unary",
        "where",
        "iverson",
        "sum",
        "sum",
        "sum",
        "max",
        "scatter",
        "integer",
        "share",
    ]
    kind = draw(st.sampled_from(leaves if depth == 0 else [*leaves, *inner]))
    deeper = reals(max(depth - 1, 0))
    match kind:
        case "const":
            return "const", draw(st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0]))
        case "load":
            name = draw(st.sampled_from(["q", "k", "slope"]))
            prime = draw(st.sampled_from(["", "'"])) if name != "slope" else ""
            return "load", name, tuple(("axis", a + (prime if a in "ij" else "")) for a in SHAPES[name])
        case "gather":
            return "load", "table", (("axis", "b"), ("call", "mod", draw(integers(1)), ("const", 5)))
        case "integer":
            return "mul", draw(integers(1)), draw(deeper)
        case "unary":
            fn = draw(st.sampled_from(["tanh", "sigmoid", "sin", "cos", "abs", "erf", "softplus", "detach", "sign"]))
            return "call", fn, draw(deeper)
        case "where":
            return "call", "where", draw(conditions(1)), draw(deeper), draw(deeper)
        case "iverson":
            return "mul", ("iverson", draw(conditions(1))), draw(deeper)
        case "share":
            x = draw(deeper)
            names = tuple(draw(st.sets(st.sampled_from(AXES), min_size=1, max_size=2)))
            grown = ("call", "exp", ("call", "tanh", x))
            total = ("sum", names, (grown,), (draw(conditions(1)),), ())
            return "mul", grown, ("call", "reciprocal_or_zero", total)
        case "max":
            names = tuple(draw(st.sets(st.sampled_from(AXES), min_size=1, max_size=2)))
            domain = tuple(draw(st.lists(conditions(1), max_size=2)))
            return "call", "finite_or_zero", ("max", names, draw(deeper), domain)
        case "sum" | "scatter":
            names = tuple(
                draw(st.sets(st.sampled_from(AXES[: -3 if kind == "scatter" else None]), min_size=1, max_size=3))
            )
            factors = tuple(draw(st.lists(deeper, min_size=1, max_size=3)))
            domain = tuple(draw(st.lists(conditions(1), max_size=2)))
            index = ("call", "mod", draw(integers(1)), ("const", 5))
            return "sum", names, factors, domain, ((("r", index),) if kind == "scatter" else ())
        case _:
            return kind, *draw(st.lists(deeper, min_size=2, max_size=3))


def build(recipe: Recipe, canonical: bool) -> Node:
    """The node of a recipe. A scattered sum first renames what would clash with its new axis."""
    head, *rest = recipe

    def go(r: Recipe) -> Node:
        return build(r, canonical)

    match head:
        case "axis":
            return axis(rest[0])
        case "size":
            return size(rest[0])
        case "const":
            return const(rest[0])
        case "load":
            return load(rest[0], [go(x) for x in rest[1]], KINDS[rest[0]])
        case "iverson":
            if canonical:
                return iverson(go(rest[0]))
            return cast(Node, Iverson.intern((c := go(rest[0]),), c.axes, "f"))
        case "call":
            args = tuple(map(go, rest[1:]))
            if canonical:
                return call(rest[0], *args)
            return raw_call(rest[0], args, result_kind(rest[0], args))
        case "add":
            terms = tuple(map(go, rest))
            return add(*terms) if canonical else raw_add(terms)
        case "mul":
            return mul(*map(go, rest)) if canonical else raw_prod([go(r) for r in rest])
        case "max":
            names, body, domain = frozenset(rest[0]), go(rest[1]), tuple(map(go, rest[2]))
            if canonical:
                return max_over(names, body, domain)
            axes = (body.axes | free_axes(domain)) - names
            return cast(Node, Max.intern((names, body, domain), axes, body.kind))
        case "sum":
            return _build_sum(rest, canonical)
    raise ValueError(head)


def _build_sum(rest: list[Any], canonical: bool) -> Node:
    names, factors, domain = rest[0], [build(f, canonical) for f in rest[1]], [build(c, canonical) for c in rest[2]]
    scatter = [(a, build(x, canonical)) for a, x in rest[3]]
    # Both forms of a recipe sum over the same axes, also where the canonical factors have lost one.
    parts = [build(r, False) for r in (*rest[1], *rest[2], *(x for _, x in rest[3]))]
    if any(a in free_axes(parts) for a, _ in scatter):
        names = (*names, "r")
    return (sum_over if canonical else raw_sum)(names, factors, domain, scatter)
