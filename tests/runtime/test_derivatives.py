"""Derivatives through autograd: gradcheck, gradgradcheck, parts of inputs and outputs, and the limit of the order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import attnc
from tests.runtime.specs import ALIBI, BANDED, CAPPED, CAUSAL, GATED, MUSIC, SIGMOID, URPE, WATCHED, leaf, qkv, textbook

BACKENDS = ("dense", "tiled", "cpp")
RETENTION = """attention retention
tensor gamma: [H]
score = dot(q, k) * gamma[h] ** (i - j)
mask = j <= i
normaliser = none
"""
GLA = """attention gla
tensor g: [B, H, N, D]
let total[j, d] = cumsum[j](g[b, h, j, d])
score = sum[d](q[i, d] * k[j, d] * exp(total[i, d] - total[j, d]))
mask = j <= i
normaliser = none
"""
EXTRA: dict[str, tuple[str, dict[str, tuple[int, ...]]]] = {
    "softmax": (CAUSAL, {}),
    "sigmoid": (SIGMOID, {}),
    "capped": (CAPPED, {"slope": (2,)}),
    "urpe": (URPE, {"c": (2, 7)}),
    "gated": (GATED, {"g": (1, 2, 3, 2)}),
    "music": (MUSIC, {"rel": (2, 2, 3)}),
    "retention": (RETENTION, {"gamma": (2,)}),
    "gla": (GLA, {"g": (1, 2, 4, 3)}),
}


def small(spec: str, backend: str) -> tuple[Callable[..., torch.Tensor], tuple[torch.Tensor, ...]]:
    """An op as a function of tensors alone, and tiny inputs for it."""
    text, shapes = EXTRA[spec]
    op = attnc.compile(text, backend=backend)
    inputs = qkv(b=1, h=2, g=1, m=3, n=4, d=3, e=2, grad=True)

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        extra: dict[str, Any] = dict(zip(shapes, rest, strict=True))
        out: torch.Tensor = op(q, k, v, q_start=1, **extra)
        return out

    return call, (*inputs, *(leaf(*s) for s in shapes.values()))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("spec", EXTRA)
def test_gradcheck(spec: str, backend: str) -> None:
    assert torch.autograd.gradcheck(*small(spec, backend))


SLOW = {(s, "cpp") for s in ("gla", "retention", "music", "urpe", "gated", "capped", "sigmoid")} | {("gla", "tiled")}
"""Up to a minute each; a normal run takes these specs on the other backends."""


@pytest.mark.parametrize(
    ("spec", "backend"),
    [pytest.param(s, b, marks=[pytest.mark.sweep] if (s, b) in SLOW else []) for s in EXTRA for b in BACKENDS],
)
def test_gradgradcheck(spec: str, backend: str) -> None:
    assert torch.autograd.gradgradcheck(*small(spec, backend))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wanted", [("q",), ("k", "v"), ("slope",), ("q", "slope")])
def test_only_wanted_gradients(backend: str, wanted: tuple[str, ...]) -> None:
    op = attnc.compile(ALIBI, backend=backend)
    tensors: dict[str, Any] = dict(zip(("q", "k", "v", "slope"), (*qkv(m=7), leaf(4).detach()), strict=True))
    for name in wanted:
        tensors[name].requires_grad_()
    found = torch.autograd.grad(op(**tensors).square().sum(), [tensors[n] for n in wanted])
    expected = torch.autograd.grad(textbook(**tensors).square().sum(), [tensors[n] for n in wanted])
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    below = op.variant("slope").computation.derivative(["o"], wanted)
    assert {o.of for o in below.program.outputs} == set(wanted)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("used", [("o",), ("entropy",), ("importance",), ("o", "entropy", "importance")])
def test_gradients_of_some_outputs(backend: str, used: tuple[str, ...]) -> None:
    op = attnc.compile(WATCHED, backend=backend)
    inputs = qkv(grad=True)

    def loss(call: Callable[..., tuple[torch.Tensor, dict[str, torch.Tensor]]]) -> torch.Tensor:
        o, seen = call(*inputs, observe=True)
        values = {"o": o, **seen}
        return sum((values[n].square().sum() for n in used), torch.zeros((), dtype=torch.float64))

    found = torch.autograd.grad(loss(op), inputs, allow_unused=True)
    expected = torch.autograd.grad(loss(op.reference), inputs, allow_unused=True)
    for a, b in zip(found, expected, strict=True):
        zero = torch.zeros(())
        torch.testing.assert_close(
            zero if a is None else a.sum(), zero.double() if b is None else b.sum(), check_dtype=False
        )
        if a is not None and b is not None:
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_without_keys_are_zero_forward_and_backward(backend: str) -> None:
    op = attnc.compile(BANDED, backend=backend)
    q, k, v = qkv(grad=True)
    o = op(q, k, v)
    assert torch.equal(o[:, :, :3], torch.zeros_like(o[:, :, :3]))
    dq, dk, dv = torch.autograd.grad(o.sum(), (q, k, v))
    assert torch.equal(dq[:, :, :3], torch.zeros_like(dq[:, :, :3]))
    assert all(bool(g.isfinite().all()) for g in (dq, dk, dv))


@pytest.mark.parametrize("backend", BACKENDS)
def test_third_derivatives_are_refused(backend: str) -> None:
    op = attnc.compile(CAUSAL, backend=backend)
    q, k, v = qkv(m=2, n=2)
    q.requires_grad_()
    (first,) = torch.autograd.grad(op(q, k, v).square().sum(), q, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), q, create_graph=True)
    with pytest.raises(attnc.CallError, match="E212"):
        torch.autograd.grad(second.square().sum(), q)


def test_integer_tensors_have_no_gradient() -> None:
    text = "attention documents\ntensor doc: i32[B, N]\nmask = doc[b, i] == doc[b, j]\n"
    op = attnc.compile(text, backend="dense")
    q, k, v = qkv(m=7, grad=True)
    doc = torch.tensor([[0, 0, 0, 1, 1, 1, 1]] * 2, dtype=torch.int32)
    (dq,) = torch.autograd.grad(op(q, k, v, doc=doc).sum(), q)
    (expected,) = torch.autograd.grad(op.reference(q, k, v, doc=doc).sum(), q)
    torch.testing.assert_close(dq, expected)
