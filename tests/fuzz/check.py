"""What must hold for every generated spec: it compiles or is refused with a diagnostic; all ways to compute it agree.

Kernels run on their own, without being registered as ops with torch: a long run would register millions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from attnc import driver
from attnc.codegen.tile import Kernel
from attnc.diagnostics.diagnostic import SpecError
from attnc.diagnostics.source import Source
from attnc.grammar.formatter import format_source
from attnc.grammar.parser import parse
from attnc.ir.dense import evaluate_nodes
from attnc.ir.node import Call
from attnc.ir.options import Options
from attnc.ir.parser import parse_program
from attnc.ir.printer import print_program
from attnc.ir.program import Program
from attnc.ir.sizes import evaluator
from attnc.ir.verify import verify
from attnc.ir.walk import postorder
from attnc.passes.derive import gradient_program
from attnc.passes.plan import Plan
from attnc.runtime.backends import TiledBackend, kernel_backend
from attnc.runtime.computation import Computation
from attnc.runtime.execute import PlanExecutor
from attnc.runtime.launch import KernelBackend, KernelLaunch
from attnc.runtime.tiled import TiledKernel
from attnc.testing.compare import Results, dense, dense_errors, output_seeds
from attnc.testing.inputs import complete_sizes, dims_of, relations_hold, storage_dtype
from tests.differential.compare import poisoned_memory
from tests.fuzz.specs import Case

EXACT = 1e-9
"""Largest difference in float64, relative to the largest value or to 1."""
FACTOR, ROUNDING = 8.0, 2e-5
"""In float32: how many times the error of the dense formula, and what is allowed besides it, relative likewise."""

BACKENDS = ("tiled", "cpp", "triton")


class Disagreement(AssertionError):
    """Two ways to compute a spec differ."""


def check(case: Case, backends: Sequence[str] = ("tiled",), disabled: Sequence[Sequence[str]] | None = None) -> str:
    """Check a case.

    Args:
        case: the spec and the call.
        backends: what runs it; tiled in float64, the others in float32.
        disabled: sets of rewrites to turn off one after the other; by default none, then those of the case.

    Returns:
        ``agrees``, the codes of the diagnostics that refuse the spec, or why there is nothing to compare.

    Raises:
        Disagreement: something differs.
    """
    source = driver.read(case.text)
    try:
        formatted(source)
        definition = driver.definition(source)
        provided = None if case.seed % 2 else ()
        program = driver.lower(definition, source, provided=provided)
        for p in (program, gradient_program(program)):
            verify(p)
            read_back(p)
        sizes = fitting_sizes(program, dict(case.sizes))
        if sizes is None:
            return "no sizes fit"
        if case.seed % 4 == 0:  # It takes as long as the rest of planning.
            driver.explained_plans(program)
        variants = [replace(program, options=Options(frozenset(d))) for d in disabled or ((), case.disabled)]
        for backend in backends:
            for variant in variants if backend == "tiled" else variants[:1]:
                verdict = compare(variant, backend, sizes, case.seed)
                if verdict != "agrees":
                    return verdict
    except SpecError as refused:
        assert all(d.code and d.message for d in refused.diagnostics)
        return " ".join(sorted({d.code for d in refused.diagnostics}))
    return "agrees"


# ------------------------------------------------------------------------------------------------------- compiling


def formatted(source: Source) -> None:
    """Formatting changes no meaning, and formatting twice changes nothing."""
    text = format_source(source)
    again = Source("formatted", text)
    if format_source(again) != text:
        raise Disagreement("formatting twice changes the text")
    if parse(again).definitions != parse(source).definitions:
        raise Disagreement("formatting changes what is parsed")


def read_back(program: Program) -> None:
    """The printed program parses to the same one."""
    again = parse_program(print_program(program))
    if again.outputs != program.outputs or again.roots() != program.roots() or again.axes != program.axes:
        raise Disagreement("the printed program parses to another one")


def fitting_sizes(program: Program, wanted: dict[str, int]) -> dict[str, int] | None:
    """Sizes near those wanted that satisfy the program's own relations; None if none are found."""
    known = {s.name for s in program.sizes} | {"q_start"}
    shorter = min(wanted.get("M", 1), wanted.get("N", 1))
    for change in ({}, {"q_start": 0}, {"q_start": 0, "M": shorter}, {"q_start": 0, "M": 1, "N": 40}):
        sizes = complete_sizes(program, {n: v for n, v in (wanted | change).items() if n in known})
        if relations_hold(program, sizes):
            return sizes
    return None


