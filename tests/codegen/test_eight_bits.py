"""Inputs in float8_e4m3fn, with a scale per head: interpreted against the float64 oracle, and compiled."""

from __future__ import annotations

import pytest
import torch

import attnc
from attnc import driver
from attnc.codegen.triton.printer import print_kernel
from attnc.runtime.triton_aot import aot
from attnc.testing.artefacts import report

SPEC = """attention scaled
"Causal attention on q, k and v that were divided by a scale per head and rounded to eight bits."
tensor qk_scale: f32[H]
tensor v_scale: f32[H]
score = dot(q, k) * qk_scale[h] / sqrt(D)
mask = j <= i
gate = v_scale[h]
"""


def rounded(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random numbers of a different size per head as eight bits, and the scale of each head."""
    values = torch.randn(shape) * torch.logspace(-1, 0.3, shape[1])[:, None, None]
    scale = values.abs().amax((0, 2, 3)) / torch.finfo(torch.float8_e4m3fn).max
    return (values / scale[:, None, None]).to(torch.float8_e4m3fn), scale


def inputs() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    (q, q_scale), (k, k_scale), (v, v_scale) = (rounded(1, 2, 37, 24), rounded(1, 2, 37, 24), rounded(1, 2, 37, 16))
    return {"q": q, "k": k, "v": v, "qk_scale": q_scale * k_scale, "v_scale": v_scale}


def test_forward() -> None:
    """Nothing is lost but the rounding of the inputs, before, and of the outputs to bf16, which the interpreter cuts
    off."""
    given = inputs()
    op = attnc.compile(SPEC, backend="triton")
    o = op(given["q"], given["k"], given["v"], qk_scale=given["qk_scale"], v_scale=given["v_scale"])
    assert o.dtype == torch.bfloat16
    wide = {n: t.double() for n, t in given.items()}
    s = wide["q"] @ wide["k"].mT * wide["qk_scale"][:, None, None] / 24**0.5
    s = s.masked_fill(~torch.ones(37, 37, dtype=torch.bool).tril(), -torch.inf)
    exact = s.softmax(-1) @ wide["v"] * wide["v_scale"][:, None, None]
    assert ((o.double() - exact).abs().amax((2, 3)) <= 2**-7 * exact.abs().amax((2, 3))).all()
    reference = op.reference(given["q"], given["k"], given["v"], qk_scale=given["qk_scale"], v_scale=given["v_scale"])
    assert torch.allclose(reference, exact, rtol=1e-6)


def test_there_are_no_gradients() -> None:
    given = inputs()
    op = attnc.compile(SPEC, backend="triton")
    scale = given["qk_scale"].requires_grad_()
    o = op(given["q"], given["k"], given["v"], qk_scale=scale, v_scale=given["v_scale"])
    with pytest.raises(attnc.CallError, match="E215"):
        o.sum().backward()


@pytest.mark.parametrize("backend", ["cpp", "tiled"])
def test_processors_refuse_them(backend: str) -> None:
    given = inputs()
    op = attnc.compile(SPEC, backend=backend)
    with pytest.raises(attnc.CallError, match="E202"):
        op(given["q"], given["k"], given["v"], qk_scale=given["qk_scale"], v_scale=given["v_scale"])


def test_tensor_cores_multiply_them() -> None:
    source = driver.read(SPEC)
    program = driver.lower(driver.definition(source), source)
    (kernel,) = driver.all_kernels(program, "f8", 64, "gpu")
    assert kernel.argument("o").dtype == "bf16"
    text = print_kernel(kernel)
    assert "tl.dot(q, tl.trans(k))" in text
    assert "tl.dot(p.to(tl.bfloat16), v.to(tl.bfloat16), acc)" in text  # eight bits end at 448
    found = report(kernel, aot(kernel, text, "sm_90", {"D": 64, "E": 64}))
    assert not found.problems
    assert found.loop is not None and found.loop.count("QGMMA")
