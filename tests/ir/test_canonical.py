"""Canonical form: making it again changes nothing, and the order in which terms and factors come does not matter."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from attnc.ir.construct import ONE, ZERO, add, axis, call, const, iverson, load, max_over, mul, raw_sum, sub, sum_over
from attnc.ir.node import Add, Call, Max, Node, Prod, Sum
from attnc.ir.printer import show
from attnc.ir.walk import postorder, substitute
from tests.ir import expressions as ex
from tests.ir.programs import at
from tests.ir.test_dense_properties import dense

RELAXED = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def again(node: Node) -> Node:
    match node:
        case Add():
            return add(*node.terms)
        case Prod():
            return mul(*node.factors)
        case Sum():
            return sum_over(node.bound, node.factors, node.domain, node.scatter)
        case Max():
            return max_over(node.bound, node.body, node.domain)
        case Call():
            return call(node.fn, *node.args)
        case _:
            return node


@RELAXED
@given(ex.reals())
def test_canonical_nodes_are_fixed_points(recipe: ex.Recipe) -> None:
    for node in postorder([ex.build(recipe, canonical=True)]):
        assert again(node) is node


def reordered(recipe: Any, step: int) -> Any:
    """The recipe with terms and factors in steps of `step`; functions of constants give way, since folding rounds."""
    match recipe:
        case ("add" | "mul", *parts):
            return recipe[0], *(reordered(p, step) for p in parts[::step])
        case ("sum", names, factors, domain, scatter):
            inside = tuple(tuple(reordered(p, step) for p in ps[::step]) for ps in (factors, domain))
            return "sum", names, *inside, reordered(scatter, step)
        case ("call", "tanh" | "sigmoid" | "sin" | "cos" | "erf" | "softplus" | "exp" | "reciprocal_or_zero" as fn, x):
            inner = reordered(x, step)
            return ("call", fn, inner) if ex.build(inner, canonical=True).axes else ("call", "sign", inner)
        case tuple():
            return tuple(reordered(p, step) for p in recipe)
        case _:
            return recipe


@RELAXED
@given(ex.reals())
def test_order_does_not_matter(recipe: ex.Recipe) -> None:
    assert ex.build(reordered(recipe, 1), canonical=True) is ex.build(reordered(recipe, -1), canonical=True)


X, Y, V = load("x", at("ij")), load("y", at("i")), load("v", at("jd"))
CONDITION = call("le", axis("j"), axis("i"))


@pytest.mark.parametrize(
    ("node", "text"),
    [
        (sub(X, X), "0.0"),
        (add(X, X), "(2.0 * x[i, j])"),
        (mul(const(-1.0), const(-1.0), X), "x[i, j]"),
        (mul(iverson(CONDITION), iverson(CONDITION)), "[(j <= i)]"),
        (mul(X, call("reciprocal", X)), "1.0"),
        (sum_over({"j"}, [X, Y]), "(y[i] * sum[j](x[i, j]))"),
        (sum_over({"j"}, [X, iverson(CONDITION)]), "sum[j | (j <= i)](x[i, j])"),
        (sum_over({"j"}, [X, iverson(call("le", axis("i"), const(3)))]), "([(i <= 3)] * sum[j](x[i, j]))"),
        (sum_over({"j"}, [X, sum_over({"d"}, [V, load("w", at("d"))])]), "sum[d, j](w[d] * x[i, j] * v[j, d])"),
        (max_over({"d"}, X), "x[i, j]"),
        (max_over({"d"}, Y, [call("le", axis("i"), const(3))]), "where((i <= 3), y[i], -inf)"),
    ],
)
def test_forms(node: Node, text: str) -> None:
    assert show(node) == text


def test_nothing_is_summed_or_maximised_over_an_empty_domain() -> None:
    never = const(False)
    assert max_over({"j"}, X, [never]) is not X
    assert max_over({"d"}, ONE, [never]) is const(float("-inf"))
    assert sum_over((), [X], [never]) is ZERO


def test_substitution_renames_what_would_capture() -> None:
    row = sum_over({"j"}, [X])
    assert substitute(row, {"i": axis("j")}) is sum_over({"j'"}, [load("x", (axis("j"), axis("j'")))])
    pairs = sum_over({"i", "i'"}, [load("x", (axis("i"), axis("i'"), axis("r")))])
    moved = substitute(pairs, {"r": add(axis("i"), axis("i'"))})
    assert isinstance(moved, Sum)
    assert len(moved.bound - {"i", "i'"}) == 2
    column = raw_sum(["j"], [V], (), [("r", add(axis("j"), axis("i")))])
    gathered = substitute(column, {"r": const(3)})
    assert gathered is sum_over({"j"}, [V], [call("eq", add(axis("i"), axis("j")), const(3))])
    inside = substitute(column, {"i": axis("r")})
    assert inside is sum_over({"j"}, [V], [call("eq", add(axis("r"), axis("j")), axis("r"))])


def test_places_that_need_the_summed_axis_keep_it() -> None:
    scattered = raw_sum(["j"], [const(1.0)], (), [("r", call("mod", axis("j"), const(5)))])
    place = [("i", call("mod", axis("r"), const(3)))]
    raw, canonical = (make(["r"], [scattered], (), place) for make in (raw_sum, sum_over))
    assert dense(canonical).tolist() == dense(raw).tolist() == [2.0, 1.0, 1.0]
    assert sum_over(["r"], [scattered]) is sum_over(["j"], [])
