"""Tile kernels printed as Triton: interpreted against PyTorch in float64, and compiled for four targets."""

from __future__ import annotations

import heapq
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from attnc.codegen.tile import Accumulate, AccumulateAt, Argument, Assign, Each, Kernel, Loop, Scatter, Store
from attnc.codegen.triton.configuration import Configuration, candidates
from attnc.codegen.triton.printer import print_kernel
from attnc.codegen.triton.sinking import sunk
from attnc.ir.construct import ZERO, add, axis, call, const, iverson, load, mul, size, sub, var
from attnc.ir.node import Node
from attnc.runtime.triton_aot import Artefact, aot
from attnc.runtime.triton_interpreter import Interpreter
from attnc.runtime.worker import Worker
from attnc.testing.artefacts import report
from tests.codegen.kernels import contract, softmax_columns, softmax_forward, vectors

b, h, i, j, d, e = (axis(x) for x in "bhijde")
B, H, G, M, N, D, E = (size(x) for x in "BHGMNDE")
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
ROUNDING = {"f32": 3e-6, "bf16": 1e-2, "f16": 1e-3}


@pytest.fixture(scope="session")
def interpreter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Interpreter]:
    """One interpreting process per test process: importing Triton takes seconds."""
    with Interpreter(tmp_path_factory.mktemp("triton")) as made:
        yield made


def poison(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full(shape, math.nan, dtype=dtype)


def blocks(kernel: Kernel, length: int = 16) -> Configuration:
    return Configuration({x.axis: length for x in kernel.lanes if x.role != "channel"})


def softmax(q: Tensor, k: Tensor, v: Tensor, q_start: int) -> tuple[Tensor, Tensor]:
    """Causal attention and its log-sum-exp to base 2 in float64; rows without keys give 0."""
    s = q.double() @ k.double().transpose(-1, -2) / q.shape[-1] ** 0.5
    rows, columns = torch.arange(q.shape[2])[:, None] + q_start, torch.arange(k.shape[2])[None]
    s = s.masked_fill(columns > rows, -math.inf)
    return s.softmax(-1).nan_to_num(0.0) @ v.double(), s.logsumexp(-1) * math.log2(math.e)


def grouped(kernel: Kernel) -> Kernel:
    """The same kernel with G key heads."""
    head = call("floordiv", h, call("floordiv", H, G))

    def shared(body: tuple[object, ...]) -> tuple[object, ...]:
        out: list[object] = []
        for s in body:
            match s:
                case Loop():
                    out.append(replace(s, body=shared(s.body)))  # type: ignore[arg-type]
                case Assign(value=value) if getattr(value, "tensor", "") in ("k", "v"):
                    first, _, *rest = value.children
                    out.append(replace(s, value=load(value.fields[0], (first, head, *rest))))
                case _:
                    out.append(s)
        return tuple(out)

    arguments = tuple(replace(a, dims=(B, G, *a.dims[2:])) if a.name in ("k", "v") else a for a in kernel.arguments)
    body = shared(kernel.body)
    return replace(kernel, arguments=arguments, body=body, sizes=(*kernel.sizes, "G"))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "keys", "channels", "values"), [(1, 1, 16, 16), (37, 61, 17, 80), (33, 16, 64, 32)])
def test_softmax_forward(
    interpreter: Interpreter, dtype: str, rows: int, keys: int, channels: int, values: int
) -> None:
    torch.manual_seed(rows)
    kernel = softmax_forward(causal=True, dtype=dtype, channels=None)
    shapes = ((rows, channels), (keys, channels), (keys, values))
    q, k, v = (torch.randn(2, 2, n, c, dtype=DTYPES[dtype]) for n, c in shapes)
    q_start = max(0, keys - rows)
    tensors = {"q": q, "k": k, "v": v, "o": poison(2, 2, rows, values, dtype=DTYPES[dtype]), "lse": poison(2, 2, rows)}
    sizes = {"B": 2, "H": 2, "M": rows, "N": keys, "D": channels, "E": values, "q_start": q_start}
    found = interpreter.run(kernel, tensors, sizes, blocks(kernel))
    exact, exact_lse = softmax(q, k, v, q_start)
    assert (found["o"].double() - exact).abs().max() <= ROUNDING[dtype] * exact.abs().max()
    assert torch.allclose(found["lse"].double(), exact_lse, rtol=1e-6, atol=3e-6)


