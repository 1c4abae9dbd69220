"""The functions written for lanes, over their whole range, against float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from attnc.codegen.tile import Argument, Assign, Kernel, Lane, Store
from attnc.ir.construct import axis, call, const, load, size, var
from attnc.ir.node import Node
from attnc.runtime.cpu import build

# name: reference, range of inputs, units in the last place allowed
FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[float, float], float]] = {
    "exp2": (torch.exp2, (-125.0, 127.99), 1.0),
    "exp": (torch.exp, (-86.6, 88.72), 1.5),
    "log": (torch.log, (1e-38, 3e38), 1.5),
    "log2": (torch.log2, (1e-38, 3e38), 1.5),
    "sqrt": (torch.sqrt, (0.0, 3e38), 0.5),
    "rsqrt": (torch.rsqrt, (1e-38, 3e38), 1.5),
    "reciprocal": (torch.reciprocal, (-1e30, 1e30), 0.5),
    "tanh": (torch.tanh, (-12.0, 12.0), 3.0),
    "sigmoid": (torch.sigmoid, (-80.0, 80.0), 3.0),
    "softplus": (lambda x: x.clamp(min=0) + torch.log1p(torch.exp(-x.abs())), (-80.0, 80.0), 3.0),
    "erf": (torch.erf, (-5.0, 5.0), 3.0),
    "sin": (torch.sin, (-10000.0, 10000.0), 2.0),
    "cos": (torch.cos, (-10000.0, 10000.0), 2.0),
}
SPECIAL = [0.0, -0.0, math.inf, -math.inf, math.nan, 1.0, -1.0, 2.0, 0.5, 1e-45, 1e-40, 1e38, -1e38, 200.0, -200.0]
N = size("N")


def pointwise(body: Node, names: tuple[str, ...], real: str = "f32", kinds: str = "f") -> Kernel:
    """``y[i] = body`` of the variables in `names`, read from tensors of those names."""
    reads = tuple(Assign(var(n, "i", "f"), load(n, (axis("i"),))) for n in names)
    return Kernel(
        name="pointwise",
        doc="y = f(x)",
        arguments=(*(Argument(n, real, (N,)) for n in names), Argument("y", real, (N,), "out")),
        sizes=("N",),
        grid=(),
        grid_extents=(),
        outer="i",
        lanes=(Lane("i", "outer", N),),
        blocks={"i": 32},
        body=(*reads, Store("y", (axis("i"),), body)),
        real=real,
    )


def apply(fn: str, *inputs: Tensor) -> Tensor:
    names = ("x", "z")[: len(inputs)]
    real = "f64" if inputs[0].dtype == torch.float64 else "f32"
    (kernel,) = build([pointwise(call(fn, *(var(n, "i") for n in names)), names, real)])
    y = torch.full_like(inputs[0], math.nan)
    kernel([*inputs, y], {"N": len(y)})
    return y


def ulps(found: Tensor, exact: Tensor) -> Tensor:
    """Distance in units in the last place of the rounded exact value."""
    rounded = exact.to(found.dtype).abs().clamp(min=torch.finfo(found.dtype).tiny)
    return (found.double() - exact).abs() / (torch.nextafter(rounded, torch.tensor(math.inf)) - rounded).double()


def samples(low: float, high: float) -> Tensor:
    """Evenly over the range, evenly over its exponents, and near 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    even = torch.rand(20_001, generator=generator, dtype=torch.float64) * (high - low) + low
    size_ = torch.exp(torch.rand(20_001, generator=generator, dtype=torch.float64) * 160 - 80)
    near = 1 + 1e-3 * torch.randn(5_001, generator=generator, dtype=torch.float64)
    x = torch.cat([even, size_, -size_, near]).float()
    return x[(x >= low) & (x <= high)]


@pytest.mark.parametrize("fn", FUNCTIONS)
def test_accuracy(fn: str) -> None:
    reference, (low, high), limit = FUNCTIONS[fn]
    x = samples(low, high)
    exact = reference(x.double())
    kept = exact.abs() >= torch.finfo(torch.float32).tiny * 2
    worst = ulps(apply(fn, x), exact)[kept].max().item()
    assert worst <= limit, f"{fn}: {worst:.2f} ulp"


