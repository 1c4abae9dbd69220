"""Tile kernels printed as C++, compiled and run, against PyTorch in float64."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import attnc
from attnc.codegen.cpu.layout import LONG_BLOCK, LONG_READ
from attnc.codegen.cpu.printer import print_kernel, print_unit
from attnc.codegen.tile import (
    Accumulate,
    AccumulateAt,
    Argument,
    Assign,
    Each,
    Kernel,
    Loop,
    Scatter,
    Store,
    statements,
)
from attnc.driver import all_kernels
from attnc.ir.construct import ZERO, add, axis, call, const, iverson, load, mul, raw_add, raw_prod, size, sub, var
from attnc.runtime.cpu import build
from attnc.runtime.toolchain import FLAGS, Toolchain, find
from attnc.settings import Settings
from attnc.testing.compare import agreements, dense
from attnc.testing.inputs import complete_sizes, make_inputs
from tests.codegen.kernels import contract, largest, softmax_columns, softmax_forward, vectors

b, i, j, d, e = (axis(x) for x in "bijde")
B, M, N, D, E = (size(x) for x in "BMNDE")
DTYPES = {"f32": torch.float32, "f64": torch.float64, "bf16": torch.bfloat16, "f16": torch.float16}
ROUNDING = {"f32": 2e-6, "f64": 1e-13, "bf16": 1e-2, "f16": 1e-3}


def run(kernel: Kernel, tensors: Mapping[str, Tensor], threads: int = 0, **sizes: int) -> None:
    (compiled,) = build([kernel])
    compiled.threads = threads
    compiled([tensors[a.name] for a in kernel.arguments], sizes)


def poison(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full(shape, math.nan, dtype=dtype)


def gapped(x: Tensor) -> Tensor:
    """The same values with every stride doubled, and the last two dimensions swapped in memory."""
    room = torch.full([2 * n for n in (*x.shape[:-2], x.shape[-1], x.shape[-2])], math.nan, dtype=x.dtype)
    view = room[tuple(slice(0, None, 2) for _ in x.shape)].transpose(-1, -2)
    return view.copy_(x)


def softmax(q: Tensor, k: Tensor, v: Tensor, causal: bool, q_start: int) -> tuple[Tensor, Tensor]:
    """o and the log-sum-exp to base 2 in float64; rows without keys give 0."""
    s = q.double() @ k.double().transpose(-1, -2) / q.shape[-1] ** 0.5
    if causal:
        i, j = torch.arange(q.shape[2])[:, None] + q_start, torch.arange(k.shape[2])[None]
        s = s.masked_fill(j > i, -math.inf)
    lse = s.logsumexp(-1)
    return s.softmax(-1).nan_to_num(0.0) @ v.double(), lse * math.log2(math.e)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "keys"), [(1, 1), (7, 63), (63, 257), (257, 130), (1, 1000)])
def test_softmax_forward(dtype: str, rows: int, keys: int) -> None:
    torch.manual_seed(rows)
    real = "f64" if dtype == "f64" else "f32"
    q, k, v = (torch.randn(2, 3, n, c, dtype=DTYPES[dtype]) for n, c in ((rows, 24), (keys, 24), (keys, 40)))
    for causal in (False, True):
        q_start = max(0, keys - rows) if causal else 0
        kernel = softmax_forward(causal=causal, dtype=dtype, real=real, channels=None)
        o, lse = poison(2, 3, rows, 40, dtype=DTYPES[dtype]), poison(2, 3, rows, dtype=DTYPES[real])
        tensors = {"q": gapped(q), "k": k, "v": gapped(v), "o": o, "lse": lse}
        run(kernel, tensors, B=2, H=3, M=rows, N=keys, D=24, E=40, q_start=q_start)
        exact, exact_lse = softmax(q, k, v, causal, q_start)
        assert (o.double() - exact).abs().max() <= ROUNDING[dtype] * exact.abs().max()
        # Beside half precision, exp2 has a relative error of 3e-6, which is 4.4e-6 in the logarithm of a sum.
        assert torch.allclose(lse.double(), exact_lse, rtol=1e-6, atol=6.4e-6 if dtype in ("bf16", "f16") else 2e-6)


class WithoutTiles(Toolchain):
    """The compiler told that the processor has no tile registers, so that pairs are multiplied in vectors."""

    def options(self) -> list[tuple[str, ...]]:
        return [(*options, "-mno-amx-tile", "-mno-amx-bf16") for options in super().options()]


@pytest.mark.skipif(not find().multiplies_pairs(), reason="the processor has no instructions for bf16")
@pytest.mark.parametrize("kind", [Toolchain, WithoutTiles])
@pytest.mark.parametrize("channels", [64, 80])
def test_products_of_pairs(kind: type[Toolchain], channels: int) -> None:
    """Whole blocks and remainders, packed from rows and from columns; what lies beyond the tensors is NaN."""
    known = find()
    toolchain = kind(known.path, known.version, known.processor)
    torch.manual_seed(channels)
    rows, keys = 135, 203
    room = torch.full((3, 1, 2, 256, channels), math.nan, dtype=torch.bfloat16)
    q, k, v = (x[:, :, :n].copy_(torch.randn(1, 2, n, channels)) for x, n in zip(room, (rows, keys, keys), strict=True))
    go = torch.randn(1, 2, rows, channels).to(torch.bfloat16)
    forward, columns = softmax_forward(causal=True, dtype="bf16", channels=None), softmax_columns(dtype="bf16")
    sizes = {"B": 1, "H": 2, "M": rows, "N": keys, "D": channels, "E": channels, "q_start": keys - rows}
    kd, vd = k.double().requires_grad_(), v.double().requires_grad_()
    exact, exact_lse = softmax(q, kd, vd, True, keys - rows)
    o, lse = poison(1, 2, rows, channels, dtype=torch.bfloat16), poison(1, 2, rows)
    delta = (exact.detach() * go.double()).sum(-1).float()
    found = [poison(1, 2, keys, channels, dtype=torch.bfloat16) for _ in "kv"]
    settings = replace(Settings.read(), pairs="always")
    run_forward, run_columns = build([forward, columns], toolchain=toolchain, settings=settings)
    run_forward([q, k, v, o, lse], sizes)
    run_columns([q, k, v, go, lse, delta, *found], sizes)
    assert torch.allclose(lse.double(), exact_lse.detach(), rtol=1e-5, atol=1e-5)
    wanted = torch.autograd.grad(exact, (kd, vd), go.double())
    for value, reference in zip((o, *found), (exact.detach(), *wanted), strict=True):
        assert (value.double() - reference).abs().max() <= ROUNDING["bf16"] * reference.abs().max()


def test_rows_without_keys() -> None:
    q, k, v = (torch.randn(1, 1, n, 64) for n in (5, 0, 0))
    o, lse = poison(1, 1, 5, 64), poison(1, 1, 5)
    run(
        softmax_forward(causal=False),
        {"q": q, "k": k, "v": v, "o": o, "lse": lse},
        B=1,
        H=1,
        M=5,
        N=0,
        D=64,
        E=64,
        q_start=0,
    )
    assert torch.equal(o, torch.zeros_like(o))
    assert (lse == -math.inf).all()


def test_no_rows() -> None:
    q, k, v = (torch.randn(1, 1, n, 64) for n in (0, 5, 5))
    room = poison(1, 1, 1, 64), poison(1, 1, 1)
    tensors = {"q": q, "k": k, "v": v, "o": room[0][:, :, :0], "lse": room[1][:, :, :0]}
    run(softmax_forward(causal=True), tensors, B=1, H=1, M=0, N=5, D=64, E=64, q_start=0)
    assert all(x.isnan().all() for x in room), "something was written where there are no rows"


@pytest.mark.parametrize("dtype", ["f32", "f64", "bf16"])
@pytest.mark.parametrize(("rows", "keys"), [(1, 1), (63, 130), (130, 63)])
def test_softmax_columns(dtype: str, rows: int, keys: int) -> None:
    torch.manual_seed(keys)
    real = "f64" if dtype == "f64" else "f32"
    q, k, v, go = (torch.randn(2, 2, n, c) for n, c in ((rows, 24), (keys, 24), (keys, 17), (rows, 17)))
    q, k, v, go = (x.to(DTYPES[dtype]) for x in (q, k, v, go))
    kd, vd = k.double().requires_grad_(), v.double().requires_grad_()
    q_start = max(0, keys - rows)
    exact_o, lse = softmax(q, kd, vd, True, q_start)
    exact = torch.autograd.grad(exact_o, (kd, vd), go.double())
    tensors = {"q": gapped(q), "k": gapped(k), "v": v, "go": gapped(go), "lse": lse.detach().to(DTYPES[real])}
    tensors["delta"] = (exact_o.detach() * go.double()).sum(-1).to(DTYPES[real])
    tensors |= {"dk": poison(*k.shape, dtype=k.dtype), "dv": poison(*v.shape, dtype=v.dtype)}
    run(softmax_columns(dtype=dtype, real=real), tensors, B=2, H=2, M=rows, N=keys, D=24, E=17, q_start=q_start)
    for name, reference in zip(("dk", "dv"), exact, strict=True):
        size_of_it = max(1.0, float(reference.abs().max()))
        assert (tensors[name].double() - reference).abs().max() <= 2 * ROUNDING[dtype] * size_of_it


def test_threads_do_not_change_results() -> None:
    q, k, v = (torch.randn(1, 3, 130, 64) for _ in range(3))
    found = []
    for threads in (1, 2, 5):
        o, lse = poison(1, 3, 130, 64), poison(1, 3, 130)
        tensors = {"q": q, "k": k, "v": v, "o": o, "lse": lse}
        run(softmax_forward(causal=True), tensors, threads, B=1, H=3, M=130, N=130, D=64, E=64, q_start=0)
        found.append(o)
    assert all(torch.equal(o, found[0]) for o in found)


def test_broadcast_dimensions() -> None:
    """A dimension of length 1 stands for every position."""
    q, k, v = torch.randn(2, 3, 9, 64), torch.randn(1, 1, 40, 64), torch.randn(1, 3, 40, 64)
    o, lse = poison(2, 3, 9, 64), poison(2, 3, 9)
    tensors = {"q": q, "k": k, "v": v, "o": o, "lse": lse}
    run(softmax_forward(causal=False), tensors, B=2, H=3, M=9, N=40, D=64, E=64, q_start=0)
    exact, _ = softmax(q, k.expand(2, 3, 40, 64), v.expand(2, 3, 40, 64), False, 0)
    assert torch.allclose(o.double(), exact, atol=2e-6)


@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_state_product_over_the_outer_axis(dtype: str) -> None:
    """Contracting the axis vectors run along: both operands are transposed with respect to the result."""
    x, y, state = var("x", "id"), var("y", "ie"), var("state", "de")
    kernel = vectors(
        (
            Argument("x", dtype, (M, D)),
            Argument("y", dtype, (M, E)),
            Argument("state", dtype, (D, E), "add"),
            Argument("tall", dtype, (D,), "add"),
        ),
        (
            Assign(x, load("x", (i, d))),
            Assign(y, load("y", (i, e))),
            Assign(state, contract("i", x, y)),
            Assign(var("tall", "d"), contract("i", x)),
            Scatter("state", (d, e), state),
            Scatter("tall", (d,), var("tall", "d")),
        ),
        real=dtype,
    )
    xs, ys = torch.randn(101, 11, dtype=DTYPES[dtype]), torch.randn(101, 37, dtype=DTYPES[dtype])
    tensors = {"x": xs, "y": ys, "state": torch.zeros(11, 37, dtype=xs.dtype), "tall": torch.zeros(11, dtype=xs.dtype)}
    run(kernel, tensors, B=1, M=101, N=1, D=11, E=37)
    exact = xs.double().T @ ys.double()
    assert (tensors["state"].double() - exact).abs().max() <= 10 * ROUNDING[dtype] * exact.abs().max()
    assert torch.allclose(tensors["tall"].double(), xs.double().sum(0), atol=1e-4)


def test_products_between_channels_and_inner_sums() -> None:
    """{j,e} x {d,e} -> {j,d}: a product without the outer axis, its vectors along d, one operand transposed."""
    v, w, kv = var("v", "je"), var("w", "de"), var("kv", "jd")
    best, acc, norm = var("best", "d"), var("acc", "d"), var("norm", "j")
    kernel = vectors(
        (Argument("v", "f32", (N, E)), Argument("w", "f32", (D, E)), Argument("y", "f32", (B, D), "out"),
         Argument("z", "f32", (B, D), "out")),
        (
            Assign(w, load("w", (d, e))),
            Assign(acc, ZERO),
            Assign(best, const(-math.inf)),
            Loop("j", const(0), N, False, (
                Assign(v, load("v", (j, e))),
                Assign(norm, contract("e", v, v), "squared length of each row"),
                Assign(kv, contract("e", v, w)),
                Assign(var("weighted", "jd"), mul(var("kv", "jd"), call("rsqrt", norm))),
                Accumulate(acc, contract("j", var("weighted", "jd"))),
                Assign(var("here", "d"), largest("j", var("weighted", "jd"))),
                Assign(best, call("maximum", best, var("here", "d"))),
            )),
            Store("y", (b, d), acc),
            Store("z", (b, d), best),
        ),
        inner=True, outer=False, grid=("b",),
    )  # fmt: skip
    vs, ws = torch.randn(131, 21), torch.randn(19, 21)
    y, z = poison(2, 19), poison(2, 19)
    run(kernel, {"v": vs, "w": ws, "y": y, "z": z}, B=2, M=1, N=131, D=19, E=21)
    rows = (vs.double() @ ws.double().T) / vs.double().norm(dim=-1, keepdim=True)
    assert torch.allclose(y.double(), rows.sum(0).expand(2, 19), atol=1e-4)
    assert torch.allclose(z.double(), rows.amax(0).expand(2, 19), atol=1e-6)


def test_each_channel() -> None:
    """sum over d of tanh(q[i,d] + k[j,d]), one channel at a time, and a gradient-like AccumulateAt."""
    q, k, s, part = var("q", "id"), var("k", "jd"), var("s", "ij"), var("part", "i")
    acc, total = var("acc", "id"), var("total", "i")
    inside = iverson(call("lt", j, N))
    kernel = vectors(
        (Argument("q", "f32", (M, D)), Argument("k", "f32", (N, D)), Argument("y", "f32", (M,), "out"),
         Argument("z", "f32", (M, D), "out")),
        (
            Assign(q, load("q", (i, d))),
            Assign(total, ZERO),
            Assign(acc, ZERO),
            Loop("j", const(0), N, True, (
                Assign(k, load("k", (j, d))),
                Assign(s, ZERO),
                Each("d", const(0), D, (Accumulate(s, call("tanh", add(q, k))),)),
                Assign(var("kept", "ij"), mul(inside, s)),
                Accumulate(total, contract("j", var("kept", "ij"))),
                Each("d", const(0), D, (
                    Assign(var("t", "ij"), mul(inside, s, call("cos", add(q, k)))),
                    Assign(part, contract("j", var("t", "ij"))),
                    AccumulateAt(acc, "d", part),
                )),
            )),
            Store("y", (i,), total),
            Store("z", (i, d), acc),
        ),
        inner=True,
    )  # fmt: skip
    qs, ks = torch.randn(45, 6), torch.randn(70, 6)
    y, z = poison(45), poison(45, 6)
    run(kernel, {"q": qs, "k": ks, "y": y, "z": z}, B=1, M=45, N=70, D=6, E=1)
    pairs = qs.double()[:, None] + ks.double()[None]
    plane = pairs.tanh().sum(-1)
    assert torch.allclose(y.double(), plane.sum(-1), atol=1e-4)
    assert torch.allclose(z.double(), (plane[..., None] * pairs.cos()).sum(1), atol=1e-3)


def test_groups_are_computed_as_groups() -> None:
    """A product inside a product and a sum inside a sum are rounded by themselves, wherever vectors run."""
    x, y, z = var("x", "i"), var("y", "j"), var("z", "ij")
    seen = call("lt", j, N)
    product, total = raw_prod((y, raw_prod((x, z)))), raw_add((y, raw_add((x, z))))
    for value in (product, total):
        grouped = vectors(
            (Argument("x", "f32", (M,)), Argument("y", "f32", (N,)), Argument("z", "f32", (M, N)),
             Argument("r", "f32", (M,), "out")),
            (
                Assign(x, load("x", (i,))),
                Assign(var("r", "i"), const(-math.inf)),
                Loop("j", const(0), N, True, (
                    Assign(y, load("y", (j,))),
                    Assign(z, load("z", (i, j))),
                    Assign(var("s", "ij"), call("where", seen, value, const(-math.inf))),
                    Assign(var("best", "i"), largest("j", var("s", "ij"))),
                    Assign(var("r", "i"), call("maximum", var("r", "i"), var("best", "i"))),
                )),
                Store("r", (i,), var("r", "i")),
            ),
            inner=True,
        )  # fmt: skip
        xs, ys, zs, r = torch.randn(500), torch.randn(1), torch.randn(500, 1), poison(500)
        run(grouped, {"x": xs, "y": ys, "z": zs, "r": r}, B=1, M=500, N=1, D=1, E=1)
        inside = xs * zs[:, 0] if value is product else xs + zs[:, 0]
        exact, flat = (ys * inside, ys * xs * zs[:, 0]) if value is product else (ys + inside, ys + xs + zs[:, 0])
        assert torch.equal(r, exact)
        assert not torch.equal(exact, flat)


@pytest.mark.parametrize("rows", [1, 3, 7])
def test_long_sums_are_sums_of_runs(rows: int) -> None:
    """Ones added to 2^24 one at a time are lost; in runs of their own they are not. d is an index of fixed extent."""
    x, y, s = var("x", "id"), var("y", "jd"), var("s", "ij")
    kernel = vectors(
        (Argument("x", "f32", (M, D)), Argument("y", "f32", (N, D)), Argument("s", "f32", (M, N), "out")),
        (
            Assign(x, load("x", (i, d))),
            Loop("j", const(0), N, True, (
                Assign(y, load("y", (j, d))),
                Assign(s, contract("d", x, y)),
                Store("s", (i, j), s),
            )),
        ),
        inner=True,
    )  # fmt: skip
    lanes = tuple(replace(lane, extent=const(128)) if lane.axis == "d" else lane for lane in kernel.lanes)
    kernel = replace(kernel, lanes=lanes)
    xs, ys, out = torch.ones(rows, 128), torch.ones(5, 128), poison(rows, 5)
    ys[:, 0] = 2.0**24
    run(kernel, {"x": xs, "y": ys, "s": out}, B=1, M=rows, N=5, D=128, E=1)
    assert (out >= 2.0**24 + 64).all()


def test_wide_tables_are_added_to_in_double_precision() -> None:
    """Ones scattered to an entry of f64 that is larger than f32 can count: none is lost on the way."""
    kernel = vectors(
        (Argument("x", "f32", (M,)), Argument("table", "f64", (N,), "add")),
        (Assign(var("x", "i"), load("x", (i,))), Scatter("table", (const(0),), var("x", "i"))),
        serial=("i",),
    )
    table = torch.full((2,), 2.0**33, dtype=torch.float64)
    run(kernel, {"x": torch.ones(100), "table": table}, B=1, M=100, N=2, D=1, E=1)
    assert table.tolist() == [2.0**33 + 100, 2.0**33]


@pytest.mark.parametrize("ids", ["i64", "i32", "i16", "u8"])
def test_integers_gather_and_scatter(ids: str) -> None:
    """A bias table read at i - j + 3, a mask on document numbers, a grid distance, and a gradient scattered."""
    types = {"i64": torch.int64, "i32": torch.int32, "i16": torch.int16, "u8": torch.uint8}
    doc_i, doc_j, bias = var("doc_i", "i", "i"), var("doc_j", "j", "i"), var("bias", "ij")
    relative = sub(add(i, const(3)), j)
    width = const(5)
    same = call("and", call("eq", doc_i, doc_j), call("lt", j, N))
    row = call("abs", sub(call("floordiv", i, width), call("floordiv", j, width)))
    column = call("abs", sub(call("mod", i, width), call("mod", j, width)))
    total, kept = var("total", "i"), var("kept", "ij")
    kernel = vectors(
        (Argument("doc", ids, (M,)), Argument("table", "f32", (N,)), Argument("y", "f32", (M,), "out"),
         Argument("dtable", "f32", (N,), "add")),
        (
            Assign(doc_i, load("doc", (i,), "i")),
            Assign(total, ZERO),
            Loop("j", const(0), N, True, (
                Assign(doc_j, load("doc", (j,), "i")),
                Assign(bias, load("table", (relative,))),
                Assign(kept, mul(iverson(same), add(bias, mul(const(0.25), add(row, column))))),
                Accumulate(total, contract("j", kept)),
                Scatter("dtable", (relative,), add(bias, const(1.0)), same),
            )),
            Store("y", (i,), total),
        ),
        inner=True, serial=("i",),
    )  # fmt: skip
    n = 77
    # Numbers that agree in their low 32 bits are still different.
    documents = torch.tensor([[5, 9, 200], [5, 5 + 2**40, 9]][ids == "i64"])[torch.randint(3, (n,))].to(types[ids])
    table = torch.randn(n)
    y, dtable = poison(n), torch.zeros(n)
    run(kernel, {"doc": documents, "table": table, "y": y, "dtable": dtable}, B=1, M=n, N=n, D=1, E=1)
    at = torch.arange(n)
    r = at[:, None] + 3 - at[None]
    valid = (r >= 0) & (r < n)
    found = torch.where(valid, table.double()[r.clamp(0, n - 1)], 0.0)
    allowed = documents[:, None] == documents[None]
    distance = (at[:, None] // 5 - at[None] // 5).abs() + (at[:, None] % 5 - at[None] % 5).abs()
    assert torch.allclose(y.double(), torch.where(allowed, found + 0.25 * distance, 0.0).sum(-1), rtol=1e-5, atol=1e-4)
    exact = torch.zeros(n, dtype=torch.float64)
    exact.index_put_((r[valid & allowed],), found[valid & allowed] + 1.0, accumulate=True)
    assert torch.allclose(dtable.double(), exact, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(
    "bias",
    [
        "table[h, clamp(i - j, -9, 9) + 9, 0]",  # neighbours, and one number for all lanes
        "table[h, (7 * i + 3 * j) % 19, 1]",
        "table[h, clamp(j - i, -9, 9) + 9, (i // 3 + j) % 2]",  # two subscripts that differ between lanes
        "table[h, clamp(floor(3 * log2(max(i - j, 1))), 0, 18), j % 2]",  # computed in 64 bits
    ],
)
def test_lanes_gather_from_tables(bias: str, dtype: torch.dtype) -> None:
    """Whole vectors and single elements, wherever the table starts and however its elements lie."""
    op = attnc.compile(f"attention gathered\ntensor table: [H, 19, 2]\nbias = {bias}\n", backend="cpp")
    q, k, v = (torch.randn(1, 2, n, 16, dtype=dtype) for n in (37, 70, 70))
    room = torch.full((2 * 2 * 19 * 2 + 1,), torch.nan, dtype=dtype)
    values = torch.randn(2, 19, 2, dtype=dtype)
    for shift in (0, 1):
        for strides in ((38, 2, 1), (38, 1, 19), (76, 4, 2)):
            table = room.fill_(torch.nan).as_strided((2, 19, 2), strides, shift).copy_(values)
            tensors = {"q": q, "k": k, "v": v, "table": table}
            exact = dense(op.program, tensors, None, torch.float64, q_start=33).outputs["o"]
            found = op(q, k, v, table=table, q_start=33)
            rounding = max(torch.finfo(dtype).eps, 1e-13) * 4
            assert (found - exact).abs().max().item() <= rounding * exact.abs().max().item()


def test_wide_products_of_positions() -> None:
    """i * i * i needs more than 32 bits."""
    kernel = vectors(
        (Argument("y", "f32", (M,), "out"),),
        (Store("y", (i,), iverson(call("lt", call("mod", mul(i, i, i), const(1000003)), const(500000)))),),
    )
    y = poison(3000)
    run(kernel, {"y": y}, B=1, M=3000, N=1, D=1, E=1)
    at = torch.arange(3000)
    assert torch.equal(y, (at**3 % 1000003 < 500000).float())


def test_booleans() -> None:
    """Flags per key and uniform flags; Iverson selects, so an infinite value under a false flag is not seen."""
    flag, x, use = var("flag", "i", "b"), var("x", "i"), var("use", (), "b")
    kernel = vectors(
        (Argument("flag", "bool", (M,)), Argument("use", "bool", (B,)), Argument("x", "f32", (M,)),
         Argument("y", "f32", (B, M), "out")),
        (
            Assign(use, load("use", (b,), "b")),
            Assign(flag, load("flag", (i,), "b")),
            Assign(x, load("x", (i,))),
            Store("y", (b, i), mul(iverson(call("and", flag, use)), x)),
        ),
        grid=("b",),
    )  # fmt: skip
    flags = torch.rand(37) < 0.5
    x_data = torch.where(flags, torch.randn(37), torch.tensor(math.inf))
    y = poison(2, 37)
    run(kernel, {"flag": flags, "use": torch.tensor([True, False]), "x": x_data, "y": y}, B=2, M=37, N=1, D=1, E=1)
    assert torch.equal(y, torch.stack([torch.where(flags, x_data, 0.0), torch.zeros(37)]))


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_every_sixteen_bit_value_survives(dtype: str) -> None:
    """Widening is exact and rounding back gives the same bits, subnormals, infinities and NaN included."""
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.uint16)
    x = bits.view(DTYPES[dtype])
    kernel = vectors(
        (Argument("x", dtype, (M,)), Argument("y", dtype, (M,), "out"), Argument("z", "f32", (M,), "out")),
        (Assign(var("x", "i"), load("x", (i,))), Store("y", (i,), var("x", "i")), Store("z", (i,), var("x", "i"))),
    )
    y, z = poison(2**16, dtype=x.dtype), poison(2**16)
    run(kernel, {"x": x, "y": y, "z": z}, B=1, M=2**16, N=1, D=1, E=1)
    kept = ~x.isnan()
    assert torch.equal(y[kept].view(torch.int16), x[kept].view(torch.int16))
    assert torch.equal(z[kept], x[kept].float())
    assert y[~kept].isnan().all() and z[~kept].isnan().all()


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_rounding_to_nearest_even(dtype: str) -> None:
    torch.manual_seed(0)
    x = torch.cat([torch.randn(4000) * 10.0**p for p in range(-8, 6)] + [torch.tensor([65519.9, 65520.0, 1e38, -1e38])])
    halves = torch.arange(1, 2000).float() + 0.5
    x = torch.cat([x, halves, 2048 + halves * 2, halves * 2**-26])
    kernel = vectors(
        (Argument("x", "f32", (M,)), Argument("y", dtype, (M,), "out")),
        (Assign(var("x", "i"), load("x", (i,))), Store("y", (i,), var("x", "i"))),
    )
    y = poison(len(x), dtype=DTYPES[dtype])
    run(kernel, {"x": x, "y": y}, B=1, M=len(x), N=1, D=1, E=1)
    assert torch.equal(y, x.to(DTYPES[dtype]))


def test_the_text_reads_like_the_spec() -> None:
    """Names, notes and the doc of the tile program are in the source; nothing plane-sized is allocated."""
    text = print_kernel(softmax_forward(causal=True))
    for expected in ("// o = softmax(q k / sqrt(D)) v", "// m follows the largest score", "exp2(", "product(acc_tile"):
        assert expected in text
    room = [line for line in text.splitlines() if "workspace.take<" in line]
    assert room and not any("N" in line or "M" in line for line in room)


def test_intermediate_values_stay_in_registers() -> None:
    """Values used in one loop only get no array traffic: the masked score and the shift are never stored."""
    text = print_kernel(softmax_forward(causal=True))
    assert "store(shift_tile" not in text
    assert "store(follow_tile" not in text
    assert "store(p_tile" in text


def test_tiles_take_the_room_of_those_no_longer_read() -> None:
    """Weights and scores replace the product; what must live as long as its neighbour does not."""
    text = print_kernel(softmax_forward(causal=True))
    taken = {line.split()[0] for line in text.splitlines() if "workspace.take<" in line}
    assert {"raw_tile", "acc_tile", "q_tile"} <= taken
    assert text.index("raw_tile = workspace.take") < text.index("p_tile = raw_tile;")
    both = print_kernel(softmax_columns())
    assert "ds_tile = qk_tile;" in both or "ds_tile = dp_tile;" in both
    assert not ("p_tile = qk_tile;" in both and "ds_tile = qk_tile;" in both)


class Narrower(Toolchain):
    """The compiler told to use an older instruction set."""

    def options(self) -> list[tuple[str, ...]]:
        return [(*FLAGS, "-fopenmp", f"-march={self.processor}")]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="instruction sets of x86")
@pytest.mark.parametrize("machine", ["x86-64", "x86-64-v2", "haswell"])
@pytest.mark.parametrize("real", ["f32", "f64"])
def test_other_vector_widths(machine: str, real: str) -> None:
    """16 and 32-byte vectors, without and with fused multiply-add."""
    known = find()
    kernel = softmax_forward(causal=True, dtype=real, real=real, channels=24)
    (compiled,) = build([kernel], toolchain=Narrower(known.path, known.version, machine))
    q, k, v = (torch.randn(1, 2, n, 24, dtype=DTYPES[real]) for n in (45, 77, 77))
    o, lse = poison(1, 2, 45, 24, dtype=q.dtype), poison(1, 2, 45, dtype=q.dtype)
    compiled([q, k, v, o, lse], {"B": 1, "H": 2, "M": 45, "N": 77, "D": 24, "E": 24, "q_start": 32})
    exact, _ = softmax(q, k, v, True, 32)
    assert (o.double() - exact).abs().max() <= ROUNDING[real]


def test_names_of_the_spec_hide_no_function() -> None:
    """Of a name that the text calls, the one and only thing a spec can make is another variable."""
    text = """attention hiding