def test_known_channels_need_no_masks(interpreter: Interpreter) -> None:
    kernel = softmax_forward(causal=False, channels=64)
    source = print_kernel(kernel)
    assert "D_PAD" not in source
    assert "d[None, :] < D" not in source
    q, k, v = (torch.randn(1, 1, 20, 64) for _ in range(3))
    tensors = {"q": q, "k": k, "v": v, "o": poison(1, 1, 20, 64), "lse": poison(1, 1, 20)}
    sizes = {"B": 1, "H": 1, "M": 20, "N": 20, "D": 64, "E": 64, "q_start": 0}
    found = interpreter.run(kernel, tensors, sizes, blocks(kernel))
    exact = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double())
    assert torch.allclose(found["o"].double(), exact, atol=2e-6)


def test_grouped_heads_and_strides(interpreter: Interpreter) -> None:
    """Four query heads on two key heads; queries transposed in memory, gaps of NaN between keys, values broadcast."""
    torch.manual_seed(1)
    kernel = grouped(softmax_forward(causal=True, channels=None))
    q = torch.randn(2, 19, 4, 24).transpose(1, 2)
    room = poison(2, 2, 19, 48)
    room[..., ::2] = torch.randn(2, 2, 19, 24)
    k, v = room[..., ::2], torch.randn(1, 2, 19, 8)
    tensors = {"q": q, "k": k, "v": v, "o": poison(2, 4, 19, 8), "lse": poison(2, 4, 19)}
    sizes = {"B": 2, "H": 4, "G": 2, "M": 19, "N": 19, "D": 24, "E": 8, "q_start": 0}
    found = interpreter.run(kernel, tensors, sizes, blocks(kernel))
    exact, _ = softmax(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1).expand(2, -1, -1, -1), 0)
    assert torch.allclose(found["o"].double(), exact, atol=2e-6)


@pytest.mark.parametrize(("rows", "keys", "channels"), [(37, 50, 17), (16, 32, 64)])
def test_columns(interpreter: Interpreter, rows: int, keys: int, channels: int) -> None:
    """dk and dv."""
    torch.manual_seed(2)
    kernel = softmax_columns()
    q, k, v, go = (torch.randn(1, 2, n, channels) for n in (rows, keys, keys, rows))
    exact_k, exact_v = k.double().requires_grad_(), v.double().requires_grad_()
    o, lse = softmax(q, exact_k, exact_v, keys - rows)
    o.backward(go.double())
    delta = (o * go).sum(-1).detach().float()
    tensors = {"q": q, "k": k, "v": v, "go": go, "lse": lse.detach().float(), "delta": delta}
    tensors |= {"dk": poison(1, 2, keys, channels), "dv": poison(1, 2, keys, channels)}
    sizes = {"B": 1, "H": 2, "M": rows, "N": keys, "D": channels, "E": channels, "q_start": keys - rows}
    found = interpreter.run(kernel, tensors, sizes, blocks(kernel))
    for name, exact in (("dk", exact_k.grad), ("dv", exact_v.grad)):
        assert exact is not None
        assert torch.allclose(found[name].double(), exact, rtol=1e-5, atol=1e-5), name


def test_rows_alone(interpreter: Interpreter) -> None:
    """A kernel without an inner axis or a grid: products of vectors, a maximum and a sum over padded channels."""
    torch.manual_seed(3)
    x, y = var("x", "id"), var("y", "id")
    product, top = var("product", "i"), var("top", "i")
    lifted = var("lifted", "id")
    largest = call("exp", x)
    body = (
        Assign(x, load("x", (i, d))),
        Assign(y, load("y", (i, d))),
        Assign(product, contract("d", x, y)),
        Assign(lifted, largest),
        Assign(top, contract("d", lifted)),
        Store("out", (i,), add(product, call("log", top))),
    )
    arguments = (Argument("x", "f32", (M, D)), Argument("y", "f32", (M, D)), Argument("out", "f32", (M,), "out"))
    kernel = vectors(arguments, body)
    rows, other = torch.randn(41, 19), torch.randn(41, 19)
    sizes = {"B": 1, "M": 41, "N": 1, "D": 19, "E": 1}
    found = interpreter.run(kernel, {"x": rows, "y": other, "out": poison(41)}, sizes, blocks(kernel))
    exact = (rows.double() * other.double()).sum(-1) + rows.double().exp().sum(-1).log()
    assert torch.allclose(found["out"].double(), exact, atol=3e-6)


