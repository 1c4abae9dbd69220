"""Launches of passes that may be split over their inner axis; by lengths alone, so other lengths compile nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
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
from attnc.runtime.runs import operands, planned

if TYPE_CHECKING:
    from attnc.runtime.execute import KernelBackend, Launch

LEAST = 256
"""Positions of the inner axis that one part has at least."""


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
        self._packing = packing(plan, item)
        self._shared = evaluator(self._packing.shared) if self._packing else None
        self._halves: dict[Form, Halves] = {}
        self._lock = threading.Lock()

    def __call__(self, tensors: Sequence[Tensor], sizes: Mapping[str, int]) -> None:
        """Run on one tensor per operand of the pass."""
        rows = self._rows(sizes)
        chosen = self.choice(rows, sizes, tensors[0].device) if rows <= ROWS else None
        if chosen is None:
            self.whole(tensors, sizes)
        else:
            self._launch(*chosen, tensors, sizes)

    def bind(self, tensors: Sequence[Tensor], sizes: Mapping[str, int]) -> Callable[[Sequence[Tensor]], object]:
        """As the launch itself, for tensors of these shapes and strides."""
        from attnc.runtime.execute import Bindable

        if self._rows(sizes) > ROWS and isinstance(self.whole, Bindable):
            return self.whole.bind(tensors, sizes)
        return lambda tensors: self(tensors, sizes)

    def choice(self, rows: int, sizes: Mapping[str, int], device: torch.device) -> tuple[Form, int] | None:
        """The form and the number of parts for a call; None: one kernel does it all."""
        inner = self._inner(sizes)
        if inner < 2 * LEAST:
            return None
        programs = 1
        for extent in self._grid:
            programs *= extent(sizes)
        shared = self._shared(sizes) if self._shared is not None else 1
        form = self.backend.form(rows, shared, programs)
        if form is None or not programs:
            return None
        if form == "single":
            programs *= rows
        if form == "packed":
            programs //= shared
        parts = max(1, min(-(-self.backend.processors(device) // programs), inner // LEAST))
        return (form, parts) if parts > 1 or form != "block" else None

    def _launch(self, form: Form, parts: int, tensors: Sequence[Tensor], sizes: Mapping[str, int]) -> None:
        halves = self._halves.get(form)
        if halves is None:
            with self._lock:
                halves = self._halves.get(form) or self._build(form)
                self._halves[form] = halves
        known = {**sizes, PARTS: parts}
        device = tensors[0].device
        made = [torch.empty([d(known) for d in dims], dtype=self.real, device=device) for dims in halves.dims]
        every = [*tensors, *made]
        for launch, slots in zip((halves.partial, halves.merge), halves.slots, strict=True):
            launch([every[s] for s in slots], known)

    def _build(self, form: Form) -> Halves:
        two = split(self.plan, self.item, form)
        named = {n: NAMES[d] for n, d in self.dtypes.items()} | dict.fromkeys(two.buffers, NAMES[self.real])
        kernels = driver.split_kernels(two, named, NAMES[self.real], self.constants, self.backend.blocks[1])
        partial, merge = (planned(k, x) for k, x in zip(kernels, self.backend.build(kernels), strict=True))
        slot = {n: k for k, n in enumerate((*self.names, *two.buffers))}
        first, second = (tuple(slot[a.name] for a in operands(k)) for k in kernels)
        dims = tuple(tuple(evaluator(d) for d in two.plan.buffer(n).dims) for n in two.buffers)
        return Halves(partial, merge, (first, second), dims)
