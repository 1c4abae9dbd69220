"""Eager calls that go past the dispatcher mean what calls through it mean."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import attnc
from attnc.runtime.eager import plain
from tests.runtime.specs import CAUSAL, qkv


class Names(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def op() -> Any:
    return attnc.compile(CAUSAL)


def test_modes_and_profilers_see_the_op(op: Any) -> None:
    tensors = qkv(dtype=torch.float32)
    expected = op(*tensors)
    name = op.variant().computation.name
    with Names() as mode:
        torch.testing.assert_close(op(*tensors), expected)
    assert mode.seen.count(f"attnc.{name}.default") == 1
    with torch.profiler.profile() as profile:
        op(*tensors)
    assert f"attnc::{name}" in {e.key for e in profile.key_averages()}


def test_negated_views_are_not_plain(op: Any) -> None:
    q, k, v = qkv(dtype=torch.float32)
    negated = torch.complex(torch.zeros_like(q), -q).conj().imag
    assert negated.is_neg()
    assert not plain([negated])
    torch.testing.assert_close(op(negated, k, v), op(q, k, v))


def test_remembered_calls_follow_lengths_strides_and_heads(op: Any) -> None:
    for _ in range(2):
        for m, n, h, g, strided in [(5, 7, 4, 4, False), (5, 7, 4, 4, True), (5, 7, 4, 2, False), (6, 33, 4, 1, True)]:
            tensors = list(qkv(m=m, n=n, h=h, g=g, dtype=torch.float32))
            if strided:
                tensors = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in tensors]
            for start in (0, n - m):
                leaves = [t.detach().requires_grad_() for t in tensors]
                found = op(*leaves, q_start=start)
                exact = op.reference(*leaves, q_start=start)
                torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-5)
                seed = torch.randn_like(found)
                gradients = torch.autograd.grad(found, leaves, seed)
                right = torch.autograd.grad(exact, leaves, seed.double())
                torch.testing.assert_close(gradients, right, rtol=1e-4, atol=1e-5)


def test_a_wrong_call_after_a_right_one_is_refused(op: Any) -> None:
    q, k, v = qkv(dtype=torch.float32)
    op(q, k, v)
    with pytest.raises(attnc.CallError, match="E202"):
        op(q, k.double(), v)
    with pytest.raises(attnc.CallError, match="E208"):
        op(q, k, v, q_start=-1)


START = """
import sys, torch, attnc
op = attnc.compile("attention light\\nmask = j <= i")
q = torch.randn(1, 1, 4, 8)
op(q, q, q)
assert not {"torch._dynamo", "sympy", "torch._inductor"} & set(sys.modules), "heavy imports"
"""


def test_a_first_call_imports_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", START], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