def test_computed_operands_are_zero_on_padded_channels(interpreter: Interpreter) -> None:
    """exp of a padded lane is 1 and its logarithm infinite; neither may reach a product."""
    torch.manual_seed(4)
    x, y = var("x", "id"), var("y", "jd")
    grown, inverse = var("grown", "id"), var("inverse", "jd")
    s, total = var("s", "ij"), var("total", "i")
    body = (
        Assign(x, load("x", (i, d))),
        Assign(grown, call("exp", x)),
        Assign(total, ZERO),
        Loop("j", const(0), N, True, (
            Assign(y, load("y", (j, d))),
            Assign(inverse, call("reciprocal", y)),
            Assign(s, contract("d", grown, inverse)),
            Assign(s, mul(iverson(call("lt", j, N)), s)),
            Accumulate(total, contract("j", s)),
        )),
        Store("out", (i,), total),
    )  # fmt: skip
    arguments = (Argument("x", "f32", (M, D)), Argument("y", "f32", (N, D)), Argument("out", "f32", (M,), "out"))
    kernel = vectors(arguments, body, inner=True)
    rows, columns = torch.randn(20, 5), 1 + torch.rand(18, 5)
    sizes = {"B": 1, "M": 20, "N": 18, "D": 5, "E": 1}
    found = interpreter.run(kernel, {"x": rows, "y": columns, "out": poison(20)}, sizes, blocks(kernel))
    exact = (rows.double().exp() @ (1 / columns.double()).T).sum(-1)
    assert torch.allclose(found["out"].double(), exact, rtol=1e-5)


def test_scatter(interpreter: Interpreter) -> None:
    """A histogram of i - j, weighted, under a condition; the tensor is added to."""
    x = var("x", "ij")
    index = add(call("minimum", call("maximum", sub(i, j), const(-3)), const(3)), const(3))
    body = (
        Loop("j", const(0), N, True, (
            Assign(x, load("x", (i, j))),
            Scatter("bins", (index,), x, call("lt", j, add(i, const(9)))),
        )),
    )  # fmt: skip
    arguments = (Argument("x", "f32", (M, N)), Argument("bins", "f32", (const(7),), "add"))
    kernel = vectors(arguments, body, inner=True)
    values = torch.randn(21, 35)
    sizes = {"B": 1, "M": 21, "N": 35, "D": 1, "E": 1}
    found = interpreter.run(kernel, {"x": values, "bins": torch.zeros(7)}, sizes, blocks(kernel))["bins"]
    difference = torch.arange(21)[:, None] - torch.arange(35)
    kept = torch.where(difference > -9, values.double(), 0.0)
    exact = torch.zeros(7, dtype=torch.float64).index_add_(0, (difference.clamp(-3, 3) + 3).flatten(), kept.flatten())
    assert torch.allclose(found.double(), exact, atol=1e-5)


def test_each(interpreter: Interpreter) -> None:
    """s[i, j] = sum over d of |x[i, d] - y[j, d]|, one channel at a time, and its gradient for x."""
    torch.manual_seed(5)
    x, y, s = var("x", "i"), var("y", "j"), var("s", "ij")
    part, grad, total = var("part", "i"), var("grad", "id"), var("total", "i")
    inside = iverson(call("lt", j, N))
    step = var("step", "ij")
    body = (
        Assign(grad, ZERO),
        Assign(total, ZERO),
        Loop("j", const(0), N, True, (
            Assign(s, ZERO),
            Each("d", const(0), D, (
                Assign(x, load("x", (i, d))),
                Assign(y, load("y", (j, d))),
                Accumulate(s, call("abs", sub(x, y))),
                Assign(step, mul(inside, call("sign", sub(x, y)))),
                Assign(part, contract("j", step)),
                AccumulateAt(grad, "d", part),
            )),
            Assign(s, mul(inside, s)),
            Accumulate(total, contract("j", s)),
        )),
        Store("out", (i,), total),
        Store("grad", (i, d), grad),
    )  # fmt: skip
    arguments = (
        Argument("x", "f32", (M, D)),
        Argument("y", "f32", (N, D)),
        Argument("out", "f32", (M,), "out"),
        Argument("grad", "f32", (M, D), "out"),
    )
    kernel = vectors(arguments, body, inner=True)
    rows, columns = torch.randn(18, 3), torch.randn(21, 3)
    tensors = {"x": rows, "y": columns, "out": poison(18), "grad": poison(18, 3)}
    found = interpreter.run(kernel, tensors, {"B": 1, "M": 18, "N": 21, "D": 3, "E": 1}, blocks(kernel))
    exact = rows.double().requires_grad_()
    value = (exact[:, None] - columns.double()).abs().sum((1, 2))
    value.sum().backward()
    assert exact.grad is not None
    assert torch.allclose(found["out"].double(), value, rtol=1e-5)
    assert torch.equal(found["grad"].double(), exact.grad)


POINTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": torch.nn.functional.softplus,
    "erf": torch.erf,
    "sin": torch.sin,
    "cos": torch.cos,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "sign": torch.sign,
    "abs": torch.abs,
    "floor": torch.floor,
    "reciprocal_or_zero": lambda x: torch.where(x == 0, 0.0, 1 / x),
}
POSITIVE: dict[str, Callable[[Tensor], Tensor]] = {
    "log": torch.log,
    "log2": torch.log2,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
}
GRID = torch.cat([torch.linspace(-12, 12, 97), torch.tensor([0.0, 1e-4, -1e-4, 1e-2, -0.19, 0.2, 30.0, -60.0])])


def pointwise(interpreter: Interpreter, build: Node, x: Tensor) -> Tensor:
    source = Assign(var("x", "i"), load("x", (i,)))
    arguments = (Argument("x", "f32", (M,)), Argument("out", "f32", (M,), "out"))
    kernel = vectors(arguments, (source, Store("out", (i,), build)))
    sizes = {"B": 1, "M": len(x), "N": 1, "D": 1, "E": 1}
    return interpreter.run(kernel, {"x": x, "out": poison(len(x))}, sizes, blocks(kernel))["out"].double()


@pytest.mark.parametrize("name", [*POINTWISE, *POSITIVE])
def test_functions(interpreter: Interpreter, name: str) -> None:
    x = GRID.abs() + 1e-3 if name in POSITIVE else GRID
    found = pointwise(interpreter, call(name, var("x", "i")), x)
    exact = {**POINTWISE, **POSITIVE}[name](x.double())
    assert torch.allclose(found, exact, rtol=2e-6, atol=0 if name == "softplus" else 2e-7)


@pytest.mark.parametrize("name", ["sin", "cos"])
def test_large_angles(interpreter: Interpreter, name: str) -> None:
    x = torch.linspace(-5000, 5000, 999)
    found = pointwise(interpreter, call(name, var("x", "i")), x)
    assert torch.allclose(found, POINTWISE[name](x.double()), atol=3e-7)


@pytest.mark.parametrize("exponent", [3.0, -2.0, 0.3, 7])
def test_powers(interpreter: Interpreter, exponent: float) -> None:
    x = GRID if float(exponent).is_integer() else GRID.abs()
    x = x[x != 0] if exponent < 0 else x
    found = pointwise(interpreter, call("pow", var("x", "i"), const(exponent)), x)
    assert torch.allclose(found, x.double() ** exponent, rtol=2e-5)


@pytest.mark.parametrize("name", ["floordiv", "mod"])
@pytest.mark.parametrize("divisor", [3, -4])
def test_integer_division_rounds_down(interpreter: Interpreter, name: str, divisor: int) -> None:
    value = call(name, sub(i, const(20)), const(divisor))
    arguments = (Argument("out", "f32", (M,), "out"),)
    kernel = vectors(arguments, (Store("out", (i,), mul(const(1.0), add(value, ZERO))),))
    sizes = {"B": 1, "M": 41, "N": 1, "D": 1, "E": 1}
    found = interpreter.run(kernel, {"out": poison(41)}, sizes, blocks(kernel))["out"]
    numbers = torch.arange(41) - 20
    quotient = torch.div(numbers, divisor, rounding_mode="floor")
    assert torch.equal(found, (quotient if name == "floordiv" else numbers - divisor * quotient).float())


