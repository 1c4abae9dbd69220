"""Loop bounds against brute force: nothing allowed is skipped, nothing called full is masked."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnc.ir.construct import add, axis, call, conjuncts, const, mul, size, sub
from attnc.ir.node import Add, Axis, Call, Const, Load, Node, Prod, Size, Var
from attnc.passes.bounds import inner_range
from tests.masks import FAMILIES, dense, mask

ROW, KEY = axis("i"), axis("j")
Point = dict[str, int]


def number(node: Node, at: Point) -> int:
    """The value of an integer or boolean expression."""
    match node:
        case Const():
            return int(node.value)
        case Axis() | Size() | Var():
            return at[node.name]
        case Load():
            return at[node.tensor]
        case Add():
            return sum(number(t, at) for t in node.terms)
        case Prod():
            value = 1
            for f in node.factors:
                value *= number(f, at)
            return value
        case Call():
            return int(FUNCTIONS[node.fn](*(number(a, at) for a in node.args)))
        case _:
            raise TypeError(type(node).__name__)


FUNCTIONS: dict[str, Callable[..., int]] = {
    "floordiv": lambda a, b: a // b,
    "mod": lambda a, b: a % b,
    "abs": abs,
    "bitand": lambda a, b: a & b,
    "bitor": lambda a, b: a | b,
    "bitxor": lambda a, b: a ^ b,
    "floor_log2": lambda a: max(a, 1).bit_length() - 1,
    "power_of_two": lambda a: 1 << min(max(a, 0), 62),
    "maximum": max,
    "minimum": min,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "eq": lambda a, b: a == b,
    "not": lambda a: not a,
    "and": lambda *a: all(a),
    "or": lambda *a: any(a),
    "where": lambda c, a, b: a if c else b,
}

SMALL = st.integers(-9, 9)
EXTENT = st.integers(1, 40)


def terms(position: Node) -> st.SearchStrategy[Node]:
    """Expressions of one position like those masks are made of."""
    unit = st.one_of(
        st.just(position),
        st.integers(2, 7).map(lambda c: call("floordiv", position, const(c))),
        st.integers(2, 7).map(lambda c: call("mod", position, const(c))),
        st.tuples(SMALL, SMALL).map(
            lambda t: call("clamp", position, const(min(t)), const(max(t))),
        ),
        st.tuples(st.sampled_from(["bitand", "bitor", "bitxor"]), SMALL, st.integers(-70, 70)).map(
            lambda t: call(t[0], add(position, const(t[1])), const(t[2])),
        ),
        SMALL.map(lambda c: call("floor_log2", add(position, const(c)))),
        SMALL.map(lambda c: call("power_of_two", call("minimum", add(position, const(c)), const(5)))),
    )
    return st.tuples(unit, st.sampled_from([-2, -1, 1, 2, 3]), SMALL).map(
        lambda t: add(mul(const(t[1]), t[0]), const(t[2]))
    )


def conditions() -> st.SearchStrategy[Node]:
    difference = st.tuples(terms(ROW), terms(KEY)).map(lambda t: sub(*t))
    bits = st.tuples(st.sampled_from(["bitand", "bitor", "bitxor"]), terms(ROW), terms(KEY)).map(lambda t: call(*t))
    side = st.one_of(difference, difference.map(lambda x: call("abs", x)), bits, terms(ROW), terms(KEY))
    simple = st.tuples(st.sampled_from(["lt", "le", "eq"]), side, SMALL).flatmap(
        lambda t: st.sampled_from([call(t[0], t[1], const(t[2])), call(t[0], const(t[2]), t[1])])
    )
    return st.recursive(
        simple,
        lambda inner: (
            st.tuples(st.sampled_from(["and", "or"]), inner, inner).map(lambda t: call(*t))
            | inner.map(lambda c: call("not", c))
        ),
        max_leaves=4,
    )


@settings(max_examples=500, deadline=None)
@given(st.lists(conditions(), min_size=1, max_size=3), st.integers(0, 30), st.integers(1, 8), EXTENT)
def test_sound_for_any_mask(masks: list[Node], first: int, length: int, extent: int) -> None:
    found = inner_range(masks, "i", "j", const(extent))
    at = {"i_first": first, "i_last": first + length - 1}
    low, high = number(found.low, at), number(found.high, at)
    full = range(0)
    if found.full_low is not None and found.full_high is not None:
        full = range(number(found.full_low, at), number(found.full_high, at))
    for j in range(extent):
        allowed = [all(number(m, {"i": i, "j": j}) for m in masks) for i in range(first, first + length)]
        assert low <= j < high or not any(allowed), f"{j} is allowed but outside [{low}, {high})"
        assert j not in full or all(allowed), f"{j} is masked somewhere but inside the full range {full}"
        if found.exact:
            assert any(allowed) == (low <= j < high), f"{j}: [{low}, {high}) is said to be exact"
            assert all(allowed) == (j in full), f"{j}: {full} is said to be all that is full"


@pytest.mark.parametrize("direction", [("i", "j"), ("j", "i")], ids=["rows", "columns"])
@pytest.mark.parametrize("name", [n for n, f in FAMILIES.items() if f.closed])
def test_closed_bounds_of_families_are_exact(name: str, direction: tuple[str, str]) -> None:
    outer, inner = direction
    for shape in ((257, 257, 0), (63, 257, 194), (130, 70, 0), (1, 200, 120)):
        made = mask(name, outer, inner, shape)
        found = inner_range(conjuncts(made.condition), outer, inner, size("M" if inner == "i" else "N"))
        assert found.exact
        assert found.full_low is not None
        assert found.full_high is not None
        allowed = dense(made)
        for row in range(0, made.extents[outer], 32):
            for c in range(made.combinations):
                part = allowed[c, row : row + 32]
                at = {**made.sizes, f"{outer}_first": row, f"{outer}_last": row + len(part) - 1, "b": c}
                at |= {"length": int(made.tensors["length"][c])} if "length" in made.tensors else {}
                for some, ends in ((True, (found.low, found.high)), (False, (found.full_low, found.full_high))):
                    wanted = (part.any(0) if some else part.all(0)).nonzero().flatten().tolist()
                    assert list(range(*(number(x, at) for x in ends))) == wanted, f"{name} {shape} row {row}"


@pytest.mark.parametrize("name", [n for n, f in FAMILIES.items() if not f.closed and not f.ranges])
def test_other_families_are_not_called_exact(name: str) -> None:
    made = mask(name, "i", "j", (64, 64, 0))
    assert not inner_range(conjuncts(made.condition), "i", "j", size("N")).exact


def exact(mask: Node, first: int, last: int, extent: int) -> tuple[range, range]:
    """Visited and full ranges by brute force."""
    some = [j for j in range(extent) if any(number(mask, {"i": i, "j": j}) for i in range(first, last + 1))]
    every = [j for j in range(extent) if all(number(mask, {"i": i, "j": j}) for i in range(first, last + 1))]
    return range(some[0], some[-1] + 1), range(every[0], every[-1] + 1) if every else range(0)


CAUSAL = call("le", KEY, ROW)
WINDOW = call("and", CAUSAL, call("lt", sub(ROW, KEY), const(12)))
BAND = call("le", call("abs", sub(ROW, KEY)), const(9))
ROWS = call("le", call("abs", sub(call("floordiv", KEY, const(8)), call("floordiv", ROW, const(8)))), const(1))


@pytest.mark.parametrize("mask", [CAUSAL, WINDOW, BAND, ROWS], ids=["causal", "window", "band", "rows of a grid"])
@pytest.mark.parametrize("first", [0, 8, 24, 40])
def test_exact_for_affine_masks(mask: Node, first: int) -> None:
    found = inner_range([mask], "i", "j", const(64))
    at = {"i_first": first, "i_last": first + 7}
    visited, full = exact(mask, first, first + 7, 64)
    assert range(number(found.low, at), number(found.high, at)) == visited
    assert found.full_low is not None and found.full_high is not None
    assert range(number(found.full_low, at), number(found.full_high, at)) == full


def test_masks_on_data_bound_nothing() -> None:
    documents = call(
        "eq", Load.intern(("doc", (ROW,), "i"), ROW.axes, "i"), Load.intern(("doc", (KEY,), "i"), KEY.axes, "i")
    )
    found = inner_range([documents], "i", "j", const(64))
    assert (found.low, found.high, found.full_low) == (const(0), const(64), None)
