"""Query rows that may attend to nothing: output 0 and gradient 0, whatever the scores, on every backend.

The specs here leave some rows empty, and what they would compute outside the mask overflows or is NaN: a growing power,
keys that hold NaN.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import attnc
from tests.differential.compare import poisoned_memory

BACKENDS = ["cpp", "triton", "tiled", "dense"]
M, N, H, D = 37, 45, 2, 8
QUERY = torch.arange(M)[:, None]
KEY = torch.arange(N)[None, :]

CAUSAL_LATE = "mask = j < i - 3\n"
FAR_WINDOW = "mask = 0 <= i - j - 20 < 9\n"
BEYOND = "mask = i + 30 <= j\n"
NOTHING = "mask = j < i and i < j\n"

MASKS: dict[str, tuple[str, Tensor]] = {
    "late": (CAUSAL_LATE, KEY < QUERY - 3),
    "window_far_behind": (FAR_WINDOW, (QUERY - KEY >= 20) & (QUERY - KEY < 29)),
    "far_ahead": (BEYOND, QUERY + 30 <= KEY),
    "nothing": (NOTHING, torch.zeros(M, N, dtype=torch.bool)),
}
BODIES: dict[str, str] = {
    "softmax": "",
    "sink": "tensor sink: f32[H]\nnormaliser = softmax(sink = sink[h])\n",
    "softmax1": "normaliser = softmax1\n",
    "sigmoid": "normaliser = sigmoid\n",
    "l1": "normaliser(s) = softplus(s) / sum[j](softplus(s))\n",
    "over_queries": "normaliser = softmax(axis = i)\n",
    "renormalised": "weight = p ** 2 / sum[j](p ** 2)\n",
    "growing_score": "tensor gamma: f32[H]\nscore = dot(q, k) * gamma[h] ** (j - i)\nnormaliser = none\n",
    "entropy": "observe entropy = -sum[j](xlogy(p, p))\n",
}
# `growing_score` is finite where j < i, which is no part of what `far_ahead` allows.
CASES = [(body, mask) for body in BODIES for mask in MASKS if (body, mask) != ("growing_score", "far_ahead")]


def arguments(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, H, n, D, generator=generator).to(dtype) for n in (M, N, N))
    return q, k, v


def tensors_for(body: str) -> dict[str, Tensor]:
    if "sink" in body:
        return {"sink": torch.zeros(H)}
    return {"gamma": torch.full((H,), 50.0)} if "gamma" in body else {}


# Compiling C++ takes seconds: a normal run takes half of the cases there.
RUNS = [
    pytest.param(*case, backend, marks=[pytest.mark.sweep] if backend == "cpp" and k % 2 else [])
    for backend in BACKENDS
    for k, case in enumerate(CASES)
]


@pytest.mark.parametrize(("body", "mask", "backend"), RUNS)
def test_empty_rows_give_zero(body: str, mask: str, backend: str) -> None:
    text, allowed = MASKS[mask]
    op = attnc.compile(f"attention empty_{body}_{mask}\n" + BODIES[body] + text, backend=backend)
    q, k, v = (x.requires_grad_() for x in arguments())
    tensors: dict[str, Any] = {name: x.requires_grad_() for name, x in tensors_for(BODIES[body]).items()}
    with poisoned_memory():
        if body == "entropy":
            o, seen = op(q, k, v, **tensors, observe=True)
            outputs = [o, seen["entropy"]]
        else:
            outputs = [op(q, k, v, **tensors)]
        leaves = [q, k, v, *tensors.values()]
        gradients = torch.autograd.grad(outputs, leaves, [torch.ones_like(x) for x in outputs])
    empty_rows, unseen_keys = ~allowed.any(1), ~allowed.any(0)
    for x in (*outputs, gradients[0]):
        assert torch.isfinite(x).all()
        assert (x[:, :, empty_rows] == 0).all()
    for x in gradients[1:3]:
        assert torch.isfinite(x).all()
        assert (x[:, :, unseen_keys] == 0).all()
    for x in gradients[3:]:
        assert torch.isfinite(x).all()
        if not allowed.any():
            assert (x == 0).all()
    if allowed.any():
        assert (outputs[0][:, :, ~empty_rows] != 0).any()


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [*((b, torch.float32) for b in BACKENDS), ("cpp", torch.bfloat16), ("cpp", torch.float16)],
    ids=[*BACKENDS, "cpp-bf16", "cpp-f16"],
)
def test_queries_of_an_absent_document(backend: str, dtype: torch.dtype) -> None:
    """`doc == other` for a document no key belongs to."""
    text = "attention other\ntensor mine: i32[B, M]\ntensor doc: i32[B, N]\nmask = mine[b, i] == doc[b, j]\n"
    op = attnc.compile(text, backend=backend)
    q, k, v = (x.requires_grad_() for x in arguments(dtype))
    mine = (torch.arange(M, dtype=torch.int32) % 3)[None]
    doc = (torch.arange(N, dtype=torch.int32) % 2)[None]
    with poisoned_memory():
        o = op(q, k, v, mine=mine, doc=doc)
        dq, dk, dv = torch.autograd.grad(o.sum(), [q, k, v])
    empty = mine[0] == 2
    assert (o[:, :, empty] == 0).all()
    assert (dq[:, :, empty] == 0).all()
    assert (o[:, :, ~empty] != 0).all()
    for x in (o, dq, dk, dv):
        assert torch.isfinite(x).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_queries_before_every_key(backend: str) -> None:
    """A window that starts beyond the keys: q_start puts all queries after its end."""
    op = attnc.compile("attention beyond\nmask = 0 <= i - j < 16\n", backend=backend)
    q, k, v = (x.requires_grad_() for x in arguments())
    with poisoned_memory():
        o = op(q, k, v, q_start=N + 16)
        gradients = torch.autograd.grad(o.sum(), [q, k, v])
    for x in (o, *gradients):
        assert (x == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_masked_keys_may_hold_nan(backend: str) -> None:
    """Padding is never seen, forward or backward: neither its keys nor its values."""
    text = "attention padded\ntensor length: i32[B]\nmask = j < length[b]\n"
    op = attnc.compile(text, backend=backend)
    q, k, v = arguments()
    clean = op(q, k[:, :, :30].contiguous(), v[:, :, :30].contiguous(), length=torch.tensor([30], dtype=torch.int32))
    k[:, :, 30:] = torch.nan
    v[:, :, 30:] = torch.inf
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    with poisoned_memory():
        o = op(q, k, v, length=torch.tensor([30], dtype=torch.int32))
        gradients = torch.autograd.grad(o.sum(), [q, k, v])
    torch.testing.assert_close(o.detach(), clean)
    for x in gradients:
        assert torch.isfinite(x).all()
    for x in gradients[1:]:
        assert (x[:, :, 30:] == 0).all()
