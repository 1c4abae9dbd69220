"""Planned runs against what a mask allows, pair by pair: exact for the families, sound for any mask."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnc.ir.construct import axis, call, const, load, mul, sub
from attnc.ir.node import Node
from attnc.runtime import planner
from attnc.runtime.planner import Table, plan
from attnc.runtime.tiles import FACTOR, Level, Mask
from tests.masks import FAMILIES, blocks, dense, mask
from tests.passes.test_bounds import conditions

SHAPES = [(257, 257, 0), (63, 257, 194), (130, 70, 0), (1, 200, 120), (7, 1, 0)]
DIRECTIONS = [("i", "j"), ("j", "i")]


def classes(table: Table, made: Mask, lengths: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Visited and full blocks of a table, bool [combinations, rows, columns]; runs must be in order and aligned."""
    columns = -(-made.extents[made.inner] // lengths[1])
    spans = table.spans.view(made.combinations, -1, 2)
    visited = torch.zeros(*spans.shape[:2], columns, dtype=torch.bool)
    full = visited.clone()
    for c in range(spans.shape[0]):
        for row in range(spans.shape[1]):
            end = 0
            for low, turn, high in table.runs[spans[c, row, 0] : spans[c, row, 1]].tolist():
                assert end <= low <= turn <= high
                assert low < high
                assert low % lengths[1] == turn % lengths[1] == high % lengths[1] == 0
                visited[c, row, low // lengths[1] : high // lengths[1]] = True
                full[c, row, turn // lengths[1] : high // lengths[1]] = True
                end = high
    return visited, full


def without_short(full: Tensor, made: Mask, length: int) -> Tensor:
    """A last block that is cut short is guarded, and so never counts as full."""
    if made.extents[made.inner] % length:
        full = full.clone()
        full[..., -1] = False
    return full


@pytest.mark.parametrize("name", FAMILIES)
def test_families_are_exact(name: str) -> None:
    grid = FAMILIES[name].grid
    for shape in SHAPES if grid is None else [(grid, grid, 0), (grid - 100, grid, 93)]:
        for outer, inner in DIRECTIONS:
            made = mask(name, outer, inner, shape)
            allowed = dense(made)
            for lengths in ((32, 64), (16, 16), (24, 40)):
                visited, full = classes(plan(made, lengths), made, lengths)
                some, every = blocks(allowed, lengths)
                where = f"{name} {shape} {outer}{inner} {lengths}"
                assert torch.equal(visited, some), where
                assert torch.equal(full, without_short(every, made, lengths[1])), where


def data() -> st.SearchStrategy[Node]:
    """Conditions on tensors: what a position holds, compared with a position or with what another one holds."""
    key, query = load("t", (axis("j"),), "i"), load("t", (axis("i"),), "i")
    flag, real = load("flag", (axis("j"),), "b"), load("x", (axis("i"),), "f")
    return st.sampled_from(
        [
            call("eq", key, query),
            call("lt", key, query),
            call("le", mul(const(8), key), axis("i")),
            call("le", sub(axis("j"), query), const(3)),
            flag,
            call("le", real, load("x", (axis("j"),), "f")),
            call("lt", real, const(0.5)),
            call("eq", call("floor", real), const(0)),
            load("pairs", (axis("i"), axis("j")), "b"),
            call("lt", load("scores", (axis("i"), axis("j")), "f"), real),
        ]
    )


def masks() -> st.SearchStrategy[Node]:
    return st.recursive(
        conditions() | data(),
        lambda inner: (
            st.tuples(st.sampled_from(["and", "or"]), inner, inner).map(lambda t: call(*t))
            | inner.map(lambda c: call("not", c))
        ),
        max_leaves=4,
    )


def made_of(condition: Node, m: int, n: int, seed: int) -> Mask:
    generator = torch.Generator().manual_seed(seed)
    size = max(m, n)
    x = torch.randn(size, generator=generator)
    if seed % 3 == 0:
        x[torch.rand(size, generator=generator) < 0.1] = torch.nan
    tensors = {
        "t": torch.randint(-2, 6, (size,), generator=generator),
        "flag": torch.rand(size, generator=generator) < 0.8,
        "x": x,
        "pairs": torch.rand(size, size, generator=generator) < seed / 99,
        "scores": torch.randn(size, size, generator=generator),
    }
    return Mask(condition, "i", "j", (), {"i": m, "j": n}, tensors, {}, torch.device("cpu"))


@settings(max_examples=250, deadline=None)
@given(masks(), st.integers(1, 60), st.integers(1, 60), st.sampled_from([(4, 8), (8, 8), (5, 3)]), st.integers(0, 99))
def test_sound_for_any_mask(condition: Node, m: int, n: int, lengths: tuple[int, int], seed: int) -> None:
    """Nothing allowed is skipped, nothing full is masked; without NaN no block is visited in vain."""
    made = made_of(condition, m, n, seed)
    visited, full = classes(plan(made, lengths), made, lengths)
    some, every = blocks(dense(made), lengths)
    assert not (some & ~visited).any()
    assert not (full & ~every).any()
    if not ("x[" in repr(condition) and made.tensors["x"].isnan().any()):
        assert torch.equal(visited, some)
        assert torch.equal(full, without_short(every, made, lengths[1]))


@pytest.mark.parametrize("limit", [1, 60, 400])
@pytest.mark.parametrize("name", ["causal documents", "neighbourhood 2-D", "dilated"])
def test_what_is_not_decided_counts_as_partly_allowed(name: str, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "MOST_TILES", limit)
    made = mask(name, "i", "j", (FAMILIES[name].grid or 257, FAMILIES[name].grid or 257, 0))
    visited, full = classes(plan(made, (8, 8)), made, (8, 8))
    some, every = blocks(dense(made), (8, 8))
    assert not (some & ~visited).any()
    assert not (full & ~every).any()


def test_sound_for_scores_that_are_no_numbers() -> None:
    made = mask("scores", "i", "j", (130, 200, 0))
    given = made.tensors["score_of"]
    given.masked_fill_(torch.rand(given.shape, generator=torch.Generator().manual_seed(1)) < 1e-3, torch.nan)
    visited, full = classes(plan(made, (16, 16)), made, (16, 16))
    some, every = blocks(dense(made), (16, 16))
    assert not (some & ~visited).any()
    assert not (full & ~every).any()
    assert not visited.all()
    assert full.any()


@pytest.mark.parametrize("band", [16, 200])
def test_bands_of_rows_do_not_change_the_table(band: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = mask("causal documents", "i", "j", (257, 257, 0))
    whole = plan(made, (4, 4))
    monkeypatch.setattr(planner, "BAND", band)
    parts = plan(made, (4, 4))
    assert torch.equal(whole.spans, parts.spans)
    assert torch.equal(whole.runs, parts.runs)


def test_the_boundary_is_searched_and_not_the_plane(monkeypatch: pytest.MonkeyPatch) -> None:
    """A causal mask over 2^20 positions has 2.7e8 blocks of 64 and a boundary of 16384."""
    looked = []
    classify = Level.classify

    def counted(self: Level, row: Tensor, column: Tensor, conditions: tuple[Node, ...]) -> object:
        looked.append(FACTOR * len(row))
        return classify(self, row, column, conditions)

    monkeypatch.setattr(Level, "classify", counted)
    made = mask("causal", "i", "j", (1 << 20, 1 << 20, 0))
    table = plan(made, (64, 64))
    assert sum(looked) < 8 * 16384
    assert len(table.runs) == 2 * 16384 - 1


def test_where_other_conditions_restrict_the_plane_nothing_is_full() -> None:
    made = mask("causal documents", "i", "j", (257, 257, 0))
    visited, _ = classes(plan(made, (16, 16)), made, (16, 16))
    part, full = classes(plan(replace(made, whole=False), (16, 16)), made, (16, 16))
    assert torch.equal(part, visited)
    assert not full.any()