def test_nothing_is_read_outside_a_tensor() -> None:
    """An index that may leave its tensor is checked, one that cannot is not."""
    x = var("x", "i")
    clamped = call("minimum", call("maximum", sub(i, const(5)), const(0)), sub(N, const(1)))
    arguments = (Argument("x", "f32", (N,)), Argument("out", "f32", (M,), "out"))
    free = print_kernel(vectors(arguments, (Assign(x, load("x", (sub(i, const(5)),))), Store("out", (i,), x))))
    held = print_kernel(vectors(arguments, (Assign(x, load("x", (clamped,))), Store("out", (i,), x))))
    assert re.search(r"mask=\(i - 5 >= 0\) & \(i - 5 < N\)", free)
    assert "< N" not in held


def test_names_never_clash(interpreter: Interpreter) -> None:
    """Tensors, variables and sizes may be called what the printer uses itself."""
    x, other = var("pid", "i"), var("tl", "i")
    body = (
        Assign(x, load("x_ptr", (i,))),
        Assign(other, load("x", (i,))),
        Store("out", (i,), add(x, mul(other, size("range")), call("tanh", x))),
    )
    arguments = (Argument("x_ptr", "f32", (M,)), Argument("x", "f32", (M,)), Argument("out", "f32", (M,), "out"))
    kernel = replace(vectors(arguments, body), sizes=("M", "range"))
    first, second = torch.randn(20), torch.randn(20)
    sizes = {"M": 20, "range": 3, "D": 1, "E": 1, "N": 1}
    found = interpreter.run(kernel, {"x_ptr": first, "x": second, "out": poison(20)}, sizes, blocks(kernel))["out"]
    assert torch.allclose(found, first + 3 * second + first.tanh(), atol=1e-6)


@pytest.mark.parametrize("dtype", ["bool", "u8", "i64"])
def test_flags(interpreter: Interpreter, dtype: str) -> None:
    """Conditions and integers loaded from tensors of every width."""
    kept, position = var("kept", "i", "b"), var("position", "i", "i")
    body = (
        Assign(kept, load("flags", (i,), "b")),
        Assign(position, load("places", (i,), "i")),
        Store("out", (i,), mul(iverson(kept), add(mul(const(1.0), position), const(0.5)))),
    )
    arguments = (Argument("flags", "bool", (M,)), Argument("places", dtype, (M,)), Argument("out", "f32", (M,), "out"))
    torch_dtype = {"bool": torch.bool, "u8": torch.uint8, "i64": torch.int64}[dtype]
    kernel = vectors(arguments, body)
    flags, places = torch.rand(33) < 0.5, (torch.arange(33) % (2 if dtype == "bool" else 200)).to(torch_dtype)
    sizes = {"B": 1, "M": 33, "N": 1, "D": 1, "E": 1}
    found = interpreter.run(kernel, {"flags": flags, "places": places, "out": poison(33)}, sizes, blocks(kernel))["out"]
    assert torch.equal(found, torch.where(flags, places + 0.5, 0.0))


def test_wide_offsets(interpreter: Interpreter) -> None:
    kernel = softmax_forward(causal=True, channels=None)
    source = print_kernel(kernel, wide=True)
    assert "i[:, None].to(tl.int64) * q_stride_m" in source
    q, k, v = (torch.randn(1, 1, 18, 16) for _ in range(3))
    tensors = {"q": q, "k": k, "v": v, "o": poison(1, 1, 18, 16), "lse": poison(1, 1, 18)}
    sizes = {"B": 1, "H": 1, "M": 18, "N": 18, "D": 16, "E": 16, "q_start": 0}
    found = interpreter.run(kernel, tensors, sizes, blocks(kernel), source)
    assert torch.allclose(found["o"].double(), softmax(q, k, v, 0)[0], atol=2e-6)


