"""Blocks loaded through tensor descriptors: what is loaded, which tensors they fit, and the machine code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attnc import driver
from attnc.codegen.tile import Kernel
from attnc.codegen.triton.configuration import DESCRIBED, Configuration, candidates, default_configuration, space
from attnc.codegen.triton.descriptors import complies, described
from attnc.runtime import triton_backend
from attnc.runtime.triton_aot import aot
from attnc.runtime.triton_backend import TritonKernel
from attnc.runtime.worker import Worker
from attnc.testing.artefacts import report
from tests.codegen.kernels import softmax_columns, softmax_forward
from tests.differential.compare import EXAMPLES, Shape, complaints

SIZES = {"B": 2, "H": 4, "M": 33, "N": 40, "D": 64, "E": 64}


def kernels(spec: str, dtype: str = "bf16") -> list[Kernel]:
    source = driver.read(EXAMPLES / f"{spec}.attn")
    return driver.all_kernels(driver.lower(driver.definition(source), source), dtype, 64, "gpu")


@pytest.fixture
def through_descriptors(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Interpreted kernels load through descriptors wherever they could on a GPU; the names of those that did."""
    names = set[str]()
    function = TritonKernel._function

    def noted(self: TritonKernel, wide: bool, **options: bool) -> Any:
        if options.get("descriptors"):
            names.add(self.kernel.name)
        return function(self, wide, **options)

    def chosen(kernel: Kernel, sizes: dict[str, int], target: str) -> Configuration:
        return replace(default_configuration(kernel, sizes, target), descriptors=True)

    monkeypatch.setattr(TritonKernel, "_function", noted)
    monkeypatch.setattr(triton_backend, "default_configuration", chosen)
    yield names


@pytest.mark.parametrize(
    ("spec", "dtype", "shape"),
    [
        ("causal", torch.bfloat16, Shape(63, 130, B=2, H=4, G=2, D=24, E=40, tail=True)),
        ("gated", torch.float16, Shape(65, 65, H=2, G=1, D=80, E=8)),
        pytest.param("causal", torch.float16, Shape(2, 600, H=8, G=2, tail=True), marks=pytest.mark.sweep),
        pytest.param("gemma2", torch.float16, Shape(70, 70, H=2, G=1, D=8, E=16), marks=pytest.mark.sweep),
        pytest.param("dilated", torch.bfloat16, Shape(97, 97), marks=pytest.mark.sweep),
    ],
)
def test_against_the_formula(through_descriptors: set[str], spec: str, dtype: torch.dtype, shape: Shape) -> None:
    """Outputs and all gradients in poisoned memory: several blocks, remainders, padded channels, shared heads."""
    assert not complaints(spec, "triton", shape, dtype)
    assert len(through_descriptors) >= 3


def test_what_does_not_comply_is_loaded_by_pointers(through_descriptors: set[str]) -> None:
    """Gaps between the channels of keys, values transposed: only queries and the gradient are in order. And rows of 34
    bytes."""
    assert not complaints("causal", "triton", Shape(20, 20, strided=True), torch.bfloat16)
    assert all("column" in name for name in through_descriptors)
    through_descriptors.clear()
    assert not complaints("causal", "triton", Shape(20, 20, D=17, E=17), torch.bfloat16)
    assert not through_descriptors


def test_what_is_described() -> None:
    """Operands of products as they lie in memory; neither vectors, nor what is computed first, nor f32."""
    forward, row, column = (described(k) for k in kernels("causal"))
    assert forward == row == {"k": 2, "v": 2}
    assert column == {"grad_o": 2, "q": 2}
    assert not any(described(k) for k in kernels("causal", "f32"))


