"""A plan: the steps that compute a program's outputs, and the buffers between them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from attnc.ir.node import Node
from attnc.ir.program import Program
from attnc.passes.bounds import Range
from attnc.passes.chunks import Chunks
from attnc.passes.decision import Decision
from attnc.passes.scan import Carry

Direction = Literal["row", "column", "vector", "scan"]


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

    `reductions` are the plane reductions it computes; `stores` lists buffer names with the axes of their dimensions and
    the expression written. An expression that is one of `reductions`, or contains one, is stored after the loop; one
    with both sequence axes inside it. `reads` names the buffers of earlier steps it loads. `groups` are batch axes the
    kernel loops over itself, with their ranges: the query heads of a key head.

    A scan visits the chunks of `outer` in order and carries its reductions from one to the next as `carries` tells.
    A pass that reads states has `chunks` too, one of each length: its blocks lie inside chunks.

    `adds` are sums over `outer` for each position of `inner`, with buffers that start at 0: every block adds its part.
    The last axis of the grid then shares out the blocks of `outer`, and is the first of those buffers.

    With `part`, a batch axis of the grid, its loop visits one of as many equal shares of its blocks as that axis has
    positions. With `range`, its loop keeps to these positions, whatever its conditions say.
    """

    name: str
    direction: Direction
    grid: tuple[str, ...]
    outer: str | None
    inner: str | None
    reductions: tuple[Node, ...]
    stores: tuple[tuple[str, tuple[str, ...], Node], ...]
    reads: tuple[str, ...] = ()
    groups: tuple[tuple[str, Node, Node], ...] = ()
    chunks: tuple[Chunks, ...] = ()
    carries: tuple[Carry, ...] = ()
    part: str | None = None
    range: Range | None = None
    adds: tuple[tuple[str, tuple[str, ...], Node], ...] = ()

    @property
    def sums(self) -> tuple[Node, ...]:
        """All its reductions over the plane, those that it adds to memory included."""
        return (*self.reductions, *(node for _, _, node in self.adds))


@dataclass(frozen=True, slots=True)
class Finish:
    """Linear-size leftovers done by tensor operations (sums over batch or rows of stored vectors).

    The buffer is the sum of `parts`; each part names its dimensions' axes itself, like `attnc.ir.program.Output`.
    """

    buffer: str
    parts: tuple[tuple[tuple[str, ...], Node], ...]


def expressions(step: Pass | Finish) -> list[Node]:
    """All that a step computes: its reductions, and what it stores or adds to memory."""
    if isinstance(step, Finish):
        return [node for _, node in step.parts]
    return [*step.sums, *(node for _, _, node in step.stores)]


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps in order, buffers by name, and what the scheduler decided and why (`decisions`, for `explain`)."""

    program: Program
    steps: tuple[Pass | Finish, ...]
    buffers: tuple[Buffer, ...]
    decisions: tuple[Decision, ...] = ()
    extra: dict[str, object] = field(default_factory=dict)

    def buffer(self, name: str) -> Buffer:
        return next(b for b in self.buffers if b.name == name)

    @property
    def passes(self) -> tuple[Pass, ...]:
        """The kernels that loop over a plane, the ones the table in the documentation counts."""
        return tuple(s for s in self.steps if isinstance(s, Pass) and s.inner is not None and not s.carries)