def test_half_operands_stay_half(interpreter: Interpreter) -> None:
    """Products take f16 operands as they are stored, selected ones too, and round what was computed to f16."""
    x, y, s = var("x", "id"), var("y", "jd"), var("s", "ij")
    kept, w, out = var("kept", "jd"), var("w", "ij"), var("out", "id")
    inside = iverson(call("lt", j, N))
    body = (
        Assign(x, load("x", (i, d))),
        Assign(out, ZERO),
        Loop("j", const(0), N, True, (
            Assign(y, load("y", (j, d))),
            Assign(s, contract("d", x, y)),
            Assign(w, mul(inside, call("exp", s))),
            Assign(kept, mul(inside, y)),
            Accumulate(out, contract("j", w, kept)),
        )),
        Store("out", (i, d), out),
    )  # fmt: skip
    arguments = (Argument("x", "f16", (M, D)), Argument("y", "f16", (N, D)), Argument("out", "f32", (M, D), "out"))
    kernel = vectors(arguments, body, inner=True)
    source = print_kernel(kernel)
    assert "kept = tl.where((j < N)[:, None], y, 0.0)" in source
    assert "tl.dot(w.to(kept.dtype), kept, out)" in source
    assert "float32)" not in source.replace("dtype=tl.float32)", "")
    rows, columns = torch.randn(20, 16).half() / 4, torch.randn(18, 16).half() / 4
    sizes = {"B": 1, "M": 20, "N": 18, "D": 16, "E": 1}
    found = interpreter.run(kernel, {"x": rows, "y": columns, "out": poison(20, 16)}, sizes, blocks(kernel), source)
    exact = (rows.double() @ columns.double().T).exp() @ columns.double()
    assert torch.allclose(found["out"].double(), exact, atol=5e-3)


def test_what_only_the_end_needs_is_computed_there() -> None:
    """x is read in the loop, y and what is made from it behind; z feeds the loop through w."""
    x, y, z, w, total, late = (var(n, "i") for n in ("x", "y", "z", "w", "total", "late"))
    body = (
        Assign(y, load("y", (i,))),
        Assign(late, mul(y, const(2.0))),
        Assign(z, load("z", (i,))),
        Assign(w, mul(z, z)),
        Assign(x, load("x", (i,))),
        Assign(total, ZERO),
        Loop("j", const(0), N, True, (Accumulate(total, mul(x, w)),)),
        Store("out", (i,), add(total, late, x)),
    )
    found = sunk(body)
    assert [getattr(s, "target", None) for s in found] == [z, w, x, total, None, y, late, None]
    assert set(found) == set(body)
    assert sunk(body[:6]) == body[:6]


