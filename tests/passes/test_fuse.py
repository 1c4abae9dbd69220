"""A row and a column pass in one loop: where it applies, and that nothing but rounding tells.

Values with and without it, through the interpreter of tile programs, are compared in `test_disable`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import attnc
from attnc import driver
from attnc.cli.inspect import stage_text
from attnc.codegen.tile import AddTo, Kernel, statements
from attnc.codegen.triton.printer import print_module
from attnc.ir.options import options
from attnc.passes.derive import gradient_program
from attnc.passes.fuse import fused
from attnc.passes.pipeline import plan_forward, plan_gradient
from attnc.passes.plan import Pass, Plan
from attnc.runtime import runs
from attnc.testing.compare import dense, output_seeds, run_op
from attnc.testing.inputs import complete_sizes, make_inputs
from tests.differential.compare import poisoned_memory
from tests.passes.programs import example

EXAMPLES = Path(__file__).parents[2] / "examples"
ONE = ("softmax", "causal", "alibi", "gemma2", "softcap_alibi", "sinks", "rope", "gated", "dilated", "document_causal")
"""Gradients that are one loop."""
SCATTERS = ("relative_table", "music", "urpe")
"""Their row pass adds into a table, which programs that share out its keys would have to share."""


def directions(plan: Plan) -> list[str]:
    return [s.direction for s in plan.steps if isinstance(s, Pass)]


def test_the_gradient_of_plain_softmax_is_one_pass_between_two_over_vectors() -> None:
    general = plan_gradient(example("softmax"))
    assert sorted(directions(general)) == ["column", "row"]
    before, loop, after = (s for s in fused(general).steps if isinstance(s, Pass))
    assert [name for name, _, _ in before.stores] == ["delta"]
    assert before.inner is None
    assert after.inner is None
    assert [name for name, _, _ in loop.stores] == ["grad_k", "grad_v"]
    ((added, axes, _),) = loop.adds
    assert added in after.reads
    assert axes[0] == loop.grid[-1]
    assert [name for name, _, _ in after.stores] == ["grad_q"]


@pytest.mark.parametrize("name", ONE)
def test_two_passes_become_one(name: str) -> None:
    plan = plan_gradient(example(name))
    assert len(plan.passes) == 2
    assert len(fused(plan).passes) == 1


@pytest.mark.parametrize("name", SCATTERS)
def test_passes_that_scatter_stay_two(name: str) -> None:
    plan = plan_gradient(example(name))
    assert fused(plan) is plan


def test_a_pass_that_reads_the_other_is_not_fused_with_it() -> None:
    """The gradient of an entropy: its first row pass makes what the column pass reads."""
    plan = plan_gradient(example("watched"))
    one = fused(plan)
    assert directions(plan).count("row") == 2
    assert len(one.passes) == 2
    assert len([p for p in one.passes if p.adds]) == 1


def test_it_can_be_turned_off() -> None:
    program = example("causal")
    plan = plan_gradient(replace(program, options=options(disable="fuse")))
    assert fused(plan) is plan


def products(kernels: list[Kernel]) -> int:
    """Matrix products over pairs of positions in the loops of full blocks."""
    loops = (s for k in kernels for s in statements(k.body) if type(s).__name__ == "Loop" and not s.masked)  # type: ignore[union-attr]
    values = (getattr(s, "value", None) for loop in loops for s in loop.body)  # type: ignore[union-attr]
    return sum(len(getattr(v, "factors", ())) == 2 and bool(getattr(v, "bound", ())) for v in values)


def test_seven_matrix_products_become_five_on_a_cpu_and_stay_seven_on_a_gpu() -> None:
    program = example("softmax")
    forward = 2
    assert products(driver.all_kernels(program, target="cpu")) == forward + 5
    gpu = driver.all_kernels(program, target="gpu")
    assert products(gpu) == forward + 7
    assert not any(isinstance(s, AddTo) for k in gpu for s in statements(k.body))


def test_triton_refuses_what_only_programs_in_order_may_do() -> None:
    (loop,) = (k for k in driver.all_kernels(example("softmax"), target="cpu") if k.shares is not None)
    with pytest.raises(TypeError, match="cannot add to the same memory"):
        print_module([loop])


def test_a_listing_shows_both_plans() -> None:
    text = stage_text(example("softmax"), "plan", "sm_90", "f32", 16)
    assert "plan softmax_gradient\n" in text
    here = text.split("plan softmax_gradient on a CPU\n")[1]
    assert "grad_q_parts[j_part, b, h, i, d] += " in here


def test_an_explanation_weighs_it() -> None:
    text = driver.explanation(example("causal"))
    (at,) = (k for k, line in enumerate(text.splitlines()) if line.strip().startswith("fuse"))
    said = text.splitlines()[at + 1 : at + 4]
    assert "on a CPU one loop makes both" in said[0]
    assert "* in one loop" in said[1]
    assert "in a loop each" in said[2]


# ------------------------------------------------------------------------------------------------------ compiled code

SIZES = {
    "softmax": {"B": 1, "H": 2, "G": 1, "M": 70, "N": 1100, "D": 16, "E": 8},
    "causal": {"B": 2, "H": 4, "G": 2, "M": 130, "N": 70, "D": 8, "E": 16},
    "sliding_window": {"B": 1, "H": 1, "G": 1, "M": 200, "N": 330, "D": 24, "E": 16},
    "document_causal": {"B": 1, "H": 2, "G": 1, "M": 150, "N": 150, "D": 16, "E": 16},
}
"""Keys in parts and heads in groups; rows without keys; blocks that no loop visits; a table of runs."""


def gradients(name: str, dtype: torch.dtype, disable: str, threads: int = 1) -> dict[str, torch.Tensor]:
    op = attnc.compile(EXAMPLES / f"{name}.attn", backend="cpp", disable=disable or ())
    tensors = make_inputs(op.program, complete_sizes(op.program, SIZES[name]), dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with poisoned_memory():
            return dict(run_op(op, tensors, output_seeds(op.program, tensors)).gradients)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("softmax", torch.float32),
        ("causal", torch.bfloat16),
        ("sliding_window", torch.float32),
        ("document_causal", torch.bfloat16),
    ],
)
def test_gradients_in_one_pass(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Near those of two passes, and the same bits for any number of threads; each near the exact ones."""
    monkeypatch.setitem(runs.WORTH, "cpu", 1)
    program = attnc.compile(EXAMPLES / f"{name}.attn").program
    tensors = make_inputs(program, complete_sizes(program, SIZES[name]), dtype)
    exact = dense(program, tensors, output_seeds(program, tensors), torch.float64).gradients
    one, two = gradients(name, dtype, ""), gradients(name, dtype, "fuse")
    several = [gradients(name, dtype, "", threads) for threads in (2, 3)]
    assert one.keys() == exact.keys()
    for x, value in exact.items():
        unit = torch.finfo(dtype).eps * value.abs().max()
        assert (one[x] - value).abs().max() <= 8 * unit, x
        assert (one[x] - two[x]).abs().max() <= 4 * unit, x
        assert all(torch.equal(one[x], other[x]) for other in several), x


def test_second_derivatives_have_such_pairs_too() -> None:
    """Their values are tested with all others, in `tests/runtime/test_derivatives.py`."""
    first = gradient_program(example("causal"))
    plan = plan_forward(gradient_program(first), training=False).forward
    assert len(fused(plan).passes) < len(plan.passes)
