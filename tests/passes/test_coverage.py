"""Which form each mask family gets in a plan: loop bounds in closed form, or a table of runs. That both are exact, in
both directions, is tested in `test_bounds` and in `tests/runtime/test_planner`."""

from __future__ import annotations

import pytest

from attnc.cli.inspect import stage_text
from tests.masks import FAMILIES, program

MIXED = {"key flags": (2, 0), "causal key flags": (2, 1)}
"""Tables and ranges of one forward and two backward passes: whether any query may attend a key stands outside the sums
over queries."""


@pytest.mark.parametrize("name", FAMILIES)
def test_the_plan_says_how_loops_follow_the_mask(name: str) -> None:
    text = stage_text(program(name), "plan", "sm_90", "f32", 64)
    tables = text.count("runs from a table")
    ranges = text.count("all allowed: ")
    assert text.count(" pass ") == 3
    assert (tables, ranges) == MIXED.get(name, (0, 3) if FAMILIES[name].closed else (3, 0))
