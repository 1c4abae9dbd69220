"""An op for one choice of optional tensors."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from attnc import driver
from attnc.ir.dtypes import NAMES
from attnc.ir.program import Program
from attnc.passes.bias_form import DTYPES, Precision, TargetName, precision
from attnc.runtime.arguments import Signature
from attnc.runtime.backends import targets_of
from attnc.runtime.computation import Computation
from attnc.runtime.rank import RankStages, staged
from attnc.runtime.stages import Stages
from attnc.runtime.state import States

PRECISIONS: dict[torch.dtype, Precision] = {dtype: precision(name) for dtype, name in NAMES.items()}


class Variant:
    """An op for one choice of optional tensors, with or without observations; with `states`, over pieces of a
    sequence. What runs on a kind of device at a precision is planned when the first call needs it."""

    def __init__(self, program: Program, backend: str, states: States | None = None) -> None:
        self.program = program
        self.backend = backend
        self.signature = Signature(program)
        self.states = states
        self._targets = targets_of(backend)
        self.stages: dict[tuple[TargetName, Precision], Stages | RankStages] = {}
        self._shared: dict[object, Stages | RankStages] = {}
        self._lock = threading.RLock()

    @property
    def computation(self) -> Computation:
        """The attention itself, where the op runs first of all."""
        return self._on(self._targets[0], "full").attention.computation

    def register(self) -> None:
        """Make the custom ops of every kind of device, at every precision, known to torch."""
        for target in self._targets:
            for exact in DTYPES:
                self._on(target, exact)

    def reports(self) -> list[str]:
        """What calls found out about the bias that compiling could not."""
        return [s.report for s in self.stages.values() if isinstance(s, RankStages) and s.report is not None]

    def __call__(self, tensors: Sequence[Any], q_start: Any) -> tuple[Tensor, ...]:
        """The outputs, for tensors in the order of the signature."""
        ready = self.signature.accept(tensors, q_start)
        target: TargetName = "gpu" if ready[0].is_cuda and "gpu" in self._targets else self._targets[0]
        exact = PRECISIONS[ready[0].dtype]
        stages = self.stages.get((target, exact)) or self._on(target, exact)
        return stages(self.signature.names, ready, q_start)

    def _on(self, target: TargetName, exact: Precision) -> Stages | RankStages:
        """What runs on a kind of device at a precision; where the bias has the same form, they are one."""
        with self._lock:
            if (target, exact) not in self.stages:
                choice = driver.choose(self.program, target, DTYPES[exact][0])
                key = target if choice.by_rank is not None else choice.form
                if key not in self._shared:
                    self._shared[key] = staged(choice, self.program, target, self.backend)
                self.stages[target, exact] = self._shared[key]
            return self.stages[target, exact]
