"""Reductions within blocks of an axis: one value per block, in the passes of what reads it, on every backend."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import attnc
from attnc import driver
from attnc.testing.inputs import complete_sizes, make_inputs

EXAMPLES = Path(__file__).parents[2] / "examples"
LENGTH = 16
HEADER = f"attention blocks\nconst n = {LENGTH}\nmask = j <= i\n"
CASES = {
    "softmax": "normaliser(s) = softmax[j by n](s)",
    "largest": "weight = p * tanh(max[j by n](s))",
    "smallest": "weight = p * tanh(min[j by n](s))",
    "mean": "weight = p * mean[j by n](dot(q, k) * s)",
    "keys_alone": "weight = p * sum[j by n](k[j, 0])",
}


def in_blocks(x: Tensor, mask: Tensor, how: str) -> Tensor:
    """Block after block, over its allowed entries; 0 where a block has none."""
    out = []
    for first in range(0, x.shape[-1], LENGTH):
        part, keep = x[..., first : first + LENGTH], mask[..., first : first + LENGTH]
        if how == "sum":
            value = part.masked_fill(~keep, 0).sum(-1, keepdim=True)
        else:
            sign = 1 if how == "max" else -1
            value = sign * (sign * part).masked_fill(~keep, -1e30).amax(-1, keepdim=True)
        out.append(torch.where(keep.any(-1, keepdim=True), value, 0).expand_as(part))
    return torch.cat(out, -1)


def dense(case: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
    s = q @ k.mT / q.shape[-1] ** 0.5
    p = torch.softmax(s.masked_fill(~mask, -torch.inf), -1)
    match case:
        case "softmax":
            e = torch.exp(s - in_blocks(s, mask, "max").detach()).masked_fill(~mask, 0)
            total = in_blocks(e, mask, "sum")
            w = e / torch.where(total == 0, 1, total)
        case "largest" | "smallest":
            w = p * torch.tanh(in_blocks(s, mask, {"largest": "max", "smallest": "min"}[case]))
        case "mean":
            count = in_blocks(torch.ones_like(s), mask, "sum").clamp(min=1)
            w = p * in_blocks((q @ k.mT) * s, mask, "sum") / count
        case _:
            every = torch.ones(1, k.shape[2], dtype=torch.bool)
            w = p * in_blocks(k[..., 0][..., None, :], every, "sum")
    return w @ v


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", ["dense", "tiled", "cpp"])
def test_values_and_gradients(case: str, backend: str) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 41, 8, generator=generator, dtype=torch.float64, requires_grad=True) for _ in "qkv")
    op = attnc.compile(HEADER + CASES[case], backend=backend)
    weight = torch.randn(1, 2, 41, 8, generator=generator, dtype=torch.float64)
    o, expected = op(q, k, v), dense(case, q, k, v)
    torch.testing.assert_close(o, expected)
    found = torch.autograd.grad(o, (q, k, v), weight)
    for got, right in zip(found, torch.autograd.grad(expected, (q, k, v), weight), strict=True):
        torch.testing.assert_close(got, right)


def test_two_levels_take_the_passes_of_one() -> None:
    op = attnc.compile(EXAMPLES / "gallery" / "landmark.attn")
    assert tuple(len(p.passes) for p in driver.plans(op.program)) == (1, 2)
    kernels = [k for k in driver.all_kernels(op.program) if any(lane.role == "inner" for lane in k.lanes)]
    assert kernels and all(k.fixed == {"j": 64} == {"j": k.blocks["j"]} for k in kernels)


@pytest.mark.sweep
def test_second_derivatives() -> None:
    op = attnc.compile(HEADER + CASES["softmax"], backend="tiled")
    sizes = complete_sizes(op.program, {"B": 1, "H": 1, "M": 19, "N": 19, "D": 3, "E": 2})
    tensors = make_inputs(op.program, sizes, torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(op, tuple(tensors[x] for x in "qkv"), atol=1e-4)
