"""Evaluates IR nodes as torch tensors over one block of every axis.

The value of a node is a tensor with one dimension per free axis of the node, in canonical order. Values outside the
domain of a reduction may be inf or NaN; they never reach a value inside it, nor a gradient (`attnc.ir.zero_dominant`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor

from attnc.ir import hashing_torch
from attnc.ir import zero_dominant as zd
from attnc.ir.construct import free_axes
from attnc.ir.contraction import Dims, Operand, Order, aligned, collect, contract, scatter_axes, split
from attnc.ir.functions import is_block
from attnc.ir.node import Add, Axes, Axis, Call, Const, Iverson, Kind, Load, Max, Node, Prod, Size, Sum, Var

_PRIVATE = "\0"
"""Marks the axis of a scattered sum while an axis of the same name may still be bound inside it; it sorts last."""


class Block:
    """Evaluation over one range of every axis.

    Args:
        ranges: gives the positions of an axis (of any number of primes) in this block.
        order: canonical order of the axes, as `axis_order` makes it.
        tensors: inputs by name.
        sizes: runtime integers; ``q_start`` is 0 unless given.
        dtype: of every real value.
        given: values of nodes known already, dimensions in canonical order.
        targets: gives the positions collected along the new axis of a scattered sum, by default those of the block.
        located: maxima whose places in the block are kept, in `places`, as indices over the bound axes by name.
    """

    def __init__(
        self,
        ranges: Callable[[str], range],
        order: Order,
        tensors: Mapping[str, Tensor],
        sizes: Mapping[str, int],
        dtype: torch.dtype,
        given: Mapping[Node, Tensor] | None = None,
        targets: Callable[[str], range] | None = None,
        located: Iterable[Node] = (),
    ) -> None:
        self.located = frozenset(located)
        self.places: dict[Node, Tensor] = {}
        self.ranges = ranges
        self.targets = targets or ranges
        self.order = order
        self.tensors = tensors
        self.sizes = sizes
        self.dtype = dtype
        self.values: dict[Node, Tensor] = dict(given or {})
        self.device = next(iter(tensors.values())).device if tensors else torch.device("cpu")

    # ------------------------------------------------------------------------------------------------- traversal

    def run(self, roots: Sequence[Node]) -> list[Tensor]:
        """Values of `roots`, every one over its own free axes. Intermediate values are dropped after their last use."""
        nodes, uses = self._needed(roots)
        for node in nodes:
            self.values[node] = self.compute(node)
            for child in _operands_of(node):
                uses[child] -= 1
                if not uses[child]:
                    del self.values[child]
        return [self.values[r] for r in roots]

    def _needed(self, roots: Sequence[Node]) -> tuple[list[Node], Counter[Node]]:
        nodes: list[Node] = []
        uses: Counter[Node] = Counter(roots)
        done: set[Node] = set(self.values)
        stack: list[tuple[Node, bool]] = [(r, False) for r in reversed(roots)]
        while stack:
            node, ready = stack.pop()
            if ready and node not in done:
                done.add(node)
                nodes.append(node)
                uses.update(_operands_of(node))
            elif not ready and node not in done:
                stack.append((node, True))
                stack.extend((c, False) for c in _operands_of(node))
        return nodes, uses

    def compute(self, node: Node) -> Tensor:
        match node:
            case Const():
                return torch.tensor(node.value, dtype=self._dtype(node.kind), device=self.device)
            case Size():
                value = self.sizes.get(node.name, 0) if node.name == "q_start" else self.sizes[node.name]
                return torch.tensor(value, dtype=torch.int64, device=self.device)
            case Axis():
                r = self.ranges(node.name)
                return torch.arange(r.start, r.stop, device=self.device)
            case Var():
                return self._tensor(node.name, node.kind)
            case Load():
                return self._load(node)
            case Call():
                return self._call(node)
            case Iverson():
                return self.values[node.condition].to(self.dtype)
            case Add():
                return self._add(node)
            case Prod():
                return self._product(node)
            case Sum():
                return self._sum(node)
            case Max():
                return self._max(node)
            case _:
                raise TypeError(type(node).__name__)

    # --------------------------------------------------------------------------------------------------- helpers

    def _dtype(self, kind: Kind) -> torch.dtype:
        return {"f": self.dtype, "i": torch.int64, "b": torch.bool}[kind]

    def _tensor(self, name: str, kind: Kind) -> Tensor:
        return self.tensors[name].to(self._dtype(kind))

    def _extent(self, name: str) -> int:
        return len(self.ranges(name))

    def _operand(self, node: Node, kind: Kind | None = None) -> Operand:
        value = self.values[node]
        return (value if kind is None else value.to(self._dtype(kind))), self.order(node.axes)

    def _over(self, node: Node, axes: Axes | Dims, kind: Kind | None = None) -> Tensor:
        """The value of `node` with one dimension per axis of `axes`, extent 1 where it does not vary."""
        value, dims = self._operand(node, kind)
        return aligned(value, dims, self.order(axes))

    def _full(self, value: Tensor, axes: Axes) -> Tensor:
        return value.expand([self._extent(a) for a in self.order(axes)])

    # ------------------------------------------------------------------------------------------------- pointwise

    def _add(self, node: Add) -> Tensor:
        return reduce(torch.add, [self._over(t, node.axes, node.kind) for t in _score_first(node)])

    def _product(self, node: Prod) -> Tensor:
        factors, conditions = split(node.factors)
        factors.sort(key=lambda f: len(f.axes))
        values = [self._over(f, node.axes, node.kind) for f in factors]
        result = reduce(zd.multiply, values) if values else self._unit(node.kind)
        if conditions:
            keep = self._all(conditions, node.axes)
            result = torch.where(keep, result, torch.zeros((), dtype=result.dtype, device=self.device))
        return self._full(result, node.axes)

    def _all(self, conditions: Iterable[Node], axes: Axes | Dims) -> Tensor:
        values = [self._over(c, axes) for c in sorted(conditions, key=lambda c: len(c.axes))]
        return reduce(torch.logical_and, values)

    def _call(self, node: Call) -> Tensor:
        name = node.fn
        kind: Kind | None = "f" if node.kind == "f" else None
        if name == "where":
            c, a, b = (self._over(x, node.axes) for x in node.args)
            dtype = self._dtype(node.kind)
            return self._full(torch.where(c, a.to(dtype), b.to(dtype)), node.axes)
        if name == "pow":
            x, y = node.args
            return zd.power(self._over(x, node.axes, "f"), self._over(y, node.axes, None if y.kind == "i" else "f"))
        if name == "unit":
            return hashing_torch.unit(self._over(node.args[0], node.axes), self.dtype)
        if is_block(node):
            return self._in_blocks(node)
        args = [self._over(x, node.axes, kind) for x in node.args]
        match name:
            case "and" | "or":
                return reduce(torch.logical_and if name == "and" else torch.logical_or, args)
            case "not":
                return ~args[0]
            case "lt" | "le" | "eq":
                return _COMPARE[name](args[0], args[1])
            case "maximum" | "minimum":
                return (torch.maximum if name == "maximum" else torch.minimum)(args[0], args[1])
            case "floor":
                return torch.floor(args[0].detach()).to(torch.int64)
            case "hash":
                return hashing_torch.mixed(args[0], args[1])
            case "bitand" | "bitor" | "bitxor":
                return _BITWISE[name](*(a.to(torch.int64) for a in args))
            case "floor_log2":
                return floor_log2(args[0].to(torch.int64))
            case "power_of_two":
                return power_of_two(args[0].to(torch.int64))
            case "floordiv" | "mod":
                return _integer_division(name, args[0], args[1])
            case "abs" if node.kind == "i":
                return args[0].abs()
            case "detach" | "sign" | "finite_or_zero":
                return zd.unary(name, args[0])
            case _:
                return zd.unary(name, args[0].to(self.dtype))

    def _in_blocks(self, node: Call) -> Tensor:
        """A reduction over each block of an axis, at every position of the block."""
        body, place, length = node.args
        assert isinstance(place, Axis) and isinstance(length, Const)
        positions, n = self.ranges(place.name), int(length.value)
        assert positions.start % n == 0, "blocks of the evaluation cut blocks of the spec"
        largest = node.fn == "block_max"
        value = self._full(self._over(body, node.axes, "f"), node.axes)
        value = value.movedim(self.order(node.axes).index(place.name), -1)
        short = -len(positions) % n
        value = torch.nn.functional.pad(value, (0, short), value=-math.inf if largest else 0.0)
        blocks = value.reshape(*value.shape[:-1], -1, n)
        whole = blocks.amax(-1, keepdim=True) if largest else blocks.sum(-1, keepdim=True)
        spread = whole.expand(blocks.shape).flatten(-2)[..., : len(positions)]
        return spread.movedim(-1, self.order(node.axes).index(place.name))

    # ----------------------------------------------------------------------------------------------------- loads

    def _load(self, node: Load) -> Tensor:
        """A gather. Dimensions indexed by one axis each are narrowed or selected; the others are gathered together."""
        source = self._tensor(node.tensor, node.kind)
        extents = source.shape
        wide = [p for p in range(source.dim()) if extents[p] != 1]
        separate: list[tuple[int, str]] = []
        joint: list[int] = []
        for p in wide:
            a = self.only_axis(node, p, extents)
            if a is None:
                joint.append(p)
            else:
                source = self._select(source, p, node.index[p], a)
                separate.append((p, a))
        flat = source.permute([p for p, _ in separate] + joint + [p for p in range(source.dim()) if p not in wide])
        shape = [source.shape[p] for p, _ in separate]
        if not joint:
            dims: Dims = tuple(a for _, a in separate)
            result = flat.reshape(shape)
        else:
            lengths = [source.shape[p] for p in joint]
            result, dims = self._gather(flat.reshape([*shape, -1]), lengths, [node.index[p] for p in joint])
            dims = (*(a for _, a in separate), *dims)
        ordered = self.order(dims)
        result = result.permute([dims.index(a) for a in ordered])
        return self._full(aligned(result, ordered, self.order(node.axes)), node.axes)

    def only_axis(self, node: Load, dim: int, shape: Sequence[int]) -> str | None:
        """The axis that alone indexes dimension `dim` and no other; None without one, or where `dim` broadcasts."""
        axes = node.index[dim].axes
        if shape[dim] == 1 or len(axes) != 1:
            return None
        others = free_axes(x for p, x in enumerate(node.index) if p != dim and shape[p] != 1)
        return None if axes & others else next(iter(axes))

    def narrowed(self, index: Node, name: str, extent: int) -> range | None:
        """The positions read where an index is a plain axis, None where it is an expression."""
        r = self.ranges(name)
        return r if isinstance(index, Axis) and r.stop <= extent else None

    def _select(self, source: Tensor, dim: int, index: Node, name: str) -> Tensor:
        r = self.narrowed(index, name, source.shape[dim])
        if r is None:
            return source.index_select(dim, self.values[index].clamp(0, source.shape[dim] - 1))
        return source if len(r) == source.shape[dim] else source.narrow(dim, r.start, len(r))

    def _gather(self, source: Tensor, extents: Sequence[int], index: Sequence[Node]) -> Operand:
        axes = self.order(free_axes(index))
        linear = torch.zeros((), dtype=torch.int64, device=self.device)
        for extent, x in zip(extents, index, strict=True):
            linear = linear * extent + self._over(x, axes, "i").clamp(0, extent - 1)
        shape = source.shape[:-1]
        rows = source.reshape(-1, source.shape[-1])
        taken = rows.gather(1, linear.reshape(1, -1).expand(rows.shape[0], -1))
        return taken.reshape([*shape, *linear.shape]), axes

    # ------------------------------------------------------------------------------------------------ reductions

    def _max(self, node: Max) -> Tensor:
        """The maximum. Its gradient goes to the first position that attains it, the axes it binds taken by name."""
        inside = self.order(node.body.axes | free_axes(node.domain) | node.bound)
        body = self._over(node.body, inside)
        floor = -math.inf if node.kind == "f" else torch.iinfo(torch.int64).min
        if node.domain:
            body = torch.where(
                self._all(node.domain, inside), body, torch.tensor(floor, dtype=body.dtype, device=self.device)
            )
        body = self._full(body, frozenset(inside))
        over = [k for k, a in enumerate(inside) if a in node.bound]
        if any(body.shape[k] == 0 for k in over):
            return body.new_full([n for k, n in enumerate(body.shape) if k not in over], floor)
        if not body.requires_grad and node not in self.located:
            return body.amax(over)
        kept = [k for k in range(len(inside)) if k not in over]
        flat = body.permute([*kept, *(inside.index(a) for a in sorted(node.bound))])
        found = flat.reshape([*(body.shape[k] for k in kept), -1]).max(-1)  # indices are those of the first of equals
        if node in self.located:
            self.places[node] = found.indices
        return found.values

    def _sum(self, node: Sum) -> Tensor:
        factors, conditions = split(node.factors)
        conditions += node.domain
        if node.scatter:
            value = self._scattered_sum(node, factors, conditions)
        else:
            operands = self._operands(factors, node.kind)
            result = contract(operands, [self._operand(c) for c in conditions], node.axes, self.order)
            value = self._full(aligned(*result, self.order(node.axes)), node.axes)
        unused = node.bound - free_axes(node.children)
        return value * math.prod(map(self._extent, unused)) if unused else value

    def _scattered_sum(self, node: Sum, factors: list[Node], conditions: list[Node]) -> Tensor:
        """Collect, along a few axes, the factors that vary there; then contract with the other factors."""
        along, _ = scatter_axes(node, self._extent)
        names = tuple(a for a, _ in node.scatter)
        private = tuple(_PRIVATE + a for a in names)
        outer = node.axes - set(names)
        near = [f for f in factors if f.axes & along]
        far = [f for f in factors if not f.axes & along]
        near_conditions = [self._operand(c) for c in conditions if c.axes & along]
        far_conditions = [c for c in conditions if not c.axes & along]
        keep = outer | free_axes([*far, *far_conditions, *(n for _, n in node.scatter)])
        local = contract(self._operands(near, node.kind), near_conditions, keep, self.order)
        indices = [self._operand(n, "i") for _, n in node.scatter]
        collected = collect(local, indices, [self.targets(a) for a in names], along, private, self.order)
        operands = [collected, *(self._operand(f, node.kind) for f in far)]
        value, dims = contract(operands, [self._operand(c) for c in far_conditions], outer.union(private), self.order)
        public = [a.removeprefix(_PRIVATE) for a in dims]
        ordered = self.order(public)
        value = value.permute([public.index(a) for a in ordered])
        value = aligned(value, ordered, self.order(node.axes))
        return value.expand([len(self.targets(a) if a in names else self.ranges(a)) for a in self.order(node.axes)])

    def _operands(self, factors: Iterable[Node], kind: Kind) -> list[Operand]:
        return [self._operand(f, kind) for f in factors] or [(self._unit(kind), ())]

    def _unit(self, kind: Kind) -> Tensor:
        return torch.ones((), dtype=self._dtype(kind), device=self.device)


def _operands_of(node: Node) -> set[Node]:
    """What must be known to compute a node: a bracket in a product selects by its condition."""
    if isinstance(node, Prod | Sum):
        return {c.condition if isinstance(c, Iverson) else c for c in node.children}
    return set(node.children)


_BITWISE = {"bitand": torch.bitwise_and, "bitor": torch.bitwise_or, "bitxor": torch.bitwise_xor}
_COMPARE = {"lt": torch.lt, "le": torch.le, "eq": torch.eq}


def floor_log2(x: Tensor) -> Tensor:
    """The number of the highest set bit of int64 values; 0 for those below 1."""
    total = torch.zeros_like(x)
    for places in (32, 16, 8, 4, 2, 1):
        large = x >> places > 0
        x = torch.where(large, x >> places, x)
        total = total + places * large
    return total


def power_of_two(n: Tensor) -> Tensor:
    """The integer 2 ** n, with n limited to 0 to 62."""
    return torch.ones_like(n) << n.clamp(0, 62)


def _integer_division(name: str, a: Tensor, b: Tensor) -> Tensor:
    """Floor division and its remainder; a zero integer divisor outside a domain must not stop the evaluation."""
    if not b.is_floating_point():
        b = torch.where(b == 0, torch.ones_like(b), b)
    if name == "mod":
        return torch.remainder(a, b)
    return torch.div(a.detach(), b.detach(), rounding_mode="floor")


def _score_first(node: Add) -> tuple[Node, ...]:
    """The terms of a sum, those of a score before the maximum of that score: ``s - m`` rounds s as it is rounded
    inside m, as in any formula that computes s once."""
    below: list[Node] = [t for t in node.terms if isinstance(t, Prod)]
    while below:
        part = below.pop()
        if isinstance(part, Max) and isinstance(part.body, Add) and set(part.body.terms) < set(node.terms):
            return (*part.body.terms, *(t for t in node.terms if t not in part.body.terms))
        if isinstance(part, Prod) or (isinstance(part, Call) and part.fn in ("finite_or_zero", "detach")):
            below += part.children
    return node.terms
