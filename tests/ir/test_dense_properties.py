"""Random expressions: torch against one-number-at-a-time arithmetic, and canonical constructors against raw ones."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attnc.ir.contraction import axis_order
from attnc.ir.dense import evaluate_nodes
from attnc.ir.node import Node
from attnc.ir.staged import Staged
from attnc.ir.walk import substitute
from tests.ir import expressions as ex

TENSORS = ex.make_tensors()
WORLD = ex.make_world(TENSORS)
RELAXED = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def dims_of(node: Node) -> tuple[str, ...]:
    return axis_order(ex.ORDER)(node.axes)


def naive(node: Node, dims: tuple[str, ...]) -> torch.Tensor:
    shape = [ex.EXTENTS[a.rstrip("'")] for a in dims]
    WORLD.memo.clear()
    values = [WORLD.value(node, dict(zip(dims, at, strict=True))) for at in product(*(range(n) for n in shape))]
    return torch.tensor(values, dtype=torch.float64).reshape(shape)


def dense(node: Node) -> torch.Tensor:
    (value,) = evaluate_nodes([node], ex.EXTENTS, TENSORS, ex.SIZES, dtype=torch.float64, order=ex.ORDER)
    return value.to(torch.float64)


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    scale = 1 + (float(expected.abs().max()) if expected.numel() else 0.0)
    torch.testing.assert_close(actual / scale, expected / scale, rtol=1e-9, atol=1e-10)


def over(value: torch.Tensor, dims: tuple[str, ...], wider: tuple[str, ...]) -> torch.Tensor:
    shaped = value[tuple(slice(None) if a in dims else None for a in wider)]
    return shaped.expand([ex.EXTENTS[a.rstrip("'")] for a in wider])


@RELAXED
@given(ex.reals())
def test_dense_value_is_the_definition(recipe: ex.Recipe) -> None:
    node = ex.build(recipe, canonical=False)
    assert_close(dense(node), naive(node, dims_of(node)))


@RELAXED
@given(st.one_of(ex.reals(), ex.integers(), ex.conditions()))
def test_canonical_constructors_preserve_values(recipe: ex.Recipe) -> None:
    raw, canonical = ex.build(recipe, canonical=False), ex.build(recipe, canonical=True)
    assert canonical.axes <= raw.axes
    assert_close(over(naive(canonical, dims_of(canonical)), dims_of(canonical), dims_of(raw)), naive(raw, dims_of(raw)))


@RELAXED
@given(ex.reals())
def test_canonical_values_are_dense_values(recipe: ex.Recipe) -> None:
    node = ex.build(recipe, canonical=True)
    assert_close(dense(node), naive(node, dims_of(node)))


@RELAXED
@given(ex.reals(), st.dictionaries(st.sampled_from(ex.AXES), ex.integers(1), min_size=1, max_size=2))
def test_substitution_captures_nothing(recipe: ex.Recipe, mapping: dict[str, ex.Recipe]) -> None:
    node = ex.build(recipe, canonical=True)
    wrapped = {a: ("call", "mod", e, ("const", ex.EXTENTS[a.rstrip("'")])) for a, e in mapping.items()}
    new = {a: ex.build(e, canonical=True) for a, e in wrapped.items()}
    result = substitute(node, new)
    free = axis_order(ex.ORDER)(node.axes.union(*(e.axes for e in new.values())) | result.axes)
    WORLD.memo.clear()
    for at in product(*(range(ex.EXTENTS[a.rstrip("'")]) for a in free)):
        here = dict(zip(free, at, strict=True))
        there = {**here, **{a: int(WORLD.value(e, here)) for a, e in new.items()}}
        assert WORLD.value(result, here) == pytest.approx(WORLD.value(node, there), rel=1e-9, abs=1e-9)


@RELAXED
@given(
    ex.reals(),
    st.dictionaries(st.sampled_from(["b", "i", "j", "d", "r"]), st.integers(1, 3), min_size=1, max_size=3),
    st.booleans(),
)
def test_blocks_change_nothing(recipe: ex.Recipe, blocks: dict[str, int], canonical: bool) -> None:
    node = ex.build(recipe, canonical)
    staged = Staged([node], ex.ORDER, ex.EXTENTS, blocks, TENSORS, ex.SIZES, torch.float64)
    assert_close(staged.run()[node].to(torch.float64), dense(node))
