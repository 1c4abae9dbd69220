"""Small specs that each need one thing of the compiler, on every backend against the float64 oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import attnc
from attnc.ir.sizes import evaluator

SPECS = {
    "iterated normaliser": "normaliser = sinkhorn(3)",
    "two stages of l1": (
        "mask = j <= i\n"
        "normaliser(s) = softplus(s) / sum[j](softplus(s))\n"
        "let u = relu((i + 1) * p - 1) ** 3\n"
        "weight = u / (0.001 + sum[j](u))"
    ),
    "dense bias per head": "tensor t: [H, M, N]\nbias = t[h, i, j]",
    "dense bias per batch and head": "tensor t: [B, H, M, N]\nbias = t\nmask = j <= i",
    "one tensor read at two places": "tensor x: [B, H, N, D]\nscore = dot(x[b, h, i], x[b, h, j])\nmask = j <= i",
    "row temperature": "tensor w: [B, H, M]\nscore = dot(q, k) * w[b, h, i]",
    "query and key norm": (
        "query = q * rsqrt(mean[d](q * q) + 0.001)\nkey = k * rsqrt(mean[d](k * k) + 0.001)\nscore = dot(q, k)"
    ),
    "mean over keys before the plane": "key = k - mean[j](k)",
    "largest weight observed": "observe peak = max[j](p)",
    "smallest score observed": "mask = j <= i\nobserve low = min[j](s)",
    "weight that reads the largest score": "let top = max[j](s)\nweight = p * sigmoid(top)",
    "weight that reads a column sum": "mask = j <= i\nweight = p / (1 + sum[i](p))",
    "no normaliser": "normaliser = none",
    "linear attention, quadratic form": (
        "score = dot(relu(q) + 1, relu(k) + 1)\nmask = j <= i\nnormaliser(s) = s / sum[j](s)"
    ),
    "conditional score and negated mask": (
        "score = dot(q, k) if i % 2 == 0 else 0.5 * dot(q, k)\nmask = not (j > i and j % 3 == 0)"
    ),
    "two softmaxes": "tensor lam: f32[H]\nlet flat = softmax[j](0.5 * s)\nweight = p - lam[h] * flat",
    "gate per head": "tensor g: [B, H, M]\nmask = j <= i\ngate = sigmoid(g[b, h, i])",
    "triangular matrix over a size of its own": (
        "size C\nindex c: C\ntensor T: [H, C, D]\nquery = sum[c](q[b, h, i, c] * T[h, c, d] if c >= d else 0)\n"
        "key = sum[c](k[b, g, j, c] * T[h, c, d] if c >= d else 0)"
    ),
    "position table longer than the keys": (
        "size L\ntensor pos: [L, D]\ntensor shift: [H, L]\nkey = k + pos[j, d]\nbias = shift[h, j]\nmask = j <= i"
    ),
    "counts of allowed keys": (
        "tensor t: f32[64]\nmask = j <= i\nlet count = sum[j](1 if i - j < 3 else 0)\n"
        "let twice = sum[i](2 if i > j + 3 else 1)\n"
        "weight = p * t[clamp(count, 0, 63)] / max(twice, 1) * (count % 2 + 1)"
    ),
    "one map for the whole batch": (
        "tensor fq: [H, M, D]\ntensor fk: [G, N, D]\nscore = dot(fq[h, i], fk[g, j]) / sqrt(D)\nmask = j <= i"
    ),
    "masked pairs keep a score": "tensor fill: f32[H]\nmask = j <= i - 2\nmask_value = -fill[h]",
    "masked pairs keep a score, over queries": "mask = j <= i\nmask_value = -0.5\nnormaliser = softmax(axis = i)",
    "masked pairs keep a score, l1": "mask = j <= i\nmask_value = -3\nnormaliser = l1(sigmoid(s))\nweight = p * s",
    "uniform empty rows": "mask = j <= i - 3\nempty_rows = uniform\nobserve mass = sum[i](p)",
    "uniform empty rows by position": "mask = i % 3 != 0\nempty_rows = uniform",
    "empty rows are zero": "mask = j <= i - 3\nempty_rows = zero",
    "power-of-two distances": "let n = i - j\nmask = n >= 0 and n & (n - 1) == 0",
    "bits in a bias": "bias = ((i ^ j) | 1) * 0.1 - (i >> (j % 4)) + floor_log2(max(i - j, 1))",
    "value scaled by position": "tensor t: f32[B, N]\nvalue = v * t[b, j]\nmask = j <= i",
}
SIZES = {"C": 3, "L": 14, "B": 2, "H": 4, "G": 2, "M": 9, "N": 9, "D": 4, "E": 3}


def run(call: Any, tensors: dict[str, Tensor], observe: bool) -> list[Tensor]:
    """Outputs, then gradients of a fixed projection of them."""
    if observe:
        o, seen = call(**tensors, observe=True)
        results = [o, *seen.values()]
    else:
        results = [call(**tensors)]
    generator = torch.Generator().manual_seed(3)
    weights = [torch.randn(r.shape, generator=generator, dtype=torch.float64).to(r.dtype) for r in results]
    grads = torch.autograd.grad(results, list(tensors.values()), weights, allow_unused=True)
    zeros = [torch.zeros_like(t) if g is None else g for t, g in zip(tensors.values(), grads, strict=True)]
    return [*results, *zeros]


WAYS = [("cpp", torch.float64, 1e-12), ("tiled", torch.float64, 1e-12), ("triton", torch.float32, 2e-5)]
# Compiling C++ takes seconds: a normal run takes half of the constructs there.
RUNS = [
    pytest.param(name, *way, id=f"{way[0]}-{name}", marks=[pytest.mark.sweep] if way[0] == "cpp" and k % 2 else [])
    for way in WAYS
    for k, name in enumerate(sorted(SPECS))
]


@pytest.mark.parametrize(("name", "backend", "dtype", "close"), RUNS)
def test_construct(name: str, backend: str, dtype: torch.dtype, close: float) -> None:
    op = attnc.compile(f"attention construct\n{SPECS[name]}\n", backend=backend)
    generator = torch.Generator().manual_seed(0)
    tensors = {
        t.name: torch.randn([evaluator(d)(SIZES) for d in t.dims], generator=generator, dtype=torch.float64).to(dtype)
        for t in op.program.tensors
    }
    observe = bool(op.program.observed)
    leaves = {n: t.clone().requires_grad_() for n, t in tensors.items()}
    precise = {n: t.double().requires_grad_() for n, t in tensors.items()}
    for actual, expected in zip(run(op, leaves, observe), run(op.reference, precise, observe), strict=True):
        scale = max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(actual.double() / scale, expected / scale, rtol=0, atol=close)
