"""Any number of channels up to 256, on Triton: lanes beyond the extent hold nothing that is seen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import attnc
from attnc.testing.compare import dense, output_seeds, run_op
from attnc.testing.inputs import complete_sizes, make_inputs

EXAMPLES = Path(__file__).parents[2] / "examples"
SIZES = [(8, 8), (17, 5), (80, 96), (94, 94), (96, 17), (192, 80), (256, 256)]


@pytest.mark.parametrize(("d", "e"), SIZES)
def test_forward(d: int, e: int) -> None:
    check("softcap_alibi", {"D": d, "E": e}, backward=False)


@pytest.mark.parametrize(("d", "e"), [(17, 24)])
def test_backward(d: int, e: int) -> None:
    check("causal", {"D": d, "E": e}, backward=True)


@pytest.mark.sweep
@pytest.mark.parametrize(("d", "e"), SIZES)
@pytest.mark.parametrize("spec", ["causal", "gated", "urpe", "watched", "retention"])
def test_every_size(spec: str, d: int, e: int) -> None:
    check(spec, {"D": d, "E": e}, backward=True)


def check(spec: str, channels: dict[str, int], *, backward: bool) -> None:
    """Outputs and gradients against the dense float64 evaluator."""
    op = attnc.compile(EXAMPLES / f"{spec}.attn", backend="triton")
    sizes = complete_sizes(op.program, {"B": 1, "H": 2, "G": 1, "M": 35, "N": 35, **channels})
    tensors = make_inputs(op.program, sizes, torch.float32)
    seeds = output_seeds(op.program, tensors) if backward else None
    found, exact = run_op(op, tensors, seeds), dense(op.program, tensors, seeds, torch.float64)
    for got, values in ((found.outputs, exact.outputs), (found.gradients, exact.gradients)):
        for name, value in values.items():
            assert (got[name] - value).abs().max() <= 1e-5 * value.abs().max(), name
