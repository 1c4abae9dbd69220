"""Row values found in many steps: each pass reads one vector and stores one, and the gradient reads few."""

from __future__ import annotations

from attnc import driver
from attnc.ir.node import Load
from attnc.ir.walk import postorder
from attnc.passes.plan import Plan

STEPS = 5
SPEC = f"attention a\nmask = j <= i\nnormaliser = entmax15(steps = {STEPS})"


def plans() -> tuple[Plan, Plan]:
    source = driver.read(SPEC)
    return driver.plans(driver.lower(driver.definition(source), source))


def test_every_step_reads_the_threshold_as_one_vector() -> None:
    forward, _ = plans()
    assert (
        len(forward.passes) == 1 + STEPS + 1 + 1
    )  # the maximum, the steps, the step that is differentiated, the values
    for step in forward.passes[2:]:
        vectors = {b.name for b in forward.buffers if len(b.axes) == 3}
        assert len(vectors & set(step.reads)) == 1


def test_the_gradient_reads_the_threshold_not_the_steps() -> None:
    forward, backward = plans()
    saved = {b.name for b in forward.buffers if b.role == "saved"}
    assert len(saved) <= 4
    loads = {n.tensor for step in backward.passes for n in postorder(step.reductions) if isinstance(n, Load)}
    assert saved <= loads
