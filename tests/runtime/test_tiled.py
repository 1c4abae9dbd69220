"""The interpreter of tile programs: right on every example, also when blocks overhang their axes as in kernels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import attnc
from attnc.codegen.tile import Accumulate, Argument, Assign, Each, Kernel, Lane, Loop, Scatter, Store
from attnc.ir.construct import add, axis, call, const, load, max_over, mul, raw_sum, size, sub, var
from attnc.runtime import tiled
from attnc.runtime.tiled import TiledKernel
from attnc.testing import compare
from attnc.testing.inputs import complete_sizes, grid_length, make_inputs

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.attn"))
M, N = size("M"), size("N")
ROW, COLUMN = axis("i"), axis("j")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_examples_with_overhanging_blocks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = TiledKernel.__init__

    def overhanging(self: TiledKernel, kernel: Kernel) -> None:
        original(self, kernel, blocks=dict.fromkeys(kernel.blocks, 16), padded=True)

    monkeypatch.setattr(tiled.TiledKernel, "__init__", overhanging)
    text = path.read_text().replace("attention ", "attention tiled_", 1)
    op = attnc.compile(text, backend="tiled")
    small = {"B": 1, "H": 2, "G": 1, "D": 4, "E": 3}
    few = {"H": 1} if grid_length(op.program) else {"N": 37, "M": 37}
    sizes = complete_sizes(op.program, {**small, **few})
    tensors = make_inputs(op.program, sizes, torch.float64)
    tensors = {n: t.double() if t.is_floating_point() else t for n, t in tensors.items()}
    seeds = compare.output_seeds(op.program, tensors)
    found = compare.run_op(op, tensors, seeds)
    expected = compare.dense(op.program, tensors, seeds, torch.float64)
    torch.testing.assert_close(dict(found.outputs), dict(expected.outputs), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(dict(found.gradients), dict(expected.gradients), rtol=1e-9, atol=1e-9)


def lanes() -> tuple[Lane, ...]:
    return Lane("i", "outer", M), Lane("j", "inner", N)


@pytest.mark.parametrize("padded", [False, True])
def test_reductions_guard_what_overhangs(padded: bool) -> None:
    """out[b, i] = max_j x[b, i, j] + sum_j x[b, i, j], with padding lanes guarded by the program."""
    inside = call("lt", COLUMN, N)
    x, m, total = var("x", "ij"), var("m", "i"), var("total", "i")
    masked, kept, top = var("masked", "ij"), var("kept", "ij"), var("top", "i")
    body = (
        Assign(m, const(-float("inf"))),
        Assign(total, const(0.0)),
        Loop(
            "j",
            const(0),
            N,
            True,
            (
                Assign(x, load("x", (axis("b"), ROW, COLUMN))),
                Assign(masked, call("where", inside, x, const(-float("inf")))),
                Assign(top, max_over("j", masked)),
                Assign(m, call("maximum", m, top)),
                Assign(kept, call("where", inside, x, const(0.0))),
                Accumulate(total, raw_sum("j", (kept,))),
            ),
        ),
        Store("out", (axis("b"), ROW), m),
        Store("sums", (axis("b"), ROW), total),
    )
    batch = size("B")
    arguments = (
        Argument("x", "f32", (batch, M, N)),
        Argument("out", "f32", (batch, M), "out"),
        Argument("sums", "f32", (batch, M), "out"),
    )
    kernel = Kernel("reduce", "", arguments, ("B", "M", "N"), ("b",), (batch,), "i", lanes(), {"i": 4, "j": 8}, body)
    x_in = torch.randn(3, 10, 13) - 5
    out, sums = torch.full((3, 10), torch.nan), torch.full((3, 10), torch.nan)
    TiledKernel(kernel, padded=padded)([x_in, out, sums], {"B": 3, "M": 10, "N": 13})
    torch.testing.assert_close(out, x_in.amax(-1))
    torch.testing.assert_close(sums, x_in.sum(-1))


def test_scatter_adds_every_lane() -> None:
    """table[clamp(i - j)] += 1 for j <= i counts the pairs of each distance."""
    distance = call("minimum", var("gap", "ij", "i"), const(3))
    gap = var("gap", "ij", "i")
    body = (
        Loop(
            "j",
            const(0),
            N,
            True,
            (
                Assign(gap, call("maximum", const(0), sub(ROW, COLUMN))),
                Scatter("table", (distance,), const(1.0), call("and", call("le", COLUMN, ROW), call("lt", COLUMN, N))),
            ),
        ),
    )
    table = Argument("table", "f32", (const(4),), "add")
    kernel = Kernel("count", "", (table,), ("M", "N"), (), (), "i", lanes(), {"i": 4, "j": 4}, body)
    counts = torch.zeros(4)
    TiledKernel(kernel, padded=True)([counts], {"M": 6, "N": 6})
    assert counts.tolist() == [6, 5, 4, 6]


def test_bounds_that_depend_on_a_grid_axis_run_point_by_point() -> None:
    """out[g] = the sum of x[h] over the heads of group g: the loop's bounds depend on g."""
    g, h = axis("g"), axis("h")
    x, total = var("x"), var("total")
    first = mul(const(2), g)
    body = (
        Assign(total, const(0.0)),
        Each("h", first, add(first, const(2)), (Assign(x, load("x", (h,))), Accumulate(total, x))),
        Store("out", (g,), total),
    )
    groups = size("G")
    arguments = (Argument("x", "f32", (size("H"),)), Argument("out", "f32", (groups,), "out"))
    kernel = Kernel("groups", "", arguments, ("G", "H"), ("g",), (groups,), None, (), {}, body)
    values, out = torch.arange(6.0), torch.zeros(3)
    ready = TiledKernel(kernel)
    assert ready.apart == ("g",)
    ready([values, out], {"G": 3, "H": 6})
    assert out.tolist() == [1.0, 5.0, 9.0]
