"""A plan: the steps that compute a program's outputs, and the buffers between them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from attnc.ir.node import Node
from attnc.ir.program import Program

Direction = Literal["row", "column", "vector"]


@dataclass(frozen=True, slots=True)
class Buffer:
    """A tensor made by the plan: an output, a value saved for a later program, or scratch.

    `dims` are extents over sizes, `axes` the axis of each dimension, `dtype` as in `Tensor.dtype`.
    """

    name: str
    axes: tuple[str, ...]
    dims: tuple[Node, ...]
    dtype: str
    role: Literal["output", "saved", "scratch"]


@dataclass(frozen=True, slots=True)
class Pass:
    """One kernel: a loop over `inner` for every block of `outer`, or (inner None) a pass over vectors alone.

    `reductions` are the plane reductions it computes; `stores` maps buffer names to the expressions written.
    """

    name: str
    direction: Direction
    grid: tuple[str, ...]
    outer: str | None
    inner: str | None
    reductions: tuple[Node, ...]
    stores: tuple[tuple[str, Node], ...]
    reads: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Finish:
    """Linear-size leftovers done by tensor operations: ``buffer = node`` over stored buffers (sums over batch or rows)."""

    buffer: str
    node: Node


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps in order, buffers by name, and what the scheduler decided and why (`decisions`, for `explain`)."""

    program: Program
    steps: tuple[Pass | Finish, ...]
    buffers: tuple[Buffer, ...]
    decisions: tuple[str, ...] = ()
    extra: dict[str, object] = field(default_factory=dict)

    def buffer(self, name: str) -> Buffer:
        return next(b for b in self.buffers if b.name == name)

    @property
    def passes(self) -> tuple[Pass, ...]:
        """The kernels that loop over a plane, the ones the table in the documentation counts."""
        return tuple(s for s in self.steps if isinstance(s, Pass) and s.inner is not None)
