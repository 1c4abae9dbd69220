"""Products of f32 tensors: exact, or in TF32 where a caller asks for it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import attnc
from attnc import driver
from attnc.codegen.tile import Kernel
from attnc.codegen.triton.configuration import candidates
from attnc.codegen.triton.printer import print_kernel, print_module
from attnc.codegen.triton.table import kernel_class
from attnc.ir.options import options
from attnc.runtime.triton_aot import aot
from attnc.runtime.triton_backend import TritonKernel, multiplies_tf32
from attnc.testing.artefacts import report

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
CHANNELS = {"D": 64, "E": 64}


def kernels(spec: str, dtype: str = "f32", *, tf32: bool, bias: str = "auto") -> list[Kernel]:
    """Forward and backward on a GPU."""
    source = driver.read(EXAMPLES / f"{spec}.attn")
    program = driver.lower(driver.definition(source), source)
    return driver.all_kernels(replace(program, options=options(bias=bias, tf32=tf32)), dtype, 64, "gpu")


def asked(kernel: Kernel) -> list[str | None]:
    """The precision that each product asks for."""
    found: list[str | None] = []
    for line in print_kernel(kernel).splitlines():
        if "tl.dot(" in line:
            precision = re.search(r'input_precision="(\w+)"', line)
            found.append(precision[1] if precision else None)
    return found


@pytest.mark.parametrize("spec", ["causal", "gated", "retention", "sigmoid_attention", "watched"])
@pytest.mark.parametrize("tf32", [False, True])
def test_every_product_says_its_precision(spec: str, tf32: bool) -> None:
    found = [p for k in kernels(spec, tf32=tf32) for p in asked(k)]
    assert set(found) == {"tf32" if tf32 else "ieee"}
    assert len(found) >= 7  # two forward, five backward, fewer only where loops are shared


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_other_dtypes_are_as_they_were(dtype: str) -> None:
    texts = [print_module(kernels("causal", dtype, tf32=tf32)) for tf32 in (False, True)]
    assert texts[0] == texts[1]
    assert "tf32" not in texts[0]


def test_factors_of_a_bias_are_multiplied_exactly() -> None:
    """They hold positions, whose differences would be lost."""
    (forward,) = (k for k in kernels("alibi", tf32=True, bias="factors") if k.name.startswith("alibi_row_o"))
    assert sorted(map(str, asked(forward))) == sorted(["ieee", "tf32", "tf32"] * (len(asked(forward)) // 3))


def test_ops_are_kept_apart() -> None:
    """What was compiled for one answer is not used for the other, and interpreted both agree with the oracle."""
    text = "attention plain\nmask = j <= i\n"
    ops = [attnc.compile(text, backend="triton", tf32=tf32) for tf32 in (False, True)]
    assert ops[0].program.options.key != ops[1].program.options.key
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 37, 16, requires_grad=True) for _ in range(3))
    for op in ops:
        exact = op.reference(q, k, v)
        o = op(q, k, v)
        assert torch.allclose(o.double(), exact, atol=3e-6)
        seed = torch.randn_like(o)
        found = torch.autograd.grad(o, (q, k, v), seed)
        for got, want in zip(found, torch.autograd.grad(exact, (q, k, v), seed.double()), strict=True):
            assert torch.allclose(got, want, atol=1e-5)


@pytest.mark.parametrize(("target", "instruction"), [("sm_80", "HMMA"), ("sm_90", "HGMMA")])
def test_tensor_cores_multiply_them(target: str, instruction: str) -> None:
    forward = kernels("causal", tf32=True)[0]
    found = report(forward, aot(forward, print_kernel(forward), target, CHANNELS))
    assert not found.problems
    assert found.loop is not None
    assert any(n.startswith(instruction) and "TF32" in n for n in found.loop.names)


def test_exact_products_take_no_tensor_cores() -> None:
    forward = kernels("causal", tf32=False)[0]
    artefact = aot(forward, print_kernel(forward), "sm_90", CHANNELS)
    assert not re.search(r"\bHG?MMA", artefact.assembly)


def test_they_are_a_class_of_their_own() -> None:
    """What was measured for one says nothing about the other, and they may have other blocks."""
    exact, rounded = (kernels("causal", tf32=tf32)[0] for tf32 in (False, True))
    assert kernel_class(exact, CHANNELS).startswith("f32 ")
    assert kernel_class(rounded, CHANNELS).startswith("tf32 ")
    assert candidates(exact, CHANNELS, "sm_90") != candidates(rounded, CHANNELS, "sm_90")


def test_devices_without_it_multiply_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [multiplies_tf32(t) for t in ("sm_80", "sm_90", "gfx942", "gfx950")] == [True, True, True, False]
    forward = kernels("causal", tf32=True)[0]
    monkeypatch.setattr("attnc.runtime.triton_backend._target", lambda device: device)
    launched = TritonKernel(forward, print_kernel(forward), tmp_path)
    for target, precision in (("gfx950", "ieee"), ("gfx942", "tf32")):
        source = launched._compiled(target, wide=False).fn.__code__.co_filename  # type: ignore[arg-type]
        assert set(re.findall(r'input_precision="(\w+)"', Path(source).read_text())) == {precision}
