"""Tile programs: what one kernel does to one block, shared by both printers.

A kernel runs once per grid point: every combination of its batch axes and, if it has an `outer` axis, every block of
it. Values are `Var` nodes; a value's axes are the lanes it is spread over, always in the order of `Kernel.lanes`.
Expressions are IR nodes restricted to four forms (`verify` checks it):

1. pointwise trees over Var, Axis, Size, Const, Call, Iverson, Add, Prod; besides the functions of specs there is
   `rounded`, the value itself, which printers should not fuse into a multiply-add where the target lets them;
2. one `Load` whose index is pointwise;
3. ``Sum({axis}, (Var,))`` or ``Sum({axis}, (Var, Var))`` without domain: a reduction or a matrix product;
4. ``Max({axis}, Var)`` without domain.

Lanes outside an axis's extent hold unspecified values, except that loads outside a tensor give 0. Lowering guards every
reduction over the inner axis; a sum over the outer axis takes the lanes inside its extent, which printers see to;
printers guard channel padding, if they pad.

Two loop-invariant integers are predefined for an outer axis `i`: ``Var("i_first")`` and ``Var("i_last")``, the first
and last position of the block inside the extent. ``Size("BLOCK_I")`` is the block length of axis `i` (upper-cased).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from attnc.ir.node import Add, Axis, Call, Const, Iverson, Load, Max, Node, Prod, Size, Sum, Var

LaneRole = Literal["outer", "inner", "channel"]


@dataclass(frozen=True, slots=True)
class Lane:
    """An axis of tile values. `extent` is an integer expression over sizes; channel extents are compile-time constants
    when the runtime specialises them (see `Kernel.constants`)."""

    axis: str
    role: LaneRole
    extent: Node


@dataclass(frozen=True, slots=True)
class Argument:
    """A tensor argument. Addressed by element strides, one per dimension, given at launch (stride 0 broadcasts).

    dtype: f64 f32 f16 bf16 i64 i32 i16 i8 u8 bool. mode: ``in``, ``out`` (every element written exactly once) or
    ``add`` (zeroed before launch, added to by `Scatter` or `AddTo`; each grid point of `private` axes owns its part).
    `dims` are the extents, used for bounds checks in the interpreter and for allocation. `made`: an earlier kernel
    wrote it, in the precision that this one computes in; beside operands of less, products may take it in theirs.
    `tf32`: matrix products may round its f32 to TF32, where a device multiplies that.
    """

    name: str
    dtype: str
    dims: tuple[Node, ...]
    mode: Literal["in", "out", "add"] = "in"
    made: bool = False
    tf32: bool = False


@dataclass(frozen=True, slots=True)
class Runs:
    """A table of the blocks of the inner axis that a kernel visits, made at launch for the block lengths it then has.

    Attributes:
        spans: the argument with, for every block of the outer axis, its first run and the one after its last:
            i32[*batch, blocks, 2].
        table: the argument with the runs, i32[count, 3] positions along `inner`: blocks from the first to the second
            are partly allowed, those from there to the third are all allowed. A row's runs are in order.
        count: the size symbol that holds the number of runs.
        condition: what the table is planned for, over `outer`, `inner`, `batch` axes, sizes and arguments.
        batch: axes the table's leading dimensions run over, with their extents.
        whole: whether nothing but `condition` restricts the loop; if not, no run has full blocks.
    """

    spans: str
    table: str
    count: str
    outer: str
    inner: str
    condition: Node
    batch: tuple[tuple[str, Node], ...] = ()
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Assign:
    """``target = value``; the first assignment of a name declares it, later ones (same axes) overwrite it.

    `quiet`: the value is a maximum that may pass over NaN.
    """

    target: Var
    value: Node
    note: str | None = None
    quiet: bool = False


@dataclass(frozen=True, slots=True)
class Accumulate:
    """``target = target + value``. The value is of form 1 or 3. Kept apart so that a matrix product can accumulate in
    place."""

    target: Var
    value: Node
    note: str | None = None


@dataclass(frozen=True, slots=True)
class AccumulateAt:
    """``target[..., axis = current] += value`` inside ``Each(axis)``; target has the channel axis, value has not."""

    target: Var
    axis: str
    value: Node
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Loop:
    """``for start in range(start, stop, BLOCK)`` over blocks of the inner axis; its lanes are then start ..
    start+BLOCK-1.

    `masked` tells whether the body guards its reductions (partial blocks) or not (blocks known to be full), `joint`
    whether several blocks may be taken as one: nothing in the body depends on where blocks begin.
    """

    axis: str
    start: Node
    stop: Node
    masked: bool
    body: tuple[Stmt, ...]
    note: str | None = None
    joint: bool = False


@dataclass(frozen=True, slots=True)
class Each:
    """A loop over single positions of a channel or batch axis; inside, the axis is a scalar."""

    axis: str
    start: Node
    stop: Node
    body: tuple[Stmt, ...]
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Store:
    """``tensor[index] = value`` for all lanes inside their extents. Index entries are pointwise."""

    tensor: str
    index: tuple[Node, ...]
    value: Node
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Scatter:
    """``tensor[index] += value`` for lanes inside their extents where `condition` holds (None: everywhere)."""

    tensor: str
    index: tuple[Node, ...]
    value: Node
    condition: Node | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class AddTo:
    """``tensor[index] += value`` for all lanes inside their extents, as whole tiles: each lane has an element of its
    own.

    Only blocks of the outer axis of one grid point may have elements in common; those run in order (`Kernel.serial`).
    """

    tensor: str
    index: tuple[Node, ...]
    value: Var
    note: str | None = None


Stmt = Assign | Accumulate | AccumulateAt | Loop | Each | Store | Scatter | AddTo


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel.

    Attributes:
        name: a C identifier.
        doc: what it computes, printed as a comment (may have several lines).
        arguments: tensors, in launch order.
        sizes: runtime integers, in launch order.
        grid: batch axes; one program per combination.
        grid_extents: extent of each grid axis, over sizes.
        outer: the blocked axis, or None.
        lanes: every axis tile values may have, in layout order: outer, inner, then channels.
        blocks: block length per outer/inner axis (defaults; printers may take others).
        body: statements.
        real: ``f32`` or ``f64``, the type of reals.
        constants: sizes fixed at compile time (channel extents).
        serial: axes of the grid, or the outer one, whose positions must run one after another because they share an
            ``add`` argument.
        shares: a grid axis that shares out the blocks of the outer axis: of its n positions, the k-th has the k-th
            block and every n-th after it.
        runs: the table its loop follows, if it does not compute its bounds itself.
        narrow: whether positions of the outer axis are too few to fill vectors.
        exact: whether `Scatter` adds so that the order of additions does not matter.
        longest: blocks may have no other lengths than this and what divides it; None where any will do.
        fixed: axes whose blocks have this length and no other, because the body reduces over whole blocks.
    """

    name: str
    doc: str
    arguments: tuple[Argument, ...]
    sizes: tuple[str, ...]
    grid: tuple[str, ...]
    grid_extents: tuple[Node, ...]
    outer: str | None
    lanes: tuple[Lane, ...]
    blocks: dict[str, int]
    body: tuple[Stmt, ...]
    real: str = "f32"
    constants: dict[str, int] = field(default_factory=dict)
    serial: tuple[str, ...] = ()
    runs: Runs | None = None
    longest: int | None = None
    fixed: dict[str, int] = field(default_factory=dict)
    exact: bool = False
    shares: str | None = None
    narrow: bool = False

    def argument(self, name: str) -> Argument:
        return next(a for a in self.arguments if a.name == name)

    def lane(self, axis: str) -> Lane:
        return next(x for x in self.lanes if x.axis == axis)

    def layout(self, axes: frozenset[str]) -> tuple[str, ...]:
        """The lanes of a value in layout order; grid axes and axes of an enclosing `Each` are scalars, not lanes."""
        return tuple(x.axis for x in self.lanes if x.axis in axes)


