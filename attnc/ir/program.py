"""A program: a spec in index notation, forward or derived, with everything needed to check, evaluate and schedule
it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from attnc.diagnostics.source import Source, Span
from attnc.ir.node import Node, Size
from attnc.ir.options import DEFAULT, Options

AxisRole = Literal["batch", "sequence", "channel", "table"]
TensorRole = Literal["operand", "seed", "saved"]


@dataclass(frozen=True, slots=True)
class AxisInfo:
    """An axis: its extent (an integer expression over sizes) and how kernels treat it.

    batch axes become the grid, sequence axes are blocked and looped over, channel axes live whole inside a tile. A
    value with two sequence axes is a *plane* value and is never stored. A table axis is a dimension of a gathered
    tensor, seen only in its gradient.
    """

    name: str
    extent: Node
    role: AxisRole


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input of a program.

    Attributes:
        name: as written in the spec (q, k, v, slope, ...), or ``grad_o`` for an incoming gradient.
        dims: extent of each dimension, integer expressions over sizes. An operand dimension of extent 1 broadcasts.
        dtype: ``"q"`` (that of the query), ``"real"`` (f32, or f64 for f64 inputs), or one of
            f64 f32 f16 bf16 i64 i32 i16 i8 u8 bool.
        role: operand (user input), seed (gradient of an output) or saved (kept by an earlier program).
        default: value when the operand is not given, an expression whose axes are `default_axes`, one per dimension.
    """

    name: str
    dims: tuple[Node, ...]
    dtype: str
    role: TensorRole = "operand"
    default: Node | None = None
    default_axes: tuple[str, ...] = ()
    span: Span | None = None

    @property
    def is_real(self) -> bool:
        return self.dtype in ("q", "real", "f64", "f32", "f16", "bf16")


@dataclass(frozen=True, slots=True)
class Output:
    """A result: the sum of `parts`, each an expression with its own naming of the dimensions' axes.

    Most outputs have one part. A tensor read at two places (``x[i]`` and ``x[j]``) has a gradient of two parts.
    """

    name: str
    parts: tuple[tuple[tuple[str, ...], Node], ...]
    dims: tuple[Node, ...]
    dtype: str = "q"
    of: str | None = None
    """For a gradient: the input it belongs to."""


@dataclass(frozen=True, slots=True)
class Check:
    """A relation between sizes that every call must satisfy, with the message to print when it does not."""

    relation: Node
    message: str
    span: Span | None = None


@dataclass(frozen=True, slots=True)
class Note:
    """Where a node came from: the name a spec gives it and the line it was written on (1-based)."""

    name: str
    line: int | None = None


@dataclass(frozen=True, slots=True)
class SizeBinding:
    """A size symbol and where a call binds it: dimension `dim` of tensor `tensor`."""

    name: str
    tensor: str
    dim: int


@dataclass(frozen=True, slots=True)
class Program:
    """Inputs, outputs and axes of one computation.

    `axes` has b, h, g, i, j, d, e with extents B, H, G, M, N, D, E, and every declared index. Axis names with trailing
    primes range over what the unprimed axis does. Sizes: every `SizeBinding`, plus the call argument ``q_start``.
    """

    name: str
    tensors: tuple[Tensor, ...]
    outputs: tuple[Output, ...]
    axes: dict[str, AxisInfo]
    sizes: tuple[SizeBinding, ...]
    checks: tuple[Check, ...] = ()
    doc: str | None = None
    consts: dict[str, float | int] = field(default_factory=dict)
    notes: dict[Node, Note] = field(default_factory=dict)
    source: Source | None = None
    observed: tuple[str, ...] = ()
    """Names of the outputs that are observations, returned only when asked for."""
    lines: dict[str, int] = field(default_factory=dict)
    """Where a spec says what: 1-based lines of its sections by keyword, and of its observations by name."""
    options: Options = DEFAULT
    """What the caller asks of the optimiser."""

    def tensor(self, name: str) -> Tensor:
        return next(t for t in self.tensors if t.name == name)

    def axis(self, name: str) -> AxisInfo:
        info = self.axes[name.rstrip("'")]
        return info if info.name == name else replace(info, name=name)

    def extent(self, name: str) -> Node:
        return self.axis(name).extent

    def roots(self) -> list[Node]:
        return [node for out in self.outputs for _, node in out.parts]

    def with_outputs(self, outputs: tuple[Output, ...]) -> Program:
        return replace(self, outputs=outputs)


def size_names(program: Program) -> tuple[str, ...]:
    """All runtime integers of a program in a fixed order, `q_start` last."""
    from attnc.ir.walk import postorder

    named = [s.name for s in program.sizes]
    used = {
        n.name
        for n in postorder(
            [
                *program.roots(),
                *(d for t in program.tensors for d in t.dims),
                *(a.extent for a in program.axes.values()),
            ]
        )
        if isinstance(n, Size)
    }
    return (*named, *sorted(used - set(named) - {"q_start"}), "q_start")
