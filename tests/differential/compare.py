"""Running one example on one backend and judging it against its dense formula."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import deterministic as _deterministic

import attnc
from tests.formulas import SPECS, Dims, Inputs, evaluate, make_inputs, recomputed_softmax, to_dtype

# Its one attribute is made at run time, where type checkers do not see it.
deterministic: Any = _deterministic
EXAMPLES = Path(__file__).parents[2] / "examples"


@dataclass(frozen=True)
class Shape:
    """Lengths, heads and memory layout of one call. `tail` puts the queries at the end of the keys."""

    M: int
    N: int
    B: int = 1
    H: int = 2
    G: int = 2
    D: int = 16
    E: int = 16
    tail: bool = False
    strided: bool = False

    @property
    def label(self) -> str:
        marks = ("-tail" if self.tail else "") + ("-strided" if self.strided else "")
        return f"{self.M}x{self.N}-B{self.B}H{self.H}G{self.G}D{self.D}E{self.E}{marks}"


def inputs_for(name: str, shape: Shape, dtype: torch.dtype, seed: int = 0) -> Inputs:
    """Seeded inputs; a spec that reads keys' data at query positions gets a shape where those positions exist."""
    if SPECS[name].queries_within_keys and shape.M > shape.N:
        shape = replace(shape, M=shape.N, N=shape.M)
    if SPECS[name].costly and shape.M * shape.N > 100_000:
        shape = replace(shape, H=1, G=1, D=8)
    dims = Dims(shape.B, shape.H, shape.G, shape.M, shape.N, shape.D, shape.E)
    inputs = make_inputs(name, dims, dtype, seed=seed, q_start=shape.N - shape.M if shape.tail else 0)
    return spread(inputs) if shape.strided else inputs


def spread(inputs: Inputs) -> Inputs:
    """The same values in memory that is not contiguous; the gaps hold NaN, which nobody may read."""

    def gaps(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x
        wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), torch.nan, dtype=x.dtype)
        wide[..., ::2] = x
        return wide[..., ::2]

    q = inputs.q.transpose(1, 2).contiguous().transpose(1, 2)
    v = inputs.v.transpose(2, 3).contiguous().transpose(2, 3)
    tensors = {name: gaps(x) for name, x in inputs.tensors.items()}
    return Inputs(q, gaps(inputs.k), v, tensors, inputs.consts, inputs.q_start)


@cache
def compiled(name: str, backend: str, consts: tuple[tuple[str, int | float], ...]) -> attnc.Op:
    values: dict[str, Any] = dict(consts)
    return attnc.compile(EXAMPLES / f"{name}.attn", backend=backend, **values)


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fresh tensors start as NaN: an element a kernel forgets to write shows."""
    before = torch.are_deterministic_algorithms_enabled(), deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        deterministic.fill_uninitialized_memory = before[1]


def run_op(name: str, backend: str, inputs: Inputs) -> dict[str, Tensor]:
    op = compiled(name, backend, tuple(sorted(inputs.consts.items())))
    tensors: dict[str, Any] = inputs.tensors
    if name == "watched":
        o, seen = op(inputs.q, inputs.k, inputs.v, **tensors, q_start=inputs.q_start, observe=True)
        return {"o": o, **seen}
    return {"o": op(inputs.q, inputs.k, inputs.v, **tensors, q_start=inputs.q_start)}


def with_gradients(results: dict[str, Tensor], inputs: Inputs, seed: int) -> dict[str, Tensor]:
    """Results and the gradient of a fixed random projection of all of them, by name.

    A distance counts positions; divided by how many there are, it weighs as much in the projection as other results.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = []
    for name, r in results.items():
        weight = torch.randn(r.shape, generator=generator, dtype=torch.float64)
        weights.append((weight / (inputs.q.shape[2] + inputs.k.shape[2]) if name == "distance" else weight).to(r.dtype))
    leaves = inputs.real()
    gradients = torch.autograd.grad(list(results.values()), list(leaves.values()), weights, allow_unused=True)
    named = {name: r.detach() for name, r in results.items()}
    for (name, x), gradient in zip(leaves.items(), gradients, strict=True):
        named[f"d{name}"] = torch.zeros_like(x) if gradient is None else gradient
    return named


