"""Specs that carry a state in PyTorch's own machinery: opcheck, torch.compile, torch.export, with it and without."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import attnc
from attnc.runtime.computation import Computation
from tests.runtime.test_streaming import EXAMPLES

N = 70
"""More than one chunk."""


def op(name: str = "scalar_decay") -> attnc.Op:
    return attnc.compile(EXAMPLES / f"{name}.attn", backend="tiled")


def arguments(n: int = N) -> dict[str, Any]:
    q, k, v = (torch.randn(1, 2, n, 4, requires_grad=True) for _ in range(3))
    return {"q": q, "k": k, "v": v, "g": (-0.3 * torch.rand(1, 2, n)).requires_grad_()}


def overload(computation: Computation) -> Any:
    return getattr(torch.ops.attnc, computation.name).default


def test_opcheck() -> None:
    forward = op().variant("g").computation
    tensors = arguments()
    assert set(torch.library.opcheck(overload(forward), (*tensors.values(), 0)).values()) == {"SUCCESS"}
    results = dict(zip((r.name for r in forward.results), forward.op(*tensors.values(), 0), strict=True))
    known = tensors | results | {"grad_o": torch.randn_like(results["o"])}
    below = forward.derivative(["o"], ["q", "k", "v", "g"])
    given = [known[n].detach().requires_grad_(n in below.differentiable) for n in below.names]
    assert set(torch.library.opcheck(overload(below), (*given, 0), test_utils="test_schema").values()) == {"SUCCESS"}


def test_opcheck_with_a_state() -> None:
    variant = op().variant("g", streams=True)
    tensors = arguments(9)
    states = variant.states
    assert states is not None
    known = tensors | dict(zip(states.names, states.first(list(tensors.values()), ["g"]), strict=True))
    given = [known[n].detach() for n in variant.computation.names]
    found = torch.library.opcheck(
        overload(variant.computation), (*given, 4), test_utils=("test_schema", "test_faketensor")
    )
    assert set(found.values()) == {"SUCCESS"}


def pieces(run: attnc.Op, tensors: dict[str, Any]) -> tuple[Tensor, ...]:
    """Two pieces of a sequence, and the state after them."""
    first = {n: t[:, :, :40] for n, t in tensors.items()}
    rest = {n: t[:, :, 40:] for n, t in tensors.items()}
    a: Any
    a, state = run(**first, return_state=True)
    b, state = run(**rest, state=state, return_state=True)
    return (torch.cat([a, b], 2), *state.tensors.values())


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "pieces"])
def test_compile_in_one_graph(streamed: bool) -> None:
    run = op()

    def block(tensors: dict[str, Any]) -> tuple[Tensor, ...]:
        return pieces(run, tensors) if streamed else (run(**tensors),)

    tensors = arguments()
    torch._dynamo.reset()
    compiled: Any = torch.compile(block, fullgraph=True, backend="aot_eager")
    found, expected = compiled(tensors), block(tensors)
    torch.testing.assert_close(found, expected)
    weight = torch.randn_like(expected[0])
    given = list(tensors.values())
    gradients = torch.autograd.grad(found[0], given, weight)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected[0], given, weight), rtol=1e-4, atol=1e-5)


class Model(torch.nn.Module):
    def __init__(self, streamed: bool) -> None:
        super().__init__()
        self.run, self.streamed = op(), streamed

    def forward(self, q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> tuple[Tensor, ...]:
        tensors: dict[str, Any] = {"q": q, "k": k, "v": v, "g": g}
        return pieces(self.run, tensors) if self.streamed else (self.run(**tensors),)


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "pieces"])
def test_export(streamed: bool) -> None:
    model, tensors = Model(streamed), tuple(t.detach() for t in arguments().values())
    exported = torch.export.export(model, tensors)
    torch.testing.assert_close(exported.module()(*tensors), model(*tensors))
