"""Running one example on one backend and judging it against its dense formula."""

from __future__ import annotations

import math
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
from tests.formulas import Dims, Inputs, evaluate, make_inputs, spec_of, to_dtype

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
    if spec_of(name).queries_within_keys and shape.M > shape.N:
        shape = replace(shape, M=shape.N, N=shape.M)
    if spec_of(name).costly and shape.M * shape.N > 100_000:
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
    if spec_of(name).observed:
        o, seen = op(inputs.q, inputs.k, inputs.v, **tensors, q_start=inputs.q_start, observe=True)
        return {"o": o, **seen}
    return {"o": op(inputs.q, inputs.k, inputs.v, **tensors, q_start=inputs.q_start)}


def with_gradients(results: dict[str, Tensor], inputs: Inputs, seed: int) -> dict[str, Tensor]:
    """Results and the gradient of a fixed random projection of all of them, by name."""
    generator = torch.Generator().manual_seed(seed)
    weights = []
    for r in results.values():
        weight = torch.randn(r.shape, generator=generator, dtype=torch.float64)
        weights.append(weight.to(r.dtype))
    leaves = inputs.real()
    moving = [(r, w) for r, w in zip(results.values(), weights, strict=True) if r.requires_grad]
    gradients = torch.autograd.grad(
        [r for r, _ in moving], list(leaves.values()), [w for _, w in moving], allow_unused=True
    )
    named = {name: r.detach() for name, r in results.items()}
    for (name, x), gradient in zip(leaves.items(), gradients, strict=True):
        named[f"d{name}"] = torch.zeros_like(x) if gradient is None else gradient
    return named


def require_grad(inputs: Inputs) -> Inputs:
    for x in inputs.real().values():
        x.requires_grad_()
    return inputs


@dataclass(frozen=True)
class Errors:
    """The largest error of a result, that of the dense formula in the same dtype, and the size of what was rounded.

    The size is that of the largest exact value; for the gradients of q, k and v, which are made from one another's
    parts and from the saved output, that of the largest of the three and of the output (as in `attnc verify`). Where
    everything cancels (the gradient of a softmax over one key is 0) that says nothing, and the size of the terms
    stands for it.
    """

    own: float
    dense: float
    size: float

    def worse(self, other: Errors) -> Errors:
        return Errors(max(self.own, other.own), max(self.dense, other.dense), max(self.size, other.size))


def judge(errors: Errors, dtype: torch.dtype, factor: float = 1) -> str | None:
    """None if an error is as small as the dtype allows, else what is wrong with it.

    The yardstick is the error of the dense formula in the same dtype; twice that is allowed. It needs a floor, because
    the dense formula is now and then exact by luck (one key: every weight is 1), while any result must be rounded on
    its way into memory, as are the saved output and row statistics that gradients are made from. Each rounding costs
    half an eps of the largest value; 4 eps leaves room for eight of them, and is far below what a wrong formula gives.
    `factor` is by how much a known miss may exceed all that.
    """
    if math.isinf(errors.own):
        return "holds NaN or inf, or has another shape"
    floor = 4 * torch.finfo(dtype).eps * errors.size
    allowed = 2 * errors.dense + floor
    if dtype == torch.float64:
        allowed += errors.dense + floor  # the reference is no more exact than the formula
    allowed *= factor
    if errors.own <= allowed:
        return None
    return f"error {errors.own:.3g}, allowed {allowed:.3g} (dense {errors.dense:.3g}, floor {floor:.3g})"


def term_size(inputs: Inputs, exact: dict[str, Tensor]) -> float:
    """How large the terms of a gradient may be: the largest result, or where all are 0 the incoming gradient of about
    1, times the largest input squared."""
    reach = max(1.0, *(float(x.detach().abs().max()) for x in inputs.real().values()))
    return (max(float(x.abs().max()) for x in exact.values()) or 1.0) * reach**2


def dense_results(name: str, inputs: Inputs, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Results and gradients of the dense formula in the dtype of the inputs, and in float64.

    For float64 inputs there is no dense formula of higher precision to compare with. Rounding errors are proportional
    to eps, so those of the formula in float32 are scaled down.
    """
    precise = require_grad(to_dtype(inputs, torch.float64))
    exact = with_gradients(evaluate(name, precise), precise, seed)
    if inputs.q.dtype != torch.float64:
        return with_gradients(evaluate(name, inputs), inputs, seed), exact
    single, _ = dense_results(name, require_grad(to_dtype(inputs, torch.float32)), seed)
    double = require_grad(to_dtype(to_dtype(inputs, torch.float32), torch.float64))
    rounded = with_gradients(evaluate(name, double), double, seed)
    scale = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
    return {x: exact[x] + (single[x].double() - rounded[x]) * scale for x in exact}, exact


def largest_error(found: Tensor, exact: Tensor) -> float:
    """Infinite where shapes differ or something is not finite."""
    if found.shape != exact.shape or not torch.isfinite(found).all():
        return math.inf
    return float((found.double() - exact).abs().max())


# A gradient of this few numbers, each a sum over the whole plane (a slope per head), has an error that is one draw from
# a wide distribution: of two computations that are equally good, one is off by more than twice the other in three cases
# of ten. Theirs is the largest error of several draws of inputs and incoming gradients, the same draws for both sides.
FEW = 100
DRAWS = 8
# By what factor a result may miss in one draw for others to be drawn.
NEAR = 2.0
TOGETHER = ("o", "dq", "dk", "dv")
# Below this share of its terms a float64 result is what rounding left of 0.
NOTHING = 1e-12


def complaints(name: str, backend: str, shape: Shape, dtype: torch.dtype, factor: float = 1) -> list[str]:
    """Everything wrong with outputs and gradients of one example on one backend at one shape; see `judge`.

    As in `attnc verify`, a near miss in one draw is judged by the largest errors of all draws, on both sides: an error
    that is large by chance is not so every time.
    """
    worst: dict[str, Errors] = {}
    for draw in range(DRAWS):
        inputs = require_grad(inputs_for(name, shape, dtype, seed=draw))
        with poisoned_memory():
            actual = with_gradients(run_op(name, backend, inputs), inputs, seed=1 + draw)
        dense, exact = dense_results(name, inputs, seed=1 + draw)
        terms = term_size(inputs, exact)
        if draw == 0:
            again = set(exact)
        for x in again:
            largest = max(float(exact[y].abs().max()) for y in (TOGETHER if x in TOGETHER[1:] else (x,)))
            size = largest if largest > NOTHING * terms else terms
            found = Errors(largest_error(actual[x], exact[x]), largest_error(dense[x], exact[x]), size)
            worst[x] = found.worse(worst[x]) if draw else found
        if draw == 0:
            again = {x for x, value in exact.items() if value.numel() < FEW}
            again |= {x for x in exact if judge(worst[x], dtype, factor) and not judge(worst[x], dtype, NEAR * factor)}
        if not again:
            break
    judged = {x: judge(worst[x], dtype, factor) for x in exact}
    return [f"{shape.label} {x}: {problem}" for x, problem in judged.items() if problem]
