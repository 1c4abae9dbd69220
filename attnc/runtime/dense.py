"""The dense backend: programs evaluated by plain tensor operations, planes and all; slow and simple, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attnc.ir.dense import evaluate
from attnc.ir.dtypes import real

if TYPE_CHECKING:
    from attnc.runtime.computation import Computation


class DenseExecutor:
    """Evaluates a computation's program in float32, or in float64 for float64 queries."""

    def __init__(self, computation: Computation) -> None:
        self.computation = computation

    def __call__(self, tensors: Sequence[Tensor], q_start: int) -> tuple[Tensor, ...]:
        c = self.computation
        given = dict(zip(c.names, tensors, strict=True))
        values = evaluate(c.program, given, c.sizes(tensors, q_start), dtype=real(tensors[0].dtype))
        return tuple(
            values[r.name].to(dtype).clone(memory_format=torch.contiguous_format)
            for r, dtype in zip(c.results, c.dtypes([t.dtype for t in tensors]), strict=True)
        )
