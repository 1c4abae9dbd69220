"""Identities and edges of gates, temperatures, densities and selected keys."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.gallery.calls import HEADS, LENGTH, operands, run

close = torch.testing.assert_close
OPEN = 50.0  # sigmoid(50) is 1 to within rounding


@pytest.mark.parametrize(
    ("name", "tensor", "shape"),
    [
        ("gated_headwise", "g", (2, HEADS, LENGTH)),
        ("gated_shared", "g", (2, LENGTH, 16)),
        ("gated_half", "g", (2, HEADS, LENGTH, 16)),
        ("gated_value", "opening", (2, HEADS, LENGTH, 16)),
        ("gated_value_headwise", "opening", (2, HEADS, LENGTH)),
        ("gated_key", "opening", (2, HEADS, LENGTH, 16)),
        ("gated_query", "opening", (2, HEADS, LENGTH, 16)),
    ],
)
def test_an_open_gate_is_no_gate(name: str, tensor: str, shape: tuple[int, ...]) -> None:
    qkv = operands()
    gate = torch.full(shape, OPEN, dtype=torch.float64)
    close(run(f"gallery/{name}", *qkv, **{tensor: gate}), run("causal", *qkv))


def test_headwise_gates_are_elementwise_ones_repeated() -> None:
    qkv = operands()
    gate = torch.randn(2, HEADS, LENGTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    every = gate[..., None].expand(-1, -1, -1, 16).contiguous()
    close(run("gallery/gated_headwise", *qkv, g=gate), run("gated", *qkv, g=every))
    close(run("gallery/gated_value_headwise", *qkv, opening=gate), run("gallery/gated_value", *qkv, opening=every))


@pytest.mark.parametrize("name", ["gated_key", "gated_query"])
def test_a_gate_of_one_channel_serves_all(name: str) -> None:
    """The headwise form of G3 and G4: extent 1 broadcasts, and its gradient is the sum."""
    qkv = operands()
    gate = torch.randn(2, HEADS, LENGTH, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    every = gate.expand(-1, -1, -1, 16).contiguous()
    found, expected = gate.requires_grad_(), every.requires_grad_()
    outputs = [run(f"gallery/{name}", *qkv, opening=x) for x in (found, expected)]
    close(*outputs)
    gradients = [torch.autograd.grad(o.square().sum(), x)[0] for o, x in zip(outputs, (found, expected), strict=True)]
    close(gradients[0], gradients[1].sum(-1, keepdim=True))


def test_a_gate_after_the_output_projection() -> None:
    """G5 of a whole layer: sigmoid(g) times the sum over heads of o W_o."""
    q, k, v = operands()
    generator = torch.Generator().manual_seed(2)
    projection = torch.randn(HEADS, 16, 24, generator=generator, dtype=torch.float64)
    g = torch.randn(2, LENGTH, 24, generator=generator, dtype=torch.float64)
    found = run("gallery/gated_projection", q, k, torch.einsum("bhje,hec->bhjc", v, projection), g=g).sum(1)
    close(found, torch.einsum("bhie,hec->bic", run("causal", q, k, v), projection) * torch.sigmoid(g))


def test_selective_attention_without_its_terms_is_causal() -> None:
    """No token term, and sigmoid(alpha) = 0: every temperature is 1."""
    qkv = operands()
    token = torch.zeros(2, HEADS, LENGTH, dtype=torch.float64)
    never = torch.full((HEADS,), -math.inf, dtype=torch.float64)
    tensors = {"query_token": token, "value_token": token, "query_position": never, "value_position": never}
    close(run("gallery/selective", *qkv, **tensors), run("causal", *qkv))


def test_a_temperature_of_zero() -> None:
    """tanh(-inf) + 1 = 0 in the first row, where ln 1 = 0 too: the value of the only key there, times its own 0."""
    q, k, v = operands()
    low = torch.full((2, HEADS, LENGTH), -math.inf, dtype=torch.float64)
    half = torch.zeros(HEADS, dtype=torch.float64)
    tensors = {"query_token": low, "value_token": low, "query_position": half, "value_position": half}
    o = run("gallery/selective", q, k, v, **tensors)
    assert not o[:, :, 0].any()
    assert o[:, :, 1].abs().max() > 0


def densities(v: Tensor, offset: Tensor, spread: Tensor) -> Tensor:
    """The released order of operations: a product of densities over its sum."""
    z0 = v - v.mean(2, keepdim=True)
    m = torch.ones_like(v)
    for n in range(4):
        o, c = offset[:, n, None, None], spread[:, n, None, None]
        z = (z0 - o) / (v.var(2, keepdim=True) + 1e-8).sqrt()
        m = m * torch.exp(-(z**2) / (2 * c**2)) / torch.sqrt(2 * torch.pi * c**2)
    return v * m / m.sum(2, keepdim=True).clamp(min=1e-8)


def test_gaussian_attention_is_a_product_of_densities() -> None:
    q, k, v = operands()
    generator = torch.Generator().manual_seed(3)
    offset = 0.3 * torch.randn(HEADS, 4, generator=generator, dtype=torch.float64)
    spread = torch.rand(HEADS, 4, generator=generator, dtype=torch.float64) + 0.8
    close(run("gallery/gaussian_adaptive", q, k, v, offset=offset, spread=spread), densities(v, offset, spread))


def test_narrow_densities_do_not_underflow() -> None:
    """In f32 the product itself is 0 in most channels, and so would be the output."""
    q, k, v = (x.float() for x in operands())
    offset, spread = torch.full((HEADS, 4), 8.0), torch.full((HEADS, 4), 0.1)
    assert (densities(v, offset, spread) == 0).all()
    o = run("gallery/gaussian_adaptive", q, k, v, offset=offset, spread=spread)
    close((o / v).sum(2), torch.ones(2, HEADS, 16), rtol=1e-4, atol=1e-4)


def test_rows_that_keep_no_key_give_zero() -> None:
    q, k, v = operands()
    for x in (q, k, v):
        x.requires_grad_()
    keep = torch.zeros(2, HEADS, LENGTH, dtype=torch.bool)
    keep[:, :, 10:] = True
    a, dt = torch.ones(HEADS, dtype=torch.float64), torch.zeros(2, HEADS, LENGTH, dtype=torch.float64)
    o = run("gallery/dynamic_mask_keys", q, k, v, a=a, dt=dt, keep=keep)
    assert not o[:, :, :10].any()
    dq, dk, dv = torch.autograd.grad(o.sum(), (q, k, v))
    assert not dq[:, :, :10].any()
    assert not dk[:, :, :10].any()
    assert not dv[:, :, :10].any()
    assert dv[:, :, 10:].abs().min() > 0


def test_dynamic_mask_of_a_whole_layer() -> None:
    """dt is made of the values, each row keeps its w largest biases, and v receives both gradients."""
    q, k, v = operands()
    generator = torch.Generator().manual_seed(4)
    linear = 0.2 * torch.randn(HEADS * 16, HEADS, generator=generator, dtype=torch.float64)
    a = torch.rand(HEADS, generator=generator, dtype=torch.float64)
    causal = torch.ones(LENGTH, LENGTH).tril().bool()

    def selected(v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dt = (v.transpose(1, 2).flatten(2) @ linear).transpose(1, 2)
        bias = a[:, None] * F.softplus(dt)
        rows = bias.detach()[:, :, None].expand(-1, -1, LENGTH, -1).masked_fill(~causal, -math.inf)
        keep = torch.zeros_like(rows, dtype=torch.bool).scatter(-1, rows.topk(12).indices, True)
        return dt, bias, keep & causal

    def dense(v: Tensor) -> Tensor:
        _, bias, keep = selected(v)
        s = q @ k.transpose(-1, -2) / 4 + bias[:, :, None]
        return s.masked_fill(~keep, -math.inf).softmax(-1) @ v

    def ours(v: Tensor) -> Tensor:
        dt, _, keep = selected(v)
        return run("gallery/dynamic_mask", q, k, v, a=a, dt=dt, keep=keep)

    leaf, twin = v.clone().requires_grad_(), v.clone().requires_grad_()
    found, expected = ours(leaf), dense(twin)
    close(found, expected)
    close(*(torch.autograd.grad(o.square().sum(), x)[0] for o, x in ((found, leaf), (expected, twin))))
