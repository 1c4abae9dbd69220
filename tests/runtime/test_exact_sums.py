"""Sums that do not depend on the order of additions, and gradients of tables made with them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import attnc
from attnc import driver
from attnc.codegen.tile import Argument, Assign, Kernel, Lane, Scatter
from attnc.codegen.triton.printer import print_module
from attnc.diagnostics.diagnostic import CallError
from attnc.ir.construct import axis, call, const, load, size, var
from attnc.runtime.exact_sums import counters, shift_for, total
from attnc.runtime.triton_backend import TritonKernel
from attnc.testing.compare import dense, output_seeds, run_op
from attnc.testing.inputs import complete_sizes, make_inputs

EXAMPLES = Path(__file__).parents[2] / "examples"
i = axis("i")


def into_bins(exact: bool) -> Kernel:
    """bins[i % 3] += x[i]"""
    x = var("x", "i")
    body = (Assign(x, load("x", (i,))), Scatter("bins", (call("mod", i, const(3)),), x))
    arguments = (Argument("x", "f32", (size("M"),)), Argument("bins", "f32", (const(3),), "add"))
    lanes = (Lane("i", "outer", size("M")),)
    return Kernel("into_bins", "", arguments, ("M",), (), (), "i", lanes, {"i": 64}, body, exact=exact)


def run(kernel: Kernel, x: torch.Tensor) -> torch.Tensor:
    bins = torch.zeros(3)
    TritonKernel(kernel, print_module([kernel]))([x, bins], {"M": len(x)})
    return bins


def test_the_order_of_additions_does_not_matter() -> None:
    x = torch.randn(600, generator=torch.Generator().manual_seed(0)) * 10.0 ** torch.arange(600).remainder(12)
    x[3::3] *= -1
    shuffled = x.view(200, 3)[torch.randperm(200)].flatten()
    kernel = into_bins(exact=True)
    first, second = run(kernel, x), run(kernel, shuffled)
    assert torch.equal(first, second)
    assert torch.equal(first, x.view(200, 3).double().sum(0).float())
    plain = into_bins(exact=False)
    assert not torch.equal(run(plain, x), run(plain, shuffled))


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_shows(value: float) -> None:
    found = run(into_bins(exact=True), torch.tensor([1.0, value, 2.0, 3.0]))
    assert found[0] == 4 and found[1].isnan() and found[2] == 2


@pytest.mark.parametrize("shift", [1, 2, 3, 4])
def test_every_exponent_has_its_counter(shift: int) -> None:
    for x in (2.0**-149, 1.5 * 2.0**-126, -(2.0**-126), 1.0, -math.pi, 3.4028235e38):
        number = torch.tensor([x])
        bits = int(number.view(torch.int32))
        exponent = (bits >> 23) & 255
        place, mantissa = max(exponent, 1) - 1, (bits & 0x7FFFFF) | (0x800000 if exponent else 0)
        held = counters(number, shift)
        held[0, place >> shift] += (-mantissa if x < 0 else mantissa) << place % 2**shift
        assert total(held, shift) == number.double()


def test_counters_do_not_overflow() -> None:
    for bits in range(32):
        shift = shift_for(2**bits)
        assert (2**24 << (2**shift - 1)) * 2**bits * 2**7 < 2**63
    with pytest.raises(CallError, match="deterministic=False"):
        shift_for(2**32)


@pytest.mark.parametrize("spec", ["urpe", "relative_table"])
def test_tables_take_no_float_atomics_unless_asked_for(spec: str) -> None:
    source = driver.read(EXAMPLES / f"{spec}.attn")
    program = driver.lower(driver.definition(source), source)
    text = driver.text(program, "triton")
    assert "add_exactly(" in text and text.count("atomic_add") == 1
    loose = attnc.compile(EXAMPLES / f"{spec}.attn", deterministic=False).program
    assert "add_exactly" not in driver.text(loose, "triton")


def test_gradients_of_a_table() -> None:
    op = attnc.compile(EXAMPLES / "urpe.attn", backend="triton")
    sizes = complete_sizes(op.program, {"B": 2, "H": 2, "M": 70, "N": 70, "D": 8})
    tensors = make_inputs(op.program, sizes, torch.float32)
    seeds = output_seeds(op.program, tensors)
    found, again = (run_op(op, tensors, seeds).gradients["table"] for _ in range(2))
    exact = dense(op.program, tensors, seeds, torch.float64).gradients["table"]
    assert torch.equal(found, again)
    assert (found - exact).abs().max() <= 2e-6 * exact.abs().max()
