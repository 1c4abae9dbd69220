"""Running plans: buffers allocated, kernels launched in order, linear-size leftovers finished by tensor operations.

Kernels are specialised to dtypes and channel extents and to nothing else; a prepared plan serves every length. What a
call works out about its lengths and strides is remembered for the next one that has the same.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from attnc import driver
from attnc.codegen.tile import Kernel
from attnc.ir.dense import evaluate
from attnc.ir.dtypes import NAMES, real, written
from attnc.ir.node import Load, Node
from attnc.ir.program import Output, Program
from attnc.ir.sizes import Evaluator, evaluator
from attnc.ir.walk import postorder
from attnc.passes.plan import Finish, Plan
from attnc.passes.split import is_splittable
from attnc.runtime.cache import Compiling
from attnc.runtime.launch import Bound, KernelBackend, Launch, bind
from attnc.runtime.pages import in_huge_pages, is_long
from attnc.runtime.recorded import Recorded
from attnc.runtime.runs import operands, planned
from attnc.runtime.split import SplitLaunch

if TYPE_CHECKING:
    from attnc.runtime.computation import Computation

KEPT = 256
"""Calls remembered per plan."""


class Executor(Protocol):
    """Computes an op's results from its tensor arguments."""

    def __call__(self, tensors: Sequence[Tensor], q_start: int) -> tuple[Tensor, ...]:
        """Results in the order of `Computation.results`."""
        ...


@dataclass(frozen=True, slots=True)
class Allocation:
    """A buffer to make for each call, in slot `slot` of its tensors."""

    slot: int
    dims: tuple[Evaluator, ...]
    dtype: torch.dtype
    zeroed: bool


@dataclass(frozen=True, slots=True)
class Step:
    """A kernel with the slots of its arguments, and the scratch slots nothing reads afterwards."""

    launch: Launch
    slots: tuple[int, ...]
    done: tuple[int, ...] = ()


class PlanExecutor:
    """Runs a computation's plan on one kernel backend.

    Attributes:
        constants: the sizes that kernels are specialised to.
    """

    def __init__(self, computation: Computation, plan: Plan, backend: KernelBackend) -> None:
        self.computation = computation
        self.plan = plan
        self.backend = backend
        self._lock = threading.Lock()
        self._prepared: dict[tuple[object, ...], Prepared] = {}
        self._calls: dict[tuple[object, ...], Call] = {}
        self.constants = driver.channel_sizes(plan.program)

    def __call__(self, tensors: Sequence[Tensor], q_start: int) -> tuple[Tensor, ...]:
        """Results in the order of `Computation.results`."""
        key = (
            q_start,
            *[t.shape for t in tensors],
            *[t.stride() for t in tensors],
            *[t.dtype for t in tensors],
        )
        call = self._calls.get(key)
        if call is None:
            call = self._call(tensors, q_start)
            if len(self._calls) >= KEPT:
                self._calls.clear()
            self._calls[key] = call
        return call(tensors)

    def _call(self, tensors: Sequence[Tensor], q_start: int) -> Call:
        sizes = self.computation.sizes(tensors, q_start)
        return self.prepared([t.dtype for t in tensors], sizes).call(sizes)

    def prepared(self, dtypes: Sequence[torch.dtype], sizes: Mapping[str, int]) -> Prepared:
        """The plan for arguments of these dtypes; its kernels may still be compiling."""
        key = (*dtypes, *[sizes[c] for c in self.constants])
        with self._lock:
            if key not in self._prepared:
                self._prepared[key] = Prepared(self, dtypes, sizes)
            return self._prepared[key]

    def kernels(self, dtypes: Mapping[str, torch.dtype], constants: Mapping[str, int], kind: str) -> list[Kernel]:
        """The plan's tile programs for these dtypes and channel extents."""
        named = {n: NAMES[d] for n, d in dtypes.items()}
        return driver.kernels(self.plan, named, kind, constants, *self.backend.blocks)


