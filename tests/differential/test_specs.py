"""Every example on every backend against its dense float64 formula: outputs, observations and all gradients.

The normal run takes a few shapes per combination; `pytest -m sweep` runs the full product.
"""

from __future__ import annotations

import pytest
import torch

from tests.differential.compare import Shape, complaints
from tests.formulas import SPECS

NAMES = sorted(SPECS)
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "f64": torch.float64}

ALL_SHAPES = [
    Shape(1, 1),
    Shape(7, 7, B=2, H=4, G=2),
    Shape(63, 63, strided=True),
    Shape(63, 257, H=4, G=1, tail=True),
    Shape(257, 63, B=2),
    Shape(257, 257, D=24, E=40),
    Shape(1, 1000, tail=True, strided=True),
    Shape(1000, 1000),
]
# What a normal run takes, by backend and dtype: long enough for several blocks, a remainder and a skipped block.
# Shapes of one D and E share a kernel, so one combination takes few of them.
QUICK_SHAPES = {
    ("cpp", "f32"): [s for s in ALL_SHAPES if s.D == 16],
    ("cpp", "bf16"): [
        Shape(7, 7, H=4, G=2),
        Shape(63, 257, tail=True, strided=True),
        Shape(257, 257),
        Shape(5, 600, H=4, G=2, tail=True),
    ],
    ("cpp", "f16"): [Shape(7, 7, H=4, G=2), Shape(63, 257, tail=True, strided=True)],
    ("cpp", "f64"): [Shape(63, 130, H=4, G=2, tail=True, D=24, E=40)],
    ("triton", "f32"): [Shape(7, 7, H=4, G=2), Shape(63, 130, H=1, G=1, tail=True, strided=True)],
    ("tiled", "f32"): [Shape(7, 7, B=2, H=4, G=2, E=8), Shape(63, 257, tail=True, strided=True)],
    ("dense", "f32"): [Shape(7, 7, B=2, H=4, G=2, E=8), Shape(63, 257, tail=True, strided=True), Shape(33, 20, D=8)],
}


def check(name: str, backend: str, dtype: str, shape: Shape) -> list[str]:
    """Complaints about one example."""
    return complaints(name, backend, shape, DTYPES[dtype])


def quick_runs() -> list[tuple[str, str, str]]:
    """Examples by backend and dtype. In C++ all dtypes but f32 take turns, since kernels are compiled for each: a third
    of the examples in bf16, a quarter in f16 and in f64. Half run in Triton's interpreter, which is slow."""
    turns = {
        ("cpp", "bf16"): slice(0, None, 3),
        ("cpp", "f16"): slice(1, None, 4),
        ("cpp", "f64"): slice(3, None, 4),
        ("triton", "f32"): slice(1, None, 2),
    }
    return [(b, d, name) for b, d in QUICK_SHAPES for name in NAMES[turns.get((b, d), slice(None))]]


@pytest.mark.parametrize(("backend", "dtype", "name"), quick_runs())
def test_example(name: str, backend: str, dtype: str) -> None:
    found = [c for shape in QUICK_SHAPES[backend, dtype] for c in check(name, backend, dtype, shape)]
    assert not found, "\n".join(found)


@pytest.mark.sweep
@pytest.mark.parametrize("shape", ALL_SHAPES, ids=lambda s: s.label)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("backend", "dtype"), [("cpp", d) for d in DTYPES] + [(b, "f32") for b in ("triton", "tiled", "dense")]
)
def test_example_everywhere(name: str, backend: str, dtype: str, shape: Shape) -> None:
    if dtype == "f64" and shape.M * shape.N > 10**5:
        pytest.skip("a gradient that sums a million float64 terms is no more exact in the reference")
    found = check(name, backend, dtype, shape)
    assert not found, "\n".join(found)