# --------------------------------------------------------------------------------------------------------- running


def make_tensors(program: Program, sizes: Mapping[str, int], seed: int) -> dict[str, Tensor]:
    """Inputs in [-1, 1], in float64 but representable in their own dtype; layouts differ by seed."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for t in program.tensors:
        shape = dims_of(t, sizes)
        assert shape is not None
        value = torch.rand(shape, generator=generator, dtype=torch.float64)
        if t.dtype == "bool":
            found[t.name] = value < 0.7
        elif not t.is_real:
            whole = (value * 4).to(torch.int64)
            found[t.name] = (whole.cumsum(-1) // 6 if t.name == "doc" else whole).to(
                storage_dtype(t.dtype, torch.float64)
            )
        else:
            value = 0.55 + 0.4 * value if t.name[0] == "u" else 2 * value - 1
            rounded = torch.float32 if t.dtype in ("q", "real") else storage_dtype(t.dtype, torch.float32)
            found[t.name] = _laid_out(value.to(rounded).double(), seed % 3)
    return found


def _laid_out(value: Tensor, layout: int) -> Tensor:
    """The same values contiguous, with the last two dimensions exchanged in memory, or with gaps that hold NaN."""
    if layout == 0 or value.dim() < 2:
        return value
    if layout == 1:
        return value.transpose(-1, -2).contiguous().transpose(-1, -2)
    wide = torch.full((*value.shape[:-1], 2 * value.shape[-1]), torch.nan, dtype=value.dtype)
    wide[..., ::2] = value
    return wide[..., ::2]


def compare(program: Program, backend: str, sizes: Mapping[str, int], seed: int) -> str:
    """Run one variant on one backend and compare it with the dense formula in float64."""
    if backend == "tiled":
        try:
            return _compare(program, backend, sizes, seed)
        except Disagreement:
            if _is_at_a_kink(program, sizes, seed):
                return "at a kink"
            raise
    try:
        return _compare(program, backend, sizes, seed)
    except Disagreement:
        # In float32 a rounding may move a value over a jump of the spec; a bug shows whatever the values are.
        _compare(program, backend, sizes, seed + 100)
        return _compare(program, backend, sizes, seed + 200)


def _is_at_a_kink(program: Program, sizes: Mapping[str, int], seed: int) -> bool:
    """Whether an absolute value is taken of what is 0 but for rounding, so that its slope is anyone's guess: scores
    less the mean of a single one, say, whatever the tensors hold."""
    nodes = postorder(program.roots())
    bent = list(dict.fromkeys(n.args[0] for n in nodes if isinstance(n, Call) and n.fn in ("abs", "sign")))
    extents = {a: int(evaluator(program.extent(a))(sizes)) for a in program.axes}
    tensors = make_tensors(program, sizes, seed)
    values = evaluate_nodes(bent, extents, tensors, sizes, dtype=torch.float64, order=sorted(extents))
    return any(bool((v.abs() < EXACT).any()) for v in values if v.is_floating_point())


def _compare(program: Program, backend: str, sizes: Mapping[str, int], seed: int) -> str:
    q_start = sizes.get("q_start", 0)
    tensors = make_tensors(program, sizes, seed)
    seeds = output_seeds(program, tensors, q_start, seed=seed)
    exact = dense(program, tensors, seeds, torch.float64, q_start=q_start)
    if not all(bool(t.isfinite().all()) for t in (*exact.outputs.values(), *exact.gradients.values())):
        return "not finite"
    if backend == "tiled":
        got, limits = run(program, backend, tensors, seeds, q_start), None
    else:
        narrow = {n: _like(t.float(), t) if t.is_floating_point() else t for n, t in tensors.items()}
        seeds = {n: g.float() for n, g in seeds.items()}
        exact = dense(program, narrow, seeds, torch.float64, q_start=q_start)
        got = run(program, backend, narrow, seeds, q_start)
        limits = dense_errors(dense(program, narrow, seeds, torch.float32, q_start=q_start), exact, got)
    largest = max([1.0, *(float(t.abs().max()) for t in exact.outputs.values() if t.numel())])
    for kind, values, right in (
        ("output", got.outputs, exact.outputs),
        ("gradient", got.gradients, exact.gradients),
    ):
        for name, value in right.items():
            scale = max(largest, float(value.abs().max())) if value.numel() else 1.0
            allowed = EXACT * scale if limits is None else FACTOR * limits[kind, name] + ROUNDING * scale
            _agree(f"{backend} without {sorted(program.options.disabled)}: {kind} {name}", values[name], value, allowed)
    return "agrees"


def _like(value: Tensor, other: Tensor) -> Tensor:
    return value.as_strided(other.shape, other.stride()) if value.stride() == other.stride() else value


def _agree(what: str, value: Tensor, exact: Tensor, allowed: float) -> None:
    if value.shape != exact.shape:
        raise Disagreement(f"{what} has shape {tuple(value.shape)}, not {tuple(exact.shape)}")
    gap = (value.double() - exact).abs()
    if not bool(gap.isfinite().all()):
        raise Disagreement(f"{what} is not finite")
    if gap.numel() and float(gap.max()) > allowed:
        raise Disagreement(f"{what} is off by {float(gap.max()):.3g}, allowed {allowed:.3g}")


def run(
    program: Program, backend: str, tensors: Mapping[str, Tensor], seeds: Mapping[str, Tensor], q_start: int
) -> Results:
    """Outputs and all gradients by kernels, in the dtype of the tensors; factors of the bias, if any, first."""
    forward, backward = driver.plans(program)
    split, first = driver.choose(program).split, driver.bias_plans(program)
    with poisoned_memory():
        known = dict(tensors)
        if split.first is not None:
            known |= _run(first[0], split.first, backend, known, q_start)
        known |= _run(forward, split.attention, backend, known, q_start)
        gradients = _gradients(backward, backend, known | {f"grad_{n}": g for n, g in seeds.items()}, q_start)
        if len(first) > 1:
            known |= {f"grad_{n}": gradients.get(n, torch.zeros_like(known[n])) for n in split.made}
            for name, more in _gradients(first[1], backend, known, q_start).items():
                gradients[name] = gradients[name] + more if name in gradients else more
    reals = (t.name for t in program.tensors if t.is_real)
    return Results(
        {o.name: known[o.name] for o in program.outputs},
        {n: gradients.get(n, torch.zeros_like(tensors[n])) for n in reals},
    )


def _gradients(plan: Plan, backend: str, given: Mapping[str, Tensor], q_start: int) -> dict[str, Tensor]:
    found = _run(plan, plan.program, backend, given, q_start)
    return {o.of: found[o.name] for o in plan.program.outputs if o.of}


def _run(plan: Plan, program: Program, backend: str, given: Mapping[str, Tensor], q_start: int) -> dict[str, Tensor]:
    program = replace(program, sizes=plan.program.sizes)
    computation = _Computation(program, plan, backend)
    tensors = [given[n] for n in computation.names]
    results = PlanExecutor(computation, plan, _backend(backend))(tensors, q_start)
    return {r.name: t for r, t in zip(computation.results, results, strict=True)}


class _Computation(Computation):
    """A computation that is no op of torch's."""

    def __init__(self, program: Program, plan: Plan, backend: str) -> None:
        super().__init__(program, plan, backend, 0, program.name)

    def _register(self) -> Callable[..., Any]:
        return self.run


class _SmallBlocks(TiledBackend):
    """The tiled interpreter with blocks so small that short sequences have several, which overhang their axes."""

    blocks: tuple[int, int] = (8, 4)

    def build(self, kernels: Sequence[Kernel]) -> Sequence[KernelLaunch]:
        return [TiledKernel(k, padded=True) for k in kernels]


def _backend(name: str) -> KernelBackend:
    return _SmallBlocks() if name == "tiled" else kernel_backend(name)
