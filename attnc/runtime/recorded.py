"""Tensor operations recorded once and run again, without what decided on them.

For given shapes the dense evaluator always calls the same operations of PyTorch, and takes longer to find out which
than small tensors take to compute. A recording holds those calls alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

SMALL = 1 << 12
"""Elements of tensors that are kept, where they do not depend on what a recording is given."""

Compute = Callable[[Sequence[Tensor]], object]


class _Slot(int):
    """Where a tensor of a recording is kept while it runs."""


@dataclass(frozen=True, slots=True)
class _Step:
    """An operation; slots stand for tensors. After it, what `ended` holds is no longer needed.

    `changes` tells that it changes a tensor.
    """

    function: Callable[..., Any]
    arguments: list[Any]
    keywords: dict[str, Any]
    targets: tuple[_Slot, ...]
    ended: tuple[int, ...] = ()
    changes: bool = False


class Recorded:
    """A function of tensors whose operations are recorded at its first call, and repeated at later ones.

    Args:
        compute: writes to some of its tensors, and decides by their shapes, strides and dtypes alone, which are the
            same at every call. Should it look at contents that depend on theirs, it is called every time; so it is
            on other devices, and while a CUDA graph is captured before anything was recorded.
    """

    def __init__(self, compute: Compute) -> None:
        self.compute = compute
        self.device: torch.device | None = None
        self.steps: Sequence[_Step] | None = None
        self.constants: Mapping[int, Tensor] = {}
        self.slots = 0

    def __call__(self, tensors: Sequence[Tensor]) -> None:
        """Write what `compute` writes; no gradients flow through it."""
        device = tensors[0].device
        with torch.no_grad():
            if self.steps is not None and device == self.device:
                self._repeat(self.steps, tensors)
            elif self.device is not None or _is_captured(device):
                self.compute(tensors)
            else:
                self.device = device
                self._record(tensors)

    def _record(self, tensors: Sequence[Tensor]) -> None:
        given = [t.detach() for t in tensors]  # one object each, also where a tensor is given twice
        recorder = _Recorder(given)
        with recorder:
            self.compute(given)
        if recorder.blind:
            steps = recorder.finished(len(tensors))
            read = set(_slots([x for s in steps for x in (s.arguments, *s.keywords.values())]))
            self.constants = {k: t for k, t in recorder.outside.items() if k in read}
            self.slots = len(recorder.kept)
            self.steps = steps

    def _repeat(self, steps: Sequence[_Step], tensors: Sequence[Tensor]) -> None:
        values: list[Any] = [*tensors, *[None] * (self.slots - len(tensors))]
        for slot, constant in self.constants.items():
            values[slot] = constant
        for step in steps:
            arguments = [_filled(x, values) for x in step.arguments]
            keywords = {n: _filled(x, values) for n, x in step.keywords.items()} if step.keywords else step.keywords
            found = step.function(*arguments, **keywords)
            if len(step.targets) == 1:
                values[step.targets[0]] = found[0] if isinstance(found, tuple | list) else found
            else:
                for slot, value in zip(step.targets, found, strict=True):
                    values[slot] = value
            for slot in step.ended:
                values[slot] = None


def _is_captured(device: torch.device) -> bool:
    """Whether operations go to a CUDA graph; tensors made then hold nothing before the graph runs."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _filled(part: Any, values: Sequence[Any]) -> Any:
    if isinstance(part, _Slot):
        return values[part]
    if isinstance(part, list | tuple):
        return [_filled(x, values) for x in part]
    return part


