"""Rows that both positions choose: what tables replace, what stays, and that values and gradients are the spec's."""

from __future__ import annotations

import pytest
import torch

import attnc
from attnc import driver
from attnc.ir.node import Load, Sum
from attnc.ir.walk import postorder
from attnc.passes.tables import find
from attnc.runtime import stages
from attnc.runtime.op import Op
from attnc.testing.compare import dense, output_seeds, run_op
from attnc.testing.inputs import complete_sizes, make_inputs

HEAD = "attention case\n"
REL = "tensor rel: [H, 9, D]\n"
SPECS = {
    "distances": f"{HEAD}{REL}score = dot(q, k) / sqrt(D) + dot(q, rel[h, clamp(i - j + 4, 0, 8)])\nmask = j <= i",
    "keys": f"{HEAD}tensor rel: [9, D]\nscore = dot(q, k) / sqrt(D) + dot(k, rel[clamp(j - i, 0, 8)])",
    "of neither": f"{HEAD}{REL}tensor u: [H, D]\nindex c: D\n"
    "score = dot(q, k) / sqrt(D) + sum[c](u[h, c] * rel[h, clamp(i - j + 4, 0, 8), c])",
    "beyond the table": f"{HEAD}{REL}score = dot(q, k) / sqrt(D) + dot(q, rel[h, abs(i - j)])\nmask = abs(i - j) <= 8",
    "two tables": f"{HEAD}{REL}tensor col: [5, D]\n"
    "score = dot(q, k) / sqrt(D) + dot(q, rel[h, clamp(i - j, 0, 8)]) + dot(q, col[abs(i % 5 - j % 5)])",
    "chosen by data": f"{HEAD}tensor rel: [B, 9, D]\ntensor kind: i32[B, M]\n"
    "score = dot(q, k) / sqrt(D) + dot(q, rel[b, clamp(kind[b, i] * j % 9, 0, 8)])",
    "with factors": f"{HEAD}{REL}tensor slope: f32[H]\nbias = slope[h] * cos(0.3 * (i - j))\n"
    "score = dot(q, k) / sqrt(D) + dot(q, rel[h, clamp(i - j + 4, 0, 8)])",
}


def program(text: str, **options: object) -> Op:
    return attnc.compile(text, backend="tiled", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", ["tiled", "cpp"])
@pytest.mark.parametrize("name", SPECS)
def test_values_and_gradients_are_those_of_the_spec(name: str, backend: str) -> None:
    check(SPECS[name], backend, {"M": 70, "N": 70})


@pytest.mark.parametrize("name", ["distances", "keys"])
def test_in_triton(name: str) -> None:
    check(SPECS[name], "triton", {"M": 33, "N": 33, "B": 1}, torch.float32, 2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tables_are_as_accurate_as_rows(dtype: torch.dtype) -> None:
    """Products are stored in f32: nothing is rounded that reading rows would not round."""
    check(SPECS["distances"], "cpp", {"M": 70, "N": 70, "D": 64}, dtype, 2e-2)


def check(
    text: str, backend: str, given: dict[str, int], dtype: torch.dtype = torch.float64, tolerance: float = 1e-10
) -> None:
    op = attnc.compile(text, backend=backend)
    sizes = complete_sizes(op.program, {"B": 2, "H": 4, "G": 2, "D": 8, "E": 6} | given)
    tensors = make_inputs(op.program, sizes, dtype)
    seeds = output_seeds(op.program, tensors)
    found = run_op(op, tensors, seeds)
    exact = dense(op.program, tensors, seeds, torch.float64)
    for got, values in ((found.outputs, exact.outputs), (found.gradients, exact.gradients)):
        assert got.keys() == values.keys()
        for key, value in values.items():
            largest = value.abs().max().item()
            rounding = max(tolerance, torch.finfo(got[key].dtype).eps)
            assert (got[key] - value).abs().max().item() <= rounding * largest + 1e-12, key


@pytest.mark.parametrize("name", SPECS)
def test_what_the_attention_reads(name: str) -> None:
    """No product over channels is left that has a subscript of both positions."""
    split = driver.choose(program(SPECS[name]).program).split
    assert split.tables and dict(split.tables).keys() <= set(split.made)
    assert find(split.attention) == ()
    for node in postorder(split.attention.roots()):
        if isinstance(node, Sum) and node.bound & {"d", "c"}:
            assert not any(isinstance(f, Load) and {"i", "j"} <= f.axes for f in node.factors)


@pytest.mark.parametrize(
    "text",
    [
        f"{HEAD}score = dot(q, k) / sqrt(D)",
        f"{HEAD}tensor rel: [H, 9, D]\nscore = dot(q, rel[h, i % 9])",
        f"{HEAD}tensor rel: [H, 9, D]\ntensor of: [H, 9, D]\nindex c: D\n"
        "score = dot(q, k) + sum[c](rel[h, abs(i % 9 - j % 9), c] * of[h, abs(i % 9 - j % 9), c])",
        f"{HEAD}tensor rel: [9, 3]\ntensor x: [B, M, 3]\nindex c: 3\n"
        "score = dot(q, k) + sum[c](x[b, i, c] * rel[abs(i % 9 - j % 9), c])",
        f"{HEAD}{REL}score = dot(q, k)\nmask = dot(q, rel[h, abs(i % 9 - j % 9)]) > 0",
        f"{HEAD}tensor rel: [7, 5, D]\n"
        "score = dot(q, k) / sqrt(D) + dot(q, rel[clamp(i // 8 - j // 8 + 3, 0, 6), clamp(i % 8 - j % 8 + 2, 0, 4)])",
    ],
    ids=["no table", "one position", "two rows", "few channels", "a condition", "two subscripts"],
)
def test_what_is_left_as_it_is(text: str) -> None:
    assert driver.choose(program(text).program).split.tables == ()


def test_a_table_that_is_large_beside_the_pairs_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding reads one row per key, not all rows for all keys."""
    made: list[int] = []
    run = stages.Stage.__call__

    def counted(own: stages.Stage, *args: object) -> object:
        made.append(len(own.computation.outputs))
        return run(own, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(stages.Stage, "__call__", counted)
    for rows, count in ((70, 2), (1, 1)):
        made.clear()
        check_forward(SPECS["keys"], rows)
        assert len(made) == count


def test_exact_gradients_of_tables_are_small_on_gpus() -> None:
    """Counters take 17 times 8 bytes per element."""
    usual = stages.largest_table("cpu", learns=True, exact=True)
    assert stages.largest_table("cuda", learns=True, exact=True) * 17 * 8 <= 1.1 * 2**30 < usual * 17 * 8
    assert stages.largest_table("cuda", learns=False, exact=True) == usual
    assert stages.largest_table("cuda", learns=True, exact=False) == usual


def check_forward(text: str, rows: int) -> None:
    op = program(text)
    sizes = complete_sizes(op.program, {"B": 1, "H": 2, "M": rows, "N": 70, "D": 8, "E": 8})
    tensors = make_inputs(op.program, sizes, torch.float64)
    exact = dense(op.program, tensors, None, torch.float64).outputs["o"]
    assert (run_op(op, tensors, None).outputs["o"] - exact).abs().max().item() < 1e-12


def test_the_gradient_scatters_one_number_per_pair() -> None:
    _, backward = driver.plans(program(SPECS["distances"]).program)
    scattered = [r for item in backward.passes for r in item.reductions if isinstance(r, Sum) and r.scatter]
    assert scattered and not any("d" in r.axes for r in scattered)


def test_rows_are_read_on_request() -> None:
    assert driver.choose(program(SPECS["distances"], disable="tables").program).split.first is None
