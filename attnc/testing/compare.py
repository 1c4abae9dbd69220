"""The numeric check: a compiled op against the float64 oracle, judged by what plain PyTorch loses in the same dtype.

A value agrees when its largest error is at most twice the largest error of the dense formula evaluated in the op's
dtype, plus `ROUNDINGS` roundings of the largest exact value. The second part is there because a formula may be exact
by luck (the gradient of a softmax over one key is 0 however it is computed, if every term cancels in the same order),
while results are rounded on their way into memory, and so are the output and the row statistics that gradients are
made from.

A gradient of few numbers, each a sum over the whole plane (a slope per head), has an error that is one draw from a wide
distribution. Its yardstick is the largest dense error of several draws of the incoming gradient. A call that misses
narrowly is judged by the largest errors of several draws, its own and those of the dense formula.

Results in float64 are as exact as the oracle. The dense formula's error is then that in float32, of inputs rounded to
it, times the ratio of their roundings; half as much again is allowed for the oracle's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from attnc.ir.program import Program

if TYPE_CHECKING:
    import torch

    Tensors = Mapping[str, torch.Tensor]
    Tell = Callable[[str], None]

FACTOR = 2.0
ROUNDINGS = 4.0
FEW = 100
DRAWS = 4
NEAR = 2.0
"""A miss by less than this factor in one draw is judged over several."""
NOTHING = 1e-12
"""Below this share of its terms an exact gradient is what rounding left of 0."""


class Op(Protocol):
    """What a compiled op offers to the check."""

    @property
    def program(self) -> Program: ...

    def __call__(self, q: Any, k: Any, v: Any, **rest: Any) -> Any: ...


@dataclass(frozen=True, slots=True)
class Agreement:
    """One output or gradient against the oracle.

    Attributes:
        name: of the output, or of the tensor whose gradient this is.
        kind: which of the two.
        error: largest absolute error of the op.
        dense_error: largest absolute error of the dense formula in the same dtype.
        scale: what a rounding is relative to: the largest exact absolute value, or that of its terms (see `judge`).
        limit: largest error that still agrees.
    """

    name: str
    kind: Literal["output", "gradient"]
    error: float
    dense_error: float
    scale: float
    limit: float

    @property
    def agrees(self) -> bool:
        return self.error <= self.limit

    @property
    def label(self) -> str:
        return self.name if self.kind == "output" else f"d{self.name}"


@dataclass(frozen=True, slots=True)
class Results:
    """Outputs by name and gradients by tensor name."""

    outputs: Tensors
    gradients: Tensors


def output_seeds(program: Program, tensors: Tensors, q_start: int = 0, *, seed: int = 1) -> dict[str, torch.Tensor]:
    """A random incoming gradient for every output, in the output's own dtype."""
    import torch

    from attnc.ir.dense import bind_sizes, integer
    from attnc.testing.inputs import storage_dtype

    query = tensors["q"]
    sizes = bind_sizes(program, tensors, q_start)
    generator = torch.Generator().manual_seed(seed)
    seeds = {}
    for out in program.outputs:
        shape = [integer(d, sizes) for d in out.dims]
        value = torch.randn(shape, generator=generator, dtype=torch.float64)
        seeds[out.name] = value.to(query.device, storage_dtype(out.dtype, query.dtype))
    return seeds


def run_op(op: Op, tensors: Tensors, seeds: Tensors | None, *, q_start: int = 0) -> Results:
    """The op's outputs and, for incoming gradients `seeds`, the gradients of all its real tensors."""
    import torch

    observe = bool(op.program.observed)
    leaves = {n: t.detach().requires_grad_(seeds is not None and t.is_floating_point()) for n, t in tensors.items()}
    extra: dict[str, Any] = {"q_start": q_start} if q_start else {}
    if observe:
        extra["observe"] = True
    with torch.set_grad_enabled(seeds is not None):
        returned = op(**leaves, **extra)
    outputs: dict[str, torch.Tensor] = {"o": returned[0], **returned[1]} if observe else {"o": returned}
    if seeds is None:
        return Results(outputs, {})
    wanted = {n: t for n, t in leaves.items() if t.requires_grad}
    chosen = [n for n in outputs if n in seeds and outputs[n].requires_grad]
    found = torch.autograd.grad(
        [outputs[n] for n in chosen],
        list(wanted.values()),
        [seeds[n] for n in chosen],
        allow_unused=True,
        materialize_grads=True,
    )
    gradients = dict(zip(wanted, found, strict=True))
    return Results({n: o.detach() for n, o in outputs.items()}, gradients)


