"""Expressions of tile programs on PyTorch tensors.

Every value is a number or a tensor with one dimension per tile dimension, of extent 1 where it does not vary: first the
grid axes evaluated together, then the kernel's lanes in layout order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from attnc.ir import hashing_torch
from attnc.ir.dense_block import floor_log2, power_of_two
from attnc.ir.node import Add, Axes, Axis, Call, Const, Iverson, Load, Max, Node, Prod, Size, Sum, Var

Value = Any
"""A Python number or a tensor."""

_REAL: dict[str, Callable[..., Tensor]] = {
    "exp": torch.exp,
    "exp2": torch.exp2,
    "log": torch.log,
    "log2": torch.log2,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "reciprocal": torch.reciprocal,
    "reciprocal_or_zero": lambda x: torch.where(x == 0, 0.0, torch.reciprocal(x)).to(x.dtype),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": lambda x: torch.logaddexp(x, torch.zeros_like(x)),
    "erf": torch.erf,
    "sin": torch.sin,
    "cos": torch.cos,
    "sign": torch.sign,
    "finite_or_zero": lambda x: torch.where(x == -torch.inf, 0.0, x).to(x.dtype),
    "detach": lambda x: x,
    "rounded": lambda x: x,
    "pow": torch.pow,
}
_ANY: dict[str, Callable[..., Tensor]] = {
    "abs": torch.abs,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "floordiv": lambda a, b: torch.div(a, b, rounding_mode="floor"),
    "mod": torch.remainder,
    "hash": hashing_torch.mixed,
    "bitand": torch.bitwise_and,
    "bitor": torch.bitwise_or,
    "bitxor": torch.bitwise_xor,
    "floor_log2": floor_log2,
    "power_of_two": power_of_two,
    "lt": torch.lt,
    "le": torch.le,
    "eq": torch.eq,
}
_LOGIC: dict[str, Callable[..., Tensor]] = {
    "and": lambda *xs: reduce(torch.logical_and, xs),
    "or": lambda *xs: reduce(torch.logical_or, xs),
    "not": torch.logical_not,
}


class Scope:
    """Where tile expressions are evaluated: one group of grid points, one block of the outer and of the inner axis.

    Attributes:
        dims: the axis of every tile dimension.
        ranges: the positions each tile dimension covers now; a scalar axis is not in it but in `scalars`.
        scalars: axes fixed to one position, and the predefined integers.
        variables: values assigned so far.
        counts: how many lanes of the outer axis are inside its extent.
    """

    def __init__(
        self,
        dims: Sequence[str],
        tensors: Mapping[str, Tensor],
        sizes: Mapping[str, int],
        real: torch.dtype,
        device: torch.device,
    ) -> None:
        self.dims = tuple(dims)
        self.tensors = tensors
        self.sizes = sizes
        self.real = real
        self.device = device
        self.ranges: dict[str, range] = {}
        self.scalars: dict[str, int] = {}
        self.variables: dict[str, Value] = {}
        self.counts: dict[str, int] = {}

    # ------------------------------------------------------------------------------------------------ expressions

    def value(self, node: Node) -> Value:
        """The value of a tile expression."""
        match node:
            case Const():
                return node.value
            case Size():
                return self.sizes[node.name]
            case Axis():
                return self.positions(node.name)
            case Var():
                return self.variables[node.name] if node.name in self.variables else self.scalars[node.name]
            case Load():
                return self.load(node)
            case Iverson():
                return self.tensor(self.value(node.condition)).to(self.real)
            case Add():
                return reduce(torch.add, [self.typed(t, node.kind) for t in node.terms])
            case Prod():
                return self._product(node)
            case Call():
                return self._call(node)
            case Sum():
                return self._sum(node)
            case Max():
                (axis,) = node.bound
                return self.spread(self.value(node.body), node.body.axes).amax(self.dims.index(axis), keepdim=True)
            case _:
                raise TypeError(type(node).__name__)

    def positions(self, axis: str) -> Value:
        """The positions an axis has here: a number, or a tensor along its dimension."""
        if axis in self.scalars:
            return self.scalars[axis]
        r = self.ranges[axis]
        shape = [1] * len(self.dims)
        shape[self.dims.index(axis)] = len(r)
        return torch.arange(r.start, r.stop, device=self.device).view(shape)

    def varies(self, axis: str) -> bool:
        """Whether a tile dimension runs over this axis here; inside an `Each` over it, it does not."""
        return axis in self.ranges and axis not in self.scalars

    def tensor(self, value: Value) -> Tensor:
        """A number as a tensor."""
        if isinstance(value, Tensor):
            return value
        dtype = torch.bool if isinstance(value, bool) else torch.int64 if isinstance(value, int) else self.real
        return torch.tensor(value, dtype=dtype, device=self.device)

    def typed(self, node: Node, kind: str) -> Tensor:
        """The value of `node`, as a real where `kind` is real."""
        value = self.tensor(self.value(node))
        return value.to(self.real) if kind == "f" else value

    def integer(self, node: Node) -> int:
        """The value of an expression that is the same everywhere."""
        return int(self.value(node))

    def spread(self, value: Value, axes: Axes) -> Tensor:
        """The value with its full extent along those of `axes` that are tile dimensions."""
        t = self.tensor(value)
        shape = [len(self.ranges[a]) if a in axes and self.varies(a) else -1 for a in self.dims]
        if t.dim() == 0:
            t = t.view([1] * len(self.dims))
        return t.expand([s if s >= 0 else t.shape[k] for k, s in enumerate(shape)])

    def _product(self, node: Prod) -> Tensor:
        brackets = [f for f in node.factors if isinstance(f, Iverson)]
        others = [self.typed(f, node.kind) for f in node.factors if not isinstance(f, Iverson)]
        product = reduce(torch.mul, others) if others else self.tensor(1.0 if node.kind == "f" else 1)
        if not brackets:
            return product
        keep = _LOGIC["and"](*[self.tensor(self.value(b.condition)) for b in brackets])
        return torch.where(keep, product, torch.zeros((), dtype=product.dtype, device=self.device))

    def _call(self, node: Call) -> Tensor:
        name, args = node.fn, node.args
        if name in _REAL:
            return _REAL[name](*[self.typed(a, "f") for a in args])
        if name in _LOGIC:
            return _LOGIC[name](*[self.tensor(self.value(a)) for a in args])
        if name == "where":
            c, a, b = args
            return torch.where(self.tensor(self.value(c)), self.typed(a, node.kind), self.typed(b, node.kind))
        if name == "unit":
            return hashing_torch.unit(self.typed(args[0], "i"), self.real)
        if name == "floor":
            return torch.floor(self.typed(args[0], "f")).to(torch.int64)
        kind = "f" if any(a.kind == "f" for a in args) else "i"
        return _ANY[name](*[self.typed(a, kind) for a in args])

    def _sum(self, node: Sum) -> Tensor:
        (axis,) = node.bound
        at = self.dims.index(axis)
        factors = [self.spread(self.typed(f, node.kind), f.axes) for f in node.factors]
        if axis in self.counts:
            factors = [f.narrow(at, 0, self.counts[axis]) if f.shape[at] > self.counts[axis] else f for f in factors]
        if len(factors) == 1:
            return factors[0].sum(at, keepdim=True)
        a, b = factors
        letters = [chr(ord("a") + k) for k in range(len(self.dims))]
        inside = "".join(letters)
        outside = inside.replace(letters[at], "")
        return torch.einsum(f"{inside},{inside}->{outside}", a, b).unsqueeze(at)

    # ------------------------------------------------------------------------------------------------ tensors

    def load(self, node: Load) -> Tensor:
        """Elements of a tensor; 0 outside it."""
        source = self.tensors[node.tensor]
        index = [self.tensor(self.value(x)) for x in node.index]
        inside, clamped = self.bounded(index, source.shape)
        found = source[tuple(clamped)] if clamped else source
        if found.is_floating_point():
            found = found.to(self.real)
        elif found.dtype is not torch.bool:
            found = found.to(torch.int64)
        return (
            found
            if inside is None
            else torch.where(inside, found, torch.zeros((), dtype=found.dtype, device=self.device))
        )

    def bounded(self, index: Sequence[Tensor], shape: Sequence[int]) -> tuple[Tensor | None, list[Tensor]]:
        """Which positions lie inside a tensor (None: all), and subscripts that are safe everywhere."""
        inside: Tensor | None = None
        safe = []
        for x, extent in zip(index, shape, strict=True):
            good = (x >= 0) & (x < extent)
            if not bool(good.all()):
                inside = good if inside is None else inside & good
                x = x.clamp(0, extent - 1)
            safe.append(x)
        return inside, safe

    def place(self, node_index: Sequence[Node], value: Value, axes: Axes, tensor: Tensor) -> tuple[Tensor, ...]:
        """Subscripts and values of a write, of one shape: one entry for each lane of `axes`, outside lanes left out."""
        index = [self.tensor(self.value(x)) for x in node_index]
        shape = [len(self.ranges[a]) if a in axes and self.varies(a) else 1 for a in self.dims]
        value = self.tensor(value)
        full = torch.broadcast_shapes(shape, value.shape, *(x.shape for x in index))
        return (value.to(tensor.dtype).expand(full), *(x.expand(full) for x in index))
