"""Ranges in closed form against what a mask allows, pair by pair: every block with an allowed pair is visited once, in
order, and no other; what is called full is."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnc.ir.construct import add, axis, call, conjuncts, const, mul, neg, size, sub
from attnc.ir.node import Call, Node
from attnc.passes.block_list import TURN, BlockList, closed_form
from attnc.passes.bounds import Range
from attnc.passes.conditions import plain
from attnc.passes.congruence import Lattice, divided
from attnc.passes.inequality import at_most_zero
from attnc.passes.progression import Multiples, Powers, Progression, membership
from attnc.passes.whole import in_integers
from attnc.runtime.tiles import Mask
from tests.masks import FAMILIES, blocks, dense, mask
from tests.passes.test_bounds import Point, conditions, number

SHAPES = [(257, 257, 0), (63, 257, 194), (130, 70, 0), (1, 200, 120), (7, 1, 0), (40, 300, 260)]
LENGTHS = [(32, 64), (16, 16), (24, 40), (64, 16)]


def runs(found: Range | BlockList, at: Point, block: int) -> list[tuple[int, int, int]]:
    """What a kernel does with it: partly allowed blocks from the first to the second position, full ones up to the
    third."""
    if isinstance(found, Range):
        low, high = number(found.low, at) // block * block, number(found.high, at)
        return [(low, -(-high // block) * block, -(-high // block) * block)]
    at = dict(at)
    for v, value in found.before:
        at[v.name] = number(value, at)
    out = []
    for turn in range(number(found.count, at)):
        at[TURN.name] = turn
        for v, value in found.each:
            at[v.name] = number(value, at)
        out.append((number(found.low, at), number(found.turn, at), number(found.high, at)))
    return out


def check(
    found: Range | BlockList, made: Mask, lengths: tuple[int, int], at: Point, allowed: Tensor, *, fit: bool
) -> None:
    """`fit`: whether blocks are long enough for what is promised about them."""
    some, every = blocks(allowed[None], lengths)
    block = lengths[1]
    known = at | {f"BLOCK_{made.outer.upper()}": lengths[0], f"BLOCK_{made.inner.upper()}": block}
    for row in range(some.shape[1]):
        known[f"{made.outer}_first"] = row * lengths[0]
        known[f"{made.outer}_last"] = min((row + 1) * lengths[0], made.extents[made.outer]) - 1
        visited, full = torch.zeros(2, some.shape[2], dtype=torch.bool)
        end = 0
        for low, turn, high in runs(found, known, block):
            if high <= low:
                continue
            assert end <= low <= turn <= high
            assert low % block == turn % block == high % block == 0
            visited[low // block : high // block] = True
            full[turn // block : high // block] = True
            end = high
        where = f"{lengths} row {row}: {visited.tolist()}, {some[0, row].tolist()}"
        assert not (some[0, row] & ~visited).any(), where
        assert not (full & ~every[0, row]).any(), where
        assert not fit or torch.equal(visited, some[0, row]), where


def form(made: Mask) -> Range | BlockList | None:
    extent = size("M" if made.inner == "i" else "N")
    return closed_form(conjuncts(made.condition), made.outer, made.inner, extent)


@pytest.mark.parametrize("direction", [("i", "j"), ("j", "i")], ids=["rows", "columns"])
@pytest.mark.parametrize("name", [n for n, f in FAMILIES.items() if f.ranges])
def test_ranges_of_families_are_exact(name: str, direction: tuple[str, str]) -> None:
    outer, inner = direction
    grid = FAMILIES[name].grid
    for shape in SHAPES if grid is None else [(grid, grid, 0), (grid - 100, grid, 93)]:
        made = mask(name, outer, inner, shape)
        found = form(made)
        assert found is not None
        for lengths in LENGTHS if grid is None else LENGTHS[::2]:
            check(found, made, lengths, dict(made.sizes), dense(made)[0], fit=True)


@pytest.mark.parametrize("name", ["low bits", "butterfly", "documents", "rounded up", "key flags"])
def test_other_families_have_none(name: str) -> None:
    assert form(mask(name, "i", "j", (64, 64, 0))) is None


ROW, KEY = axis("i"), axis("j")
SMALL = st.integers(0, 12)


def distances() -> st.SearchStrategy[Node]:
    """How far a key lies before a query, in positions or in blocks."""
    unit = st.sampled_from([1, 1, 2, 3, 8])
    return st.tuples(unit, SMALL, st.sampled_from([1, -1])).map(
        lambda t: mul(
            const(t[2]), sub(call("floordiv", add(ROW, const(t[1])), const(t[0])), call("floordiv", KEY, const(t[0])))
        )
    )


def members() -> st.SearchStrategy[Node]:
    steps = st.tuples(st.one_of(distances(), st.just(KEY), st.just(ROW)), st.integers(2, 40), SMALL).map(
        lambda t: call("eq", call("mod", t[0], const(t[1])), const(t[2] % t[1]))
    )
    powers = distances().map(lambda u: call("eq", call("bitand", u, sub(u, const(1))), const(0)))
    return steps | powers


def bounds() -> st.SearchStrategy[Node]:
    either = st.one_of(distances(), st.just(KEY), st.just(ROW))
    return st.tuples(either, st.integers(-20, 60), st.booleans()).map(
        lambda t: call("le", t[0], const(t[1])) if t[2] else call("le", const(t[1]), t[0])
    )


def rows() -> st.SearchStrategy[Node]:
    """Neighbourhoods on a grid of 5 to 24 columns."""
    edges = st.tuples(st.integers(5, 24), SMALL, st.integers(0, 3), st.integers(0, 3), st.booleans())

    def made(t: tuple[int, int, int, int, bool]) -> Node:
        columns, shift, high, wide, clamped = t
        row, key = add(ROW, const(shift)), KEY
        place = call("mod", row, const(columns))
        if clamped:
            place = call("clamp", place, const(min(wide, 2)), const(columns - 1 - wide))
        apart = call("abs", sub(call("mod", key, const(columns)), place))
        rows_apart = sub(call("floordiv", row, const(columns)), call("floordiv", key, const(columns)))
        return call("and", call("le", call("abs", rows_apart), const(high)), call("le", apart, const(wide)))

    return edges.map(made)


def dilated() -> st.SearchStrategy[Node]:
    """Neighbourhoods of positions a step apart, along one axis or along the rows of a grid, with strides."""
    edges = st.tuples(
        st.integers(2, 7) | st.integers(17, 40),
        st.integers(1, 3),
        st.integers(0, 3),
        st.integers(0, 5),
        SMALL,
        st.integers(0, 24) | st.integers(40, 60),
        st.booleans(),
    )

    def made(t: tuple[int, int, int, int, int, int, bool]) -> Node:
        step, stride, left, right, shift, columns, bounded = t
        row, key = add(ROW, const(shift)), add(KEY)
        near: list[Node] = []
        if columns > 4:
            apart = sub(call("floordiv", row, const(columns)), call("floordiv", key, const(columns)))
            near = [call("le", call("abs", apart), const(left))]
            row, key = (call("mod", x, const(columns)) for x in (row, key))
        group = call("floordiv", call("floordiv", row, const(step)), const(stride))
        count = call("floordiv", sub(const(129 + step), call("mod", row, const(step))), const(step))
        leader = call("clamp", mul(const(stride), group), const(left), count if bounded else const(20))
        apart = sub(call("floordiv", key, const(step)), leader)
        same = call("eq", call("mod", row, const(step)), call("mod", key, const(step)))
        return call("and", same, call("le", neg(const(left)), apart), call("le", apart, const(right)), *near)

    return edges.map(made)


def around() -> st.SearchStrategy[Node]:
    """Near each other on a grid whose borders meet, by the shorter way around or by a remainder; the last axis may go
    on without end."""
    edges = st.tuples(
        st.lists(st.integers(2, 20), min_size=1, max_size=3),
        st.integers(0, 4),
        SMALL,
        st.booleans(),
        st.booleans(),
        st.sampled_from(["", "causal", "first"]),
    )

    def made(t: tuple[list[int], int, int, bool, bool, str]) -> Node:
        extents, radius, shift, remainder, endless, more = t
        row, key = add(ROW, const(shift)), add(KEY)
        near: list[Node] = []
        for n, extent in enumerate(extents):
            at = [x if endless and n + 1 == len(extents) else call("mod", x, const(extent)) for x in (row, key)]
            row, key = (call("floordiv", x, const(extent)) for x in (row, key))
            apart = call("abs", sub(*at))
            shorter = call("minimum", apart, sub(const(extent), apart))
            after = call("mod", add(sub(*at), const(radius)), const(extent))
            near.append(call("le", after if remainder else shorter, const(2 * radius if remainder else radius)))
        if more:
            near.append(call("le", KEY, ROW) if more == "causal" else call("le", KEY, const(9)))
        return call("and", *near)

    return edges.map(made)


def radial() -> st.SearchStrategy[Node]:
    """Places near each other, the nearer the further apart their rows are, and rows at distances that grow."""
    edges = st.tuples(
        st.integers(2, 24),
        SMALL,
        st.integers(1, 40),
        st.integers(1, 24),
        st.integers(-2, 2),
        st.integers(0, 2),
        st.sampled_from(["", "causal", "before", "first"]),
    )

    def made(t: tuple[int, int, int, int, int, int, str]) -> Node:
        columns, shift, width, steps, lean, wide, more = t
        row, key = add(ROW, const(shift)), KEY
        apart = sub(call("floordiv", row, const(columns)), call("floordiv", key, const(columns)))
        distance = call("abs", apart)
        reach = call("power_of_two", call("floor_log2", call("maximum", distance, const(1))))
        away = call("abs", add(sub(call("mod", row, const(columns)), call("mod", key, const(columns))), const(lean)))
        near = call("le", mul(reach, add(away, const(1))), const(width))
        step = call("floordiv", add(reach, const(steps - 1)), const(steps))
        far = call("and", call("eq", call("mod", distance, step), const(0)), call("le", away, const(wide)))
        found = call("or", near, far)
        if more == "first":
            return call("or", found, call("lt", key, const(columns)))
        limits = {"causal": call("le", key, row), "before": call("le", const(1), apart)}
        return call("and", found, limits[more]) if more else found

    return edges.map(made)


def masks() -> st.SearchStrategy[Node]:
    simple = st.lists(bounds() | members(), min_size=1, max_size=3).map(lambda x: call("and", *x))
    unions = st.lists(simple, min_size=1, max_size=3).map(lambda x: call("or", *x))
    return (
        unions | rows() | dilated() | around() | radial() | st.tuples(unions, bounds()).map(lambda t: call("and", *t))
    )


def agrees(condition: Node, m: int, n: int, lengths: tuple[int, int], direction: tuple[str, str]) -> None:
    made = Mask(condition, *direction, (), {"i": m, "j": n}, {}, {"M": m, "N": n}, torch.device("cpu"))
    found = form(made)
    assume(found is not None)
    assert found is not None
    check(found, made, lengths, {"M": m, "N": n}, dense(made)[0], fit=lengths[1] >= 16)


DIRECTIONS = st.sampled_from([("i", "j"), ("j", "i")])
BLOCKS = st.sampled_from([(16, 16), (20, 24), (3, 16), (4, 8), (5, 3)])


NOWHERE = call(
    "and",
    call("le", call("floordiv", KEY, const(2)), call("floordiv", ROW, const(2))),
    call("le", const(2), sub(KEY, ROW)),
)


@settings(max_examples=75, deadline=None)
@example(NOWHERE, 20, 20, (16, 16), ("i", "j"))
@given(masks(), st.integers(1, 150), st.integers(1, 150), BLOCKS, DIRECTIONS)
def test_exact_for_any_mask_that_has_a_form(
    condition: Node, m: int, n: int, lengths: tuple[int, int], direction: tuple[str, str]
) -> None:
    agrees(condition, m, n, lengths, direction)


@pytest.mark.sweep
@settings(max_examples=3000, deadline=None)
@given(masks() | conditions(), st.integers(1, 150), st.integers(1, 150), BLOCKS, DIRECTIONS)
def test_exact_for_many_masks(
    condition: Node, m: int, n: int, lengths: tuple[int, int], direction: tuple[str, str]
) -> None:
    agrees(condition, m, n, lengths, direction)


# ----------------------------------------------------------------------------------------------------------- parts


@pytest.mark.parametrize("members", [Multiples(4, 3), Multiples(5, 0), Powers(zero=True), Powers(zero=False)])
def test_ranks_count_members(members: Progression) -> None:
    values = [number(members.value(const(k)), {}) for k in range(8)]
    assert values == sorted(set(values))
    for value in range(values[0], values[-1] + 1):
        rank = number(members.rank(const(value)), {})
        assert rank == sum(v < value for v in values)


def test_memberships() -> None:
    apart = sub(ROW, KEY)
    same = call("eq", call("mod", ROW, const(6)), call("mod", KEY, const(6)))
    assert membership(same) in {(apart, Multiples(6, 0)), (sub(KEY, ROW), Multiples(6, 0))}
    assert membership(call("eq", call("mod", KEY, const(6)), const(5))) == (KEY, Multiples(6, 5))
    assert membership(call("eq", call("mod", KEY, const(6)), const(7))) is None
    power = call("power_of_two", call("floor_log2", call("maximum", apart, const(1))))
    assert membership(call("eq", power, apart)) == (apart, Powers(zero=False))
    assert membership(call("eq", power, add(apart, const(1)))) is None


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["floordiv", "mod"]),
    st.tuples(*[st.integers(-12, 12)] * 3),
    st.integers(1, 12),
    st.integers(0, 30),
    st.integers(0, 30),
)
def test_common_divisors_taken_out_leave_the_same_number(
    fn: str, of: tuple[int, int, int], by: int, i: int, j: int
) -> None:
    value = call(fn, add(mul(const(of[0]), ROW), mul(const(of[1]), KEY), const(of[2])), const(by))
    (found,) = divided([value])
    assert number(found, {"i": i, "j": j}) == number(value, {"i": i, "j": j})
    if fn == "mod" and of[0] % by == of[1] % by == 0:
        assert found is const(of[2] % by)


@pytest.mark.parametrize("step", [1, 3, 16])
@pytest.mark.parametrize("rest", [0, 2])
def test_positions_of_a_class_are_numbered(step: int, rest: int) -> None:
    found = Lattice("i", const(5), step, rest % step)
    at = [number(found.position(const(k)), {}) for k in range(6)]
    assert all((x + 5) % step == rest % step for x in at)
    for place in range(at[0], at[-1] + 1):
        assert number(found.up(const(place)), {}) == sum(x < place for x in at)
        assert number(found.down(const(place)), {}) == sum(x <= place for x in at) - 1


def test_reals_that_are_whole_become_integers() -> None:
    distance = call("maximum", ROW, const(1))
    width = call("exp2", call("floor", call("log2", distance)))
    reach = call("power_of_two", call("floor_log2", distance))
    pairs = [
        (call("le", mul(width, add(KEY, const(1))), const(4.0)), call("le", mul(reach, add(KEY, const(1))), const(4))),
        (call("floor", mul(const(0.25), width)), call("floordiv", reach, const(4))),
        (call("eq", call("mod", ROW, width), const(0.0)), call("eq", call("mod", ROW, reach), const(0))),
    ]
    for real, whole in pairs:
        assert in_integers([real]) == [whole]
    kept = [call("floor", mul(const(0.3), ROW)), call("le", ROW, const(0.5)), call("exp2", call("log2", ROW))]
    assert in_integers(kept) == kept


def evaluated(nodes: Iterable[Node], at: Point) -> list[int]:
    return [number(n, at) for n in nodes]


@settings(max_examples=150, deadline=None)
@given(conditions(), st.integers(0, 30), st.integers(0, 30))
def test_plain_conditions_mean_the_same(condition: Node, i: int, j: int) -> None:
    at = {"i": i, "j": j}
    assert all(evaluated(plain([condition], ("i", "j"), {ROW: 30, KEY: 30}), at)) == bool(number(condition, at))


@settings(max_examples=150, deadline=None)
@given(conditions(), st.integers(0, 30), st.integers(0, 30))
def test_what_is_proved_holds(condition: Node, i: int, j: int) -> None:
    for c in plain([condition], (), {}):
        match c:
            case Call(fn="le" | "lt", args=(a, b)) if at_most_zero(sub(a, b), tops={ROW: 30}):
                assert number(sub(a, b), {"i": i, "j": j}) <= 0
            case _:
                pass
