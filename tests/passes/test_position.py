"""The gradient of a maximum goes to the first position that attains it, found in the pass that finds the maximum."""

from __future__ import annotations

import torch

import attnc
from attnc.ir.construct import axis, call, const, first_attained, load, max_over, mul, neg, position_of
from attnc.ir.node import Max
from attnc.passes.derive import gradient_program
from attnc.passes.pipeline import plan_forward, plan_gradient
from tests.passes.programs import spec

ROW, KEY = axis("i"), axis("j")
SCORE = load("x", (ROW, KEY))


def test_recognised() -> None:
    largest = max_over("j", SCORE, [call("le", KEY, ROW)])
    assert isinstance(largest, Max)
    found = first_attained(largest)
    assert position_of(neg(found)) is largest
    assert position_of(largest) is None
    assert position_of(max_over("j", mul(const(-1.0), KEY), [call("le", KEY, ROW)])) is None


def test_shares_the_pass_of_its_maximum() -> None:
    program = spec("attention peak\nmask = j <= i\nobserve top = max[j](s)\n")
    plan = plan_gradient(program)
    held = [[position_of(r) for r in p.reductions] for p in plan.passes]
    for p, positions in zip(plan.passes, held, strict=True):
        assert all(m is None or m in p.reductions for m in positions)
    assert any(m is not None for positions in held for m in positions)


def test_ties_go_to_the_first() -> None:
    q = torch.zeros(1, 1, 2, 4, dtype=torch.float64)
    v = torch.tensor([3.0, 5.0, 5.0, 1.0], dtype=torch.float64).reshape(1, 1, 4, 1).requires_grad_()
    op = attnc.compile("attention first\nobserve same = max[j](s + v[j, 0])\n", backend="tiled")
    _, seen = op(q, torch.zeros(1, 1, 4, 4, dtype=torch.float64), v, observe=True)
    (grad,) = torch.autograd.grad(seen["same"].sum(), v)
    assert grad.flatten().tolist() == [0.0, 2.0, 0.0, 0.0]


def test_forward_is_not_changed_by_it() -> None:
    program = spec("attention peak\nobserve top = max[j](s)\n")
    assert [p.direction for p in plan_forward(program).forward.passes] == ["row"]
    assert gradient_program(program).outputs
