"""Launching compiled kernels: sources dumped and replaced, threads, and calls beyond what kernels address."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from attnc.codegen.cpu.printer import print_unit
from attnc.diagnostics.diagnostic import CallError
from attnc.runtime import cache
from attnc.runtime.cpu import build, launch
from attnc.runtime.toolchain import find
from attnc.settings import Settings
from tests.codegen.kernels import softmax_columns, softmax_forward

SIZES = {"B": 1, "H": 1, "M": 3, "N": 4, "D": 64, "E": 64, "q_start": 0}


def tensors() -> dict[str, torch.Tensor]:
    shapes = {"q": (1, 1, 3, 64), "k": (1, 1, 4, 64), "v": (1, 1, 4, 64), "o": (1, 1, 3, 64), "lse": (1, 1, 3)}
    return {n: torch.ones(s) for n, s in shapes.items()}


def test_kernels_of_a_unit_share_a_library(tmp_path: Path) -> None:
    settings = Settings(cache_dir=tmp_path)
    forward, columns = build([softmax_forward(causal=True), softmax_columns()], settings=settings)
    assert (forward.kernel.name, columns.kernel.name) == ("softmax_forward", "softmax_columns")
    forward([*tensors().values()], SIZES)  # the first launch waits for the compiler
    assert len(list((tmp_path / "cpp").glob("*.so"))) == 1
    assert build([], settings=settings) == []


def test_launch_by_name() -> None:
    kernel = softmax_forward(causal=True)
    given = tensors()
    launch(kernel, cache.library(print_unit([kernel]), find()), given, SIZES, threads=1)
    assert torch.allclose(given["o"], torch.ones(1, 1, 3, 64))


def test_dump_and_override(tmp_path: Path) -> None:
    settings = Settings(cache_dir=tmp_path / "cache", dump=tmp_path / "dump")
    build([softmax_forward(causal=True)], settings=settings)
    source = tmp_path / "dump" / "softmax_forward.cpp"
    assert "softmax_forward_block" in source.read_text()
    edited = tmp_path / "override"
    edited.mkdir()
    text = source.read_text().replace("return failed;", "return 1;")
    (edited / source.name).write_text(text)
    (kernel,) = build([softmax_forward(causal=True)], settings=replace(settings, override=edited))
    with pytest.raises(MemoryError):
        kernel(list(tensors().values()), SIZES)


def test_sizes_beyond_32_bit_positions_are_refused() -> None:
    (kernel,) = build([softmax_forward(causal=True)])
    with pytest.raises(CallError, match="2\\*\\*26"):
        kernel(list(tensors().values()), SIZES | {"q_start": 2**26})


def test_a_call_costs_little() -> None:
    """Beside the kernel's own time, well under the 30 microseconds of a PyTorch operator's dispatch."""
    (kernel,) = build([softmax_forward(causal=True)])
    kernel.threads = 1
    given = list(tensors().values())
    best = float("inf")
    for _ in range(200):
        start = time.perf_counter()
        kernel(given, SIZES)
        best = min(best, time.perf_counter() - start)
    assert best < 100e-6
