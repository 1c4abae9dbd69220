"""Three sequence axes in one reduction are refused with a located diagnostic."""

from __future__ import annotations

import pytest

from attnc.diagnostics.codes_meaning import ENTRIES
from attnc.diagnostics.diagnostic import SpecError
from attnc.diagnostics.render import render_plain
from attnc.passes.pipeline import plan_forward, plan_gradient
from tests.passes.programs import spec


def test_refused_where_it_is_written() -> None:
    with pytest.raises(SpecError) as raised:
        plan_forward(spec(ENTRIES["E128"].wrong + "\n"))
    (diagnostic,) = raised.value.diagnostics
    text = render_plain(diagnostic)
    assert diagnostic.code == "E128"
    assert ":5:1" in text
    assert len(text.splitlines()) <= 12


def test_the_advice_works() -> None:
    program = spec(ENTRIES["E128"].right + "\n")
    assert plan_forward(program).forward.passes
    assert plan_gradient(program).passes