tensor gather_integers: i32[N]
tensor scatter_lanes: f32[9]
tensor smaller_of: f32[H]
let half_power = scatter_lanes[clamp(gather_integers[j] - gather_integers[i], -4, 4) + 4]
bias = 5 * tanh(half_power + smaller_of[h])
"""
    op = attnc.compile(text, backend="cpp")
    sizes = complete_sizes(op.program, {"B": 1, "H": 2, "G": 2, "M": 40, "N": 40, "D": 8, "E": 8})
    found = agreements(op, make_inputs(op.program, sizes, torch.float32))
    assert {"o", "scatter_lanes", "smaller_of"} <= {a.name for a in found}
    assert [a for a in found if a.error > a.limit] == []


def test_notes_cannot_swallow_code() -> None:
    """A backslash at the end of a user's text would continue the comment on the next line."""
    y = var("y", "i")
    kernel = vectors((Argument("y", "f32", (M,), "out"),), (Assign(y, const(2.0), "a note \\"), Store("y", (i,), y)))
    found = poison(5)
    run(replace(kernel, doc="a path C:\\dir\\"), {"y": found}, B=1, M=5, N=1, D=1, E=1)
    assert found.tolist() == [2.0] * 5


def test_the_longest_blocks_start_first() -> None:
    """Under a causal mask the last rows have the most keys; in a column pass the first columns have the most rows."""
    assert "blocks - 1 - rest % blocks" in print_kernel(softmax_forward(causal=True))
    assert "blocks - 1" not in print_kernel(softmax_forward(causal=False))
    assert "blocks - 1" not in print_kernel(softmax_columns())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lines", ["", "mask = j <= i\n", "tensor slope: f32[H]\nbias = slope[h] * (i - j) / 500\n"])
