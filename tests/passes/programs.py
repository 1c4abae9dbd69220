"""Programs and tensors of the examples, small enough for dense evaluation."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from attnc import driver
from attnc.ir.dense import bind_sizes
from attnc.ir.program import Program
from attnc.lowering import lower
from tests.formulas import SPECS, Dims, make_inputs

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = sorted(SPECS)
SMALL = Dims(B=2, H=4, G=2, M=5, N=7, D=3, E=2)


@cache
def example(name: str, *, small: bool = True) -> Program:
    """The program of an example, with the consts that suit small lengths."""
    source = driver.read(EXAMPLES / f"{name}.attn")
    consts = SPECS[name].consts if small else {}
    return lower(driver.definition(source, name), source, consts)


def spec(text: str) -> Program:
    """The program of a spec given as text."""
    source = driver.read(text)
    return lower(driver.definition(source), source, {})


def inputs(name: str, dims: Dims = SMALL, seed: int = 0) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Float64 tensors and sizes for an example."""
    made = make_inputs(name, dims, torch.float64, seed=seed)
    program = example(name)
    tensors = {"q": made.q, "k": made.k, "v": made.v, **made.tensors}
    return tensors, bind_sizes(program, tensors)


def seeds(program: Program, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Random incoming gradients, one per output."""
    generator = torch.Generator().manual_seed(7)
    return {
        f"grad_{o.name}": torch.randn(outputs[o.name].shape, generator=generator, dtype=torch.float64)
        for o in program.outputs
    }


def real_inputs(program: Program) -> list[str]:
    return [t.name for t in program.tensors if t.is_real]
