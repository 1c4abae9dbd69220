"""Kernels that follow ranges in closed form: values and gradients without any table, on every backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import attnc
from attnc import driver
from attnc.codegen.triton.printer import print_module
from attnc.runtime import runs
from attnc.runtime.triton_aot import aot
from attnc.testing.inputs import complete_sizes, make_inputs
from tests.masks import FAMILIES
from tests.runtime.test_runs import wrong

PER_HEAD = "tensor reach: i32[H]\nmask = abs(i - j) < reach[h] and (i - j) % 3 == 0"
PER_KEY_HEAD = "tensor reach: i32[H]\nmask = j <= i and (i - j < reach[h] or j % 70 == 3)"
FAR = "tensor length: i32[B]\nmask = (i - j < 30 or (i // 16 - j // 16) % 5 == 0) and j <= i and j < length[b]"
SPECS = {
    "per head": PER_HEAD,
    "per head and strided": PER_KEY_HEAD,
    "far blocks": FAR,
    **{name: FAMILIES[name].text for name in ("strided", "radial", "radial, causal", "radial, long frames")},
    "grid": FAMILIES["neighbourhood 2-D, causal"].text,
    "torus": FAMILIES["torus 2-D"].text,
    "far apart": FAMILIES["neighbourhood 1-D, dilated by more than a block"].text,
    "grid, far apart": FAMILIES["neighbourhood 2-D, places far apart"].text,
    "frames": FAMILIES["neighbourhood 2-D, wrapped"].text,
    "powers": FAMILIES["power of two distances in bits"].text,
}


def spec(name: str) -> str:
    return f"attention ranges\n{SPECS[name]}\n"


@pytest.fixture(autouse=True)
def no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "WORTH", {"cpu": 1, "cuda": 1})
    monkeypatch.setattr(runs, "plan", None)


def values(name: str, backend: str) -> None:
    lengths = {"grid": 260, "frames": 260, "far apart": 257, "grid, far apart": 426}
    length = lengths.get(name)
    sizes = {"M": 170, "N": 200, "q_start": 13} if length is None else {"M": length, "N": length}
    assert not wrong(spec(name), backend, torch.float64, sizes)


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("per head and strided", "cpp"),
        ("grid", "cpp"),
        ("radial, causal", "cpp"),
        ("torus", "cpp"),
        ("far apart", "cpp"),
        ("far blocks", "tiled"),
        ("radial, long frames", "tiled"),
        ("grid, far apart", "tiled"),
        ("frames", "tiled"),
    ],
)
def test_values(name: str, backend: str) -> None:
    values(name, backend)


@pytest.mark.sweep
@pytest.mark.parametrize("backend", ["tiled", "cpp"])
@pytest.mark.parametrize("name", SPECS)
def test_values_of_all(name: str, backend: str) -> None:
    values(name, backend)


@pytest.mark.parametrize("sizes", [{"M": 1, "N": 1}, {"M": 7, "N": 7}, {"M": 63, "N": 257}, {"M": 65, "N": 64}])
def test_odd_lengths(sizes: dict[str, int]) -> None:
    assert not wrong(spec("per head and strided"), "cpp", torch.float32, sizes)


SPILLED = {"torus": 8, "far apart": 16}
"""Bytes of stack that a thread of the column pass may need for what a search keeps from turn to turn."""


@pytest.mark.sweep
@pytest.mark.parametrize("name", ["strided", "radial, causal", "radial, long frames", *SPILLED])
def test_triton_compiled(name: str, tmp_path: Path) -> None:
    """What a loop over ranges carries keeps its type, also where powers of two are wider."""
    for kernel in driver.all_kernels(attnc.compile(spec(name)).program, "bf16", 64, "gpu"):
        made = aot(kernel, print_module([kernel]), "sm_90", {"D": 64, "E": 64}, directory=tmp_path)
        assert made.fits or (kernel.outer == "j" and made.spilled <= SPILLED.get(name, 0))


@pytest.mark.parametrize(
    "name", ["strided", "powers", "radial, causal", "torus", "far apart", pytest.param("grid", marks=pytest.mark.sweep)]
)
def test_triton_interpreted(name: str) -> None:
    program = attnc.compile(spec(name)).program
    kernel = driver.all_kernels(program, "f32", 16)[0]
    assert kernel.runs is None
    op = attnc.compile(spec(name), backend="tiled")
    sizes = complete_sizes(program, {"B": 1, "H": 1, "G": 1, "M": 130, "N": 260, "D": 16, "E": 16, "q_start": 90})
    tensors = make_inputs(program, sizes, torch.float32)
    if "reach" in tensors:
        tensors["reach"] = torch.tensor([40], dtype=torch.int32)
    from attnc.runtime.triton_backend import TritonKernel

    stored = {"o": torch.full((1, 1, 130, 16), torch.nan), "lse": torch.full((1, 1, 130), torch.nan)}
    launch = TritonKernel(kernel, print_module([kernel]))
    launch([tensors.get(a.name, stored.get(a.name)) for a in kernel.arguments], sizes)  # type: ignore[misc]
    given: dict[str, Any] = {"q_start": 90, **tensors}
    torch.testing.assert_close(stored["o"], op(**given), atol=2e-6, rtol=1e-5)
