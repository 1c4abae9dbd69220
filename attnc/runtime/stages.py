"""A program that runs in two stages: what computes its bias, then the attention that reads it.

Each stage is a custom op of its own, so gradients of every order flow through both by autograd, and through the bias to
the original tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from attnc import driver
from attnc.ir.node import Load
from attnc.ir.program import Program
from attnc.ir.sizes import evaluator
from attnc.ir.walk import postorder
from attnc.passes.separate import Split
from attnc.runtime.backends import is_planned
from attnc.runtime.computation import Computation, computation
from attnc.runtime.eager import active
from attnc.runtime.transforms import functional

LARGEST_TABLE = 1 << 26
"""Elements of a table beyond which its memory is not taken: 256 MiB in f32, and at least twice that in training."""
LARGEST_COUNTED = 1 << 23
"""The same where its gradient is added up exactly: each element then has 17 counters of 64 bits."""


def largest_table(device: str, *, learns: bool, exact: bool) -> int:
    """Elements that a table may have on a type of device: fewer where a gradient adds to it exactly, in any order."""
    return LARGEST_COUNTED if device == "cuda" and learns and exact else LARGEST_TABLE


class Stage:
    """One program as an op that takes its tensors by name."""

    def __init__(self, program: Program, backend: str) -> None:
        plan = driver.plan_forward(program) if is_planned(backend) else None
        self.computation: Computation = computation(program, plan, backend)
        read = {n.tensor for n in postorder(program.roots()) if isinstance(n, Load)}
        self._lengths = tuple(k for k, n in enumerate(self.computation.names) if n not in read)
        self._count = len(program.outputs)

    def __call__(self, tensors: Mapping[str, Tensor], q_start: Any) -> tuple[Tensor, ...]:
        """The outputs. Tensors that only tell a size get no gradient."""
        if active():
            return functional(self.computation, self._ready(tensors), q_start)[: self._count]
        return self.computation.call(self._ready(tensors), q_start)[: self._count]

    def _ready(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        ready = [tensors[n] for n in self.computation.names]
        for k in self._lengths:
            if ready[k].requires_grad or active():
                ready[k] = ready[k].detach()
        return ready


class Stages:
    """Both stages of a split program."""

    def __init__(self, split: Split, backend: str) -> None:
        self.attention = Stage(split.attention, backend)
        self.first = None if split.first is None else Stage(split.first, backend)
        self.made = split.made
        self._backend = backend
        self._exact = split.attention.options.deterministic
        self._instead = split.instead
        self._plain: Stages | None = None
        pays = dict(split.tables)
        outputs = split.first.outputs if split.first is not None else ()
        self._tables = tuple((tuple(map(evaluator, o.dims)), pays[o.name]) for o in outputs if o.name in pays)

    def __call__(self, names: Sequence[str], tensors: Sequence[Tensor], q_start: Any) -> tuple[Tensor, ...]:
        """The outputs of the attention, for tensors that fit the spec."""
        known = dict(zip(names, tensors, strict=True))
        if self._tables and self._is_large(known, q_start):
            return self._without(names, tensors, q_start)
        if self.first is not None:
            known |= zip(self.made, self.first(known, q_start), strict=True)
        return self.attention(known, q_start)

    def _is_large(self, known: Mapping[str, Tensor], q_start: Any) -> bool:
        """Whether the tables of a call take much more memory, and time, than they save."""
        assert self.first is not None
        sizes = self.first.computation.sizes([known[n] for n in self.first.computation.names], q_start)
        q, k = known["q"].shape, known["k"].shape
        pairs = q[0] * q[1] * q[2] * k[2]
        learns = torch.is_grad_enabled() and any(t.requires_grad for t in known.values())
        most = largest_table(known["q"].device.type, learns=learns, exact=self._exact)
        for dims, per_pair in self._tables:
            elements = math.prod(d(sizes) for d in dims)
            if elements > most or elements > per_pair * pairs:
                return True
        return False

    def _without(self, names: Sequence[str], tensors: Sequence[Tensor], q_start: Any) -> tuple[Tensor, ...]:
        if self._plain is None:
            assert self._instead is not None
            self._plain = Stages(self._instead, self._backend)
        return self._plain(names, tensors, q_start)
