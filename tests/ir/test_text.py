"""Printed text parses to the identical nodes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attnc import driver
from attnc.diagnostics.diagnostic import InternalError
from attnc.ir.construct import (
    add,
    axis,
    call,
    const,
    load,
    mul,
    raw_add,
    raw_call,
    raw_prod,
    raw_sum,
    size,
    sum_over,
    var,
)
from attnc.ir.node import Node
from attnc.ir.parser import Scope, parse_expression, parse_program
from attnc.ir.printer import print_program, show
from attnc.ir.program import AxisInfo, Check, Note, Output, Program, SizeBinding, Tensor
from tests.ir import expressions as ex
from tests.ir.programs import softmax_program

SCOPE = Scope(set(ex.EXTENTS), set(ex.SIZES), ex.KINDS, {"t": var("t", ("i", "j"))})
RELAXED = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


@RELAXED
@given(st.one_of(ex.reals(), ex.integers(), ex.conditions()), st.booleans())
def test_expressions_round_trip(recipe: ex.Recipe, canonical: bool) -> None:
    node = ex.build(recipe, canonical)
    assert parse_expression(show(node), SCOPE) is node


@pytest.mark.parametrize(
    ("node", "text"),
    [
        (const(-1.0), "-1.0"),
        (const(float("-inf")), "-inf"),
        (const(1e-7), "1e-07"),
        (const(True), "True"),
        (mul(const(2), axis("i'")), "(2 * i')"),
        (raw_prod([axis("i")]), "*(i)"),
        (raw_add([axis("i")]), "+(i)"),
        (raw_add([axis("i"), raw_add([axis("j"), const(1)])]), "(i + (j + 1))"),
        (call("le", axis("j"), add(axis("i"), size("q_start"))), "(j <= (q_start + i))"),
        (call("floordiv", axis("i"), const(2)), "(i // 2)"),
        (raw_call("floordiv", (axis("i"), const(2)), "f"), "floordiv:f(i, 2)"),
        (raw_call("exp", (var("t", ("i", "j")),), "f"), "exp(t)"),
        (load("table", (axis("b"), const(0))), "table[b, 0]"),
        (raw_sum(["j"], [const(1.0)], [call("lt", axis("j"), const(3))]), "sum[j | (j < 3)](1.0)"),
        (raw_sum([], [const(1.0)]), "sum[](1.0)"),
        (raw_sum(["i"], [axis("i")], (), [("r", axis("i"))]), "sum[i -> r = i](i)"),
    ],
)
def test_spelling(node: Node, text: str) -> None:
    assert show(node) == text
    assert parse_expression(text, SCOPE) is node


def test_long_text_is_cut() -> None:
    node = add(*(load("q", (axis("b"), axis("i"), const(k))) for k in range(60)))
    assert len(show(node, limit=100)) < 110


def test_unreadable_text_and_unknown_names_are_reported() -> None:
    with pytest.raises(InternalError, match="cannot read"):
        parse_expression("(i + )", SCOPE)
    with pytest.raises(InternalError, match="unknown name nowhere"):
        parse_expression("(i + nowhere)", SCOPE)


def assert_round_trip(program: Program) -> str:
    text = print_program(program)
    again = parse_program(text)
    for part in ("name", "doc", "consts", "sizes", "axes", "outputs", "observed"):
        assert getattr(again, part) == getattr(program, part), part
    for ours, theirs in zip(program.tensors, again.tensors, strict=True):
        assert (ours.name, ours.dims, ours.dtype, ours.role) == (theirs.name, theirs.dims, theirs.dtype, theirs.role)
        assert (ours.default, ours.default_axes) == (theirs.default, theirs.default_axes)
    assert [(c.relation, c.message) for c in again.checks] == [(c.relation, c.message) for c in program.checks]
    assert (
        print_program(again).splitlines()[: text.splitlines().index("")]
        == text.splitlines()[: text.splitlines().index("")]
    )
    return text


def test_program_round_trips() -> None:
    text = assert_round_trip(softmax_program())
    assert "let s[b, h, i, j] = " in text
    assert "# line 3" in text


def test_every_declaration_round_trips() -> None:
    n, h = size("N"), axis("h")
    slope = mul(const(-8.0), add(h, const(1)))
    x = load("x", (axis("h"), axis("j")))
    program = Program(
        name="everything",
        tensors=(
            Tensor("x", (size("H"), n), "q", "saved"),
            Tensor("slope", (size("H"),), "f32", default=call("exp2", slope), default_axes=("h",)),
        ),
        outputs=(
            Output("o", ((("h",), sum_over({"j"}, [x])), (("h",), load("slope", (h,)))), (size("H"),), "q", of="x"),
            Output("seen", ((("j",), sum_over({"h"}, [x, load("slope", (h,))])),), (n,), "real"),
        ),
        axes={"h": AxisInfo("h", size("H"), "batch"), "j": AxisInfo("j", n, "sequence")},
        sizes=(SizeBinding("H", "x", 0), SizeBinding("N", "x", 1)),
        checks=(Check(call("le", n, const(7)), 'keys must be "few"'),),
        doc='A "documented" program.',
        consts={"window": 4, "cap": 0.5},
        notes={x: Note("output"), sum_over({"j"}, [x]): Note("x'")},
        observed=("seen",),
    )
    assert_round_trip(program)


def test_names_of_values_never_clash() -> None:
    program = softmax_program()
    notes = {n: Note("j", 1) for n in program.notes}
    assert_round_trip(Program(**{f: getattr(program, f) for f in program.__slots__} | {"notes": notes}))


def test_examples_round_trip() -> None:
    examples = sorted((Path(__file__).parents[2] / "examples").glob("*.attn"))
    assert len(examples) > 20
    for path in examples:
        source = driver.read(path)
        assert_round_trip(driver.lower(driver.definition(source), source))
