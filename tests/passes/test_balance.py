"""Row terms that cancel, exponents in the units of the score, and scores rounded alike."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import attnc
from attnc import driver
from attnc.codegen.tile import Accumulate, Assign, statements
from attnc.ir.construct import call, size, terms_of
from attnc.ir.dense import evaluate
from attnc.ir.node import Add, Call, Const, Load, Max, Node, Prod, Sum, Var
from attnc.ir.options import Options
from attnc.ir.printer import show
from attnc.ir.walk import postorder
from attnc.passes.balance import balance
from attnc.passes.derive import gradient_program
from attnc.passes.exponents import unit_and_terms
from attnc.passes.pipeline import normalise, plan_forward, plan_gradient
from attnc.passes.plan import Plan
from attnc.passes.planes import Planes
from attnc.passes.tile import lower_pass
from tests.passes.programs import NAMES, example, inputs, seeds, spec

CLOSE = 1e-10


@pytest.mark.parametrize("name", NAMES)
def test_balance_keeps_every_gradient(name: str) -> None:
    program = example(name)
    tensors, sizes = inputs(name)
    gradient = normalise(gradient_program(program), program)
    known = {**tensors, **seeds(program, evaluate(program, tensors, sizes))}
    roots = iter(balance(gradient.roots(), Planes(gradient), rows=True))
    outputs = tuple(replace(o, parts=tuple((a, next(roots)) for a, _ in o.parts)) for o in gradient.outputs)
    found = evaluate(gradient.with_outputs(outputs), known, sizes)
    for n, value in evaluate(gradient, known, sizes).items():
        torch.testing.assert_close(found[n], value, rtol=CLOSE, atol=CLOSE)


def row_sums(plan: Plan) -> int:
    """Reductions of a gradient that keep a row and no channel."""
    planes = Planes(plan.program)
    return sum(not planes.channels(r.axes) for p in plan.passes for r in p.reductions if isinstance(r, Sum))


def test_what_rows_leave_is_taken_from_a_slope_and_not_from_plain_softmax() -> None:
    alibi = example("alibi")
    without = replace(alibi, options=Options(disabled=frozenset({"balance"})))
    assert row_sums(plan_gradient(alibi)) == row_sums(plan_gradient(without)) + 2
    assert len(plan_gradient(alibi).passes) == len(plan_gradient(without).passes)
    assert row_sums(plan_gradient(example("causal"))) == 0


def test_a_row_of_one_key_has_no_gradient_where_weights_are_not_exponentials() -> None:
    """The weight is 1 whatever the score. Scores here are near 0, which its gradient is divided by."""
    op = attnc.compile("attention a\nscore = dot(q, k)\nmask = j <= i\nnormaliser = l1(s)\n", backend="tiled")
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.rand(1, 2, 5, 16, generator=generator).requires_grad_() for _ in range(3))
    o = op(1e-3 * q, k, v)
    assert isinstance(o, torch.Tensor)
    dq, _ = torch.autograd.grad(o, (q, k), torch.randn(o.shape, generator=generator))
    assert dq[:, :, 0].abs().max() <= 1e-4 * dq.abs().max()


def exponents(plan: Plan) -> list[Node]:
    everything = postorder([r for p in plan.passes for r in p.reductions])
    return [n.args[0] for n in everything if isinstance(n, Call) and n.fn == "exp2"]


def test_scores_of_several_terms_keep_their_units() -> None:
    """log2(e) stands in front of the difference there, and is folded into the scale of a plain score."""
    for name, kept in (("alibi", True), ("causal", False), ("spatial", True)):
        for plan in (plan_forward(example(name)).forward, plan_gradient(example(name))):
            found = exponents(plan)
            assert found
            assert all(any(unit_and_terms(t)[0] != 1 for t in (x, *terms_of(x))) == kept for x in found), name


def test_maximum_and_denominator_are_saved_apart_where_that_costs_nothing() -> None:
    """In front of an exponent that keeps its unit stands a multiplication, which has an addition for nothing."""
    for name, apart in (("alibi", True), ("causal", False), ("spatial", True)):
        saved = {s.name for s in plan_forward(example(name)).saved}
        assert ({"m", "log_z"} <= saved, "lse" in saved) == (apart, not apart), name


def test_rows_are_balanced_where_what_they_are_summed_with_stands_outside() -> None:
    """The bias depends on the key alone, so its factor stands outside of the sum over queries."""
    text = "attention a\ntensor slope: f32[H]\nbias = slope[h] * j\nmask = j <= i\n"
    op = attnc.compile(text, backend="tiled")
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 1, 300, 8, generator=generator) for _ in range(3))
    # All values are the same, so the output is, whatever the slope.
    slope = torch.tensor([0.25], requires_grad=True)
    o = op(q, k, v[:, :, :1].expand(-1, -1, 300, -1), slope=slope)
    (found,) = torch.autograd.grad(o.sum(), slope)
    assert abs(float(found)) < 2e-4


def test_maximum_and_denominator_are_saved_apart_where_scores_depend_on_the_key_alone() -> None:
    assert "lse" in {s.name for s in plan_forward(example("causal")).saved}
    saved = plan_forward(example("aaren")).saved
    assert "lse" not in {s.name for s in saved}
    assert any(isinstance(s.node, Max) for s in saved)


def association(node: Node, named: dict[str, Node]) -> str:
    """An expression with its variables written out, sums and products of two in any order, signs and units dropped."""
    match node:
        case Var():
            return association(named[node.name], named) if node.name in named else node.name
        case Load():
            return node.tensor
        case Add() | Prod() if node.kind == "f":
            children = [c for c in node.children if not isinstance(c, Const)]
            parts = sorted(association(c, named) for c in children)
            return parts[0] if len(parts) == 1 else f"({(' + ' if isinstance(node, Add) else ' * ').join(parts)})"
        case Call(fn="rounded"):
            return association(node.args[0], named)
        case Sum():
            return f"sum({association(node.factors[0], named)})"
        case _ if node.kind == "i":
            return "distance"
        case _:
            return "other"


def test_forward_and_backward_round_a_score_alike() -> None:
    """Factors of one position are combined in the same order, whichever position a kernel loops over."""
    tensors = "tensor x: f32[B, H, M]\ntensor y: f32[B, H, N]\ntensor z: f32[H]\n"
    program = spec(f"attention a\n{tensors}bias = x[b, h, i] * y[b, h, j] * z[h] * (i - j) + z[h] * y[b, h, j]\n")
    found = set()
    for plan in (plan_forward(program).forward, plan_gradient(program)):
        dtypes = {t.name: "f32" for t in plan.program.tensors} | {b.name: "f32" for b in plan.buffers}
        for item in plan.passes:
            body = list(statements(lower_pass(plan, item, dtypes=dtypes).body))
            named = {s.target.name: s.value for s in body if isinstance(s, Assign)}
            every = postorder([s.value for s in body if isinstance(s, Assign | Accumulate)])
            scores = [n for n in every if isinstance(n, Add) and n.kind == "f" and "rounded" in show(n)]
            found |= {t for n in scores if "lse" not in (t := association(n, named)) and "q" in t}
    assert found == {"(((distance * x) * (y * z)) + (other * sum(q)))"}


def test_scores_are_multiplied_by_the_same_reciprocal_in_every_pass() -> None:
    """Where one pass divides by N, and another multiplies by what it found to be 1/N, weights differ."""
    x = "(i - j) / N"
    program = spec(f"attention far\ntensor c: f32[H, 2]\nbias = {x} * (c[h, 0] + {x} * c[h, 1])")
    inverse, named = call("reciprocal", size("N")), 0
    for kernel in driver.all_kernels(program):
        values = {s.target: s.value for s in statements(kernel.body) if isinstance(s, Assign)}
        named += inverse in values.values()
        products = [n for n in postorder(values.values()) if isinstance(n, Prod)]
        assert not any(inverse in n.factors for n in products)
    assert named >= 2