@pytest.mark.parametrize("fn", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
def test_special_values(fn: str, dtype: torch.dtype) -> None:
    x = torch.tensor(SPECIAL, dtype=dtype)
    exact = FUNCTIONS[fn][0](x.double())
    # Results below the normal range may be flushed to 0.
    tiny = torch.finfo(dtype).tiny * 4
    assert torch.allclose(apply(fn, x).double(), exact.to(dtype).double(), rtol=1e-5, atol=tiny, equal_nan=True)


def test_weights_beside_half_precision() -> None:
    x = torch.cat([torch.linspace(-125, 127, 20_000), torch.tensor(SPECIAL)]).unsqueeze(1)
    plane, one = ("i", "e"), const(1)
    at = tuple(axis(a) for a in plane)
    kernel = Kernel(
        name="weights",
        doc="y = 2^x",
        arguments=(Argument("x", "f32", (N, one)), Argument("h", "f16", (N,)), Argument("y", "f32", (N, one), "out")),
        sizes=("N",),
        grid=(),
        grid_extents=(),
        outer="i",
        lanes=(Lane("i", "outer", N), Lane("e", "channel", one)),
        blocks={"i": 32},
        body=(
            Assign(var("x", plane, "f"), load("x", at)),
            Store("y", at, call("exp2", var("x", plane))),
        ),
    )
    (compiled,) = build([kernel])
    y = torch.full_like(x, math.nan)
    compiled([x, torch.zeros(len(x), dtype=torch.float16), y], {"N": len(x)})
    exact = torch.exp2(x.double())
    assert torch.allclose(y.double(), exact.float().double(), rtol=3e-6, atol=1e-37, equal_nan=True)
    assert not torch.allclose(y.double(), exact.float().double(), rtol=3e-7, atol=1e-37, equal_nan=True)


@pytest.mark.parametrize("fn", ["sin", "cos"])
def test_large_angles(fn: str) -> None:
    x = torch.tensor([1e5, 1e6, 3e6, -7e8, 1e20])
    assert torch.allclose(apply(fn, x).double(), FUNCTIONS[fn][0](x.double()), rtol=0, atol=1e-6)


def test_power() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.exp(torch.randn(20_000, generator=generator) * 3)
    y = torch.randn(20_000, generator=generator) * 8
    exact = torch.pow(x.double(), y.double())
    kept = (exact > 1e-36) & (exact < 1e38)
    assert ulps(apply("pow", x, y), exact)[kept].max().item() <= 2.0


def test_power_special_values() -> None:
    values = torch.tensor(
        [0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 3.0, -3.0, 0.5, -0.5, math.inf, -math.inf, math.nan, 40.0, 2.5]
    )
    x, y = (t.reshape(-1).contiguous() for t in torch.meshgrid(values, values, indexing="ij"))
    assert torch.allclose(apply("pow", x, y), torch.pow(x, y), rtol=1e-6, atol=0, equal_nan=True)


@pytest.mark.parametrize("fn", ["maximum", "minimum"])
def test_extremes_keep_nan(fn: str) -> None:
    x = torch.tensor([1.0, math.nan, 2.0, -math.inf, 0.0])
    z = torch.tensor([math.nan, 1.0, -2.0, math.inf, 3.0])
    assert torch.equal(apply(fn, x, z).isnan(), torch.tensor([True, True, False, False, False]))
    reference = torch.maximum if fn == "maximum" else torch.minimum
    assert torch.allclose(apply(fn, x, z), reference(x, z), equal_nan=True)


@pytest.mark.parametrize(
    ("fn", "reference"),
    [("floordiv", torch.floor_divide), ("mod", torch.remainder)],
)
def test_floor_division_of_reals(fn: str, reference: object) -> None:
    assert callable(reference)
    x = torch.tensor([7.0, -7.0, 7.5, -7.5, 0.0, 1e9, 5.0, 1.0])
    z = torch.tensor([2.0, 2.0, -2.0, -2.0, 3.0, 7.0, 5.0, 0.1])
    assert torch.allclose(apply(fn, x, z), reference(x, z), rtol=1e-6)


@pytest.mark.parametrize(
    ("fn", "inputs", "expected"),
    [
        ("finite_or_zero", [-math.inf, math.inf, 3.0], [0.0, math.inf, 3.0]),
        ("reciprocal_or_zero", [0.0, 4.0, -math.inf], [0.0, 0.25, -0.0]),
        ("sign", [-2.0, 0.0, 5.0], [-1.0, 0.0, 1.0]),
        ("abs", [-2.0, -0.0, 5.0], [2.0, 0.0, 5.0]),
        ("floor", [-2.5, 2.5, 3.0], [-3.0, 2.0, 3.0]),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
def test_simple_functions(fn: str, inputs: list[float], expected: list[float], dtype: torch.dtype) -> None:
    assert apply(fn, torch.tensor(inputs, dtype=dtype)).tolist() == expected
