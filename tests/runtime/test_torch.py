"""One node to PyTorch's own machinery: opcheck, torch.compile, torch.export."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import attnc
from attnc.runtime.computation import Computation
from tests.runtime.specs import ALIBI, WATCHED, leaf, qkv

BACKENDS = ("dense", "tiled")


def overload(computation: Computation) -> Any:
    return getattr(torch.ops.attnc, computation.name).default


def arguments(m: int = 5, n: int = 7) -> tuple[torch.Tensor, ...]:
    return (*qkv(m=m, n=n, dtype=torch.float32, grad=True), leaf(4, dtype=torch.float32))


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck_of_every_op_in_the_chain(backend: str) -> None:
    op = attnc.compile(ALIBI, backend=backend)
    forward = op.variant("slope").computation
    tensors = arguments()
    assert set(torch.library.opcheck(overload(forward), (*tensors, 2)).values()) == {"SUCCESS"}
    results = dict(zip((r.name for r in forward.results), forward.op(*tensors, 2), strict=True))
    known = {**dict(zip(forward.names, tensors, strict=True)), **results, "grad_o": torch.randn_like(results["o"])}
    below = forward.derivative(["o"], ["q", "k", "slope"])
    known = {n: t.detach().requires_grad_(n in below.differentiable) for n, t in known.items()}
    assert set(torch.library.opcheck(overload(below), (*(known[n] for n in below.names), 2)).values()) == {"SUCCESS"}
    second = below.derivative(["grad_q"], ["q", "grad_o"])
    known["grad_grad_q"] = torch.randn_like(tensors[0])
    found = torch.library.opcheck(overload(second), (*(known[n].detach() for n in second.names), 2))
    assert set(found.values()) == {"SUCCESS"}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compile_with_dynamic_shapes(backend: str, compiler: str) -> None:
    op = attnc.compile(ALIBI, backend=backend)

    def block(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, slope: torch.Tensor, start: int = 0) -> torch.Tensor:
        o: torch.Tensor = op(q + 1, k, v, slope=slope, q_start=start)
        return 2 * o

    torch._dynamo.reset()
    counter = CompileCounterWithBackend(compiler)
    eager: Any = block
    compiled: Any = torch.compile(block, fullgraph=True, dynamic=True, backend=counter)
    for m, n, start in [(5, 7, 3), (6, 9, 2), (11, 13, 8), (12, 12, 5)]:
        tensors: Any = arguments(m, n)
        found, expected = compiled(*tensors, start), eager(*tensors, start)
        torch.testing.assert_close(found, expected)
        weight = torch.randn_like(expected)
        gradients = torch.autograd.grad(found, tensors, weight)
        torch.testing.assert_close(gradients, torch.autograd.grad(expected, tensors, weight), rtol=1e-4, atol=1e-5)
    assert counter.frame_count <= 2


class Watched(torch.nn.Module):
    def __init__(self, backend: str) -> None:
        super().__init__()
        self.op = attnc.compile(WATCHED, backend=backend)

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
        return self.op(q, k, v, observe=True)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_export_with_dynamic_shapes(backend: str, strict: bool) -> None:
    module = Watched(backend)
    b, m, n = (torch.export.Dim(x, min=2, max=4096) for x in "bmn")
    shapes = {"q": {0: b, 2: m}, "k": {0: b, 2: n}, "v": {0: b, 2: n}}
    exported = torch.export.export(module, qkv(dtype=torch.float32), strict=strict, dynamic_shapes=shapes)
    targets = [str(x.target) for x in exported.graph.nodes if x.op == "call_function"]
    name = module.op.variant(observe=True).computation.name
    assert [t for t in targets if t.startswith("attnc.")] == [f"attnc.{name}.default"]
    saved = io.BytesIO()
    torch.export.save(exported, saved)
    saved.seek(0)
    loaded = torch.export.load(saved)
    inputs = qkv(b=3, m=9, n=11, dtype=torch.float32)
    o, seen = loaded.module()(*inputs)
    expected, watched = module(*inputs)
    torch.testing.assert_close(o, expected)
    torch.testing.assert_close(seen, watched)


def test_errors_keep_their_message_under_compile() -> None:
    op = attnc.compile(ALIBI, backend="dense")
    compiled = torch.compile(lambda q, k, v: op(q, k, v), fullgraph=True, backend="eager")
    q, k, v = qkv(h=4, g=3)
    with pytest.raises(Exception, match="query heads must be a multiple of key heads"):
        compiled(q, k, v)
