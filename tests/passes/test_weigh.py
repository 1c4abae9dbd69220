"""What `explain` says about rewrites: which applied, to what, where in the spec, and at what cost."""

from __future__ import annotations

from dataclasses import replace

import pytest

import attnc
from attnc import driver
from attnc.ir.construct import axis, call, const, size, sub
from attnc.ir.options import REWRITES, Options
from attnc.ir.program import Program
from attnc.ir.sizes import evaluator
from attnc.passes.cost import plan_cost
from attnc.passes.decision import Alternative, Decision
from attnc.passes.explain import REFERENCE
from attnc.passes.weigh import readable, weighed
from tests.passes.programs import example, spec


def decisions(program: Program) -> dict[str, Decision]:
    found = weighed(program, driver.explained_plans(program), driver.plans)
    assert len({d.rewrite for d in found}) == len(found)
    return {d.rewrite: d for d in found}


def numbers(way: Alternative) -> tuple[int, int]:
    sizes = REFERENCE | {"q_start": 0}
    return evaluator(way.bytes)(sizes), evaluator(way.flops)(sizes)


def test_plain_softmax() -> None:
    found = decisions(spec("attention a"))
    assert list(found) == ["online", "reuse", "group"]
    assert found["online"].found == "the denominator and o can follow the running maximum over j"
    assert "1 + 2 passes, forward and backward, instead of 2 + 2" in found["online"].chosen
    assert found["reuse"].found == "the gradient needs lse and o, which the forward computes"
    assert "lse[B, H, M] kept" in found["reuse"].chosen
    assert all(d.line is None for d in found.values())


def test_lines_and_ranges_come_from_the_spec() -> None:
    text = "attention a\n\nmask = 0 <= i - j < 64\nnormaliser = softmax1\nobserve y = -sum[j](xlogy(p, p))"
    found = decisions(spec(text))
    assert (found["bounds"].line, found["online"].line, found["expand"].line) == (3, 4, 5)
    assert "max(0, q_start + i_first - 63) <= j < min(N, q_start + i_last + 1)" in found["bounds"].found
    assert "sums in y" in found["expand"].found


def test_the_chosen_way_comes_first_and_its_cost_is_that_of_the_plans() -> None:
    program = example("causal")
    forward, gradient = driver.plans(program)
    total = plan_cost(forward) + plan_cost(gradient)
    for name, decision in decisions(program).items():
        chosen, other = decision.alternatives
        assert (chosen.name, other.name) == (f"with {name}", f"without {name}")
        assert (chosen.bytes, chosen.flops) == (total.bytes, total.flops)
        assert numbers(chosen) <= numbers(other)


def test_a_mask_on_data_bounds_loops_though_its_cost_is_not_a_closed_form() -> None:
    found = decisions(example("prefix_lm"))["bounds"]
    assert "prefix[b]" in found.found
    assert numbers(found.alternatives[0]) == numbers(found.alternatives[1])


def test_a_table_of_runs_is_weighed_by_the_share_of_pairs_it_leaves() -> None:
    mask = "attention a\ntensor doc: i32[B, N]\nmask = doc[b, i] == doc[b, j]"
    found = decisions(spec(mask))["runs"]
    assert found.line == 3
    (few, few_flops), (all_, all_flops) = map(numbers, found.alternatives)
    assert few < all_ / 10
    assert abs(few_flops - all_flops / 100) <= 0.01 * all_flops / 100


@pytest.mark.parametrize("name", ["online", "reuse", "bounds"])
def test_a_disabled_rewrite_is_weighed_too(name: str) -> None:
    program = example("causal")
    off = replace(program, options=Options(frozenset([name])))
    left, taken = decisions(off)[name], decisions(program)[name]
    assert left.found == taken.found
    assert "disabled" in left.chosen
    assert left.alternatives == taken.alternatives[::-1]


def test_rewrites_that_change_nothing_are_not_mentioned() -> None:
    assert set(decisions(spec("attention a\nscore = dot(q, k)\nnormaliser = none"))) == {"group"}


WAYS = (Alternative("one", const(1), const(1)), Alternative("another", const(2), const(2)))


def test_decisions_that_a_pass_recorded_with_costs_are_left_to_it() -> None:
    program = spec("attention a")
    forward, gradient = driver.plans(program)
    chosen = replace(forward, decisions=(Decision("online", "seen", "done", WAYS),)), gradient
    assert "online" not in {d.rewrite for d in weighed(program, chosen, driver.plans)}


def test_explain_prints_every_decision_with_its_numbers() -> None:
    op = attnc.compile("attention a\nmask = j <= i")
    text = op.explain()
    for d in weighed(op.program, driver.explained_plans(op.program), driver.plans):
        (chosen, other) = d.alternatives
        where = "" if d.line is None else f" (line {d.line})"
        assert f"  {d.rewrite}{where}: {d.found}\n    chosen: {d.chosen}\n    * {chosen.name}: " in text
        for way in (chosen, other):
            moved, done = numbers(way)
            assert f"{way.name}: {moved / 1e6:,.1f} MB moved, {done / 1e9:,.2f} GF" in text
    without = attnc.compile("attention a\nmask = j <= i", disable="online").explain()
    assert "* without online" in without
    assert "forward: 2 passes over the plane" in without


def test_ranges_read_like_formulas() -> None:
    j, n = axis("j"), size("N")
    least = call("minimum", n, call("minimum", n, sub(j, const(3))))
    assert readable(least) == "min(N, j - 3)"
    assert readable(call("floordiv", sub(n, j), const(2))) == "(N - j) // 2"


def test_every_rewrite_is_described_for_help() -> None:
    assert all(what and not what.endswith(".") for what in REWRITES.values())