def require_grad(inputs: Inputs) -> Inputs:
    for x in inputs.real().values():
        x.requires_grad_()
    return inputs


def judge(actual: Tensor, exact: Tensor, yardstick: float, cancelled: float, dtype: torch.dtype) -> str | None:
    """None if `actual` is as near to `exact` as the dtype allows, else what is wrong with it.

    The yardstick is the error of the dense formula in the same dtype; twice that is allowed. It needs a floor, because
    the dense formula is now and then exact by luck (one key: every weight is 1), while any result must be rounded on
    its way into memory, as are the saved output and row statistics that gradients are made from. Each rounding costs
    half an eps of the largest value; 4 eps leaves room for eight of them, and is far below what a wrong formula gives.

    Where everything cancels (the gradient of a softmax over one key is 0), the largest value says nothing about what
    was rounded. Then `cancelled`, the size of the terms, stands for it.
    """
    if actual.shape != exact.shape:
        return f"shape {tuple(actual.shape)}, expected {tuple(exact.shape)}"
    if not torch.isfinite(actual).all():
        return "holds NaN or inf"
    error = float((actual.double() - exact).abs().max())
    largest = float(exact.abs().max())
    magnitude = largest if largest > NOTHING * cancelled else cancelled
    allowed = 2 * yardstick + (SAME_PRECISION if dtype == torch.float64 else 4) * torch.finfo(dtype).eps * magnitude
    return None if error <= allowed else f"error {error:.3g}, allowed {allowed:.3g}, largest value {largest:.3g}"


def term_size(inputs: Inputs, exact: dict[str, Tensor]) -> float:
    """How large the terms of a gradient may be: the largest result times the largest input squared."""
    reach = max(1.0, *(float(x.detach().abs().max()) for x in inputs.real().values()))
    return max(float(x.abs().max()) for x in exact.values()) * reach**2


def dense_errors(name: str, inputs: Inputs, seed: int) -> tuple[dict[str, float], dict[str, Tensor]]:
    """The largest error of the dense formula in the dtype of the inputs, by result, and the float64 results.

    The formula runs twice: with the library's softmax, whose backward reads the weights it stored, and with the one
    that recomputes them, as every kernel that stores no weights must. The larger error counts.
    """
    precise = require_grad(to_dtype(inputs, torch.float64))
    exact = with_gradients(evaluate(name, precise), precise, seed)
    stored = with_gradients(evaluate(name, inputs), inputs, seed)
    with recomputed_softmax():
        recomputed = with_gradients(evaluate(name, inputs), inputs, seed)
    errors = {
        x: max(float((dense[x].double() - exact[x]).abs().max()) for dense in (stored, recomputed)) for x in exact
    }
    return errors, exact


# A gradient of this few numbers, each a sum over the whole plane (a slope per head), has an error that is one draw from
# a wide distribution and may be tiny by luck. The yardstick for those is the largest of several draws.
FEW = 100
DRAWS = 8
# In float64 there is no dense formula of higher precision: the yardstick is 0 and the reference has rounding errors of
# its own, which grow like the root of the number of terms (thousands, in a gradient summed over a plane).
SAME_PRECISION = 100
# Below this share of its terms a float64 result is what rounding left of 0.
NOTHING = 1e-12


def complaints(name: str, backend: str, shape: Shape, dtype: torch.dtype) -> list[str]:
    """Everything wrong with outputs and gradients of one example on one backend at one shape."""
    inputs = require_grad(inputs_for(name, shape, dtype))
    with poisoned_memory():
        actual = with_gradients(run_op(name, backend, inputs), inputs, seed=1)
    yardstick, exact = dense_errors(name, inputs, seed=1)
    few = [x for x, value in exact.items() if value.numel() < FEW]
    for draw in range(1, DRAWS if few else 1):
        again = require_grad(inputs_for(name, shape, dtype, seed=draw))
        errors, _ = dense_errors(name, again, seed=1 + draw)
        yardstick |= {x: max(yardstick[x], errors[x]) for x in few}
    terms = term_size(inputs, exact)
    found = []
    for result, reference in exact.items():
        problem = judge(actual[result], reference, yardstick[result], terms, dtype)
        if problem:
            found.append(f"{shape.label} {result}: {problem}")
    return found