def dense(
    program: Program, tensors: Tensors, seeds: Tensors | None, dtype: torch.dtype, *, q_start: int = 0
) -> Results:
    """The dense formula in `dtype`, gradients by torch's autograd."""
    from attnc.ir.oracle import oracle

    detached = {n: t.detach() for n, t in tensors.items()}
    return Results(*oracle(program, detached, q_start, seeds, dtype=dtype))


def agreements(
    op: Op, tensors: Tensors, *, q_start: int = 0, backward: bool = True, draws: int = DRAWS, tell: Tell | None = None
) -> list[Agreement]:
    """Every output and gradient of one call, judged.

    Args:
        op: the compiled op.
        tensors: all its inputs by name, see `attnc.testing.inputs.make_inputs`.
        q_start: position of the first query.
        backward: whether gradients are compared too.
        draws: how many incoming gradients the yardstick of a gradient of few numbers is taken over; a near miss is
            judged over twice as many calls.
        tell: called with a few words before each long step.
    """
    import torch

    tell = tell or (lambda step: None)
    program = op.program
    seeds = output_seeds(program, tensors, q_start) if backward else None
    tell("building and running the kernels")
    got = run_op(op, tensors, seeds, q_start=q_start)
    tell("evaluating the float64 oracle")
    exact = dense(program, tensors, seeds, torch.float64, q_start=q_start)
    tell("evaluating the dense formula in the same dtype")
    errors = _errors_of_the_formula(program, tensors, seeds, exact, got, q_start)
    few = [n for n, g in got.gradients.items() if g.numel() < FEW]
    for draw in range(1, draws if few else 1):
        tell(f"evaluating the dense formula, draw {draw + 1} of {draws}")
        other = output_seeds(program, tensors, q_start, seed=1 + draw)
        again = dense(program, tensors, other, torch.float64, q_start=q_start)
        more = _errors_of_the_formula(program, tensors, other, again, got, q_start)
        errors |= {("gradient", n): max(errors["gradient", n], more["gradient", n]) for n in few}
    rows = judge(got, exact, errors, seeds, tensors)
    if all(r.agrees for r in rows) or any(r.error > NEAR * r.limit for r in rows) or draws <= 1:
        return rows
    return _over_draws(op, tensors, rows, q_start, seeds is not None, 2 * draws, tell)


def _over_draws(
    op: Op, tensors: Tensors, rows: list[Agreement], q_start: int, backward: bool, draws: int, tell: Tell
) -> list[Agreement]:
    """The same call judged by the largest errors of several draws of q, k, v and the incoming gradients.

    Of a hundred results with errors like those of the dense formula, some have their largest error where the dense
    formula has a small one. That happens once; a kernel that loses digits loses them in every draw.
    """
    import torch

    program = op.program
    for draw in range(1, draws):
        tell(f"a near miss: judging draw {draw + 1} of {draws}")
        generator = torch.Generator().manual_seed(draw)
        fresh = dict(tensors)
        for n in "qkv":
            fresh[n] = torch.randn(tensors[n].shape, generator=generator, dtype=torch.float64).to(tensors[n])
        seeds = output_seeds(program, fresh, q_start, seed=1 + draw) if backward else None
        got = run_op(op, fresh, seeds, q_start=q_start)
        exact = dense(program, fresh, seeds, torch.float64, q_start=q_start)
        errors = _errors_of_the_formula(program, fresh, seeds, exact, got, q_start)
        again = judge(got, exact, errors, seeds, fresh)
        rows = [_worse(a, b) for a, b in zip(rows, again, strict=True)]
    return rows


def _worse(a: Agreement, b: Agreement) -> Agreement:
    """The largest of each number over two draws."""
    return Agreement(
        a.name,
        a.kind,
        error=max(a.error, b.error),
        dense_error=max(a.dense_error, b.dense_error),
        scale=max(a.scale, b.scale),
        limit=max(a.limit, b.limit),
    )