def statements(body: tuple[Stmt, ...]) -> Iterator[Stmt]:
    """All statements, outside in."""
    for s in body:
        yield s
        if isinstance(s, Loop | Each):
            yield from statements(s.body)


def is_pointwise(node: Node) -> bool:
    """Form 1."""
    match node:
        case Var() | Axis() | Size() | Const():
            return True
        case Call() | Iverson() | Add() | Prod():
            return all(is_pointwise(c) for c in node.children)
        case _:
            return False


def verify(kernel: Kernel) -> None:
    """Raise `ValueError` naming the statement that breaks the rules above."""
    declared = {a.name for a in kernel.arguments}
    for s in statements(kernel.body):
        match s:
            case Assign() | Accumulate() | AccumulateAt():
                v = s.value
                good = (
                    is_pointwise(v)
                    or (isinstance(v, Load) and v.tensor in declared and all(is_pointwise(x) for x in v.index))
                    or (
                        isinstance(v, Sum)
                        and len(v.bound) == 1
                        and not v.domain
                        and not v.scatter
                        and len(v.factors) <= 2
                        and all(isinstance(f, Var) for f in v.factors)
                    )
                    or (isinstance(v, Max) and len(v.bound) == 1 and not v.domain and isinstance(v.body, Var))
                )
            case Store() | Scatter() | AddTo():
                good = s.tensor in declared and is_pointwise(s.value) and all(is_pointwise(x) for x in s.index)
                good = good and not (isinstance(s, AddTo) and kernel.outer not in kernel.serial)
            case Loop() | Each():
                good = is_pointwise(s.start) and is_pointwise(s.stop)
        if not good:
            raise ValueError(f"tile program {kernel.name}: not a legal statement: {s}")
