"""Masks on grids within grids: quotients case by case, rows and places kept apart, and the parts that are left. That
blocks found by a search are exact is tested in `test_block_list`."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnc import driver
from attnc.ir.construct import FALSE, add, axis, call, conjuncts, const, mul, size, sub
from attnc.ir.node import Node
from attnc.lowering import lower
from attnc.passes.cases import VALUES, cases, reach, separated, settled
from attnc.passes.nested import MOST_SEARCHES, Band, Grid, nested, searches
from attnc.passes.rows import Line
from tests.masks import condition, mask, torus
from tests.passes.test_bounds import number

ROW, KEY = axis("i"), axis("j")
TOPS: dict[Node, int] = {ROW: 6, KEY: 9}
POINTS = list(product(range(7), range(10)))
A, B = Line("i", const(0), 12, "i_row", "i_place"), Line("j", const(0), 12, "j_row", "j_place")


def numbers() -> st.SearchStrategy[Node]:
    linear = st.tuples(*[st.integers(-4, 4)] * 2, st.integers(-20, 20)).map(
        lambda t: add(mul(const(t[0]), ROW), mul(const(t[1]), KEY), const(t[2]))
    )
    divided = st.tuples(st.sampled_from(["floordiv", "mod"]), linear, st.integers(2, 30)).map(
        lambda t: call(t[0], t[1], const(t[2]))
    )
    several = st.tuples(st.sampled_from(["minimum", "maximum"]), linear, divided).map(lambda t: call(*t))
    return linear | divided | several | st.tuples(linear, divided).map(lambda t: add(*t))


def comparisons() -> st.SearchStrategy[Node]:
    return st.tuples(st.sampled_from(["le", "lt", "eq"]), numbers(), numbers()).map(lambda t: call(*t))


@settings(max_examples=150, deadline=None)
@given(numbers())
def test_numbers_stay_within_their_reach(value: Node) -> None:
    bounds = reach(value, TOPS)
    assert bounds is not None
    assert all(bounds[0] <= number(value, {"i": i, "j": j}) <= bounds[1] for i, j in POINTS)


def test_without_the_length_of_an_axis_there_is_no_reach() -> None:
    assert reach(add(ROW, axis("k")), TOPS) is None
    assert reach(call("mod", axis("k"), const(5)), TOPS) == (0, 4)


@settings(max_examples=150, deadline=None)
@given(st.lists(comparisons(), min_size=1, max_size=4))
def test_settled_conditions_and_cases_mean_the_same(conditions: list[Node]) -> None:
    simple = settled(conditions, TOPS)
    split = cases(conditions, conditions, TOPS)
    for i, j in POINTS:
        at = {"i": i, "j": j}
        holds = all(number(c, at) for c in conditions)
        assert all(number(c, at) for c in simple) == holds
        if split is not None:
            assert sum(all(number(c, at) for c in choice) for choice in split) == holds


def test_what_contradicts_itself_never_holds() -> None:
    apart = sub(ROW, KEY)
    assert settled([call("le", apart, const(-1)), call("le", const(2), apart)], TOPS) == [FALSE]
    assert settled([call("le", const(7), ROW)], TOPS) == [FALSE]
    assert settled([call("eq", call("mod", apart, const(20)), const(9))], TOPS) == [FALSE]
    assert settled([call("le", apart, const(3)), call("le", apart, const(2))], TOPS) == [call("le", apart, const(2))]


def test_a_remainder_that_one_number_leaves_is_that_number() -> None:
    apart = sub(ROW, KEY)
    assert settled([call("eq", call("mod", apart, const(10)), const(0))], TOPS) == [call("eq", apart, const(0))]


def test_quotients_of_many_values_stay() -> None:
    many = call("le", call("floordiv", add(ROW, KEY), const(2)), const(1))
    few = call("le", call("floordiv", add(ROW, KEY), const(15 // VALUES + 1)), const(1))
    assert cases([many], [many], TOPS) is None
    assert cases([few], [few], TOPS) is not None


def test_rows_and_places_are_kept_apart() -> None:
    """A causal mask on a grid: an earlier row, or the same one and no later place."""
    tops: dict[Node, int] = {axis("i_place"): 11, axis("j_place"): 11}
    found = separated([call("le", B.whole, A.whole)], A, B, tops)
    assert found is not None
    for s, t, x, y in product(range(3), range(3), range(12), range(12)):
        at = {"i_row": s, "j_row": t, "i_place": x, "j_place": y}
        held = [all(number(c, at) for c in (*rows, *places)) for rows, places in found]
        assert sum(held) == (12 * t + y <= 12 * s + x)
    for rows, places in found:
        assert not any(c.axes & {"i_place", "j_place"} for c in rows)
        assert not any(c.axes & {"i_row", "j_row"} for c in places)


def test_what_no_case_separates_is_not_known() -> None:
    mixed = call("le", mul(axis("i_row"), axis("i_place")), axis("j_row"))
    assert separated([mixed], A, B, {axis("i_place"): 11, axis("j_place"): 11}) is None


def test_classes_of_one_length_are_one_part() -> None:
    """Of 257 positions a step of 24 apart, the first 17 remainders have eleven, the others ten."""
    made = mask("neighbourhood 1-D, dilated by more than a block", "i", "j", (257, 257, 0))
    parts = nested(conjuncts(made.condition), "i", "j", size("N"))
    assert parts is not None and len(parts) == 2
    for p in parts:
        assert isinstance(p, Grid) and p.outer.columns == 24
        assert all(isinstance(x, Band) for x in (*p.rows, *p.places))


@pytest.mark.parametrize(("extents", "wide"), [((9, 24), False), ((8, 19, 5), True)])
def test_searches_that_look_at_too_much_are_told(extents: tuple[int, ...], wide: bool) -> None:
    family = torus(extents, (2,) * len(extents), more="j <= i")
    source = driver.read(f"attention wide\n{family.text}\n")
    asked = condition(lower(driver.definition(source), source, {}))
    parts = nested(conjuncts(asked), "i", "j", size("N"))
    assert parts is not None and (searches(parts) > MOST_SEARCHES) == wide
