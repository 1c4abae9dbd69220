"""Values of the distance of two positions: which become tables, and that values and gradients are the spec's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import attnc
from attnc import driver
from attnc.passes.toeplitz import find
from attnc.testing.compare import dense, output_seeds, run_op
from attnc.testing.inputs import complete_sizes, make_inputs

HEAD = "attention case\n"
BUCKET = "let n = abs(i - j)\nlet far = 4 + floor(log2(max(n, 1) / 4) / log2(32) * 4)\n"
SPECS = {
    "buckets": f"{HEAD}tensor table: f32[H, 16]\n{BUCKET}"
    "bias = table[h, clamp(n if n < 4 else far, 0, 7) + (8 if j > i else 0)]",
    "logarithms": f"{HEAD}tensor r: f32[H, 2]\nbias = -r[h, 0] ** 2 * log(1 + r[h, 1] ** 2 * abs(i - j))\n"
    "mask = j <= i",
    "undefined beyond the mask": f"{HEAD}tensor r: f32[H]\nbias = -r[h] ** 2 * log(1 + i - j) * sqrt(i - j + 0.5)\n"
    "mask = j <= i",
    "a sum of waves": f"{HEAD}tensor w: f32[H, 6]\nindex c: 6\nbias = sum[c](w[h, c] * log(1 + (c + 1) * abs(i - j)))",
    "per batch": f"{HEAD}tensor r: f32[B]\nbias = exp(-r[b] ** 2 * (i - j) ** 2) * tanh(0.1 * (i - j))",
    "a choice of rows": f"{HEAD}tensor rel: [H, 16, D]\n{BUCKET}"
    "score = dot(q, k) / sqrt(D) + dot(q, rel[h, clamp(n if n < 4 else far, 0, 7)])",
}


def check(
    text: str, backend: str, m: int, n: int, dtype: torch.dtype = torch.float64, tolerance: float = 1e-10, **given: int
) -> None:
    op = attnc.compile(text, backend=backend)
    sizes = complete_sizes(op.program, {"B": 2, "H": 4, "G": 2, "D": 8, "E": 6, "M": m, "N": n} | given)
    tensors = make_inputs(op.program, sizes, dtype)
    seeds = output_seeds(op.program, tensors, n - m)
    found = run_op(op, tensors, seeds, q_start=n - m)
    exact = dense(op.program, tensors, seeds, torch.float64, q_start=n - m)
    for got, values in ((found.outputs, exact.outputs), (found.gradients, exact.gradients)):
        assert got.keys() == values.keys()
        for key, value in values.items():
            rounding = max(tolerance, torch.finfo(got[key].dtype).eps)
            assert (got[key] - value).abs().max().item() <= rounding * value.abs().max().item() + 1e-12, key


@pytest.mark.parametrize("backend", ["tiled", "cpp"])
@pytest.mark.parametrize("name", SPECS)
def test_values_and_gradients_are_those_of_the_spec(name: str, backend: str) -> None:
    check(SPECS[name], backend, 63, 70)


@pytest.mark.parametrize("name", ["buckets", "a choice of rows"])
def test_in_triton(name: str) -> None:
    check(SPECS[name], "triton", 33, 40, torch.float32, 2e-5, B=1)


@pytest.mark.parametrize("m", [1, 2])
def test_few_queries(m: int) -> None:
    """There are more distances than pairs to read them: each pair computes its own."""
    check(SPECS["buckets"], "cpp", m, 70)


@pytest.mark.parametrize("name", SPECS)
def test_what_the_attention_reads(name: str) -> None:
    split = driver.choose(attnc.compile(SPECS[name], backend="tiled", bias="registers").program).split
    assert any(made.startswith("of_distance") for made in split.made)
    assert find(split.attention) == ()


@pytest.mark.parametrize(
    "bias",
    [
        "-0.1 * abs(i - j)",
        "log(1 + i + j)",
        "log(1 + abs(i // 8 - j // 8))",
        "slope[h, clamp(i - j + 4, 0, 8)]",
        "log(1 + abs(i - j)) * x[b, i]",
        "x[b, i] * cos(0.3 * (i - j))",
    ],
    ids=[
        "cheap",
        "no distance",
        "distance of blocks",
        "a table already",
        "times a value of the query",
        "separable",
    ],
)
def test_what_is_left_as_it_is(bias: str) -> None:
    text = f"{HEAD}tensor slope: f32[H, 9]\ntensor x: f32[B, M]\nbias = {bias}\n"
    found = find(attnc.compile(text, backend="tiled").program)
    assert [d for d in found if "x" in str(d.node) or "slope" in str(d.node)] == []
    assert bool(found) == ("* x" in bias)  # its logarithm is one


def test_integers_without_bounds_are_no_tables() -> None:
    """Tables of integers have 32 bits."""
    value = "floor(log2(max(i - j, 1)) * 3) * 100000"
    for text, kinds in ((f"max({value}, 1)", {"f"}), (f"clamp({value}, 0, 99)", {"i"})):
        op = attnc.compile(f"{HEAD}tensor x: f32[B, M]\nbias = x[b, i] * ({text} + i)", backend="tiled")
        assert {d.node.kind for d in find(op.program)} == kinds


@pytest.mark.parametrize("spec", ["retention", "cosformer", "lightning"])
def test_linear_time_comes_first(spec: str) -> None:
    path = Path(__file__).parents[2] / "examples" / f"{spec}.attn"
    assert find(attnc.compile(path, backend="tiled").program) == ()


def test_masks_are_no_tables() -> None:
    """Conditions stay arithmetic, from which loop bounds follow."""
    text = f"{HEAD}mask = floor(log2(max(i - j, 1))) <= 5 and j <= i\nbias = floor(log2(max(i - j, 1))) * 0.5"
    split = driver.choose(attnc.compile(text, backend="tiled").program).split
    assert not any("of_distance" in str(c) for c in _domains(split.attention.roots()))


def _domains(roots: object) -> list[object]:
    from attnc.ir.node import Max, Sum
    from attnc.ir.walk import postorder

    return [c for n in postorder(roots) if isinstance(n, Sum | Max) for c in n.domain]  # type: ignore[arg-type]
