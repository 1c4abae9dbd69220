"""Which form each mask family gets in a plan: one range or several in closed form, or a table of runs. That all are
exact, in both directions, is tested in `test_bounds`, in `test_block_list` and in `tests/runtime/test_planner`."""

from __future__ import annotations

import pytest

from attnc.cli.inspect import stage_text
from tests.masks import FAMILIES, program

TABLES = {"key flags": 2, "causal key flags": 2}
"""Tables of one forward and two backward passes, where not all are alike: whether any query may attend a key stands
outside the sums over queries."""


@pytest.mark.parametrize("name", FAMILIES)
def test_the_plan_says_how_loops_follow_the_mask(name: str) -> None:
    whole = stage_text(program(name), "plan", "sm_90", "f32", 64)
    text, _, fused = whole.partition("plan masked_gradient on a CPU\n")
    family = FAMILIES[name]
    tables = TABLES.get(name, 0 if family.closed or family.ranges else 3)
    assert text.count(" pass ") == 3
    assert text.count("runs from a table") == tables
    assert text.count(" in closed form") >= (3 - tables if name != "key flags" else 0)
    assert text.count("all allowed: ") == 3 or not family.closed
    if fused:  # one loop in place of the gradient's two, over the blocks that the mask leaves
        assert fused.count("column pass ") == 1
        assert ("runs from a table" in fused) == (tables > 0) or name in TABLES
