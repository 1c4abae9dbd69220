"""Biases as factors at run time: derivatives of every kind, tables by rank, and their cache."""

from __future__ import annotations

import gc
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import attnc
from attnc.runtime.rank import LowRankWarning, RankStages
from attnc.runtime.svd import basis_of_rank, basis_within

SPATIAL = """attention spatial
tensor x: f32[B, M, 2]
tensor y: f32[B, N, 2]
tensor strength: f32[H]
index c: 2
bias = -strength[h] * sum[c]((x[b, i, c] - y[b, j, c]) ** 2)
mask = j <= i + 2
"""
TABLE = "attention table\ntensor t: f32[H, M, N]\nbias = t[h, i, j]\nmask = j <= i + 20\n"
B, H, G, M, N, D = 2, 4, 2, 40, 57, 8


def content(dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    q = torch.randn(B, H, M, D, generator=g, dtype=dtype)
    k, v = (torch.randn(B, G, N, D, generator=g, dtype=dtype) for _ in range(2))
    return q, k, v


def points(dtype: torch.dtype = torch.float32, scale: int = 1) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(7)
    return {
        "x": torch.rand(B, M // scale, 2, generator=g, dtype=torch.float64).to(dtype),
        "y": torch.rand(B, N // scale, 2, generator=g, dtype=torch.float64).to(dtype),
        "strength": torch.rand(H, generator=g, dtype=torch.float64).to(dtype),
    }


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """The formula, with the mask of `TABLE`."""
    s = q @ k.repeat_interleave(H // G, 1).mT / D**0.5 + bias
    seen = torch.arange(N) <= torch.arange(M)[:, None] + 20
    return torch.softmax(s.masked_fill(~seen, -torch.inf), -1) @ v.repeat_interleave(H // G, 1)


# ------------------------------------------------------------------------------------------------- exact factors


def test_second_derivatives_flow_through_factors() -> None:
    op = attnc.compile(SPATIAL.replace("f32", "f64"), bias="factors", backend="tiled")
    g = torch.Generator().manual_seed(0)

    def real(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=g, dtype=torch.float64).requires_grad_()

    q, k, v = real(1, 2, 3, 2), real(1, 1, 4, 2), real(1, 1, 4, 2)
    x, y, strength = real(1, 3, 2), real(1, 4, 2), real(2)

    def run(*tensors: Tensor) -> Tensor:
        q, k, v, x, y, strength = tensors
        out: Tensor = op(q, k, v, x=x, y=y, strength=strength)
        return out

    assert torch.autograd.gradcheck(run, (q, k, v, x, y, strength))
    assert torch.autograd.gradgradcheck(run, (q, k, v, x, y, strength))


def test_transforms_agree_with_registers() -> None:
    q, k, v = content()
    given = points(torch.float32)
    found = []
    for form in ("registers", "factors"):
        op: Any = attnc.compile(SPATIAL, bias=form, backend="tiled")

        def run(x: Tensor, op: Any = op) -> Tensor:
            out: Tensor = op(q, k, v, **(given | {"x": x}))
            return out

        tangent = torch.func.jvp(run, (given["x"],), (torch.ones_like(given["x"]),))[1]
        gradient = torch.func.grad(lambda x, run=run: run(x).square().sum())(given["x"])
        mapped = torch.func.vmap(run)(torch.stack([given["x"], given["x"] + 0.5]))
        found.append((tangent, gradient, mapped))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_torch_compile_sees_two_ops() -> None:
    op: Any = attnc.compile(SPATIAL, bias="factors", backend="tiled")
    q, k, v = content(torch.float32)
    given = points()
    compiled = torch.compile(lambda q: op(q, k, v, **given) * 2, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q), op(q, k, v, **given) * 2)


def test_positions_start_where_the_call_says() -> None:
    text = "attention alibi\ntensor slope: f32[H]\nbias = -slope[h] * (i - j)\nmask = j <= i\n"
    q, k, v = content()
    slope = torch.rand(H)
    op = attnc.compile(text, bias="factors", backend="tiled")
    found = op(q, k, v, slope=slope, q_start=N - M)
    torch.testing.assert_close(found, op.reference(q, k, v, slope=slope, q_start=N - M))


def test_disabling_the_rewrite_leaves_registers() -> None:
    text = "attention wave\nbias = cos(0.3 * (i - j))\nmask = j <= i\n"
    assert "bias_i" in attnc.compile(text).source("cpp")
    assert "bias_i" not in attnc.compile(text, disable="separate").source("cpp")


# ---------------------------------------------------------------------------------------------- tables by rank


def table_of_rank(rank: int, noise: float = 0.0) -> Tensor:
    g = torch.Generator().manual_seed(3)
    smooth = torch.randn(H, M, rank, generator=g) @ torch.randn(H, rank, N, generator=g)
    return smooth + noise * torch.randn(H, M, N, generator=g)


@pytest.mark.parametrize("backend", ["tiled", "cpp"])
@pytest.mark.parametrize("rank", [1, 3, 6, 100])
def test_a_table_of_stated_rank_is_projected(rank: int, backend: str) -> None:
    """Output and gradients are those of the formula with the table projected on its leading singular vectors."""
    q, k, v = (x.requires_grad_() for x in content())
    table = table_of_rank(6, 0.1).requires_grad_()
    op = attnc.compile(TABLE, rank=rank, backend=backend)
    o = op(q, k, v, t=table)
    weight = torch.randn(o.shape, generator=torch.Generator().manual_seed(1), dtype=o.dtype)
    found = torch.autograd.grad(o, (q, k, v, table), weight)
    right = torch.linalg.svd(table.detach().double()).Vh[:, : min(rank, M)]
    exact = table.detach().double().requires_grad_()
    expected = attention(q, k, v, exact @ right.mT @ right)
    torch.testing.assert_close(o, expected, rtol=1e-6, atol=1e-6)
    wanted = torch.autograd.grad(expected, (q, k, v, exact), weight)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("true", "noise", "rtol"), [(3, 0.0, 1e-4), (5, 1e-3, 1e-2), (20, 0.0, 1e-3)])
def test_the_tolerance_holds(true: int, noise: float, rtol: float) -> None:
    op = attnc.compile(TABLE, rank="auto", rtol=rtol, backend="tiled")
    q, k, v = content()
    table = table_of_rank(true, noise)
    o = op(q, k, v, t=table)
    stages = next(iter(op.variant("t").stages.values()))
    assert isinstance(stages, RankStages)
    entry = next(iter(stages._entries.values()))
    assert entry.basis is not None
    vectors = entry.basis.vectors.double()
    projected = table.double() @ vectors @ vectors.mT
    errors = (projected - table).norm(dim=(1, 2)) / table.norm(dim=(1, 2))
    assert errors.max() <= rtol
    assert true <= entry.basis.rank <= -(-true // 4) * 4
    torch.testing.assert_close(o, attention(q, k, v, projected), rtol=1e-5, atol=1e-5)
    assert f"factors of rank {entry.basis.rank}" in op.explain()


def test_a_spectrum_that_does_not_allow_it_is_reported_once() -> None:
    op = attnc.compile(TABLE, rank="auto", rtol=1e-6, backend="tiled")
    q, k, v = content()
    table = torch.randn(H, M, N, generator=torch.Generator().manual_seed(0))
    op.variant("t").stages["cpu", "full"].most = 8  # type: ignore[union-attr]
    with pytest.warns(LowRankWarning, match="takes more than 8 channels"):
        o = op(q, k, v, t=table)
    torch.testing.assert_close(o, attention(q, k, v, table))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        op(q, k, v, t=table)
        op(q, k, v, t=table + 1)
    assert "computed as written" in op.explain()


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_a_table_that_is_not_finite_is_loaded(value: float) -> None:
    op = attnc.compile(TABLE, rank=4, backend="tiled")
    table = table_of_rank(2)
    table[:, :30, -1] = value  # behind the mask
    q, k, v = content()
    with pytest.warns(LowRankWarning, match="inf or NaN"):
        found = op(q, k, v, t=table)
    torch.testing.assert_close(found, attention(q, k, v, table))


def test_factors_are_made_again_only_when_the_table_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    from attnc.runtime import rank as module

    made: list[int] = []

    def counted(table: Tensor, rank: int) -> Any:
        made.append(rank)
        return basis_of_rank(table, rank)

    monkeypatch.setattr(module, "basis_of_rank", counted)
    op = attnc.compile(TABLE, rank=3, backend="tiled")
    stages = op.variant("t").stages["cpu", "full"]
    assert isinstance(stages, RankStages)
    q, k, v = content()
    table = table_of_rank(3)
    first = op(q, k, v, t=table)
    torch.testing.assert_close(op(q, k, v, t=table), first, rtol=0, atol=0)
    op(q, k, v, t=table[None][0])  # a view of the same memory
    assert len(made) == 1
    table.mul_(2)
    torch.testing.assert_close(op(q, k, v, t=table), attention(q, k, v, table), rtol=1e-5, atol=1e-5)
    assert len(made) == 2
    assert len(stages._entries) == 1
    del table
    gc.collect()
    assert not stages._entries


def test_heads_may_share_a_table() -> None:
    op = attnc.compile(TABLE, rank=6, backend="tiled")
    q, k, v = content()
    table = table_of_rank(6)[:1].contiguous().requires_grad_()
    op(q, k, v, t=table).sum().backward()
    assert table.grad is not None
    assert table.grad.shape == (1, M, N)
    torch.testing.assert_close(op(q, k, v, t=table), attention(q, k, v, table), rtol=1e-5, atol=1e-5)


def test_a_gathered_table_has_factors_too() -> None:
    text = "attention relative\ntensor t: f32[H, 41]\nbias = t[h, clamp(i - j, -20, 20) + 20]\n"
    op, exact = (attnc.compile(text, backend="tiled", **x) for x in ({"rank": "auto", "rtol": 1e-3}, {}))  # type: ignore[arg-type]
    q, k, v = content()
    t = torch.cos(0.05 * torch.arange(41.0)).expand(H, 41).contiguous().requires_grad_()
    found, expected = op(q, k, v, t=t), exact(q, k, v, t=t)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)
    a, b = (torch.autograd.grad(o.square().sum(), t)[0] for o in (found, expected))
    assert (a - b).norm() <= 0.5 * b.norm()


def test_traced_calls_load_the_table() -> None:
    op = attnc.compile(TABLE, rank=2, backend="tiled")
    q, k, v = content(torch.float32)
    table = table_of_rank(6)
    compiled = torch.compile(lambda t: op(q, k, v, t=t), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(table), attention(q, k, v, table), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(30, 50), (3, 50, 30), (2, 2, 40, 40)])
def test_bases_are_nearly_the_best(shape: tuple[int, ...]) -> None:
    table = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = torch.linalg.svdvals(table).square()
    for rank in (1, 7, 30):
        basis = basis_of_rank(table, rank)
        best = (values[..., rank:].sum(-1) / values.sum(-1)).sqrt().max().item()
        assert best - 1e-9 <= basis.error <= 1.05 * best + 1e-9
        eye = basis.vectors.mT @ basis.vectors
        torch.testing.assert_close(eye, torch.eye(eye.shape[-1], dtype=eye.dtype).expand_as(eye))
    assert basis_within(table, 1e-3, 8) is None
    assert basis_within(torch.zeros(4, 5), 1e-3, 8) is not None