def grid_points(source: str, **sizes: int) -> list[tuple[int, int]]:
    """The batch and the first position of each program, in order, by the printed text."""
    lines = source[source.index("pid = tl.program_id(0)") :].splitlines()
    last = next(k for k, line in enumerate(lines) if "_first = (" in line)
    code = compile("\n".join(x.strip() for x in lines[: last + 2]), "<grid>", "exec")
    outer = "i" if "i_blocks" in source else "j"
    count = sizes["B"] * sizes["H"] * -(-sizes["M" if outer == "i" else "N"] // sizes[f"BLOCK_{outer.upper()}"])
    found = []
    for pid in range(count):
        language = SimpleNamespace(program_id=lambda _, pid=pid: pid, minimum=min, cdiv=lambda a, b: -(-a // b))
        known: dict[str, Any] = {"tl": language, **sizes}
        exec(code, known)
        found.append((known["batch"], known[f"{outer}_first"]))
    return found


@pytest.mark.parametrize("length", [1024, 4096, 16384])
def test_the_longest_loops_come_first(length: int) -> None:
    """Rows of a causal mask have more keys the later they are, columns fewer queries. Programs that are begun as others
    end keep 132 multiprocessors busy for 98 % of the time."""
    sizes = {"B": 1, "H": 16 * 16384 // length, "M": length, "N": length, "BLOCK_I": 128, "BLOCK_J": 128}
    for kernel, growing in ((softmax_forward(causal=True), True), (softmax_columns(), False)):
        points = grid_points(print_kernel(kernel), **sizes)
        assert len(set(points)) == len(points) == sizes["H"] * length // 128
        turns = [p // 128 + 1.5 if growing else (length - p) // 128 + 0.5 for _, p in points]
        free = [0.0] * 132
        for n in turns:
            heapq.heapreplace(free, free[0] + n)
        assert sum(turns) >= 0.98 * 132 * max(free)
    assert "i_first = (pid % i_blocks) * BLOCK_I" in print_kernel(softmax_forward(causal=False))


def test_weights_of_pairs_are_rounded_beside_half_values(interpreter: Interpreter) -> None:
    """Whatever they were computed from, here from positions alone. A sum over few channels is written out."""
    y, s, w, out = var("y", "jd"), var("s", "ij"), var("w", "ij"), var("out", "id")
    body = (
        Assign(out, ZERO),
        Loop("j", const(0), N, True, (
            Assign(y, load("y", (j, d))),
            Assign(s, ZERO),
            Each("d", const(0), const(3), (Accumulate(s, mul(const(0.1), sub(i, j))),)),
            Assign(w, mul(iverson(call("lt", j, N)), call("exp", s))),
            Accumulate(out, contract("j", w, y)),
        )),
        Store("out", (i, d), out),
    )  # fmt: skip
    arguments = (Argument("y", "f16", (N, D)), Argument("out", "f32", (M, D), "out"))
    kernel = vectors(arguments, body, inner=True)
    source = print_kernel(kernel)
    assert "tl.dot(w.to(y.dtype), y, out)" in source
    assert "for at_d in tl.static_range(0, 3):" in source
    columns = torch.randn(9, 16).half()
    sizes = {"B": 1, "M": 7, "N": 9, "D": 16, "E": 1}
    found = interpreter.run(kernel, {"y": columns, "out": poison(7, 16)}, sizes, blocks(kernel), source)
    weights = (0.3 * (torch.arange(7.0)[:, None] - torch.arange(9.0))).exp().half()
    assert torch.allclose(found["out"].double(), weights.double() @ columns.double(), rtol=2e-3, atol=1e-3)


def test_failures_come_back_with_their_traceback(interpreter: Interpreter) -> None:
    kernel = softmax_forward(causal=True)
    with pytest.raises(RuntimeError, match="KeyError"):
        interpreter.run(kernel, {"q": poison(1, 1, 1, 64)}, {"B": 1}, blocks(kernel))


# --------------------------------------------------------------------------------------------- ahead of time


KERNELS = {
    "forward": softmax_forward(causal=True, dtype="bf16"),
    "columns": replace(softmax_columns(dtype="bf16"), constants={"D": 64, "E": 64}),
}


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Artefact]:
    directory = tmp_path_factory.mktemp("triton")

    @cache
    def compile_once(name: str, target: str) -> Artefact:
        kernel = KERNELS[name]
        return aot(kernel, print_kernel(kernel), target, {"D": 64, "E": 64}, directory=directory)

    return compile_once


@pytest.mark.parametrize("target", ("sm_80", "sm_90", "sm_100", "gfx942"))
@pytest.mark.parametrize("name", KERNELS)
def test_compiled(compiled: Callable[[str, str], Artefact], name: str, target: str) -> None:
    found = compiled(name, target)
    assert found.registers > 0
    assert not report(KERNELS[name], found).problems


def test_loads_are_pipelined(compiled: Callable[[str, str], Artefact]) -> None:
    """Asynchronous copies, from which the compiler must have known alignment and unit strides."""
    listings = compiled("forward", "sm_90").listings
    assert "async_copy_global_to_local" in listings["ttgir"]
    assert "cp.async.cg.shared.global" in listings["ptx"]


def test_odd_channels_compile(tmp_path: Path) -> None:
    kernel = softmax_forward(causal=True, dtype="f16", channels=80)
    found = aot(kernel, print_kernel(kernel), "sm_90", {"D": 80, "E": 80}, directory=tmp_path)
    assert found.fits
    assert "HGMMA" in found.assembly


@pytest.mark.parametrize(("spills", "tried"), [([0], 1), ([50, 0], 2), ([90, 80, 1, 60], 4)])
def test_launch_keeps_the_first_configuration_that_fits(tmp_path: Path, spills: list[int], tried: int) -> None:
    """On a device that is not there. The last case never reaches 0; the third candidate hardly spills."""
    kernel = softmax_forward(causal=True, dtype="bf16")
    q, k, v, o = (torch.empty(2, 2, 500, 64, dtype=torch.bfloat16) for _ in range(4))
    tensors = {"q": q, "k": k, "v": v, "o": o, "lse": torch.empty(2, 2, 500)}
    sizes = {"B": 2, "H": 2, "M": 500, "N": 500, "D": 64, "E": 64, "q_start": 0}
    worker = Worker("tests.codegen.mock_device", "launch_twice", {"TRITON_INTERPRET": None})
    try:
        record = worker.ask((kernel, tensors, sizes, spills, str(tmp_path)))
    finally:
        worker.close()
    assert len(record.loaded) == tried
    chosen = candidates(kernel, sizes, "sm_90")[spills.index(min(spills))]
    assert record.blocks == [chosen.blocks]
    assert [grid for grid, _ in record.launched] == [4 * -(-500 // chosen.blocks["i"])] * 2