class Prepared:
    """A plan for one choice of dtypes and channel extents: nothing left to decide but lengths.

    Attributes:
        compiling: whether its kernels were not in the cache.
    """

    def __init__(self, owner: PlanExecutor, given: Sequence[torch.dtype], sizes: Mapping[str, int]) -> None:
        computation, plan = owner.computation, owner.plan
        query = given[0]
        self.real = real(query)
        slot = {n: k for k, n in enumerate((*computation.names, *(b.name for b in plan.buffers)))}
        dtypes = dict(zip(computation.names, given, strict=True))
        dtypes |= {b.name: written(b.dtype, query) for b in plan.buffers}
        dtypes |= dict(zip((r.name for r in computation.results), computation.dtypes(given), strict=True))
        constants = {c: int(sizes[c]) for c in owner.constants}
        kernels = owner.kernels(dtypes, constants, NAMES[self.real])
        built = owner.backend.build(kernels)
        self.compiling = any(isinstance(getattr(k, "library", None), Compiling) for k in built)
        launches = iter(zip(kernels, built, strict=True))
        added = {a.name for k in kernels for a in k.arguments if a.mode == "add"}
        partial = {b.name for b in plan.buffers if any(map(_ends_early, repeat(plan.program), b.axes, b.dims))}
        self._allocations = [
            Allocation(slot[b.name], tuple(evaluator(d) for d in b.dims), dtypes[b.name], b.name in added | partial)
            for b in plan.buffers
        ]
        self._steps: list[Step] = []
        for item in plan.steps:
            if isinstance(item, Finish):
                finish = Finisher(plan, item, self.real, dtypes[item.buffer])
                self._steps.append(Step(finish, tuple(slot[n] for n in (*finish.reads, item.buffer))))
            else:
                kernel, launch = next(launches)
                ready = planned(kernel, launch)
                if is_splittable(plan, item):
                    ready = SplitLaunch(plan, item, kernel, ready, owner.backend, dtypes, constants, self.real)
                self._steps.append(Step(ready, tuple(slot[a.name] for a in operands(kernel))))
        self._results = tuple(slot[r.name] for r in computation.results)
        self._release([slot[b.name] for b in plan.buffers if b.role == "scratch"])

    def _release(self, scratch: Sequence[int]) -> None:
        """Let scratch buffers go after their last reader."""
        last = {s: k for k, step in enumerate(self._steps) for s in step.slots}
        for k, step in enumerate(self._steps):
            done = tuple(s for s in scratch if last.get(s) == k)
            self._steps[k] = replace(step, done=done)

    def call(self, sizes: Mapping[str, int]) -> Call:
        """The plan for calls of these sizes."""
        return Call(self._allocations, self._steps, self._results, sizes)


class Call:
    """A plan for tensors of known dtypes, shapes and strides; it keeps sizes and none of these tensors."""

    def __init__(
        self, allocations: Sequence[Allocation], steps: Sequence[Step], results: Sequence[int], sizes: Mapping[str, int]
    ) -> None:
        self.sizes = dict(sizes)
        self._buffers = tuple(Buffer.of(a, sizes) for a in allocations)
        self._steps = tuple(steps)
        self._bound: list[Bound | None] = [None] * len(steps)
        self._results = tuple(results)

    def __call__(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Allocate, launch every step, and return the results."""
        like = tensors[0]
        slots: list[Tensor | None] = [*tensors, *[b.made(like) for b in self._buffers]]
        for k, step in enumerate(self._steps):
            passed: list[Tensor] = [slots[s] for s in step.slots]  # type: ignore[misc]
            bound = self._bound[k]
            if bound is None:
                bound = self._bound[k] = bind(step.launch, passed, self.sizes)
            bound(passed)
            for s in step.done:
                slots[s] = None
        return tuple([slots[s] for s in self._results])  # type: ignore[misc]


class Buffer(NamedTuple):
    """A buffer to make, of known shape."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    zeroed: bool
    long: bool

    @classmethod
    def of(cls, a: Allocation, sizes: Mapping[str, int]) -> Buffer:
        shape = tuple(d(sizes) for d in a.dims)
        return cls(shape, a.dtype, a.zeroed, is_long(math.prod(shape) * a.dtype.itemsize))

    def made(self, like: Tensor) -> Tensor:
        """The buffer, on the device of `like`."""
        make = like.new_zeros if self.zeroed else like.new_empty
        made = make(self.shape, dtype=self.dtype)
        return in_huge_pages(made) if self.long else made


def _ends_early(program: Program, axis: str, dim: Node) -> bool:
    """Whether the positions of an axis may be fewer than the dimension has: kernels do not write the others."""
    return program.extent(axis) is not dim


class Finisher:
    """A `Finish` step: tensor operations on buffers, in the dtype kernels compute in.

    For tensors of known shapes the operations are found once (`bind`).
    """

    def __init__(self, plan: Plan, item: Finish, dtype: torch.dtype, stored: torch.dtype) -> None:
        nodes = [node for _, node in item.parts]
        self.reads = tuple(sorted({n.tensor for n in postorder(nodes) if isinstance(n, Load)}))
        dims = plan.buffer(item.buffer).dims
        self.buffer = item.buffer
        self.program = replace(plan.program, tensors=(), outputs=(Output(item.buffer, item.parts, dims),))
        self.dtype = dtype
        self.stored = stored

    def __call__(self, tensors: Sequence[Tensor], sizes: Mapping[str, int]) -> None:
        """Write the buffer, the last of `tensors`, from the others."""
        *read, target = tensors
        given = dict(zip(self.reads, read, strict=True))
        target.copy_(evaluate(self.program, given, sizes, dtype=self.dtype, whole=True)[self.buffer])

    def bind(self, tensors: Sequence[Tensor], sizes: Mapping[str, int]) -> Bound:
        """The same for tensors of the shapes and strides of these."""
        return Recorded(lambda given: self(given, sizes))
