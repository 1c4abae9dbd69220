"""Specs and inputs the runtime's tests share."""

from __future__ import annotations

import torch

CAUSAL = "attention causal\nmask = j <= i\n"

ALIBI = """attention alibi
tensor slope: f32[H] = 2 ** (-8 * (h + 1) / H)
bias = -slope[h] * (i - j)
mask = j <= i
"""

WATCHED = """attention watched
mask = j <= i
observe entropy = -sum[j](xlogy(p, p))
observe importance = sum[i](p)
"""

SINKS = """attention sinks
const window = 5
tensor sink: f32[H]
mask = 0 <= i - j < window
normaliser = softmax(sink = sink[h])
"""

MUSIC = """attention music
size L
tensor rel: [H, L, D]
score = (dot(q, k) + dot(q, rel[h, clamp(L - 1 - (i - j), 0, L - 1)])) / sqrt(D)
mask = j <= i
"""

SIGMOID = """attention sigmoid_attention
bias = -log(N)
normaliser = sigmoid
"""

CAPPED = """attention capped
const cap = 5.0
tensor slope: f32[H]
score = cap * tanh(dot(q, k) / sqrt(D) / cap)
bias = -slope[h] * abs(i - j)
mask = j <= i
"""

URPE = """attention urpe
const R = 3
tensor c: f32[H, 2 * R + 1]
weight = p * c[h, clamp(i - j, -R, R) + R]
mask = j <= i
"""

GATED = """attention gated
tensor g: [B, H, M, E]
mask = j <= i
gate = sigmoid(g[b, h, i, e])
"""

BANDED = """attention banded
mask = i - j > 2
"""
"""A row's first keys are all masked."""


def qkv(
    b: int = 2,
    h: int = 4,
    g: int = 2,
    m: int = 5,
    n: int = 7,
    d: int = 8,
    e: int = 6,
    *,
    dtype: torch.dtype = torch.float64,
    grad: bool = False,
    seed: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random q, k, v."""
    generator = torch.Generator().manual_seed(seed)

    def make(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(grad)

    return make(b, h, m, d), make(b, g, n, d), make(b, g, n, e)


def leaf(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> torch.Tensor:
    """A random tensor in (0, 1) that requires a gradient."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def textbook(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, slope: torch.Tensor | None = None, q_start: int = 0
) -> torch.Tensor:
    """Causal softmax attention with ALiBi, written out in torch."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    v = v.repeat_interleave(q.shape[1] // v.shape[1], 1)
    i = torch.arange(q.shape[2])[:, None] + q_start
    j = torch.arange(k.shape[2])[None]
    s = q @ k.mT / q.shape[-1] ** 0.5
    if slope is not None:
        s = s - slope[:, None, None] * (i - j)
    return torch.softmax(torch.where(j <= i, s, -torch.inf), -1) @ v
