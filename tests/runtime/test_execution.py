"""Running kernels: any strides, head groups and lengths with one compilation, from many threads, with no compiler."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

import attnc
from attnc.codegen.tile import Kernel
from attnc.runtime import backends
from attnc.runtime.backends import CppBackend
from attnc.runtime.execute import PlanExecutor
from attnc.runtime.launch import KernelLaunch
from tests.runtime.specs import ALIBI, CAUSAL, leaf, qkv, textbook

CPU_BACKENDS = ("cpp", "tiled")


def agree(op: object, tensors: dict[str, torch.Tensor], q_start: int = 0) -> None:
    """Forward and gradients against the formula."""
    assert callable(op)
    wanted = [t for t in tensors.values() if t.requires_grad]
    found, expected = op(**tensors, q_start=q_start), textbook(**tensors, q_start=q_start)
    torch.testing.assert_close(found, expected)
    weight = torch.randn_like(expected)
    gradients = torch.autograd.grad(found, wanted, weight)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, wanted, weight))


def inputs(**sizes: Any) -> dict[str, torch.Tensor]:
    q, k, v = qkv(grad=True, **sizes)
    return {"q": q, "k": k, "v": v, "slope": leaf(q.shape[1])}


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize(
    ("sizes", "q_start"),
    [
        ({"m": 1, "n": 1}, 0),
        ({"m": 1, "n": 70}, 69),
        ({"m": 63, "n": 65}, 2),
        ({"m": 70, "n": 3}, 0),
        ({"m": 33, "n": 33, "h": 6, "g": 1}, 0),
        ({"m": 33, "n": 33, "h": 3, "g": 3, "b": 1}, 0),
        ({"m": 20, "n": 40, "d": 5, "e": 17}, 20),
    ],
    ids=str,
)
def test_shapes(backend: str, sizes: dict[str, int], q_start: int) -> None:
    agree(attnc.compile(ALIBI, backend=backend), inputs(**sizes), q_start)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_any_strides(backend: str) -> None:
    whole = inputs(b=2, h=4, g=2, m=40, n=40, d=8, e=8)
    with torch.no_grad():
        q, k, v = (whole[n] for n in "qkv")
        by_length = q.transpose(1, 2).contiguous().transpose(1, 2)
        by_channel = k.transpose(2, 3).contiguous().transpose(2, 3)
        spaced = torch.zeros(2, 2, 40, 16, dtype=torch.float64)[..., ::2]
        spaced.copy_(v)
        slope = torch.zeros(8, dtype=torch.float64)[::2]
        slope.copy_(whole["slope"])
    tensors = {"q": by_length, "k": by_channel, "v": spaced, "slope": slope}
    assert not any(t.is_contiguous() for t in tensors.values())
    agree(attnc.compile(ALIBI, backend=backend), {n: t.detach().requires_grad_() for n, t in tensors.items()})


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_expanded_inputs_and_gradients(backend: str) -> None:
    op = attnc.compile(CAUSAL, backend=backend)
    q, k, v = (t.detach() for t in qkv(m=9, n=9))
    q = q[:, :1].expand(2, 4, 9, 8).requires_grad_()
    (found,) = torch.autograd.grad(op(q, k, v).sum(), q)
    (expected,) = torch.autograd.grad(textbook(q, k, v).sum(), q)
    torch.testing.assert_close(found, expected)


class CountingBackend(CppBackend):
    """The C++ backend, counting what it compiles."""

    def __init__(self) -> None:
        self.built = 0

    def build(self, kernels: Sequence[Kernel]) -> Sequence[KernelLaunch]:
        self.built += 1
        return super().build(kernels)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[CountingBackend]:
    backend = CountingBackend()
    monkeypatch.setattr(backends, "kernel_backend", lambda name: backend)
    yield backend


def fresh(name: str) -> str:
    """A spec no other test compiles, so that nothing is prepared for it yet."""
    return CAUSAL.replace("causal", name)


def test_fifty_shapes_compile_once(counting: CountingBackend) -> None:
    op = attnc.compile(fresh("swept"), backend="cpp")
    for n in range(1, 51):
        tensors = qkv(b=1 + n % 3, h=4, g=(1, 2, 4)[n % 3], m=n, n=2 * n - 1, grad=True, dtype=torch.float32)
        gradients = torch.autograd.grad(op(*tensors, q_start=n - 1).sum(), tensors)
        assert all(bool(g.isfinite().all()) for g in gradients)
    assert counting.built == 2


def test_dtypes_and_channels_compile_apart(counting: CountingBackend) -> None:
    op = attnc.compile(fresh("typed"), backend="cpp")
    for dtype in (torch.float32, torch.bfloat16, torch.float32):
        for d in (8, 4):
            assert op(*qkv(d=d, dtype=dtype)).dtype is dtype
    assert counting.built == 4


def test_threads_share_one_compilation(counting: CountingBackend) -> None:
    op = attnc.compile(fresh("threaded"), backend="cpp")
    tensors = qkv(m=30, n=30, dtype=torch.float32)
    expected = textbook(*tensors)
    start = threading.Barrier(8)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            start.wait()
            for _ in range(5):
                torch.testing.assert_close(op(*tensors), expected)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures
    assert counting.built == 1


def test_auto_means_cpp_where_there_is_a_compiler() -> None:
    op = attnc.compile(fresh("automatic"))
    op(*qkv(dtype=torch.float32))
    executor = op.variant().computation._executors["cpu"]
    assert isinstance(executor, PlanExecutor)
    assert isinstance(executor.backend, CppBackend)


WITHOUT_COMPILER = """
import warnings, torch, attnc
from tests.runtime.specs import ALIBI, CAUSAL, qkv, textbook
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    for text in (ALIBI, CAUSAL):
        op = attnc.compile(text)
        for m in (3, 5):
            q, k, v = qkv(m=m, n=5, grad=True)
            torch.autograd.grad(op(q, k, v).sum(), (q, k, v))
    torch.testing.assert_close(op(q, k, v), textbook(q, k, v))
ours = [str(w.message) for w in seen if "compiler" in str(w.message)]
print(len(ours), "apt install g++" in ours[0])
"""


def test_without_a_compiler_one_warning_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNC_CXX", "none")
    done = subprocess.run([sys.executable, "-c", WITHOUT_COMPILER], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["1", "True"], done.stderr


MEMORY = """
import resource, torch, attnc
op = attnc.compile("attention causal\\nmask = j <= i\\n", backend="cpp")

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def above(n):
    q, k, v, w = (torch.randn(1, 2, n, 64) for _ in range(4))
    inputs = [t.requires_grad_() for t in (q, k, v)]
    before = peak()
    o = op(*inputs)
    made = [o, *torch.autograd.grad(o, inputs, w)]
    return peak() - before - sum(t.nbytes for t in made) / 2**20

above(64)
print(above(16384))
"""


def test_memory_is_linear_in_the_length() -> None:
    """N = 16384, two heads of 64, forward and backward: a plane would take 2 GB."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 64
