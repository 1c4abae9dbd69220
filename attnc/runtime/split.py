"""Launches of passes that may be split over their inner axis; by lengths alone, so other lengths compile nothing."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attnc import driver
from attnc.codegen.tile import Kernel
from attnc.ir.dtypes import NAMES
from attnc.ir.sizes import Evaluator, evaluator
from attnc.passes.plan import Pass, Plan
from attnc.passes.split import PARTS, ROWS, Form, packing, split
from attnc.runtime.launch import Bound, bind
from attnc.runtime.runs import operands, planned

if TYPE_CHECKING:
    from attnc.runtime.launch import KernelBackend, Launch

LEAST = 256
"""Positions of the inner axis that one part has at least."""
SHORTEST = 128
"""Positions of the inner axis from which a kernel that knows rows to be few gains more than its merge costs."""
FEW: tuple[Form, ...] = ("single", "narrow")
"""Forms that compute rows one by one, and not a block of them."""


@dataclass(frozen=True, slots=True)
class Halves:
    """The two kernels of a split pass, and where their tensors are: slots of the pass's own operands, then buffers."""

    partial: Launch
    merge: Launch
    slots: tuple[tuple[int, ...], tuple[int, ...]]
    dims: tuple[tuple[Evaluator, ...], ...]


class SplitLaunch:
    """A pass as one kernel, or as two where its rows are few and processors would be idle."""

    def __init__(
        self,
        plan: Plan,
        item: Pass,
        kernel: Kernel,
        whole: Launch,
        backend: KernelBackend,
        dtypes: Mapping[str, torch.dtype],
        constants: Mapping[str, int],
        real: torch.dtype,
    ) -> None:
        self.plan, self.item, self.whole, self.backend = plan, item, whole, backend
        self.names = tuple(a.name for a in operands(kernel))
        self.dtypes, self.constants, self.real = dtypes, constants, real
        assert item.outer is not None and item.inner is not None
        self._rows, self._inner = (evaluator(plan.program.extent(a)) for a in (item.outer, item.inner))
        self._grid = tuple(evaluator(plan.program.extent(a)) for a in item.grid)
        self._width = next(iter(dtypes.values())).itemsize
        self._packing = packing(plan, item)
        self._shared = evaluator(self._packing.shared) if self._packing else None
        self._halves: dict[Form, Halves] = {}
        self._lock = threading.Lock()

    def __call__(self, tensors: Sequence[Tensor], sizes: Mapping[str, int]) -> None:
        """Run on one tensor per operand of the pass."""
        self.bind(tensors, sizes)(tensors)

    def bind(self, tensors: Sequence[Tensor], sizes: Mapping[str, int]) -> Bound:
        """A function that runs it on tensors of the same shapes and strides as these, and the same sizes. It decides
        again whenever other processors are at hand."""
        rows = self._rows(sizes)
        if rows > ROWS:
            return bind(self.whole, tensors, sizes)
        ready: dict[int, Bound] = {}

        def run(tensors: Sequence[Tensor]) -> None:
            device = tensors[0].device
            processors = self.backend.processors(device)
            bound = ready.get(processors)
            if bound is None:
                chosen = self.choice(rows, sizes, device)
                bound = bind(self.whole, tensors, sizes) if chosen is None else self._parts(*chosen, tensors, sizes)
                ready[processors] = bound
            bound(tensors)

        return run

    def choice(self, rows: int, sizes: Mapping[str, int], device: torch.device) -> tuple[Form, int] | None:
        """The form and the number of parts for a call; None: one kernel does it all."""
        inner = self._inner(sizes)
        programs = 1
        for extent in self._grid:
            programs *= extent(sizes)
        shared = self._shared(sizes) if self._shared is not None else 1
        form = self.backend.form(rows, shared, programs, self._width)
        if form is None or not programs or inner < (SHORTEST if form in FEW else 2 * LEAST):
            return None
        if form == "single":
            programs *= rows
        if form == "packed":
            programs //= shared
        parts = max(1, min(-(-self.backend.processors(device) // programs), inner // LEAST))
        return (form, parts) if parts > 1 or form != "block" else None

    def _parts(self, form: Form, parts: int, tensors: Sequence[Tensor], sizes: Mapping[str, int]) -> Bound:
        halves = self._halves.get(form)
        if halves is None:
            with self._lock:
                halves = self._halves.get(form) or self._build(form)
                self._halves[form] = halves
        known = {**sizes, PARTS: parts}
        shapes = [[d(known) for d in dims] for dims in halves.dims]
        first, second = halves.slots
        every = [*tensors, *self._buffers(tensors[0], shapes)]
        partial = bind(halves.partial, [every[s] for s in first], known)
        merge = bind(halves.merge, [every[s] for s in second], known)

        def run(tensors: Sequence[Tensor]) -> None:
            every = [*tensors, *self._buffers(tensors[0], shapes)]
            partial([every[s] for s in first])
            merge([every[s] for s in second])

        return run

    def _buffers(self, like: Tensor, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        return [like.new_empty(shape, dtype=self.real) for shape in shapes]

    def _build(self, form: Form) -> Halves:
        two = split(self.plan, self.item, form)
        named = {n: NAMES[d] for n, d in self.dtypes.items()} | dict.fromkeys(two.buffers, NAMES[self.real])
        kernels = driver.split_kernels(two, named, NAMES[self.real], self.constants, self.backend.blocks[1])
        partial, merge = (planned(k, x) for k, x in zip(kernels, self.backend.build(kernels), strict=True))
        slot = {n: k for k, n in enumerate((*self.names, *two.buffers))}
        first, second = (tuple(slot[a.name] for a in operands(k)) for k in kernels)
        dims = tuple(tuple(evaluator(d) for d in two.plan.buffer(n).dims) for n in two.buffers)
        return Halves(partial, merge, (first, second), dims)