Errors = dict[tuple[str, str], float]
"""By kind and name."""


def dense_errors(plain: Results, exact: Results, got: Results) -> Errors:
    """Largest errors of the dense formula, stored in the dtypes of the op's results; 0 where it overflows."""
    pairs = (
        ("output", plain.outputs, exact.outputs, got.outputs),
        ("gradient", plain.gradients, exact.gradients, got.gradients),
    )
    found: Errors = {}
    for kind, values, right, stored in pairs:
        for n, x in stored.items():
            error = _difference(values[n].to(x.dtype), right[n])
            found[kind, n] = error if math.isfinite(error) else 0.0
    return found


def _errors_of_the_formula(
    program: Program, tensors: Tensors, seeds: Tensors | None, exact: Results, got: Results, q_start: int
) -> Errors:
    """Largest errors of the dense formula in the dtype of the queries."""
    import torch

    def rounded(values: Tensors) -> dict[str, torch.Tensor]:
        return {n: x.float() if x.dtype == torch.float64 else x for n, x in values.items()}

    dtype = tensors["q"].dtype
    if dtype != torch.float64:
        return dense_errors(dense(program, tensors, seeds, dtype, q_start=q_start), exact, got)
    tensors, seeds = rounded(tensors), None if seeds is None else rounded(seeds)
    wanted = dense(program, tensors, seeds, dtype, q_start=q_start)
    errors = dense_errors(dense(program, tensors, seeds, torch.float32, q_start=q_start), wanted, got)
    share = (1 + 1 / FACTOR) * torch.finfo(dtype).eps / torch.finfo(torch.float32).eps
    return {key: share * error for key, error in errors.items()}


def judge(
    got: Results, exact: Results, errors: Errors, seeds: Tensors | None = None, tensors: Tensors | None = None
) -> list[Agreement]:
    """Compare results name by name, given the errors of the dense formula and the incoming gradients.

    What is 0 because its terms cancel is held to the scale of its terms: an observation to that of the output,
    gradients of q, k and v to the largest of the three and of the output times its incoming gradient. Where all of
    that is 0 (the logarithm of a weight of 1), the incoming gradients themselves are the terms. An output that is 0
    everywhere is held to the scale of q and k.
    """
    main = next(iter(got.outputs))
    floor = _largest(exact.outputs[main]) or max((_largest((tensors or {})[n]) for n in "qk" if tensors), default=0.0)
    rows = [_row(n, "output", o, exact.outputs[n], errors["output", n], floor) for n, o in got.outputs.items()]
    terms = [exact.gradients[n] for n in "qkv" if n in exact.gradients]
    terms += [exact.outputs[n] * g for n, g in (seeds or {}).items() if n in exact.outputs]
    shared = max((_largest(t) for t in terms), default=0.0)
    shared = shared or max((_largest(g) for g in (seeds or {}).values()), default=0.0)
    for n, g in got.gradients.items():
        scale = shared if n in ("q", "k", "v") or _largest(exact.gradients[n]) <= NOTHING * shared else 0.0
        rows.append(_row(n, "gradient", g, exact.gradients[n], errors["gradient", n], scale))
    return rows


def _row(
    name: str,
    kind: Literal["output", "gradient"],
    got: torch.Tensor,
    exact: torch.Tensor,
    yardstick: float,
    scale: float,
) -> Agreement:
    import torch

    scale = max(scale, _largest(exact))
    limit = FACTOR * yardstick + ROUNDINGS * torch.finfo(got.dtype).eps * scale
    return Agreement(name, kind, _difference(got, exact), yardstick, scale, limit)


def _largest(value: torch.Tensor) -> float:
    return float(value.abs().max()) if value.numel() else 0.0


def _difference(value: torch.Tensor, exact: torch.Tensor) -> float:
    """Largest absolute difference; infinite where either is not finite."""
    import torch

    if value.shape != exact.shape:
        return math.inf
    if not value.numel():
        return 0.0
    gap = (value.to(torch.float64) - exact).abs()
    return float(gap.max()) if bool(torch.isfinite(gap).all()) else math.inf