class _Recorder(TorchDispatchMode):
    """Keeps every operation that runs below autograd.

    Attributes:
        kept: what the slots stand for, alive so that no two tensors have one identity.
        alive: tensors that share the slot of another one.
        roots: for slots of views, the tensor they are views of.
        outside: the slots of tensors that no operation made, numbers of the program for instance.
        dependent: memory whose contents depend on those of the tensors given.
        changed: memory that operations in place changed.
        blind: whether nothing looked at contents that depend on those given, or changed a tensor from outside.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kept: list[Tensor] = []
        self.numbers: dict[int, _Slot] = {}
        self.alive: list[Tensor] = []
        self.roots: dict[int, _Slot] = {}
        self.outside: dict[int, Tensor] = {}
        self.steps: list[_Step] = []
        self.blind = True
        self.changed: set[int] = set()
        self.dependent = {_memory(t) for t in tensors}
        for t in tensors:
            self._slot(t)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        arguments, keywords = [self._marked(x) for x in args], {n: self._marked(x) for n, x in (kwargs or {}).items()}
        depends = any(_memory(self.kept[s]) in self.dependent for s in _slots([arguments, *keywords.values()]))
        found = func(*args, **(kwargs or {}))
        results = found if isinstance(found, tuple | list) else [found]
        if not all(isinstance(r, Tensor) for r in results):
            self.blind &= not depends
            return found
        changes, memory = func._schema.is_mutable, {_memory(r) for r in results}
        if changes:
            self.changed |= memory
            self.blind &= memory.isdisjoint(map(_memory, self.outside.values()))
        if depends:
            self.dependent |= memory
        if changes or len(results) != 1 or not self._views(results[0], args[:1]):
            targets = tuple(self._slot(r) for r in results)
            self.steps.append(_Step(func, arguments, keywords, targets, changes=changes))
        return found

    def _views(self, found: Tensor, of: Sequence[Any]) -> bool:
        """Note a tensor that shows the memory of another one from its beginning: as that one itself, or in one step."""
        if not of or not isinstance(of[0], Tensor) or of[0].dtype != found.dtype or not found.numel():
            return False
        root = self.roots.get(self._slot(of[0]), self._slot(of[0]))
        base = self.kept[root]
        if (found.data_ptr(), _memory(found)) != (base.data_ptr(), _memory(base)):
            return False
        shape, strides = list(found.shape), list(found.stride())
        if (shape, strides) == (list(base.shape), list(base.stride())):
            self.numbers[id(found)] = root
            self.alive.append(found)
            return True
        slot = self._slot(found)
        self.roots[slot] = root
        self.steps.append(_Step(torch.ops.aten.as_strided.default, [root, shape, strides], {}, (slot,)))
        return True

    def _slot(self, tensor: Tensor) -> _Slot:
        """The slot of a tensor; operations in place return one that has its slot already."""
        slot = self.numbers.setdefault(id(tensor), _Slot(len(self.kept)))
        if slot == len(self.kept):
            self.kept.append(tensor)
        return slot

    def _marked(self, part: Any) -> Any:
        if isinstance(part, Tensor):
            known = len(self.kept)
            slot = self._slot(part)
            if slot == known:
                self.outside[slot] = part
            return slot
        return [self._marked(x) for x in part] if isinstance(part, list | tuple) else part

    def finished(self, given: int) -> list[_Step]:
        """The steps that lead to a change of a tensor, with what each is the last to read.

        Small tensors that are the same every time join those from outside.
        """
        fixed = {t for s in self.steps for t in s.targets if self._is_fixed(self.kept[t])} - set(range(given))
        self.outside |= {t: self.kept[t] for t in fixed}
        kept = {*range(given), *self.outside}
        needed: set[int] = set()
        steps: list[_Step] = []
        for step in reversed(self.steps):
            if step.changes or (needed - fixed).intersection(step.targets):
                read = set(_slots([step.arguments, *step.keywords.values()]))
                ended = {*read, *step.targets} - needed - kept
                steps.append(replace(step, ended=tuple(ended)))
                needed |= read
        return steps[::-1]

    def _is_fixed(self, tensor: Tensor) -> bool:
        memory = _memory(tensor)
        return tensor.numel() <= SMALL and memory not in self.changed and memory not in self.dependent


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _slots(part: Any) -> list[int]:
    """The slots in the arguments of an operation."""
    if isinstance(part, _Slot):
        return [part]
    return [s for x in part for s in _slots(x)] if isinstance(part, list) else []
