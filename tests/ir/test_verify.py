"""Well-formed programs pass; every rule is broken once."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attnc.diagnostics.diagnostic import InternalError
from attnc.ir.construct import (
    TRUE,
    add,
    axis,
    call,
    const,
    free_axes,
    load,
    max_over,
    raw_add,
    raw_call,
    raw_sum,
    size,
    var,
)
from attnc.ir.node import Iverson, Load, Max, Node, Sum
from attnc.ir.program import AxisInfo, Output, Program, SizeBinding, Tensor
from attnc.ir.verify import verify
from tests.ir import expressions as ex
from tests.ir.programs import at, attention, dims, softmax_program

DTYPES = {"f": "q", "i": "i32", "b": "bool"}
DIMS = {**ex.SHAPES, "mark": ("j",), "seen": ("b", "j")}


def program_of(node: Node) -> Program:
    """A program whose only output is `node`, over the axes and tensors of random expressions."""
    extent = {a: const(n) for a, n in ex.EXTENTS.items()}
    tensors = tuple(Tensor(n, tuple(extent[a] for a in DIMS[n]), DTYPES[k]) for n, k in ex.KINDS.items())
    axes = {a: AxisInfo(a, n, "batch") for a, n in extent.items()}
    names = tuple(sorted(node.axes))
    out = Output("o", ((names, node),), tuple(extent.get(a.rstrip("'"), const(1)) for a in names))
    return Program("random", tensors, (out,), axes, (SizeBinding("N", "k", 1),))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.one_of(ex.reals(), ex.integers()), st.booleans())
def test_whatever_constructors_make_is_well_formed(recipe: ex.Recipe, canonical: bool) -> None:
    verify(program_of(ex.build(recipe, canonical)))


def test_softmax_is_well_formed() -> None:
    verify(softmax_program())


J = axis("j")
K = load("k", at("bjd"))
SEEN = load("seen", at("bj"), "b")
FAR = load("k", (axis("b"), add(J, const(91)), axis("d")))
"""Malformed nodes stay in the table of all nodes while they live, so they are made of what no other test uses."""


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (axis("z"), "unknown axes z"),
        (raw_sum(["z"], [K]), "unknown axes z"),
        (size("Q"), "unknown size"),
        (var("x"), "a variable of a kernel"),
        (load("nothing", [J]), "unknown tensor nothing"),
        (load("k", [J]), "1 indices into 3 dimensions"),
        (load("k", [axis("b"), J, const(0.5)]), "has kind f"),
        (load("k", at("bjd"), "i"), "kind is recorded as i, not f"),
        (raw_call("gelu", [K], "f"), "no primitive function gelu"),
        (raw_call("nonsense", [K], "f"), "no primitive function nonsense"),
        (raw_call("exp", [K, K], "f"), "exp takes 1 arguments, not 2"),
        (raw_call("exp", [SEEN], "f"), "has kind b"),
        (raw_call("and", [K, SEEN], "b"), "has kind f"),
        (raw_call("where", [K, K, K], "f"), "has kind f"),
        (raw_call("where", [SEEN, SEEN, K], "f"), "mixes numbers and truth values"),
        (raw_call("floor", [K], "f"), "kind is recorded as f, not i"),
        (raw_add([K, SEEN]), "has kind b"),
        (Iverson.intern((K,), K.axes, "f"), "has kind f"),
        (raw_sum(["j"], [K], [J]), "has kind i"),
        (raw_sum(["j"], [SEEN]), "has kind b"),
        (Max.intern((frozenset("j"), K, (K,)), frozenset("bd"), "f"), "has kind f"),
        (Max.intern((frozenset("j"), SEEN, ()), frozenset("b"), "b"), "has kind b"),
        (raw_sum(["j"], [K], (), [("r", call("exp", J))]), "has kind f"),
        (raw_sum(["j"], [K], (), [("b", J)]), "captures b"),
        (raw_sum(["j"], [K], (), [("r", J), ("r", J)]), "the same name"),
        (Sum.intern((frozenset("j"), (FAR,), (), ()), FAR.axes, "f"), "axes are recorded as b, d, j, not b, d"),
        (Load.intern(("mark", (add(J, const(92)),), "i"), frozenset(), "i"), "axes are recorded"),
    ],
)
def test_malformed_nodes(node: Node, message: str) -> None:
    with pytest.raises(InternalError, match=message):
        verify(program_of(node))


def test_malformed_declarations() -> None:
    good = softmax_program()
    (out,) = good.outputs
    q, *others = good.tensors
    free = replace(q, name="free", default=axis("h"), default_axes=())
    wrong: list[tuple[Program, str]] = [
        (replace(good, tensors=(q, *good.tensors)), "two tensors"),
        (replace(good, sizes=(SizeBinding("B", "q", 7),)), "does not exist"),
        (replace(good, axes={**good.axes, "d": good.axes["e"]}), "listed as d"),
        (replace(good, axes={**good.axes, "d": AxisInfo("d", axis("e"), "channel")}), "no constant extent"),
        (replace(good, tensors=(replace(q, dims=(*q.dims[:3], const(1.5))), *others)), "no constant shape"),
        (replace(good, tensors=(*good.tensors, free)), "varies along h"),
        (good.with_outputs((replace(out, parts=((tuple("bhi"), out.parts[0][1]),)),)), "has the wrong axes"),
        (good.with_outputs((replace(out, parts=((tuple("bhiz"), out.parts[0][1]),)),)), "unknown axes z"),
        (good.with_outputs((replace(out, parts=((tuple("bhij"), out.parts[0][1]),)),)), "undeclared axes e"),
        (good.with_outputs((Output("t", (((), TRUE),), ()),)), "is boolean"),
    ]
    for program, message in wrong:
        with pytest.raises(InternalError, match=message):
            verify(program)


def test_messages_stay_short() -> None:
    deep = add(axis("z"), const(1))
    for _ in range(12):
        deep = raw_add([deep, deep])
    program = attention("long", (Output("o", ((("i",), deep),), dims("M")),))
    with pytest.raises(InternalError) as caught:
        verify(program)
    assert len(str(caught.value)) < 400


def test_free_axes_of_nothing() -> None:
    assert free_axes([]) == frozenset()
    assert max_over({"j"}, K).axes == {"b", "d"}
