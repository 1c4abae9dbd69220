"""Every rewrite can be turned off, and then the same values come out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import attnc
from attnc import driver
from attnc.ir.options import REWRITES
from attnc.testing.compare import dense, output_seeds, run_op
from attnc.testing.inputs import complete_sizes, make_inputs

EXAMPLES = Path(__file__).parents[2] / "examples"
SOFTMAX = ("softmax", "gemma2", "alibi", "watched", "urpe", "reversed", "spatial", "agent", "sinks", "document_causal")
BLOCKS = ("gallery/landmark",)
LINEAR = ("retention", "linear_attention", "scalar_decay", "gla", "cosformer", "aaren")
POSITIONS = ("music", "gallery/t5")
SPECS = (*SOFTMAX, *POSITIONS, *LINEAR, *BLOCKS)


@pytest.mark.parametrize("rewrite", sorted(REWRITES))
@pytest.mark.parametrize("spec", SPECS)
def test_values_do_not_depend_on_a_rewrite(spec: str, rewrite: str) -> None:
    op = attnc.compile(EXAMPLES / f"{spec}.attn", backend="tiled", disable=rewrite)
    sizes = complete_sizes(op.program, {"B": 2, "H": 4, "G": 2, "M": 70, "N": 70, "D": 8, "E": 6})
    tensors = make_inputs(op.program, sizes, torch.float64)
    seeds = output_seeds(op.program, tensors)
    found = run_op(op, tensors, seeds)
    exact = dense(op.program, tensors, seeds, torch.float64)
    for got, values in ((found.outputs, exact.outputs), (found.gradients, exact.gradients)):
        for name, value in values.items():
            largest = value.abs().max().item()
            difference = (got[name] - value).abs().max().item()
            rounding = max(1e-10, torch.finfo(got[name].dtype).eps)  # gradients of f32 tensors are stored in f32
            assert difference <= rounding * largest + 1e-12, name


@pytest.mark.parametrize(
    ("spec", "rewrite", "forward", "backward"),
    [
        ("softmax", None, 1, 2),
        ("softmax", "online", 2, 2),
        ("softmax", "reuse", 1, 3),
        ("watched", None, 2, 3),
        ("watched", "expand", 3, 3),
    ],
)
def test_a_disabled_rewrite_leaves_the_plan_it_would_have_changed(
    spec: str, rewrite: str | None, forward: int, backward: int
) -> None:
    op = attnc.compile(EXAMPLES / f"{spec}.attn", disable=rewrite or ())
    assert tuple(len(p.passes) for p in driver.plans(op.program)) == (forward, backward)


def test_an_unknown_rewrite_is_reported() -> None:
    with pytest.raises(attnc.SpecError, match="did you mean `online`"):
        attnc.compile("attention a\nmask = j <= i", disable="onlin")
