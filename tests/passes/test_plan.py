"""What the scheduler finds: how many passes, in which direction, and what is saved. Tests read the plan, not its
text."""

from __future__ import annotations

import pytest

from attnc.ir.construct import axis, load
from attnc.ir.node import Load, Sum
from attnc.ir.walk import postorder
from attnc.passes.derive import gradient_program
from attnc.passes.pipeline import plan_forward, plan_gradient
from attnc.passes.plan import Finish, Pass, Plan
from tests.passes.programs import NAMES, example, spec


def directions(plan: Plan) -> list[str]:
    return sorted(p.direction for p in plan.passes)


ROW, COLUMN = "row", "column"
TABLE = {
    "softmax": ([ROW], [COLUMN, ROW]),
    "causal": ([ROW], [COLUMN, ROW]),
    "sinks": ([ROW], [COLUMN, ROW]),
    "softcap_alibi": ([ROW], [COLUMN, ROW]),
    "gemma2": ([ROW], [COLUMN, ROW]),
    "sigmoid_attention": ([ROW], [COLUMN, ROW]),
    "lssa": ([ROW], [COLUMN, ROW]),
    "user_normaliser": ([ROW], [COLUMN, ROW]),
    "urpe": ([ROW], [COLUMN, ROW]),
    "gated": ([ROW], [COLUMN, ROW]),
    "relative_table": ([ROW], [COLUMN, ROW]),
    "music": ([ROW], [COLUMN, ROW]),
    "spatial": ([ROW], [COLUMN, ROW]),
    "manhattan": ([ROW], [COLUMN, ROW]),
    "retention": ([ROW], [COLUMN, ROW]),
    "linear_attention": ([ROW], [COLUMN, ROW]),
    "linear_bidirectional": ([], []),
    "aaren": ([ROW], [COLUMN]),
    "reversed": ([COLUMN, ROW], [COLUMN, COLUMN, ROW]),
    "watched": ([COLUMN, ROW], [COLUMN, ROW, ROW]),
    "agent": ([ROW, ROW], [COLUMN, COLUMN, ROW, ROW]),
}


@pytest.mark.parametrize("name", sorted(TABLE))
def test_passes(name: str) -> None:
    forward, backward = TABLE[name]
    assert directions(plan_forward(example(name)).forward) == forward
    assert directions(plan_gradient(example(name))) == backward


def test_plain_softmax_is_flash_attention() -> None:
    plans = plan_forward(example("softmax"))
    assert len(plans.forward.steps) == 1
    assert {s.name for s in plans.saved} == {"lse", "o"}
    gradient = plan_gradient(example("softmax"))
    assert len(gradient.steps) == 2
    delta = next(node for s in gradient.passes for name, _, node in s.stores if name == "delta")
    b, h, i, e = (axis(a) for a in "bhie")
    assert isinstance(delta, Sum)
    assert delta.bound == {"e"}
    assert set(delta.factors) == {load("grad_o", (b, h, i, e)), load("o", (b, h, i, e))}


def test_delta_is_computed_once_and_read_by_the_column_pass() -> None:
    row, column = plan_gradient(example("causal")).passes
    assert "delta" in {name for name, _, _ in row.stores}
    assert "delta" in column.reads


def test_entropy_costs_no_pass_forward() -> None:
    program = spec("attention watch\nmask = j <= i\nobserve entropy = -sum[j](xlogy(p, p))\n")
    assert directions(plan_forward(program).forward) == [ROW]
    assert directions(plan_gradient(program)) == [COLUMN, ROW, ROW]


def test_inner_l1_hoists_out_of_a_power() -> None:
    program = spec(
        "attention sharpened\n"
        "let u = softplus(s)\n"
        "normaliser(s) = softplus(s) / sum[j](softplus(s))\n"
        "weight = p ** 3 / sum[j](p ** 3)\n".replace("let u = softplus(s)\n", "")
    )
    assert directions(plan_forward(program).forward) == [ROW]


@pytest.mark.parametrize("name", NAMES)
def test_no_plane_is_stored(name: str) -> None:
    program = example(name)
    planes = {o.name for o in program.outputs if len(set(o.parts[0][0]) & {"i", "j", "a"}) == 2}
    second = plan_forward(gradient_program(gradient_program(program)), training=False).forward
    for plan in (plan_forward(program).forward, plan_gradient(program), second):
        for buffer in plan.buffers:
            sequence = [a for a in buffer.axes if plan.program.axis(a).role == "sequence"]
            assert len(sequence) <= 1 or buffer.name in planes or buffer.name.removeprefix("grad_grad_") in planes


@pytest.mark.parametrize("name", NAMES)
def test_steps_read_only_what_exists(name: str) -> None:
    program = example(name)
    for plan in (plan_forward(program).forward, plan_gradient(program)):
        known = {t.name for t in plan.program.tensors}
        for step in plan.steps:
            if isinstance(step, Pass):
                roots = [*step.reductions, *(n for _, _, n in step.stores)]
                written = {name for name, _, _ in step.stores}
            else:
                roots = [n for _, n in step.parts]
                written = {step.buffer}
            read = {n.tensor for n in postorder(roots) if isinstance(n, Load)}
            assert read <= known, f"{name}: {step} reads {read - known}"
            known |= written
        assert {b.name for b in plan.buffers} <= known


def test_key_and_value_gradients_are_written_per_key_head() -> None:
    (column,) = (p for p in plan_gradient(example("causal")).passes if p.direction == COLUMN)
    assert column.grid == ("b", "g")
    assert [a for a, _, _ in column.groups] == ["h"]


def test_the_output_is_shared_unless_rounding_it_would_show() -> None:
    """A slope's gradient sums the score's gradient over rows, where it cancels up to the rounding of the row term."""
    assert {s.name for s in plan_forward(example("causal")).saved} == {"lse", "o"}
    assert {s.name for s in plan_forward(example("alibi")).saved} == {"m", "log_z", "o_exact"}


def test_the_weight_of_a_sink_has_no_part_in_the_rounding_of_lse() -> None:
    """It is one number a row: made of the maximum and the sum, saved apart, while the plane's weights come from lse."""
    (finish,) = (s for s in plan_gradient(example("sinks")).steps if isinstance(s, Finish) and s.buffer == "grad_sink")
    read = {n.tensor for n in postorder([n for _, n in finish.parts]) if isinstance(n, Load)}
    assert "lse" not in read
    row, column = plan_gradient(example("sinks")).passes
    assert "lse" in {n.tensor for p in (row, column) for n in postorder(p.reductions) if isinstance(n, Load)}
    assert len(read & {s.name for s in plan_forward(example("sinks")).saved}) == 2
