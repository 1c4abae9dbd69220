"""Addresses and bounds of loads, stores and scatters."""

from __future__ import annotations

from dataclasses import dataclass, field

from attnc.codegen.triton.bounds import below, never_negative
from attnc.codegen.triton.environment import Environment
from attnc.codegen.triton.text import ATOM, SUM, TERM, Text
from attnc.ir.construct import add, axis, call, const, is_const, size
from attnc.ir.node import Axis, Call, Const, Node, Var
from attnc.ir.walk import postorder, replace

OFFSET = "tl.int64"


@dataclass(frozen=True, slots=True)
class Bound:
    """A comparison with a scalar."""

    left: Text
    operator: str
    right: Text


@dataclass
class Scope:
    """A place where addresses are computed ahead: the scalar axes known there, and name and text of each address."""

    axes: frozenset[str]
    bases: dict[tuple[str, tuple[Node | None, ...]], tuple[str, str]] = field(default_factory=dict)


class Addresses:
    """Prints element addresses. The part that only depends on the grid point is computed once, at the top of the
    kernel; what an `Each` over a batch axis fixes is computed once per turn of it.

    Attributes:
        scopes: the grid point, then enclosing loops over single positions of batch axes, or the end of the kernel.
        wide: whether offsets of lanes are 64 bits wide; scalar offsets always are.
    """

    def __init__(self, env: Environment, scopes: list[Scope], wide: bool) -> None:
        self.env = env
        self.kernel = env.kernel
        self.expressions = env.expressions
        self.scopes = scopes
        self.wide = wide

    def address(self, tensor: str, index: tuple[Node, ...]) -> Text:
        """The address of ``tensor[index]``; offsets that no lane shares are 64 bits wide."""
        fixed = tuple(n if self._fixed(n) else None for n in index)
        moving = [(k, n) for k, n in enumerate(index) if fixed[k] is None]
        axes = self.expressions.layout.union([self.expressions.text(n) for _, n in moving])
        parts = [Text(self._base(tensor, fixed)), *(self._offset(tensor, k, n, axes) for k, n in moving)]
        return self.expressions.layout.infix("+", parts, SUM)

    def _offset(self, tensor: str, dim: int, node: Node, axes: tuple[str, ...] = ()) -> Text:
        text = self.expressions.text(node)
        text = self.expressions.layout.spread(text, axes) if text.axes else self._wide(text, node)
        if text.axes and self.wide:
            text = Text(f"{text.within(ATOM)}.to({OFFSET})", text.axes)
        return self.expressions.layout.infix("*", [text, Text(self.env.stride(tensor, dim))], TERM)

    def _wide(self, text: Text, node: Node) -> Text:
        if isinstance(node, Const) or node.axes & set(self.expressions.layout.order):
            return text
        tensor = any(isinstance(n, Axis | Var) for n in postorder([node]))  # sizes may be numbers of the compiler's
        plain = tensor and node.axes <= self.scopes[0].axes
        return Text(f"{text.within(ATOM)}.to({OFFSET})" if plain else f"tl.cast({text.code}, {OFFSET})")

    def _fixed(self, node: Node) -> bool:
        """Whether `node` depends on scalar axes alone."""
        return self._settled(self.env.defined(node), self.scopes[-1].axes)

    def _settled(self, node: Node, axes: frozenset[str]) -> bool:
        return node.axes <= axes and not any(isinstance(n, Var) for n in postorder([node]))

    def _base(self, tensor: str, fixed: tuple[Node | None, ...]) -> str:
        pointer = self.env.pointer(tensor)
        moving = [(k, n) for k, n in enumerate(fixed) if n is not None and not is_const(n, 0)]
        if not moving:
            return pointer
        key = (tensor, fixed)
        defined = [self.env.defined(n) for _, n in moving]
        known = next((x for x in self.scopes if key in x.bases), None)
        scope = known or self._scope(defined)
        if known is None:
            parts = [Text(pointer), *(self._offset(tensor, k, n) for k, n in moving)]
            name = self.env.names.get("base", f"{tensor} {fixed}", f"{tensor}_base")
            scope.bases[key] = (name, self.expressions.layout.infix("+", parts, SUM).code)
        return scope.bases[key][0]

    def _scope(self, index: list[Node]) -> Scope:
        """The outermost scope that knows the axes of `index`; of several such, the latest."""
        knowing = [x for x in self.scopes if all(self._settled(n, x.axes) for n in index)]
        return [x for x in knowing if x.axes == knowing[0].axes][-1]

    def inside(self, tensor: str, index: tuple[Node, ...]) -> list[Bound]:
        """Conditions under which ``tensor[index]`` exists, without those known to hold."""
        dims = self.kernel.argument(tensor).dims
        found = [c for node, dim in zip(index, dims, strict=True) for c in self._bounded(node, dim)]
        return list(dict.fromkeys(found))

    def _bounded(self, node: Node, dim: Node) -> list[Bound]:
        if isinstance(node, Axis) and self.env.within(node.name) and self._extent(node.name) in (dim, None):
            return []
        if self._chunk(self.env.defined(node), dim):
            return []
        text = self.expressions.text(node)
        numbers: dict[Node, Node] = {size(n): const(value) for n, value in self.kernel.constants.items()}
        known, limit = replace([self.env.explained(node), dim], numbers)
        if below(known, limit) and never_negative(known):
            return []
        known = self.env.explained(node)
        conditions = [] if never_negative(known) else [Bound(text, ">=", Text("0"))]
        return conditions if below(known, dim) else [*conditions, Bound(text, "<", self.expressions.text(dim))]

    def _chunk(self, node: Node, dim: Node) -> bool:
        """Whether `node` is the number of the chunk that a block begins in, and `dim` how many chunks there are."""
        if not (isinstance(node, Call) and node.fn == "floordiv"):
            return False
        first, length = node.args
        if not (isinstance(length, Const) and isinstance(first, Var) and first.name == f"{self.kernel.outer}_first"):
            return False
        extent = self._extent(self.kernel.outer or "")
        return extent is not None and dim is call("floordiv", add(extent, const(int(length.value) - 1)), length)

    def _extent(self, axis: str) -> Node | None:
        """The extent of an axis; None for a batch axis that an `Each` walks, whose positions always exist."""
        if axis in self.kernel.grid:
            return self.kernel.grid_extents[self.kernel.grid.index(axis)]
        found = [x.extent for x in self.kernel.lanes if x.axis == axis]
        return found[0] if found else None

    def lanes_inside(self, axes: tuple[str, ...]) -> list[Bound]:
        """Conditions that the lanes of `axes` lie inside their extents."""
        extents = {a: self.expressions.text(self.kernel.lane(a).extent) for a in axes if not self.env.within(a)}
        return [Bound(self.expressions.text(axis(a)), "<", extent) for a, extent in extents.items()]

    def conjunction(self, bounds: list[Bound], axes: tuple[str, ...]) -> Text | None:
        """All of `bounds`, with the rank of `axes`; None if there is nothing to check."""
        if not bounds:
            return None
        layout = self.expressions.layout
        conditions = [self.expressions.compare(b.operator, layout.spread(b.left, axes), b.right) for b in bounds]
        found = self.expressions.conjunction(conditions)
        if found.axes or not axes:
            return found
        # The interpreter would spread a scalar condition as an integer, which is no mask.
        everywhere = Text(f"tl.full({self.env.shape(axes)}, True, tl.int1)", axes)
        return layout.call("tl.where", found, everywhere, Text("False"))
