"""Tensors whose last element is more than 2**31 elements from their first: offsets take 64 bits.

They lie in memory that is reserved and hardly touched.
"""

from __future__ import annotations

import math
import mmap
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import attnc
from attnc.codegen.tile import Argument, Assign, Scatter
from attnc.codegen.triton.printer import print_kernel
from attnc.ir.construct import axis, const, load, size, var
from attnc.runtime.triton_aot import aot
from attnc.runtime.triton_backend import REACH, TritonKernel, is_wide
from tests.codegen.kernels import softmax_columns, softmax_forward, vectors

FAR = 2**26
"""Elements from row to row: the 33rd begins at 2**31."""
Spread = Callable[[Tensor], Tensor]


@pytest.fixture
def spread() -> Iterator[Spread]:
    """Puts the rows of a tensor [1, 1, rows, channels] far apart; what lies between is never touched."""
    held: list[Tensor] = []

    def make(value: Tensor) -> Tensor:
        rows, channels = value.shape[-2:]
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
        room = mmap.mmap(-1, (rows * FAR + channels) * value.element_size(), flags=flags)
        far = torch.frombuffer(room, dtype=value.dtype).as_strided(value.shape, (rows * FAR, rows * FAR, FAR, 1))
        held.append(far)
        return far.copy_(value)

    yield make
    held.clear()


@pytest.mark.parametrize(("last", "wide"), [(REACH - 1, False), (REACH, True)])
def test_the_first_offset_that_32_bits_cannot_say(last: int, wide: bool) -> None:
    assert is_wide([torch.empty(3, 3), torch.empty_strided((2, 1), (last, 1), device="meta")]) is wide


@pytest.mark.parametrize("far", ["q", "k", "v"])
def test_forward_and_backward(spread: Spread, far: str) -> None:
    torch.manual_seed(0)
    op = attnc.compile("attention causal\nmask = j <= i\n", backend="triton")
    tensors = {n: torch.randn(1, 1, 40, 16) for n in "qkv"}
    given = tensors | {far: spread(tensors[far])}
    assert given[far].stride()[2] * 39 > REACH
    leaves = {n: t.requires_grad_() for n, t in given.items()}
    o = op(leaves["q"], leaves["k"], leaves["v"])
    seed = torch.randn_like(o)
    found = torch.autograd.grad(o, [leaves[n] for n in "qkv"], seed)
    exact = {n: t.double().requires_grad_() for n, t in tensors.items()}
    want = torch.nn.functional.scaled_dot_product_attention(exact["q"], exact["k"], exact["v"], is_causal=True)
    assert torch.allclose(o.double(), want, atol=3e-6)
    for got, right in zip(found, torch.autograd.grad(want, list(exact.values()), seed.double()), strict=True):
        assert torch.allclose(got.double(), right, atol=1e-5)


def test_outputs(spread: Spread, tmp_path: Path) -> None:
    torch.manual_seed(1)
    kernel = softmax_forward(causal=False, channels=16)
    q, k, v = (torch.randn(1, 1, 40, 16) for _ in range(3))
    o = spread(torch.full((1, 1, 40, 16), math.nan))
    sizes = {"B": 1, "H": 1, "M": 40, "N": 40, "D": 16, "E": 16, "q_start": 0}
    TritonKernel(kernel, print_kernel(kernel), tmp_path)([q, k, v, o, torch.empty(1, 1, 40)], sizes)
    exact = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double())
    assert torch.allclose(o.double(), exact, atol=3e-6)


def test_scatter(spread: Spread, tmp_path: Path) -> None:
    i, m = axis("i"), size("M")
    x = var("x", "i")
    arguments = (Argument("x", "f32", (m,)), Argument("bins", "f32", (m, const(1)), "add"))
    body = (Assign(x, load("x", (i,))), Scatter("bins", (i, const(0)), x, None))
    kernel = replace(vectors(arguments, body), exact=False)
    values = torch.randn(40)
    bins = spread(torch.zeros(1, 1, 40, 1))[0, 0]
    sizes = {"B": 1, "M": 40, "N": 1, "D": 1, "E": 1}
    TritonKernel(kernel, print_kernel(kernel), tmp_path)([values, bins], sizes)
    assert torch.equal(bins[:, 0], values)


def test_compiled_offsets(tmp_path: Path) -> None:
    """Every offset of a block of addresses has 64 bits; with short tensors some have fewer."""
    kernel = replace(softmax_columns(dtype="bf16"), constants={"D": 64, "E": 64})
    for wide in (False, True):
        source = print_kernel(kernel, wide=wide)
        text = aot(kernel, source, "sm_80", {"D": 64, "E": 64}, directory=tmp_path).listings["ttir"]
        found = re.findall(r"tt\.addptr .*: tensor<\S+, tensor<\S*x(i32|i64)>", text)
        assert len(found) >= 6
        assert (set(found) == {"i64"}) is wide
