"""Programs as `torch.library` custom ops: one op per computation, its derivative another, registered on demand.

The forward op returns its outputs and the values it saves. The op of a derivative takes the same inputs, the incoming
gradients and the saved values; as a function it depends on the first two alone, since saved values are a cache. So its
autograd returns gradients for inputs and seeds and nothing for what was saved.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor

import attnc
from attnc import driver
from attnc.diagnostics.diagnostic import CallError, Diagnostic
from attnc.ir.dtypes import FORWARD_ONLY, NAMES, written
from attnc.ir.node import Node
from attnc.ir.program import Program
from attnc.ir.program import Tensor as Operand
from attnc.ir.sizes import evaluator
from attnc.passes import modes
from attnc.passes.plan import Plan
from attnc.runtime import library
from attnc.runtime.eager import Recorded, differentiated, plain
from attnc.runtime.execute import Executor, PlanExecutor
from attnc.runtime.runs import Tracked

HIGHEST_ORDER = 2
Mode = Literal["reverse", "forward"]

_lock = threading.RLock()
_computations: dict[str, Computation] = {}


@dataclass(frozen=True, slots=True)
class Result:
    """A tensor an op returns: its shape, and its dtype, which for a gradient is that of the input it belongs to."""

    name: str
    dims: tuple[Node, ...]
    dtype: str
    of: str | None
    saved: bool


@dataclass(frozen=True, slots=True)
class Route:
    """How gradients are found: by which computation, from which of the known tensors, and which result is whose."""

    below: Computation
    reads: tuple[int, ...]
    places: tuple[int | None, ...]


class Computation:
    """One program on one kind of backend as a custom op, and the computations of its derivatives.

    Attributes:
        program: outputs as functions of operands and seeds.
        plan: how kernels compute it; None for the dense backend.
        order: how many derivatives were taken to get here.
        arguments: the op's tensors in order: operands, seeds, then values saved by the computation it derives from.
        results: what the op returns: outputs, then saved values.
    """

    def __init__(self, program: Program, plan: Plan | None, backend: str, order: int, name: str) -> None:
        self.program = program
        self.plan = plan
        self.backend = backend
        self.order = order
        self.name = name
        self.arguments: tuple[Operand, ...] = plan.program.tensors if plan else program.tensors
        self.names = tuple(t.name for t in self.arguments)
        self.results = _results(program, plan)
        self.outputs = tuple(r.name for r in self.results if not r.saved)
        self.differentiable = tuple(t.name for t in program.tensors if t.is_real)
        position = {n: k for k, n in enumerate(self.names)}
        self._bindings = tuple((s.name, position[s.tensor], s.dim) for s in program.sizes)
        self._dims = tuple(tuple(evaluator(d) for d in r.dims) for r in self.results)
        self._dtype_of = tuple(position.get(r.of or "") for r in self.results)
        self._derivatives: dict[tuple[Mode, frozenset[str], frozenset[str]], Computation] = {}
        self.ahead: set[tuple[object, ...]] = set()
        """Kinds of recorded calls whose backward was compiled ahead, or need not be."""
        self._routes: dict[tuple[bool, ...], Route | None] = {}
        self._executors: dict[str, Executor] = {}
        self.op = self._register()

    # ------------------------------------------------------------------------------------------------- running

    def call(self, tensors: Sequence[Tensor], q_start: Any) -> tuple[Tensor, ...]:
        """The op, called by eager code; past the dispatcher where nothing is there to see it."""
        with Tracked():
            if type(q_start) is not int or not plain(tensors):
                return self.op(*tensors, q_start)
            if differentiated(tensors):
                return Recorded.apply(self, q_start, *tensors)  # type: ignore[no-untyped-call, no-any-return]
            return self.run(*tensors, q_start)

    def sizes(self, tensors: Sequence[Tensor], q_start: Any) -> dict[str, Any]:
        """Size symbols bound by the arguments."""
        values = {name: tensors[k].shape[dim] for name, k, dim in self._bindings}
        values["q_start"] = q_start
        return values

    def run(self, *arguments: Any) -> tuple[Tensor, ...]:
        """Compute the results eagerly: the op's kernel."""
        tensors, q_start = arguments[:-1], arguments[-1]
        executor = self._executors.get(tensors[0].device.type)
        if executor is None:
            executor = self._executor(tensors[0].device.type)
        return executor(tensors, q_start)

    def _executor(self, device: str) -> Executor:
        from attnc.runtime.backends import executor

        with _lock:
            if device not in self._executors:
                self._executors[device] = executor(self, device)
            return self._executors[device]

    def shapes(self, *arguments: Any) -> tuple[Tensor, ...]:
        """Results without data, for tracing: the op's fake kernel."""
        tensors, q_start = arguments[:-1], arguments[-1]
        sizes = self.sizes(tensors, q_start)
        like = tensors[0]
        return tuple(
            like.new_empty([d(sizes) for d in dims], dtype=dtype)
            for dims, dtype in zip(self._dims, self.dtypes([t.dtype for t in tensors]), strict=True)
        )

    def dtypes(self, given: Sequence[torch.dtype]) -> list[torch.dtype]:
        """The dtype of every result, for arguments of the dtypes `given`."""
        return [
            written(r.dtype, given[0]) if k is None else given[k]
            for r, k in zip(self.results, self._dtype_of, strict=True)
        ]

    # ---------------------------------------------------------------------------------------------- derivatives

    def derivative(self, seeds: Iterable[str], needs: Iterable[str]) -> Computation:
        """The computation of the gradients of `needs`, given gradients of the outputs `seeds`.

        Raises:
            CallError: E212, beyond second derivatives.
        """
        return self._derived("reverse", frozenset(seeds), frozenset(needs))

    def tangent(self, moving: Iterable[str]) -> Computation:
        """The computation of the outputs' tangents, given tangents of the inputs `moving` (forward mode).

        Raises:
            CallError: E212, beyond second derivatives.
        """
        return self._derived("forward", frozenset(self.outputs), frozenset(moving))

    def _derived(self, mode: Mode, outputs: frozenset[str], inputs: frozenset[str]) -> Computation:
        key = (mode, outputs, inputs)
        found = self._derivatives.get(key)
        if found is None:
            with _lock:
                found = self._derivatives.get(key) or self._derive(*key)
                self._derivatives[key] = found
        return found

    def _derive(self, mode: Mode, outputs: frozenset[str], inputs: frozenset[str]) -> Computation:
        if self.order == HIGHEST_ORDER:
            message = "third derivatives of an attention op are not supported"
            remedy = "use op.reference, which PyTorch differentiates any number of times, or detach before"
            raise CallError(Diagnostic("E212", message, remedy=remedy))
        if mode == "forward":
            program = modes.tangent(self.program, inputs)
        else:
            program = modes.gradient(self.program, outputs, inputs)
        plan = None
        if self.plan is not None:
            reads_saved = mode == "reverse" and self.order == 0
            plan = driver.plan_gradient(self.program, outputs, inputs) if reads_saved else driver.plan_alone(program)
        return computation(program, plan, self.backend, self.order + 1)

    # ------------------------------------------------------------------------------------------------- autograd

    def _register(self) -> Callable[..., tuple[Tensor, ...]]:
        return library.register(self, self.name)

    def remember(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Autograd's set-up: keep the inputs and the saved results."""
        results = output if isinstance(output, tuple) else (output,)
        ctx.set_materialize_grads(False)
        hidden = [t for t, r in zip(results, self.results, strict=True) if r.saved]
        if hidden:
            ctx.mark_non_differentiable(*hidden)
        ctx.save_for_backward(*inputs[:-1], *results)
        ctx.q_start = inputs[-1]

    def backward(self, ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Autograd's backward: the derivative's op, for the gradients that are wanted."""
        found = self.gradients(ctx.saved_tensors, grads, ctx.needs_input_grad, lambda c, ts: c.call(ts, ctx.q_start))
        return (*found, None)

    def gradients(
        self, stored: Sequence[Tensor], grads: Sequence[Tensor | None], wanted: Sequence[bool], apply: Apply
    ) -> list[Tensor | None]:
        """Gradients of the op's arguments.

        Args:
            stored: arguments and results of the op.
            grads: gradient of each result; None where there is none, and for saved values.
            wanted: for each argument, whether its gradient is.
            apply: runs the derivative on its arguments.
        """
        route = self._route_of([g is not None for g in grads], wanted)
        if route is None:
            return [None] * len(self.names)
        if stored[0].dtype in FORWARD_ONLY:
            message = f"there are no gradients of attention on {NAMES[stored[0].dtype]} inputs"
            raise CallError(Diagnostic("E215", message, remedy="convert them to bfloat16 to train"))
        known = (*stored, *grads)
        results = apply(route.below, [cast("Tensor", known[k]) for k in route.reads])
        return [None if k is None else results[k] for k in route.places]

    def compile_ahead(self, tensors: Sequence[Tensor], q_start: int, wanted: Sequence[bool]) -> None:
        """Begin to compile what a recorded call and its backward will need, both at once, if neither is known yet."""
        executor = self._executor(tensors[0].device.type)
        if len(self.outputs) > 1 or not isinstance(executor, PlanExecutor) or tensors[0].dtype in FORWARD_ONLY:
            return
        sizes, given = self.sizes(tensors, q_start), [t.dtype for t in tensors]
        if not executor.prepared(given, sizes).compiling:
            return
        route = self._route_of([True], wanted)
        if route is None:
            return
        results = self.dtypes(given)
        known = (*given, *results, *results)
        below = route.below._executor(tensors[0].device.type)
        if isinstance(below, PlanExecutor) and {s.name for s in route.below.program.sizes} < set(sizes):
            below.prepared([known[k] for k in route.reads], sizes)

    def _route_of(self, arriving: Sequence[bool], wanted: Sequence[bool]) -> Route | None:
        key = (*arriving, *wanted)
        if key not in self._routes:
            self._routes[key] = self._route(arriving, wanted)
        return self._routes[key]

    def _route(self, arriving: Sequence[bool], wanted: Sequence[bool]) -> Route | None:
        seeds = [n for n, a in zip(self.outputs, arriving, strict=False) if a]
        needs = [n for n, w in zip(self.names, wanted, strict=False) if w and n in self.differentiable]
        if not seeds or not needs:
            return None
        below = self.derivative(seeds, needs)
        known = (*self.names, *(r.name for r in self.results), *(f"grad_{r.name}" for r in self.results))
        place = {name: k for k, name in enumerate(known)}
        found = {r.of: k for k, r in enumerate(below.results)}
        return Route(below, tuple(place[n] for n in below.names), tuple(found.get(n) for n in self.names))

    def tangents(self, stored: Sequence[Tensor], moving: Sequence[Tensor | None], apply: Apply) -> list[Tensor | None]:
        """Tangents of the op's results, for tangents of its arguments; None for saved values."""
        nothing: list[Tensor | None] = [None] * len(self.results)
        given = {n: t for n, t in zip(self.names, moving, strict=False) if t is not None and n in self.differentiable}
        if not given:
            return nothing
        known = dict(zip(self.names, stored, strict=False))
        known |= {f"tangent_{n}": t for n, t in given.items()}
        below = self.tangent(given)
        results = apply(below, [known[n] for n in below.names])
        found = dict(zip((r.name for r in below.results), results, strict=True))
        return [None if r.saved else found.get(f"tangent_{r.name}") for r in self.results]


def computation(program: Program, plan: Plan | None, backend: str, order: int = 0) -> Computation:
    """The computation of a program, the same object for the same program and backend."""
    name = f"{program.name}_{fingerprint(program, plan, backend)}"
    with _lock:
        if name not in _computations:
            _computations[name] = Computation(program, plan, backend, order, name)
        return _computations[name]


def fingerprint(program: Program, plan: Plan | None, backend: str) -> str:
    """A short stable hash of everything an op's meaning and interface depend on."""
    h = hashlib.blake2b(digest_size=6)
    for t in (plan.program if plan else program).tensors:
        h.update(f"{t.name}:{t.dtype}:{t.role}:{[d.digest for d in t.dims]}".encode())
    for out in program.outputs:
        h.update(f"{out.name}:{out.dtype}:{[d.digest for d in out.dims]}:{out.of}".encode())
        h.update(repr([(axes, node.digest) for axes, node in out.parts]).encode())
    for info in program.axes.values():
        h.update(f"{info.name}:{info.role}".encode() + info.extent.digest)
    for b in plan.buffers if plan else ():
        h.update(f"{b.name}:{b.role}:{b.dtype}".encode())
    h.update(f"{attnc.__version__}:{backend}:{program.sizes}:{program.options.key}".encode())
    return h.hexdigest()


def _results(program: Program, plan: Plan | None) -> tuple[Result, ...]:
    outputs = [Result(o.name, o.dims, o.dtype, o.of, saved=False) for o in program.outputs]
    buffers = plan.buffers if plan else ()
    return (*outputs, *(Result(b.name, b.dims, b.dtype, None, saved=True) for b in buffers if b.role == "saved"))


Apply = Callable[[Computation, list[Tensor]], Sequence[Tensor]]
