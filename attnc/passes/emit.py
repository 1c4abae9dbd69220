"""Emission of tile statements for one pass: every value is computed once, in the outermost block where it can be.

Values are those of `attnc.passes.values`; here are contractions over channels, and the reductions over the plane.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from attnc.codegen.tile import Accumulate, AccumulateAt, Assign, Each, Scatter
from attnc.ir.construct import ZERO, call, const, free_axes, iverson, max_over, raw_call, raw_prod, raw_sum, var
from attnc.ir.construct import axis as axis_node
from attnc.ir.node import Axes, Axis, Call, Const, Max, Node, Prod, Size, Sum, Var
from attnc.ir.walk import postorder
from attnc.ir.walk import replace as replace_nodes
from attnc.passes.scope import Block
from attnc.passes.values import Values


@dataclass
class Emitter(Values):
    """Emission state of one kernel."""

    others: dict[str, list[str]] = field(default_factory=dict)
    """Further names of axes, for reductions inside a loop over the axis."""

    # ------------------------------------------------------------------------------------------ contractions

    def _in_block(self, node: Call, home: Block) -> Var:
        """A reduction over the block of an axis that this tile holds; see `Kernel.fixed`."""
        body, place, _ = node.args
        assert isinstance(place, Axis)
        neutral = const(-math.inf if node.fn == "block_max" else 0.0)
        inside = call("lt", place, self.program.extent(place.name))
        value = raw_call("where", (self.value(inside), self.value(body), neutral), "f")
        lanes = self.spread(body) | {place.name}
        whole = var(self.name(body, "x", inside=self.is_inside(home)), lanes)
        home.body.append(Assign(whole, value))
        part = max_over({place.name}, whole) if node.fn == "block_max" else raw_sum({place.name}, [whole])
        target = var(self.name(node, "block", inside=self.is_inside(home)), lanes - {place.name})
        home.body.append(Assign(target, part, self.note(node)))
        home.values[node] = target
        return target

    def _contraction(self, node: Sum | Max, home: Block) -> Node:
        """A sum or maximum over one channel, or a sum over batch axes."""
        for axis in sorted(node.bound):
            if any(b.axis == axis for b in self.blocks):
                home.values[node] = self._contraction(self._renamed(node, axis), home)
                return home.values[node]
        if isinstance(node, Sum) and any(a not in self.lanes for a in node.bound):
            return self._sum_over_batch(node, home)
        (axis,) = node.bound
        if isinstance(node, Max):
            kept = call("where", call("and", *node.domain), node.body, const(-math.inf)) if node.domain else node.body
            return self.assign(node, max_over({axis}, self.variable(kept)), "largest", home)
        factors = _selected(node)
        operands = self.operands(factors, axis)
        if operands is not None:
            plane = len(operands) == 2 and all(self.spread(o) - {axis} for o in operands)
            default = ("dp" if self.from_seed(node) else "qk") if plane else "total"
            return self.assign(node, raw_sum({axis}, operands), default, home)
        total = self.assign(node, ZERO, "total", home)
        self.each(axis, home, lambda: self._add_product(total, factors))
        return total

    def _renamed(self, node: Sum | Max, name: str) -> Sum | Max:
        """A reduction over another axis like `name`, of which an enclosing loop has fixed the position."""
        info = self.program.axis(name)
        taken = {b.axis for b in self.blocks} | node.axes | free_axes(node.children) | node.bound
        known = self.others.setdefault(name, [])
        other = next((a for a in known if a not in taken), None)
        if other is None:
            other = self.name(axis_node(name), name)
            known.append(other)
            self.program = replace(self.program, axes={**self.program.axes, other: replace(info, name=other)})
            if name in self.lanes:
                self.lanes = (*self.lanes, other)
        inside = [n for n in postorder(node.children) if isinstance(n, Sum | Max) and name in n.bound]
        mapping: dict[Node, Node] = {axis_node(name): axis_node(other), **{n: n for n in inside}}
        children = tuple(replace_nodes(node.children, mapping, canonical=False))
        bound = node.bound - {name} | {other}
        if isinstance(node, Max):
            found = max_over(bound, children[0], children[1:])
            assert isinstance(found, Max)
            return found
        factors, domain = children[: len(node.factors)], children[len(node.factors) :]
        places = domain[len(node.domain) :]
        scatter = [(a, x) for (a, _), x in zip(node.scatter, places, strict=True)]
        return raw_sum(bound, factors, domain[: len(node.domain)], scatter)

    def _sum_over_batch(self, node: Sum, home: Block) -> Node:
        """A sum over the batch, or over heads, of tiles: the gradient of a bias that they share."""
        factors = _selected(node)
        total = self.assign(node, ZERO, "total", home)

        keep, self.blocks = self.blocks, self.blocks[: self.blocks.index(home) + 1]
        self._nested(sorted(node.bound), lambda: self._add_product(total, factors))
        self.blocks = keep
        return total

    def _nested(self, axes: Sequence[str], emit: Callable[[], None]) -> None:
        """Run `emit` inside a loop over single positions of every axis."""
        if axes:
            self.each(axes[0], self.blocks[-1], lambda: self._nested(axes[1:], emit))
        else:
            emit()

    def _add_product(self, total: Var, factors: Sequence[Node]) -> None:
        self.blocks[-1].body.append(Accumulate(total, self.product(factors)))

    def each(self, axis: str, home: Block, emit: Callable[[], None]) -> None:
        """Run `emit` inside a loop over single positions of `axis`, placed in `home`."""
        keep = self.blocks
        self.blocks = [*keep[: keep.index(home) + 1], Block(axis)]
        emit()
        body = tuple(self.blocks[-1].body)
        self.blocks = keep
        home.body.append(Each(axis, const(0), self.program.extent(axis), body))

    def product(self, factors: Sequence[Node]) -> Node:
        values = [self.factor(f) for f in factors]
        return values[0] if len(values) == 1 else raw_prod(values) if values else const(1.0)

    def operands(self, factors: Sequence[Node], axis: str) -> list[Var] | None:
        """Factors multiplied into one or two variables with at most one lane besides `axis`; None if they do not
        part."""
        groups: list[tuple[set[str], list[Node]]] = []
        for f in factors:
            lanes = set(self.spread(f)) - {axis}
            touching = [g for g in groups if g[0] & lanes]
            merged: list[Node] = [f]
            for g in touching:
                lanes |= g[0]
                merged = [*g[1], *merged]
                groups.remove(g)
            groups.append((lanes, merged))
        plain = [g for g in groups if not g[0]]
        spread = [g for g in groups if g[0]]
        if any(len(g[0]) > 1 for g in spread) or len(spread) > 2:
            return None
        if plain:
            extra = [f for g in plain for f in g[1]]
            if not spread:
                return [self._operand(extra, axis)]
            spread[0] = (spread[0][0], [*spread[0][1], *extra])
        return [self._operand(g[1], axis) for g in spread]

    def _operand(self, factors: list[Node], axis: str) -> Var:
        if len(factors) == 1:
            v = self.variable(factors[0])
            if axis in self.spread(v):
                return v
        node = raw_prod(factors) if len(factors) > 1 else factors[0]
        home = self.home(node)
        # No further out than where its lanes are.
        home = next((b for b in reversed(self.blocks) if b is home or b.axis == axis), home)
        lanes = self.spread(node) | {axis}
        if node in home.values and isinstance(home.values[node], Var) and home.values[node].axes >= lanes:
            found = home.values[node]
            assert isinstance(found, Var)
            return found
        target = var(self.name(node, "x", inside=self.is_inside(home)), lanes, "f")
        home.body.append(Assign(target, self.product(factors), self.note(node)))
        home.values[node] = target
        return target

    # -------------------------------------------------------------------------------------------- reductions

    def accumulate(self, node: Sum, target: Var, conditions: Sequence[Node], axis: str) -> None:
        """Add this block's part of a plane sum to its accumulator."""
        result = self.spread(target)
        by_channel = [c for c in conditions if any(self.program.axis(a).role == "channel" for a in c.axes)]
        conditions = [c for c in conditions if c not in by_channel]
        factors = [*node.factors, *(iverson(c) for c in by_channel)]
        channel = [a for a, about in self.program.axes.items() if a in result and about.role == "channel"]
        without = [f for f in factors if not (set(channel) & f.axes)]
        with_channel = [f for f in factors if set(channel) & f.axes]
        home = self.blocks[-1]
        if not channel:
            weight = self._plane_variable(self.guarded(without, conditions), axis, result)
            home.body.append(Accumulate(target, raw_sum({axis}, [weight]), self.note(node)))
            return
        c = channel[0]
        joint = any(c in condition.axes for condition in conditions)
        if len(channel) == 1 and not joint and all(not (self.spread(f) - {axis, c}) for f in with_channel):
            weight = self._plane_variable(self.guarded(without, conditions), axis, result - {c})
            other = self._seen(self._operand(with_channel, axis), with_channel, conditions, axis)
            home.body.append(Accumulate(target, raw_sum({axis}, [weight, other]), self.note(node)))
            return
        self.each(c, home, lambda: self._accumulate_channel(target, c, without, with_channel, conditions, axis))

    def _seen(self, operand: Var, factors: Sequence[Node], conditions: Sequence[Node], axis: str) -> Var:
        """The rows of a product's operand that no lane of this block may read are taken as 0: 0 times NaN is NaN.

        Beyond the end of the axis tensors read as 0, and so does the operand unless it is computed from that.
        """
        ends = [call("lt", axis_node(a), self.program.extent(a)) for a in (axis, self.inner) if a is not None]
        domain = [c for c in conditions if c not in ends]
        if not domain and not (conditions and any(_may_be_infinite(n, axis) for n in postorder(factors))):
            return operand
        block = self.blocks[-1]
        allowed = self.condition(conditions)
        across = self.spread(allowed) - {axis}
        seen: Node = allowed
        if across:
            key = raw_call("seen", (allowed, axis_node(axis)), "b")
            if key not in block.values:
                (outer,) = across
                weights = var(self.name(key, "any", inside=True), allowed.axes)
                block.body.append(Assign(weights, raw_call("where", (allowed, const(1.0), ZERO), "f")))
                some = var(self.name(key, "seen", inside=True), frozenset({axis}))
                block.body.append(Assign(some, max_over({outer}, weights)))
                block.values[key] = some
            seen = raw_call("lt", (ZERO, block.values[key]), "b")
        rows = raw_prod([operand, iverson(seen)])
        if rows not in block.values:
            target = var(self.name(rows, f"{operand.name}_seen", inside=True), operand.axes)
            block.body.append(Assign(target, rows))
            block.values[rows] = target
        found = block.values[rows]
        assert isinstance(found, Var)
        return found

    def _accumulate_channel(
        self, target: Var, c: str, without: list[Node], with_channel: list[Node], conditions: Sequence[Node], axis: str
    ) -> None:
        own = [x for x in conditions if c in x.axes]
        selected = [*without, *with_channel, *map(iverson, own)]
        plane = self.guarded(selected, [x for x in conditions if x not in own])
        block = self.blocks[-1]
        weight = self._plane_variable(plane, axis, self.spread(target) - {c})
        part = var(self.name(weight, "part", inside=True), self.spread(target) - {c})
        block.body.append(Assign(part, raw_sum({axis}, [weight])))
        block.body.append(AccumulateAt(target, c, part))

    def guarded(self, factors: Sequence[Node], conditions: Sequence[Node]) -> Node:
        """The product of `factors`, 0 where a condition fails."""
        everything = [*factors, *([iverson(self.condition(conditions))] if conditions else [])]
        if not everything:
            return const(1.0)
        return everything[0] if len(everything) == 1 else raw_prod(everything)

    def condition(self, conditions: Sequence[Node]) -> Var:
        """All conditions as one boolean variable."""
        return self.variable(call("and", *conditions), "allowed")

    def _plane_variable(self, node: Node, axis: str, result: Axes) -> Var:
        """A variable spread over the reduced axis and the lanes of the result."""
        lanes = frozenset({axis}) | result
        block = self.blocks[-1]
        found = block.values.get(node)
        if isinstance(found, Var) and found.axes == lanes:
            return found
        value = self.value(node)
        if isinstance(value, Var) and value.axes == lanes:
            return value
        target = var(self.name(node, "ds" if self.from_seed(node) else "w", inside=True), lanes)
        block.body.append(Assign(target, value, self.note(node)))
        block.values[node] = target
        return target

    def largest(
        self, node: Max, conditions: Sequence[Node], axis: str, result: Axes, *, scaled: bool = True
    ) -> tuple[Max, Node | None]:
        """This block's part of a plane maximum, as a form-4 expression, and what it still has to be multiplied by.

        If `scaled`, positive numbers are multiplied after the maximum: rounding keeps the order, so the result is the
        same, and a block has fewer maxima than values.
        """
        rest, scale = node.body, tuple[Node, ...]()
        if isinstance(rest, Prod) and scaled:
            others = [f for f in rest.factors if not _is_positive(f)]
            if len(others) == 1:
                scale = tuple(f for f in rest.factors if f is not others[0])
                rest = others[0]
        body = self.value(rest)
        if conditions:
            body = raw_call("where", (self.condition(conditions), body, const(-math.inf)), "f")
        lanes = frozenset({axis}) | result
        if not (isinstance(body, Var) and body.axes == lanes):
            target = var(self.name(node, "masked" if conditions else "x", inside=True), lanes)
            self.blocks[-1].body.append(Assign(target, body))
            body = target
        found = max_over({axis}, body)
        assert isinstance(found, Max)
        return found, self.variable(raw_prod(scale), "scale") if scale else None

    def place(self, node: Sum, buffer: str, axes: Sequence[str]) -> None:
        """Add a plane value, summed over the batch, into a buffer with table axes: where it belongs along those that it
        scatters into, and at every place of the others."""
        index_of = dict(node.scatter)
        open_axes = [a for a in axes if a not in index_of and self.program.axis(a).role == "table"]

        def emit() -> None:
            index = tuple(self.value(index_of.get(a, axis_node(a))) for a in axes)
            factors = [*node.factors, *map(iverson, node.domain)]
            self.blocks[-1].body.append(Scatter(buffer, index, self.product(factors), None, self.note(node)))

        self._nested([*sorted(node.bound), *open_axes], emit)

    def scatter(self, node: Sum, buffer: str, axes: Sequence[str], conditions: Sequence[Node]) -> None:
        """Add a plane value into a table."""
        index_of = dict(node.scatter)
        block = self.blocks[-1]
        channel = [a for a in axes if self.program.axis(a).role == "channel" and a in self.lanes]
        wide = [f for f in node.factors if set(channel) & f.axes]

        def emit() -> None:
            index = tuple(self._whole(index_of[a]) if a in index_of else axis_node(a) for a in axes)
            condition = self.condition(conditions) if conditions else None
            value = self.product(list(node.factors))
            self.blocks[-1].body.append(Scatter(buffer, index, value, condition, self.note(node)))

        if channel and wide:
            self.each(channel[0], block, emit)
        else:
            emit()


def _may_be_infinite(node: Node, axis: str) -> bool:
    """Whether a function of what varies along an axis has no finite value at 0."""
    return isinstance(node, Call) and node.fn in ("reciprocal", "rsqrt", "log", "log2", "pow") and axis in node.axes


def _is_positive(node: Node) -> bool:
    """Whether a node is a positive, finite number, the same everywhere."""
    match node:
        case Const():
            return 0 < node.value < math.inf
        case Size():
            return True
        case Call(fn="sqrt" | "rsqrt" | "reciprocal", args=args):
            return all(map(_is_positive, args))
        case Prod():
            return all(map(_is_positive, node.factors))
        case _:
            return False


def _selected(node: Sum) -> list[Node]:
    """The factors of a sum, with brackets for its domain and for where it scatters: here those axes are at hand."""
    places = (call("eq", axis_node(a), x) for a, x in node.scatter)
    return [*node.factors, *map(iverson, node.domain), *map(iverson, places)]