def test_long_blocks(lines: str, dtype: torch.dtype) -> None:
    """A gradient over many queries takes keys in longer blocks: 256 of them, and 44 in the last."""
    op = attnc.compile(f"attention long\n{lines}", backend="cpp")
    assert f">= {LONG_READ} ? {LONG_BLOCK} : 64" in print_unit(all_kernels(op.program))
    sizes = {"B": 1, "H": 2, "G": 1, "M": LONG_READ // 1024, "N": LONG_BLOCK + 44, "D": 512, "E": 512}
    tensors = make_inputs(op.program, complete_sizes(op.program, sizes), dtype, requires_grad=True)
    found = agreements(op, tensors)
    assert len(found) >= 4
    assert [a for a in found if a.error > a.limit] == []


def test_blocks_are_taken_together_where_nothing_depends_on_them() -> None:
    """Full blocks of plain attention; not those that a sum runs within, and never those that a mask cuts."""
    text = print_unit(all_kernels(attnc.compile("attention plain\nmask = j <= i\n").program))
    assert text.count("j_first += 256") == text.count("i_first += 128") == 1
    assert "j_first += 64" in text
    assert "i_first += 64" in text
    inside = attnc.compile("attention inside\nmask = j <= i\nweight = p * sum[j by 16](s)\n").program
    assert any(kernel.fixed for kernel in all_kernels(inside))
    for kernel in all_kernels(inside):
        loops = [s for s in statements(kernel.body) if isinstance(s, Loop)]
        assert not any(s.joint and (s.masked or s.axis in kernel.fixed) for s in loops)
        assert "j_block" not in print_kernel(kernel)


@pytest.mark.parametrize("keys", [1, 31, 32, 65, 300])
def test_weights_become_pairs_as_they_are_computed(keys: int) -> None:
    """In place of the rows they come from; the row that an odd one lacks, and all up to a whole depth, are 0."""
    kernel = softmax_forward(causal=False, dtype="bf16", channels=None)
    text = print_unit([kernel], pairs=True)
    assert "paired(p_low, p_high)" in text
    assert "p_pairs" not in text
    known = find()
    if not known.multiplies_pairs():
        pytest.skip("the processor has no instructions for bf16")
    q, k, v = (torch.randn(1, 2, n, 32).to(torch.bfloat16) for n in (70, keys, keys))
    o, lse = poison(1, 2, 70, 32, dtype=torch.bfloat16), poison(1, 2, 70)
    (compiled,) = build([kernel], settings=replace(Settings.read(), pairs="always"))
    compiled([q, k, v, o, lse], {"B": 1, "H": 2, "M": 70, "N": keys, "D": 32, "E": 32, "q_start": 0})
    exact, _ = softmax(q, k, v, False, 0)
    assert (o.double() - exact).abs().max() <= ROUNDING["bf16"] * exact.abs().max()
