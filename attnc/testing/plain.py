"""The same variant in plain PyTorch on whole tensors: a softmax as a user would write it, else the formula."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from attnc.ir.construct import call
from attnc.ir.program import Program
from attnc.testing.peers import GRID, Peer
from attnc.testing.pointwise import python_function
from attnc.testing.softmax_form import NotExpressible, softmax_form

if TYPE_CHECKING:
    import torch

    Tensors = Mapping[str, torch.Tensor]

AXES = (("b", "B"), ("h", "H"), ("i", "M"), ("j", "N"))
SAMPLED = 64
"""Rows of a mask that are counted to estimate how many pairs it allows."""


def plain(program: Program, tensors: Tensors, sizes: Mapping[str, int]) -> Peer:
    """Attention by eager tensor operations. The mask of a softmax is made beforehand."""
    import torch

    form = softmax_form(program, sizes)
    if isinstance(form, NotExpressible) or not form.plain:
        return formula(program, tensors, sizes)
    detached = {n: t.detach() for n, t in tensors.items()}
    grid = _grid(sizes, torch.arange(sizes["M"], device=tensors["q"].device))
    score = python_function(form.score, "score", ("score", "b", "h", "i", "j"), GRID, detached)
    allowed = None
    if form.mask:
        allowed = python_function(call("and", *form.mask), "mask", ("b", "h", "i", "j"), GRID, detached)(*grid)
    groups = sizes["H"] // sizes["G"]

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if groups > 1:
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        s = score(q @ k.mT, *grid).to(q.dtype)
        if allowed is not None:
            s = s.masked_fill(~allowed, -torch.inf)
        return torch.softmax(s, -1) @ v

    return Peer("eager", run, "whole tensors")


def formula(program: Program, tensors: Tensors, sizes: Mapping[str, int]) -> Peer:
    """Any variant: its program, operation by operation, in the dtype of q."""
    from attnc.ir.dense import evaluate

    others = {n: t.detach() for n, t in tensors.items() if n not in ("q", "k", "v")}

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        given = {"q": q, "k": k, "v": v, **others}
        return evaluate(program, given, sizes, dtype=q.dtype, whole=True)["o"]

    return Peer("eager", run, "the formula, operation by operation")


def allowed_fraction(program: Program, tensors: Tensors, sizes: Mapping[str, int]) -> float | None:
    """The share of pairs of positions that a variant attends to, from a sample of rows; None if it is no softmax."""
    import torch

    form = softmax_form(program, sizes)
    if isinstance(form, NotExpressible):
        return None
    if not form.mask:
        return 1.0
    rows = torch.linspace(0, sizes["M"] - 1, min(SAMPLED, sizes["M"])).round().long().to(tensors["q"].device)
    condition = python_function(call("and", *form.mask), "mask", ("b", "h", "i", "j"), GRID, tensors)
    found = torch.as_tensor(condition(*_grid(sizes, rows)))
    return float(found.expand(*found.shape[:2], len(rows), sizes["N"]).double().mean())


def _grid(sizes: Mapping[str, int], rows: torch.Tensor) -> list[torch.Tensor]:
    import torch

    values = [rows if axis == "i" else torch.arange(sizes[size], device=rows.device) for axis, size in AXES]
    return [x.reshape([-1 if k == dim else 1 for k in range(4)]) for dim, x in enumerate(values)]
