"""Tables of runs at launch: made where they pay, kept while the tensors they were made from are unchanged."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from attnc.codegen.tile import Argument, Kernel, Runs
from attnc.ir.node import Load, Size
from attnc.ir.sizes import Evaluator, evaluator
from attnc.ir.walk import postorder
from attnc.runtime.planner import Table, plan
from attnc.runtime.tiles import Mask

if TYPE_CHECKING:
    from attnc.runtime.launch import KernelLaunch, Launch

WORTH = {"cpu": 256, "cuda": 1 << 16}
"""Blocks of the plane, over all heads, below which a kernel that visits them all is done before a table is made."""
KEPT = 64
"""Tables kept, of all kernels together."""
LARGEST_COPY = 1 << 20
"""Most elements of a tensor of which a copy is kept to compare it with."""

_lock = threading.Lock()
_tables: OrderedDict[tuple[Any, ...], Kept] = OrderedDict()
_state = threading.local()


class Tracked:
    """Within, tensors are those that eager code holds: writing to one changes its version. Compiled code reuses memory
    without a trace, so outside a table is used again only for equal contents."""

    __slots__ = ("_before",)

    def __enter__(self) -> None:
        self._before = getattr(_state, "tracked", False)
        _state.tracked = True

    def __exit__(self, *raised: object) -> None:
        _state.tracked = self._before


def _writes_are_counted(tensor: Tensor) -> bool:
    return getattr(_state, "tracked", False) and not tensor.is_inference()


class Snapshot:
    """A tensor as it was, without keeping it alive: by its version where writes are counted, else by a copy, which is
    not made of tensors of more than `LARGEST_COPY` elements."""

    def __init__(self, tensor: Tensor) -> None:
        self.storage = StorageWeakRef(tensor.untyped_storage())
        self.geometry = _geometry(tensor)
        self.version = _version(tensor)
        copied = not _writes_are_counted(tensor) and tensor.numel() <= LARGEST_COPY
        self.contents = tensor.detach().clone() if copied else None

    def holds(self, tensor: Tensor) -> bool:
        """Whether this is still that tensor with the same elements."""
        if self.geometry != _geometry(tensor) or self.storage.expired():
            return False
        if self.storage.cdata != tensor.untyped_storage()._cdata or self.version != _version(tensor):
            return False
        if _writes_are_counted(tensor):
            return True
        return self.contents is not None and torch.equal(self.contents, tensor)


def _geometry(t: Tensor) -> tuple[object, ...]:
    return t.dtype, t.shape, t.stride(), t.storage_offset()


def _version(t: Tensor) -> int | None:
    """Counts writes; tensors made in inference mode have none."""
    return None if t.is_inference() else t._version


@dataclass(frozen=True, slots=True)
class Kept:
    """A table and what it was made from."""

    table: Table
    sources: tuple[Snapshot, ...]

    def serves(self, tensors: Sequence[Tensor]) -> bool:
        return all(s.holds(t) for s, t in zip(self.sources, tensors, strict=True))


def operands(kernel: Kernel) -> tuple[Argument, ...]:
    """The arguments of a kernel that a plan provides: all but its table, which comes last."""
    return kernel.arguments if kernel.runs is None else kernel.arguments[:-2]


def planned(kernel: Kernel, launch: KernelLaunch) -> Launch:
    """A launch on the operands of a kernel; its table, if it follows one, is found or made."""
    return launch if kernel.runs is None else Planned(kernel, kernel.runs, launch)


@dataclass(frozen=True, slots=True)
class Shape:
    """What the sizes of a launch tell.

    Attributes:
        extents: of the axes of the plane and of the table.
        blocks: block lengths of the outer and of the inner axis.
        key: of the table among all.
        count: blocks of the plane, over all heads.
        everything: a table that leaves all blocks.
    """

    extents: Mapping[str, int]
    blocks: tuple[int, int]
    key: tuple[Any, ...]
    count: int
    everything: Table


class Planned:
    """A launch of a kernel that follows a table of runs."""

    def __init__(self, kernel: Kernel, runs: Runs, launch: KernelLaunch) -> None:
        self.kernel = kernel
        self.runs = runs
        self.launch = launch
        names = [a.name for a in kernel.arguments]
        nodes = postorder([runs.condition])
        read = dict.fromkeys(n.tensor for n in nodes if isinstance(n, Load))
        self._read = {name: names.index(name) for name in read}
        self._sizes = tuple(dict.fromkeys(n.name for n in nodes if isinstance(n, Size)))
        extents = dict(runs.batch)
        extents |= {lane.axis: lane.extent for lane in kernel.lanes if lane.role != "channel"}
        self._extents: dict[str, Evaluator] = {a: evaluator(n) for a, n in extents.items()}
        self._grid = tuple(evaluator(n) for n in kernel.grid_extents)
        self._shapes: dict[tuple[int, ...], Shape] = {}

    def __call__(self, tensors: Sequence[Tensor], sizes: Mapping[str, int]) -> None:
        """Run on one tensor per operand; the table is found or made."""
        table = self.table(tensors, sizes)
        self.launch([*tensors, table.spans, table.runs], {**sizes, self.runs.count: table.runs.shape[0]})

    def table(self, tensors: Sequence[Tensor], sizes: Mapping[str, int]) -> Table:
        """The table a launch with these arguments uses."""
        device = tensors[0].device
        if device.type == "cpu":
            key = tuple(sizes.values())
            shape = self._shapes.get(key)
            if shape is None:
                if len(self._shapes) >= KEPT:
                    self._shapes.clear()
                shape = self._shapes[key] = self._shape(tensors, sizes)
        else:
            shape = self._shape(tensors, sizes)
        if shape.count < WORTH[device.type] or _captures(device):
            return shape.everything
        read = {name: tensors[k] for name, k in self._read.items()}
        known = {**sizes, **self.kernel.constants}
        return self._kept(shape.key, read, lambda: self._mask(read, known, shape.extents, device), shape.blocks)

    def _shape(self, tensors: Sequence[Tensor], sizes: Mapping[str, int]) -> Shape:
        """What a launch of these sizes looks at; on the CPU, sizes alone tell."""
        device = tensors[0].device
        known = {**sizes, **self.kernel.constants}
        extents = {a: int(f(known)) for a, f in self._extents.items()}
        whole = _everything(extents[self.runs.inner], device)
        lengths = self.launch.blocks([*tensors, whole.spans, whole.runs], {**sizes, self.runs.count: 1})
        blocks = lengths[self.runs.outer], lengths[self.runs.inner]
        rows = -(-extents[self.runs.outer] // blocks[0])
        count = rows * -(-extents[self.runs.inner] // blocks[1])
        for extent in self._grid:
            count *= int(extent(known))
        values = tuple(known[s] for s in self._sizes)
        key = (self.runs.condition, self.runs.whole, self.runs.outer, blocks, device, values, *extents.items())
        spans = whole.spans.expand([*(extents[a] for a, _ in self.runs.batch), rows, 2])
        return Shape(extents, blocks, key, count, Table(spans, whole.runs))

    def _mask(
        self, read: Mapping[str, Tensor], known: Mapping[str, int], extents: Mapping[str, int], device: torch.device
    ) -> Mask:
        runs = self.runs
        batch = tuple(a for a, _ in runs.batch)
        return Mask(runs.condition, runs.outer, runs.inner, batch, extents, read, known, device, runs.whole)

    def _kept(self, key: tuple[Any, ...], read: Mapping[str, Tensor], mask: Any, blocks: tuple[int, int]) -> Table:
        tensors = tuple(read.values())
        with _lock:
            found = _tables.get(key)
            if found is not None:
                _tables.move_to_end(key)
        if found is not None and found.serves(tensors):
            return found.table
        with torch.no_grad():
            made = Kept(plan(mask(), blocks), tuple(Snapshot(t) for t in tensors))
        with _lock:
            _tables[key] = made
            _tables.move_to_end(key)
            while len(_tables) > KEPT:
                _tables.popitem(last=False)
        return made.table


def _everything(extent: int, device: torch.device) -> Table:
    """One run for every row: all blocks, none known to be full. The kernel's own bounds still apply."""
    key = ("everything", extent, device)
    with _lock:
        found = _tables.get(key)
        if found is None:
            spans = torch.tensor([0, 1], dtype=torch.int32, device=device)
            runs = torch.tensor([[0, extent, extent]], dtype=torch.int32, device=device)
            found = _tables[key] = Kept(Table(spans, runs), ())
        return found.table


def _captures(device: torch.device) -> bool:
    """Whether launches are being recorded: a table made now would not follow later contents."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
