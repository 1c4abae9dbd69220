"""Predicted costs against counts made by hand, and against what the tile programs do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from attnc import driver
from attnc.ir.options import Options
from attnc.ir.program import Program
from attnc.ir.sizes import evaluator
from attnc.passes.cost import Cost, plan_cost, step_cost
from attnc.passes.plan import Plan
from tests.passes.programs import NAMES, example, spec

SIZES = {"B": 2, "H": 4, "G": 2, "M": 256, "N": 512, "D": 32, "E": 16, "q_start": 0, "L": 64, "A": 64}
BLOCKS = SIZES["M"] // 64
HEADS = SIZES["B"] * SIZES["H"]
PAIRS = HEADS * SIZES["M"] * SIZES["N"]
ROWS = HEADS * SIZES["M"]
D, E = SIZES["D"], SIZES["E"]


def numbers(cost: Cost, **sizes: int) -> tuple[int, int]:
    """Bytes and operations at `SIZES`."""
    values = SIZES | sizes
    return evaluator(cost.bytes)(values), evaluator(cost.flops)(values)


def forward(program: Program) -> Plan:
    """The plan that visits pairs, also where a state could be carried instead."""
    return driver.plan_alone(replace(program, options=Options(program.options.disabled | {"scan"})))


def test_softmax_forward_by_hand() -> None:
    moved, done = numbers(plan_cost(forward(spec("attention a"))))
    products = 2 * PAIRS * (D + E)
    pointwise = 5 * PAIRS  # scale, maximum, difference, exp2, sum
    rows = ROWS * (1 + 1 + E)  # the guarded maximum, 1 / l, and the output times that
    rescaled = PAIRS // 64 * (2 + 1 + E)  # difference, exp2; l and the accumulator
    constant = HEADS * BLOCKS * 3  # the scale: square root, reciprocal, log2(e)
    assert done == products + pointwise + rows + rescaled + constant
    tiles = 4 * HEADS * BLOCKS * SIZES["N"] * (D + E)
    assert moved == tiles + 4 * ROWS * (D + E)


def test_short_queries_read_keys_once() -> None:
    moved, _ = numbers(plan_cost(forward(spec("attention a"))), M=1)
    assert moved == 4 * HEADS * (SIZES["N"] * (D + E) + D + E)


def test_bytes_follow_the_dtype_of_the_query() -> None:
    plan = forward(spec("attention a\ntensor x: f32[H, N]\nbias = x[h, j]"))
    wide, narrow = (numbers(plan_cost(plan, width=w))[0] for w in (4, 2))
    single = 4 * HEADS * BLOCKS * SIZES["N"]
    assert narrow - single == (wide - single) // 2


def test_no_softmax_needs_no_rescaling() -> None:
    _, done = numbers(plan_cost(forward(spec("attention a\nscore = dot(q, k) ** 2\nnormaliser = none"))))
    assert done == 2 * PAIRS * (D + E) + PAIRS


def test_factors_of_a_row_are_multiplied_into_the_smaller_operand() -> None:
    """`x[d]` meets q or k before it meets every pair."""
    text = "attention a\ntensor x: [D]\nscore = sum[d](q[i, d] * k[j, d] * x[d]) ** 2\nnormaliser = none"
    _, done = numbers(plan_cost(forward(spec(text))))
    assert done == 2 * PAIRS * (D + E) + PAIRS + HEADS * D * min(SIZES["M"], BLOCKS * SIZES["N"])


@pytest.mark.parametrize(
    ("mask", "share"),
    [
        ("j <= i", 0.5),
        ("0 <= i - j < 32", 32 / 512),
        ("j < N // 4", 1 / 4),
        ("abs(i - j) < 1", 1 / 512),
    ],
)
def test_pairs_that_the_mask_leaves(mask: str, share: float) -> None:
    text = f"attention a\nscore = dot(q, k) ** 2\nnormaliser = none\nmask = {mask}"
    _, done = numbers(plan_cost(forward(spec(text))), M=512)
    assert done == pytest.approx(share * 2 * HEADS * 512 * 512 * (D + E), rel=0.05)


@pytest.mark.parametrize("mask", ["x[j]", "(i + j) % 3 == 0", "j < y[b]"])
def test_masks_without_a_closed_range_count_every_pair(mask: str) -> None:
    tensors = "tensor x: bool[N]\ntensor y: i32[B]\nobserve n = sum[j](where(x[j], 1.0, y[b]))\n"
    program = spec(f"attention a\n{tensors}score = dot(q, k) ** 2\nnormaliser = none\nmask = {mask}")
    _, done = numbers(plan_cost(forward(program)))
    assert 2 * PAIRS * (D + E) <= done < 2.1 * PAIRS * (D + E)


def test_without_bounds_every_pair_is_visited() -> None:
    program = example("causal")
    off = replace(program, options=Options(frozenset(["bounds"])))
    (some, fewer), (every, more) = (numbers(plan_cost(forward(p)), M=4096, N=4096) for p in (program, off))
    assert every == pytest.approx(2 * some, rel=0.05)
    assert more == pytest.approx(2 * fewer, rel=0.02)


def test_a_table_is_read_at_most_whole_by_a_block() -> None:
    text = "attention a\nconst R = 8\ntensor x: f32[H, 2 * R + 1]\nbias = x[h, clamp(i - j, -R, R) + R]"
    with_table, without = (numbers(plan_cost(forward(spec(t))))[0] for t in (text, "attention a"))
    assert with_table - without == 4 * HEADS * BLOCKS * 17


def test_a_dense_bias_is_read_once_per_pair() -> None:
    text = "attention a\ntensor x: f32[B, H, M, N]\nbias = x[b, h, i, j]"
    with_bias, without = (numbers(plan_cost(forward(spec(t))))[0] for t in (text, "attention a"))
    assert with_bias - without == 4 * PAIRS


def test_grouped_heads_read_queries_once_a_block() -> None:
    """The column pass loops over the heads of a group: keys and values stay, queries pass by."""
    _, gradient = driver.plans(spec("attention a"))
    column = next(p for p in gradient.passes if p.direction == "column")
    moved, done = numbers(step_cost(gradient, column))
    groups = SIZES["B"] * SIZES["G"]
    held = 2 * groups * SIZES["N"] * (D + E)  # k and v, grad_k and grad_v
    passing = HEADS * SIZES["N"] // 64 * SIZES["M"] * (D + E + 2)  # q, grad_o, lse and delta
    assert moved == 4 * (held + passing)
    assert done == pytest.approx(PAIRS * (4 * D + 4 * E + 6), rel=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_every_step_of_every_example_has_a_cost(name: str) -> None:
    for plan in driver.plans(example(name)):
        total = numbers(plan_cost(plan))
        parts = [numbers(step_cost(plan, s)) for s in plan.steps]
        assert all(moved > 0 and done >= 0 for moved, done in parts)
        assert total == (sum(m for m, _ in parts), sum(d for _, d in parts))