@pytest.mark.parametrize(
    ("shape", "strides", "fits"),
    [
        ((2, 4, 40, 64), (10240, 2560, 64, 1), True),
        ((2, 4, 40, 64), (10240, 64, 256, 1), True),
        ((2, 4, 40, 64), (10248, 2568, 72, 1), True),
        ((2, 4, 40, 64), (10240, 2560, 1, 40), False),
        ((2, 4, 40, 64), (10400, 2600, 65, 1), False),
        ((1, 4, 40, 64), (10240, 2560, 64, 1), False),
        ((2, 4, 40, 64), (0, 2560, 64, 1), False),
        ((2, 4, 40, 64), (2**39, 2560, 64, 1), False),
    ],
    ids=["plain", "heads-inside", "gaps", "transposed", "odd-gaps", "broadcast", "expanded", "far"],
)
def test_layouts(shape: tuple[int, ...], strides: tuple[int, ...], fits: bool) -> None:
    kernel = softmax_forward(causal=True, dtype="bf16")
    plain = ((2, 4, 40, 64), (10240, 2560, 64, 1))
    shapes, steps = {"k": shape, "v": plain[0]}, {"k": strides, "v": plain[1]}
    assert complies(kernel, shapes, steps, SIZES) is fits


def test_nothing_to_describe() -> None:
    assert not complies(softmax_forward(causal=True), {}, {}, SIZES)


@pytest.mark.parametrize(
    ("target", "channels", "there"),
    [("sm_90", 64, True), ("sm_100", 80, True), ("sm_90", 17, False), ("sm_89", 64, False), ("gfx942", 64, False)],
)
def test_tuning_tries_them(target: str, channels: int, there: bool) -> None:
    """Beside the same configurations with pointers, which a first call takes."""
    kernel, sizes = softmax_forward(causal=True, dtype="bf16", channels=channels), {"D": channels, "E": channels}
    first, listed = candidates(kernel, sizes, target), space(kernel, sizes, target)
    assert not any(c.descriptors for c in first)
    assert listed[: len(first)] == first
    wanted = tuple(replace(c, descriptors=True) for c in first[:DESCRIBED]) if there else ()
    assert tuple(c for c in listed if c.descriptors) == wanted
    assert wanted == listed[len(first) : len(first) + len(wanted)]


FORWARD = softmax_forward(causal=True, dtype="bf16")
COLUMNS = replace(softmax_columns(dtype="bf16"), constants={"D": 64, "E": 64})


@pytest.mark.parametrize(
    ("kernel", "target"),
    [
        (FORWARD, "sm_90"),
        (FORWARD, "sm_100"),
        pytest.param(COLUMNS, "sm_90", marks=pytest.mark.sweep),
        pytest.param(COLUMNS, "sm_100", marks=pytest.mark.sweep),
    ],
    ids=["forward-sm_90", "forward-sm_100", "columns-sm_90", "columns-sm_100"],
)
def test_compiled(kernel: Kernel, target: str) -> None:
    """Hardware copies the blocks, ahead of the products that read them; everything else holds as with pointers."""
    sizes = {"D": 64, "E": 64}
    choice = replace(candidates(kernel, sizes, target)[0], descriptors=True)
    artefact = aot(kernel, None, target, sizes, choice)
    found = report(kernel, artefact)
    assert not found.problems
    assert found.loop is not None and found.loop.count("UTMALDG") == 2
    assert "cp.async.bulk.tensor.4d.shared" in artefact.listings["ptx"]
    assert "ttng.async_tma_copy_global_to_local" in artefact.listings["ttgir"]


def test_launches(tmp_path: Path) -> None:
    """On a device that is not there: tensors that comply, keys that begin 2 bytes further, gaps between channels.
    Memory to make descriptors in is given to the launches that make them, and to no others."""

    def tensors(k: Tensor) -> dict[str, Tensor]:
        q, v, o = (torch.empty(2, 2, 500, 64, dtype=torch.bfloat16) for _ in range(3))
        return {"q": q, "k": k, "v": v, "o": o, "lse": torch.empty(2, 2, 500)}

    room = torch.empty(2, 2, 500, 128, dtype=torch.bfloat16)
    sets = [tensors(k) for k in (room[..., :64], room[..., 1:65], room[..., ::2])]
    sizes = {"B": 2, "H": 2, "M": 500, "N": 500, "D": 64, "E": 64, "q_start": 0}
    worker = Worker("tests.codegen.mock_device", "launch_described", {"TRITON_INTERPRET": None})
    try:
        record = worker.ask((FORWARD, sets, sizes, str(tmp_path)))
    finally:
        worker.close()
    assert record.descriptors == [True, False]
    assert record.scratch == [True, False, False, True, False]
