"""Carried states: pieces of a sequence, and single tokens, give what the whole sequence gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import attnc
from tests.formulas import Dims, make_inputs

EXAMPLES = Path(__file__).parents[2] / "examples"
LINEAR = ("retention", "linear_attention", "lightning", "scalar_decay", "gla", "cosformer", "aaren")
ALONG = {"q": 2, "k": 2, "v": 2, "g": 2}
"""The dimension of positions, where a tensor has one."""


def whole(name: str, n: int, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    made = make_inputs(name, Dims(B=2, H=4, G=2, M=n, N=n, D=5, E=3), dtype)
    tensors = {"q": made.q, "k": made.k, "v": made.v, **made.tensors}
    return {name: t.requires_grad_(t.is_floating_point()) for name, t in tensors.items()}


def piecewise(op: attnc.Op, tensors: dict[str, Any], lengths: list[int]) -> Tensor:
    state, parts, start = None, [], 0
    for n in lengths:
        piece: dict[str, Any] = {k: t.narrow(ALONG[k], start, n) if k in ALONG else t for k, t in tensors.items()}
        o, state = op(**piece, state=state, return_state=True)
        parts.append(o)
        start += n
        assert state.position == start
    return torch.cat(parts, 2)


@pytest.mark.parametrize("lengths", [[33, 1, 64, 7, 66], [1] * 9, [171]], ids=["pieces", "tokens", "one"])
@pytest.mark.parametrize("name", LINEAR)
def test_pieces_equal_the_whole(name: str, lengths: list[int]) -> None:
    op = attnc.compile(EXAMPLES / f"{name}.attn", backend="tiled")
    tensors = whole(name, sum(lengths))
    expected, found = op(**tensors), piecewise(op, tensors, lengths)
    torch.testing.assert_close(found, expected)
    seed = torch.randn_like(expected)
    wanted = [t for t in tensors.values() if t.requires_grad]
    exact = torch.autograd.grad(expected, wanted, seed, allow_unused=True)
    through = torch.autograd.grad(found, wanted, seed, allow_unused=True)
    for a, b in zip(through, exact, strict=True):
        torch.testing.assert_close(torch.zeros(()) if a is None else a, torch.zeros(()) if b is None else b)


@pytest.mark.parametrize("name", ["retention", "scalar_decay"])
def test_kernels_in_c(name: str) -> None:
    op = attnc.compile(EXAMPLES / f"{name}.attn", backend="cpp")
    tensors = whole(name, 150, torch.float32)
    torch.testing.assert_close(piecewise(op, tensors, [70, 79, 1]), op(**tensors), rtol=2e-5, atol=2e-5)


def test_the_past_matters_and_detaches() -> None:
    op = attnc.compile(EXAMPLES / "retention.attn", backend="tiled")
    q, k, v = (t for n, t in whole("retention", 12).items() if n in "qkv")
    first = [t[:, :, :7] for t in (q, k, v)]
    rest = [t[:, :, 7:] for t in (q, k, v)]
    _, state = op(*first, return_state=True)
    assert not torch.allclose(op(*rest, state=state), op(*rest))
    (alone,) = torch.autograd.grad(op(*rest, state=state.detach()).sum(), k)
    assert not alone[:, :, :7].any()
    (through,) = torch.autograd.grad(op(*rest, state=state).sum(), k)
    assert through[:, :, :7].any()


def test_state_shapes() -> None:
    shapes = {
        "retention": {"state_0": "[B, H, D, E]"},
        "linear_attention": {"state_0": "[B, H, D]", "state_1": "[B, H, D, E]"},
        "aaren": {"state_0": "[B, H]", "state_1": "[B, H]", "state_2": "[B, H, E]"},
    }
    for name, expected in shapes.items():
        op = attnc.compile(EXAMPLES / f"{name}.attn", backend="dense")
        assert op.state_shapes() == expected


def test_gradcheck_through_the_state() -> None:
    op = attnc.compile(EXAMPLES / "scalar_decay.attn", backend="tiled")
    tensors = whole("scalar_decay", 6)
    names = list(tensors)

    def two_pieces(*values: Tensor) -> Tensor:
        return piecewise(op, dict(zip(names, values, strict=True)), [4, 2])

    small = tuple(t[:1, :1].detach().requires_grad_() for t in tensors.values())
    assert torch.autograd.gradcheck(two_pieces, small)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("causal", "do not separate"),
        ("softmax", "not causal"),
        ("linear_bidirectional", "not causal"),
        ("sigmoid_attention", "length N"),
        ("sliding_window", "not causal, or its weights"),
    ],
)
def test_specs_without_a_state_are_refused(name: str, why: str) -> None:
    op = attnc.compile(EXAMPLES / f"{name}.attn", backend="dense")
    q, k, v = (torch.randn(1, 2, 5, 4) for _ in range(3))
    with pytest.raises(attnc.CallError, match="E213") as caught:
        op(q, k, v, return_state=True)
    assert why in str(caught.value)


def test_calls_that_do_not_fit() -> None:
    op = attnc.compile(EXAMPLES / "retention.attn", backend="dense")
    other = attnc.compile(EXAMPLES / "aaren.attn", backend="dense")
    q, k, v = (torch.randn(1, 2, 5, 4) for _ in range(3))
    _, state = op(q, k, v, return_state=True)
    with pytest.raises(attnc.CallError, match="leave q_start out"):
        op(q, k, v, state=state, q_start=3)
    with pytest.raises(attnc.CallError, match="E214"):
        other(q, k, v, u=torch.randn(2, 4), state=state)
    broken: Any = k
    with pytest.raises(attnc.CallError, match="E214"):
        op(q, k, v, state=broken)
    with pytest.raises(attnc.CallError, match="as many queries as keys"):
        op(q[:, :, :3], k, v, state=state)
