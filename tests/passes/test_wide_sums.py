"""What is scattered is added up in f64 where programs run in order; results keep their dtype."""

from __future__ import annotations

import pytest

from attnc import driver
from attnc.ir.node import Sum
from tests.passes.programs import example


@pytest.mark.parametrize("name", ["relative_table", "urpe"])
def test_scattered_buffers_are_wide_on_a_cpu(name: str) -> None:
    _, gradient = driver.plans(example(name, small=False))
    here = driver.on_target(gradient, "cpu")
    scattered = {n for p in here.passes for n, _, node in p.stores if isinstance(node, Sum) and node.scatter}
    assert scattered
    assert {b.name for b in here.buffers if b.dtype == "f64"} == scattered
    assert all(b.role == "scratch" for b in here.buffers if b.name in scattered)
    assert not any(b.dtype == "f64" for b in driver.on_target(gradient, "gpu").buffers)


def test_plans_that_scatter_nothing_stay_as_they_are() -> None:
    forward, _ = driver.plans(example("causal", small=False))
    assert driver.on_target(forward, "cpu") is forward
